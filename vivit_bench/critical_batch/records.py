"""Searches on disk: a folder each, with a line per trial; tables over them are made when asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivit_bench.critical_batch.search import SearchResult, StoppedBy
from vivit_bench.critical_batch.settings import Cell
from vivit_bench.measure import Outcome, Trial
from vivit_bench.store import (
    Identity,
    Journal,
    StoredRun,
    finished_runs,
    load_run,
    read_journal,
    stored_runs,
)
from vivit_bench.store.provenance import CARD

EXPERIMENT = "critical_batch"
TRIALS, STDERR = "trials.jsonl", "stderr.txt"
_SETTINGS = (
    *("problem", "quantity", "curvature", "samples", "mc_samples", "device", "engine", "data"),
    *("dtype", "memory_limit_bytes", "seed", "threads", "checkpoint"),
    *("checkpoint_file", "problem_file"),
)
PLANNED = "planned_peaks"
"""In a search's header what guides it: [[N, bytes], ...] that are expected to be needed, by the
engine's leanest plan or small trials; an empty list if nothing does."""
EXPECTED = "expected_seconds"
"""The same of the work's seconds."""
SMALL = "small_sizes"
"""The N of the small trials by which all that was found."""
PREDICTED = "predicted"
"""The same as `Prediction.to_json`, made before the first large trial; None if nothing was."""
LARGEST = "largest_batch"
"""N of the largest matrix that the engine's solver takes; absent or None if it takes any."""
JOBS = "jobs"
"""In a search's header the most searches that ran at the same time; absent where it ran alone."""
_INTERNAL = ("limit_chosen_by_user", PLANNED, EXPECTED, SMALL, LARGEST)
_FACTS = (
    *("cpu", "cores", "ram_bytes", *CARD, "host", "os", "torch", "backpack"),
    *("deepobs", "numpy", "vivit_for_pytorch", "vivit_bench", "git_commit", "python"),
)


def identity_of(cell: Cell, memory_limit_bytes: int) -> Identity:
    """What a search's trials are determined by, and under which name they are kept."""
    return Identity(
        experiment=EXPERIMENT,
        label=cell.slug,
        settings={**cell.record(), "memory_limit_bytes": memory_limit_bytes},
        environment=cell.environment(),
        owns=(TRIALS, STDERR),
        mendable=(TRIALS,),
    )


class TrialRecords:
    """The trials of a search, by batch size; new ones are on disk at once.

    Args:
        entries: What is recorded.
        journal: Where new ones go; None for a finished search.
    """

    def __init__(self, entries: Sequence[dict[str, Any]], journal: Journal | None) -> None:
        self._journal = journal
        trials = [Trial.from_json(entry) for entry in entries]
        self.trials = {(trial.n, trial.repeat): trial for trial in trials}
        """Batch size and how often it had been run -> its last record."""

    def reusable(self, n: int, timeout_seconds: float, repeat: int = 0) -> Trial | None:
        """The record of a batch size, if running it again can tell nothing new.

        An error can go away; a time-out can under a longer ``--timeout``.

        Args:
            n: Batch size.
            timeout_seconds: Present time-out.
            repeat: How often it had been run.
        """
        trial = self.trials.get((n, repeat))
        if trial is None or trial.outcome is Outcome.ERROR:
            return None
        if trial.outcome is Outcome.TIMEOUT and trial.timeout_seconds < timeout_seconds:
            return None
        return trial

    def append(self, trial: Trial) -> None:
        """Record a trial; it is on disk when this returns.

        Raises:
            StorageError: It is not.
        """
        assert self._journal is not None
        self._journal.append(trial.to_json())
        self.trials[trial.n, trial.repeat] = trial


def finished_records(stored: StoredRun) -> TrialRecords:
    """The trials of a finished search."""
    entries, _ = read_journal(stored.folder / TRIALS)
    return TrialRecords(entries, None)


@dataclass(frozen=True)
class SearchTrials:
    """What a finished search ran, and what was expected of it."""

    trials: list[Trial]
    """The last record of each N and repeat, N ascending."""
    planned: list[tuple[int, int]]
    """(N, bytes), see `PLANNED`."""
    expected: list[tuple[int, float]]
    """(N, seconds), see `EXPECTED`."""
    small: list[int]
    """Batch sizes of the small trials, see `SMALL`."""


