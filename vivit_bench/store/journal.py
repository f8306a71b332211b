"""Durable records of a run under way: JSON lines, each on disk before the next begins.

Every line carries a checksum. A damaged line costs that line and a note, never its neighbours.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vivit_bench.errors import StorageError, VivitBenchError
from vivit_bench.store.files import sha256, storage_errors, sync_folder, write_all

Entry = dict[str, Any]
_CHECK_DIGITS = 16


class Journal:
    """The records of one run, open for appending; the run's lock keeps others out.

    Args:
        path: The file; made if it is not there.

    Raises:
        VivitBenchError: It is a folder or a link.
        StorageError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise VivitBenchError(f"{path} is no file; --fresh runs it again")
        with storage_errors(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o666)
            try:
                content = path.read_bytes()
                self._length = content.rfind(b"\n") + 1
                if self._length < len(content):  # cut short by a crash
                    os.ftruncate(self._file, self._length)
                sync_folder(path.parent)
            except BaseException:
                os.close(self._file)
                raise
        self.entries, self.notes = _parse(path, content[: self._length])

    def append(self, entry: Entry) -> None:
        """Add a record; it is on disk when this returns.

        Raises:
            StorageError: It is not: the disk is full, or somebody removed the file. The records
                before are intact.
        """
        line = _line(entry)
        try:
            with storage_errors(self.path):
                write_all(self._file, line)
                os.fsync(self._file)
                if os.fstat(self._file).st_nlink == 0 or not self.path.exists():
                    raise StorageError(
                        f"{self.path} was removed while the run was under way; what it measured "
                        "is lost, the same command starts anew"
                    )
        except BaseException:
            # Where even that fails, the next one to open the file cuts off what is not whole.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._length)
            raise
        self._length += len(line)
        self.entries.append(entry)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)


def read_journal(path: Path) -> tuple[list[Entry], list[str]]:
    """The whole records of a journal, and notes on damaged lines.

    Returns:
        None of either if there is no file. A last line that is being written is left out.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return [], []
    return _parse(path, content[: content.rfind(b"\n") + 1])


def _line(entry: Entry) -> bytes:
    text = json.dumps(entry)
    return f'{{"check": "{sha256(text)[:_CHECK_DIGITS]}", "entry": {text}}}\n'.encode()


def _parse(path: Path, content: bytes) -> tuple[list[Entry], list[str]]:
    entries, notes = [], []
    for number, entry in _entries(content):
        if entry is None:
            notes.append(f"{path}: line {number} is damaged and left out")
        else:
            entries.append(entry)
    return entries, notes


def _entries(content: bytes) -> Iterator[tuple[int, Entry | None]]:
    """Line numbers with their records, None for damaged ones."""
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            values = json.loads(line)
            entry = values["entry"]
            whole = isinstance(entry, dict) and _line(entry) == line + b"\n"
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        yield number, entry if whole else None
