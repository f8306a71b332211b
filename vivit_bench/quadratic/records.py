"""The noisy-quadratic experiment on disk: a repetition a line while it runs, then two tables."""

import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.quadratic.experiment import Repetition, run_repetition
from vivit_bench.quadratic.model import CURVATURE_FLOOR
from vivit_bench.quadratic.routes import CUTOFF
from vivit_bench.quadratic.settings import Settings
from vivit_bench.store import Identity, Run, StoredRun, environment, open_run

EXPERIMENT = "quadratic"
DIVERGED_ABOVE = 10.0
"""A repetition has diverged if its final loss is not finite or above this many times its first."""
LOSSES, DAMPINGS, JOURNAL = "losses.csv", "dampings.csv", "repetitions.jsonl"
_ROOMS = ("quadratic", "curvature", "precision", "trees", "errors")
_LIBRARIES = ("python", "torch", "numpy", "host", "cpu")
_REPORTS = ("figure_3.*", "losses.p*", "dampings.p*", "table.*")


@dataclass(frozen=True)
class Results:
    """A finished run."""

    settings: dict[str, Any]
    """``Settings.record()``."""
    losses: pd.DataFrame
    """Columns optimizer, repetition, step (0 is the start), loss."""
    dampings: pd.DataFrame
    """The bootstrap's choices: columns repetition, step (from 1), direction (from 1), curvature
    (the true one), damping (``inf``: no step). Trivial directions have no row."""
    seconds: float
    """Computing time of all repetitions."""
    folder: Path
    started_on: str = ""
    """Date, ISO 8601."""


def run_experiment(
    settings: Settings,
    results_dir: Path,
    *,
    name: str | None = None,
    fresh: bool = False,
    progress: Callable[[int], None] = lambda done: None,
    note: Callable[[str], None] = lambda text: None,
) -> Results:
    """Run all repetitions, or return them if they are stored; interrupted, the same call goes on.

    Args:
        settings: What to run.
        results_dir: Folder of all results.
        name: Of the run; default: an address of its own for every settings.
        fresh: Start over.
        progress: Called with the number of finished repetitions, first with those an
            interrupted run left.
        note: Told what is done with a run that is there.

    Raises:
        UsageError: The run that is there is of other settings or conditions.
        VivitBenchError: It is damaged, or another process has it.
        StorageError: Something cannot be written; what is stored is kept.
    """
    identity = Identity(
        experiment=EXPERIMENT,
        label=f"{settings.route}_n{settings.batch_size}",
        settings=settings.record(),
        environment=environment_of(),
        owns=(LOSSES, DAMPINGS, JOURNAL, *_REPORTS),
    )
    with open_run(results_dir, identity, name=name, fresh=fresh, note=note) as run:
        if not run.is_returned:
            _run(run, settings, progress, note)
        return load_results(run.stored)


def environment_of() -> dict[str, Any]:
    """What a run holds under, now and here."""
    return environment(_ROOMS, _LIBRARIES)


def _run(
    run: Run, settings: Settings, progress: Callable[[int], None], note: Callable[[str], None]
) -> None:
    journal = run.journal(JOURNAL)
    for text in journal.notes:
        note(text)
    done = {entry["index"]: entry for entry in journal.entries}
    progress(len(done))
    for index in range(settings.repeats):
        if index not in done:
            started = time.perf_counter()
            repetition = run_repetition(settings, index)
            done[index] = {**asdict(repetition), "seconds": time.perf_counter() - started}
            journal.append(done[index])
            progress(len(done))
    entries = [done[index] for index in range(settings.repeats)]
    seconds = sum(entry.pop("seconds") for entry in map(dict, entries))
    repetitions = [
        Repetition(**{name: value for name, value in entry.items() if name != "seconds"})
        for entry in entries
    ]
    losses, dampings = tables_of(settings, repetitions)
    # To 12 and 6 significant digits.
    run.write(LOSSES, losses.to_csv(index=False, float_format="%.12g"))
    run.write(DAMPINGS, dampings.to_csv(index=False, float_format="%.6g"))
    facts = {
        "seconds": round(seconds, 2),
        "diverged_above_times_initial_loss": DIVERGED_ABOVE,
        "curvature_floor": CURVATURE_FLOOR,
        "cutoff": CUTOFF,
    }
    run.finish(facts, [LOSSES, DAMPINGS])


def tables_of(
    settings: Settings, repetitions: list[Repetition]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Losses and dampings of the repetitions, in their order; see `Results`."""
    losses = [
        (label, repetition.index, step, loss)
        for label in repetitions[0].losses
        for repetition in repetitions
        for step, loss in enumerate(repetition.losses[label])
    ]
    dampings = [
        (repetition.index, step, direction, settings.curvatures[direction - 1], damping)
        for repetition in repetitions
        for step, row in enumerate(repetition.dampings, start=1)
        for direction, damping in enumerate(row, start=1)
        if not np.isnan(damping)
    ]
    return (
        pd.DataFrame(losses, columns=["optimizer", "repetition", "step", "loss"]),
        pd.DataFrame(dampings, columns=["repetition", "step", "direction", "curvature", "damping"]),
    )


def load_results(stored: StoredRun) -> Results:
    """Read a finished run.

    Raises:
        UsageError: It is not finished.
        VivitBenchError: A table is missing, edited or cut short.
    """
    if not stored.is_finished:
        raise UsageError(
            f"{stored.folder} is not finished: the same vivit-bench quadratic run goes on with it"
        )
    texts = [io.BytesIO(stored.read(name)) for name in (LOSSES, DAMPINGS)]
    try:
        return Results(
            stored.settings,
            pd.read_csv(texts[0], dtype={"loss": float}),
            pd.read_csv(texts[1], dtype={"curvature": float, "damping": float}),
            stored.results["seconds"],
            stored.folder,
            str(stored.provenance["started_at"])[:10],
        )
    except (ValueError, KeyError) as error:
        raise VivitBenchError(f"{stored.folder} holds no tables of this experiment") from error