def trials_of(results_dir: Path, run: str) -> SearchTrials:
    """The trials of a finished search.

    Args:
        results_dir: Folder of all results.
        run: Name of its folder.

    Raises:
        VivitBenchError: It is gone or damaged.
    """
    stored = load_run(results_dir / EXPERIMENT / run, EXPERIMENT)
    found = finished_records(stored).trials
    planned, expected = (stored.results.get(name) or [] for name in (PLANNED, EXPECTED))
    return SearchTrials(
        [found[key] for key in sorted(found)],
        [(n, need) for n, need in planned],
        [(n, seconds) for n, seconds in expected],
        stored.results.get(SMALL) or [],
    )


def facts_of(
    result: SearchResult, *, max_batch: int, trial_timeout: float, small_sizes: Sequence[int] = ()
) -> dict[str, Any]:
    """What a finished search's header says.

    ``peak_bytes`` (over the idle process), ``idle_bytes``, ``work_seconds`` and ``confirmed``
    (whether these seconds are of all threads on one CPU) are those of the critical batch size, and
    None if that is 0; ``reserved_peak_bytes`` is there on CUDA devices only.
    ``elapsed_seconds`` adds up the trials, whenever they were run; ``ended_at`` is the end of the
    last one. Small trials, all of whose threads are on one CPU too, are ``small_sizes``.
    """
    critical = result.critical_trial
    on_device = {}
    if critical is not None and critical.reserved_peak_bytes is not None:
        on_device = {"reserved_peak_bytes": critical.reserved_peak_bytes}
    return {
        "critical_batch_size": result.critical_batch_size,
        "is_lower_bound": result.is_lower_bound,
        "stopped_by": result.stopped_by.value,
        "message": result.message,
        "trials": len(result.trials),
        "peak_bytes": critical.peak_bytes if critical else None,
        "idle_bytes": critical.idle_bytes if critical else None,
        **_time_facts(critical, small_sizes),
        **on_device,
        "elapsed_seconds": round(sum(trial.elapsed_seconds for trial in result.trials), 1),
        "repeats": result.repeats,
        "max_batch": max_batch,
        "trial_timeout_seconds": trial_timeout,
        "ended_at": max(trial.ended_at for trial in result.trials),
    }


def _time_facts(critical: Trial | None, small_sizes: Sequence[int]) -> dict[str, Any]:
    if critical is None:
        return {"work_seconds": None, "confirmed": None}
    on_one_cpu = critical.confirmed or critical.n in small_sizes
    return {"work_seconds": critical.work_seconds, "confirmed": on_one_cpu}


def goes_further(stored: StoredRun, max_batch: int, trial_timeout: float, repeats: int = 1) -> bool:
    """Whether a finished search can get further under these bounds than under its own."""
    facts = stored.results
    if facts["stopped_by"] == StoppedBy.MEMORY:
        return bool(repeats > facts.get("repeats", 1))
    if facts["stopped_by"] == StoppedBy.MAX_BATCH:
        return bool(max_batch > facts["max_batch"])
    return bool(
        facts["stopped_by"] == StoppedBy.TIMEOUT and trial_timeout > facts["trial_timeout_seconds"]
    )


def remembered_limit(results_dir: Path, cells: Sequence[Cell]) -> int | None:
    """The memory limit that the newest search of one of these cells chose for itself.

    Returns:
        Bytes; None if no search of these cells chose one.
    """
    wanted = [cell.record() for cell in cells]
    runs, _ = stored_runs(results_dir, EXPERIMENT)
    for stored in reversed(runs):
        fields = dict(stored.settings)
        limit = fields.pop("memory_limit_bytes")
        if stored.results.get("limit_chosen_by_user") is False and fields in wanted:
            return int(limit)
    return None


def search_rows(results_dir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per finished search, the oldest first, and a line on each that is damaged.

    Returns:
        Rows: settings, results, environment, machine and libraries; flat but for `PREDICTED`.
    """
    runs, notes = finished_runs(results_dir, EXPERIMENT)
    rows = [
        {
            **{name: stored.settings.get(name) for name in _SETTINGS},
            JOBS: 1,
            **_missing_facts(stored),
            **{k: v for k, v in stored.results.items() if k not in _INTERNAL},
            **{name: stored.provenance.get(name) for name in _FACTS},
            "code": stored.environment.get("code"),
            "run": stored.folder.name,
        }
        for stored in runs
    ]
    return rows, notes


def _missing_facts(stored: StoredRun) -> dict[str, Any]:
    """What the headers of older searches do not say, and their trials do."""
    if "work_seconds" in stored.results:
        return {}
    size = stored.results["critical_batch_size"]
    return _time_facts(finished_records(stored).trials.get((size, 0)), [])
