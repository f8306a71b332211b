"""Results of the noisy-quadratic experiment on disk, finished and under way.

Finished: ``losses.csv``, ``dampings.csv`` and, written last, ``run.json`` with the settings,
the provenance and the checksums of the two. Under way: a journal with one durable line per
repetition, named after everything that could change the numbers, so that the same command goes
on where it was interrupted and nothing else is ever mixed in.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.quadratic.experiment import Repetition
from vivit_bench.quadratic.model import CURVATURE_FLOOR
from vivit_bench.quadratic.routes import CUTOFF
from vivit_bench.quadratic.settings import Settings
from vivit_bench.store import Provenance, provenance, write_atomic

FORMAT = 1
DIVERGED_ABOVE = 10.0
"""A repetition has diverged if its final loss is not finite or above this many times its first."""
LOSSES, DAMPINGS, RUN = "losses.csv", "dampings.csv", "run.json"
_SAME = ("code", "python", "torch", "numpy", "host", "cpu")


@dataclass(frozen=True)
class Results:
    """A finished run."""

    settings: dict[str, Any]
    """``Settings.record()``."""
    losses: pd.DataFrame
    """Columns optimizer, repetition, step (0 is the start), loss."""
    dampings: pd.DataFrame
    """The bootstrap's choices: columns repetition, step (from 1), direction (from 0), curvature
    (the true one), damping (``inf``: no step). Trivial directions have no row."""
    seconds: float
    """Computing time of all repetitions."""
    provenance: Provenance


def results_from(settings: Settings, repetitions: list[Repetition], seconds: float) -> Results:
    """Tables from the repetitions, in their order."""
    losses = [
        (label, repetition.index, step, loss)
        for label in repetitions[0].losses
        for repetition in repetitions
        for step, loss in enumerate(repetition.losses[label])
    ]
    dampings = [
        (repetition.index, step, direction, settings.curvatures[direction], damping)
        for repetition in repetitions
        for step, row in enumerate(repetition.dampings, start=1)
        for direction, damping in enumerate(row)
        if not np.isnan(damping)
    ]
    return Results(
        settings.record(),
        pd.DataFrame(losses, columns=["optimizer", "repetition", "step", "loss"]),
        pd.DataFrame(dampings, columns=["repetition", "step", "direction", "curvature", "damping"]),
        seconds,
        provenance(),
    )


def save_results(results: Results, folder: Path) -> None:
    """Write the three files; losses to 12 significant digits, dampings to 6."""
    contents = {
        LOSSES: results.losses.to_csv(index=False, float_format="%.12g"),
        DAMPINGS: results.dampings.to_csv(index=False, float_format="%.6g"),
    }
    record = {
        "format": FORMAT,
        "settings": results.settings,
        "diverged_above_times_initial_loss": DIVERGED_ABOVE,
        "curvature_floor": CURVATURE_FLOOR,
        "cutoff": CUTOFF,
        "seconds": round(results.seconds, 2),
        "sha256": {name: _sha256(text.encode()) for name, text in contents.items()},
        "provenance": results.provenance,
    }
    for name, text in contents.items():
        write_atomic(folder / name, text)
    write_atomic(folder / RUN, json.dumps(record, indent=2) + "\n")


def load_results(folder: Path) -> Results:
    """Read a finished run.

    Raises:
        UsageError: If there is none.
        VivitBenchError: If the files do not belong together (a run was interrupted while it
            replaced them, or a file was edited).
    """
    record = read_run(folder)
    if record is None:
        raise UsageError(f"no finished run in {folder}: vivit-bench quadratic run makes one")
    for name, digest in record["sha256"].items():
        path = folder / name
        if not path.exists() or _sha256(path.read_bytes()) != digest:
            raise VivitBenchError(
                f"{path} is not the file that {RUN} describes: run vivit-bench quadratic run again"
            )
    return Results(
        record["settings"],
        pd.read_csv(folder / LOSSES, dtype={"loss": float}),
        pd.read_csv(folder / DAMPINGS, dtype={"curvature": float, "damping": float}),
        record["seconds"],
        record["provenance"],
    )


def read_run(folder: Path) -> dict[str, Any] | None:
    """The ``run.json`` of a finished run, None if there is none."""
    path = folder / RUN
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise VivitBenchError(f"{path} is not JSON ({error}): remove it and run again") from None
    if record.get("format") != FORMAT:
        raise VivitBenchError(f"{path} has format {record.get('format')}, not {FORMAT}: run again")
    return record


class Journal:
    """Repetitions finished so far, each durable before the next begins.

    Args:
        folder: Where results go.
        settings: They name the file, together with the code, the libraries and the machine.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        facts = provenance()
        self._stem = f"partial-{_hash_of(settings.record())}"
        environment = _hash_of({name: facts[name] for name in _SAME})
        self.path = folder / f"{self._stem}-{environment}.jsonl"

    def read(self) -> dict[int, tuple[Repetition, float]]:
        """Index -> repetition and its seconds; a last line cut off by a crash is dropped."""
        if not self.path.exists():
            return {}
        found = {}
        lines = self.path.read_bytes().split(b"\n")
        for line in lines[:-1]:
            entry = json.loads(line)
            seconds = entry.pop("seconds")
            found[entry["index"]] = (Repetition(**entry), seconds)
        if lines[-1]:
            write_atomic(self.path, b"".join(line + b"\n" for line in lines[:-1]))
        return found

    def append(self, repetition: Repetition, seconds: float) -> None:
        """Add a repetition; on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({**asdict(repetition), "seconds": seconds})
        with self.path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Forget the repetitions, and those of the same settings under other code or libraries."""
        for path in self.path.parent.glob(f"{self._stem}-*.jsonl"):
            path.unlink()


def _hash_of(record: dict[str, Any]) -> str:
    return _sha256(json.dumps(record, sort_keys=True).encode())[:8]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
