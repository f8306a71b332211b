"""A run on disk: one folder with CSV tables, ``run.json`` and, under way, ``state.pt``.

Every file is replaced atomically, and tables come before the state that counts on them: killed
at any moment, a run leaves whole tables and a state that is at most one record behind.

    >>> pandas.read_csv("results/noise/mnist_2c2d_sgd/directions.csv")
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.store import write_atomic

if TYPE_CHECKING:
    from vivit_bench.noise.measurement import Measurement

FORMAT = 1
RUN, STATE = "run.json", "state.pt"
DIRECTIONS, CHECKPOINTS, CURVES = "directions.csv", "checkpoints.csv", "curves.csv"
TABLES = (DIRECTIONS, CHECKPOINTS, CURVES)
PER_SAMPLE = "per_sample"
"""Folder of ``step_<step>.npz``: gammas [N, K] and lambdas [N_curv, K], float64."""

DERIVED = (
    *(f"{stem}.{ending}" for stem in ("directions", "training") for ending in ("png", "pdf")),
    *(f"table.{ending}" for ending in ("csv", "md", "tex")),
)
"""What figures and tables of a run are called; they go with it."""

RUNNING, FINISHED, DIVERGED = "running", "finished", "diverged"


@dataclass(frozen=True)
class NoiseRun:
    """A stored run, finished or not."""

    folder: Path
    header: dict[str, Any]
    """``run.json``: state, settings, sizes, environment, provenance, timing."""
    directions: pd.DataFrame
    """``step``, ``epoch`` and the columns of `direction_table`."""
    checkpoints: pd.DataFrame
    """``step``, ``epoch`` and the values of `Measurement.summary`."""
    curves: pd.DataFrame
    """``step``, ``epoch``, ``train_loss``, ``train_accuracy``, ``test_loss``,
    ``test_accuracy`` (shares; empty for a regression), at checkpoints and ends of epochs."""

    @property
    def settings(self) -> dict[str, Any]:
        """``Settings.record()``."""
        return dict(self.header["settings"])

    def at(self, step: int) -> pd.DataFrame:
        """Directions of one checkpoint."""
        return self.directions[self.directions["step"] == step]


def load_run(folder: Path) -> NoiseRun:
    """Read a run in whatever state it is.

    Raises:
        UsageError: There is none, or nothing has been recorded yet.
        VivitBenchError: A file is missing or not what it should be.
    """
    header = read_header(folder)
    if header is None:
        raise UsageError(f"no run in {folder}: vivit-bench noise run makes one")
    tables = {}
    for name in TABLES:
        try:
            tables[name] = pd.read_csv(folder / name)
        except FileNotFoundError:
            raise UsageError(
                f"{folder} has no {name} yet: let vivit-bench noise run get to a checkpoint"
            ) from None
        except ValueError as error:
            raise VivitBenchError(f"{folder / name} is not a table ({error}): run again") from None
    # Directions are written first: those of a checkpoint that is not there yet are left out.
    directions = tables[DIRECTIONS]
    known = directions["step"].isin(tables[CHECKPOINTS]["step"])
    return NoiseRun(folder, header, directions[known], tables[CHECKPOINTS], tables[CURVES])


def read_header(folder: Path) -> dict[str, Any] | None:
    """``run.json``, None if there is none."""
    path = folder / RUN
    try:
        header = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise VivitBenchError(f"{path} is not JSON ({error}): use --fresh to run anew") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise VivitBenchError(f"{path} is not of format {FORMAT}: use --fresh to run anew")
    return header


@contextlib.contextmanager
def open_store(folder: Path) -> Iterator["Store"]:
    """The folder of a run, for this process alone.

    Raises:
        UsageError: The folder cannot be made, or another process is writing to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write to {folder} ({error.strerror}): choose another --results-dir or --name"
        ) from error
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another run is writing to {folder}: wait for it, or choose another --name"
            ) from None
        for name in (RUN, STATE, *TABLES):
            for left_over in folder.glob(f".{name}.*"):  # by a process killed while it wrote
                left_over.unlink()
        yield Store(folder)
    finally:
        os.close(handle)


class Store:
    """Writes a run's files.

    Args:
        folder: It exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tables: dict[str, bytes] = {}

    def write_header(self, header: dict[str, Any]) -> None:
        """Replace ``run.json``."""
        content = json.dumps({"format": FORMAT, **header}, indent=2)
        write_atomic(self.folder / RUN, content + "\n")

    def clear(self) -> None:
        """Remove the files of an earlier run, its description first."""
        for name in (RUN, STATE, *TABLES, *DERIVED):
            (self.folder / name).unlink(missing_ok=True)
        for path in (self.folder / PER_SAMPLE).glob("step_*.npz"):
            path.unlink()

    def lengths(self) -> dict[str, int]:
        """Bytes of every table so far."""
        return {name: len(self._tables.get(name, b"")) for name in TABLES}

    def rewind(self, lengths: dict[str, int]) -> None:
        """Go on from tables of these lengths; what was written after them is dropped.

        Raises:
            VivitBenchError: A table is shorter: somebody changed it.
        """
        for name in TABLES:
            path = self.folder / name
            content = path.read_bytes() if path.exists() else b""
            if len(content) < lengths.get(name, 0):
                raise VivitBenchError(
                    f"{path} was shortened since the run was interrupted: start over with --fresh"
                )
            self._tables[name] = content[: lengths.get(name, 0)]

    def add_curves(self, row: dict[str, Any]) -> None:
        """Add a row to ``curves.csv``."""
        self._append(CURVES, pd.DataFrame([row]))

    def add_measurement(self, row: dict[str, Any], seen: "Measurement", per_sample: bool) -> None:
        """Add a checkpoint: per-sample values, directions, then the row that counts."""
        if per_sample:
            self._write_per_sample(row["step"], seen)
        table = seen.directions.copy()
        table.insert(0, "step", row["step"])
        table.insert(1, "epoch", row["epoch"])
        self._append(DIRECTIONS, table)
        self._append(CHECKPOINTS, pd.DataFrame([row]))

    def _append(self, name: str, rows: pd.DataFrame) -> None:
        before = self._tables.get(name, b"")
        text = rows.to_csv(index=False, header=not before, float_format="%.8g", na_rep="nan")
        self._tables[name] = before + text.encode()
        write_atomic(self.folder / name, self._tables[name])

    def _write_per_sample(self, step: int, seen: "Measurement") -> None:
        import io

        import numpy as np

        content = io.BytesIO()
        found = seen.derivatives
        np.savez_compressed(content, gammas=found.gammas.numpy(), lambdas=found.lambdas.numpy())
        write_atomic(self.folder / PER_SAMPLE / f"step_{step:08d}.npz", content.getvalue())
