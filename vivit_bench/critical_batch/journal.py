"""Durable records of a search's trials, one file per settings and environment.

A file is JSON lines: a header with everything that determines the trials, then one line a trial,
on disk before the next trial begins. A last line cut short by a power cut is dropped.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.measure import Outcome, Trial

FORMAT = "vivit-bench critical-batch trials 2"

Header = dict[str, Any]


class Journal:
    """The records of one search, open for appending."""

    def __init__(self, path: Path, file: BinaryIO, trials: dict[int, Trial]):
        self.path = path
        self._file = file
        self._trials = trials

    @property
    def trials(self) -> Mapping[int, Trial]:
        """Batch size -> its last record."""
        return self._trials

    def reusable(self, n: int, timeout_seconds: float) -> Trial | None:
        """The record of a batch size, if running it again can tell nothing new.

        An error can go away; a time-out can under a longer ``--trial-timeout``.

        Args:
            n: Batch size.
            timeout_seconds: Present time-out.
        """
        trial = self._trials.get(n)
        if trial is None or trial.outcome is Outcome.ERROR:
            return None
        if trial.outcome is Outcome.TIMEOUT and trial.timeout_seconds < timeout_seconds:
            return None
        return trial

    def append(self, trial: Trial) -> None:
        """Write a trial; it is on disk when this returns."""
        _write_line(self._file, trial.to_json())
        self._trials[trial.n] = trial


@contextlib.contextmanager
def open_journal(path: Path, header: Header, fresh: bool) -> Iterator[Journal]:
    """Open the records of a search, or begin them; nobody else can meanwhile.

    Args:
        path: The file; missing parent folders are made.
        header: What determines the trials.
        fresh: Forget what is recorded.

    Yields:
        The journal.

    Raises:
        VivitBenchError: Another process has it open, or it is damaged.
        UsageError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VivitBenchError(
                f"another process is running this search (it holds {path}); wait for it"
            ) from None
        if fresh:
            file.truncate(0)
        yield Journal(path, file, _recover(path, file, header))


def read_header(path: Path) -> Header | None:
    """Header of a file of records; None if it has none."""
    try:
        with path.open("rb") as file:
            line = file.readline()
        header = json.loads(line)
    except (OSError, ValueError):
        return None
    return header if isinstance(header, dict) and header.get("format") == FORMAT else None


def _recover(path: Path, file: BinaryIO, header: Header) -> dict[int, Trial]:
    """Read the complete lines, cut off an incomplete one, and begin the file if it is empty."""
    file.seek(0)
    content = file.read()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        file.truncate(complete)
    lines = content[:complete].splitlines()
    if not lines:
        _write_line(file, {"format": FORMAT, **header})
        _sync_folder(path.parent)
        return {}
    trials = {}
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            if number > 1:
                trial = Trial.from_json(values)
                trials[trial.n] = trial
        except (ValueError, TypeError) as error:
            raise VivitBenchError(
                f"{path}: line {number} is damaged; start over with --fresh"
            ) from error
    return trials


def _write_line(file: BinaryIO, values: dict[str, Any]) -> None:
    file.write(json.dumps(values, allow_nan=False).encode() + b"\n")
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
