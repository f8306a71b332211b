"""What a sweep would do: what is stored of each cell, and what the rest is expected to take."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from heapq import heapify, heapreplace
from pathlib import Path
from typing import Any

from vivit_bench.arguments import format_size
from vivit_bench.critical_batch.jobs import SearchJob, SweepStep
from vivit_bench.critical_batch.listener import Listener
from vivit_bench.critical_batch.predict import Prediction, predict_cell, stored_prediction
from vivit_bench.critical_batch.records import TRIALS, goes_further, identity_of
from vivit_bench.critical_batch.runner import choose_limit, has_looked_ahead
from vivit_bench.critical_batch.settings import Cell, check_bounds
from vivit_bench.curvature.available import available_memory
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.measure.budget import MIB, MemoryBudget
from vivit_bench.store import Action, as_elsewhere, foresee_run, read_journal

_LATE_MARGIN = 1.1
"""By how much a time-out that is recommended is longer than what is expected."""


class Stored(StrEnum):
    """What there is of a search."""

    NEW = "new"
    INTERRUPTED = "interrupted"
    """Or finished under bounds that are wider now."""
    FINISHED = "finished"
    REFUSED = "refused"
    """It is damaged, or was made under other conditions."""


@dataclass(frozen=True)
class PlannedSearch:
    """A search of a sweep, before it begins."""

    job: SearchJob
    stored: Stored
    facts: Mapping[str, Any]
    """Results in its header, see `facts_of`; of an unfinished one what is known before."""
    trials: int = 0
    """That are recorded."""
    spent_seconds: float = 0.0
    """That they took."""
    prediction: Prediction | None = None
    """Of what is to be run; None where it is not known."""
    reason: str = ""
    """Why it is refused, or cannot be predicted."""
    failed: SweepStep | None = None
    """How its small trials ended, if with an error."""

    @property
    def is_to_run(self) -> bool:
        """Whether there are trials to run."""
        return self.stored in (Stored.NEW, Stored.INTERRUPTED) and self.failed is None

    @property
    def is_to_begin(self) -> bool:
        """Whether its small trials, or some, are among them."""
        return self.is_to_run and not has_looked_ahead(self.facts, self.job.max_batch)

    @property
    def expected_seconds(self) -> float | None:
        """Of what is left of the search, a large trial at least; None where that is not known."""
        if not self.is_to_run:
            return 0.0
        if self.prediction is None or self.prediction.search_seconds is None:
            return None
        left = self.prediction.search_seconds - self.spent_seconds
        return max(left, self.prediction.step_seconds or 0.0)

    @property
    def longer_timeout(self) -> float | None:
        """The ``--timeout`` that large trials need, if they are expected to take longer."""
        expected = None if self.prediction is None else self.prediction.step_seconds
        if not self.is_to_run or expected is None or expected <= self.job.trial_timeout:
            return None
        step = 10.0 ** (math.floor(math.log10(_LATE_MARGIN * expected)) - 1)
        return math.ceil(_LATE_MARGIN * expected / step) * step  # two digits


@dataclass(frozen=True)
class SweepPlan:
    """The searches of a sweep, in the order in which they begin."""

    searches: Sequence[PlannedSearch]
    at_once: int = 1
    """Searches that run at the same time."""

    def predicted(self, listener: Listener) -> "SweepPlan":
        """The plan with predictions of all that is to be run, from small trials.

        Args:
            listener: Is told what happens.
        """
        searches = []
        for number, planned in enumerate(self.searches, start=1):
            if planned.is_to_run and planned.prediction is None:
                listener.note(f"[{number}/{len(self.searches)}] {planned.job.cell.label}")
                planned = _predict(planned, listener)
            searches.append(planned)
        return replace(self, searches=searches)

    @property
    def to_run(self) -> list[PlannedSearch]:
        """Those with trials to run."""
        return [planned for planned in self.searches if planned.is_to_run]


def plan_sweep(
    cells: Sequence[Cell],
    *,
    memory_limit: int | None,
    results_dir: Path,
    max_batch: int,
    trial_timeout: float,
    fresh: bool = False,
    at_once: int = 1,
    elsewhere: bool = False,
    listener: Listener | None = None,
) -> SweepPlan:
    """What a sweep would do, from what is stored; nothing is run or written.

    Args:
        cells: From `table_cells`.
        memory_limit: Bytes, of each device; None for a share of what is available now.
        results_dir: Folder of all results.
        max_batch: Largest batch size to run.
        trial_timeout: Seconds for the work of one trial.
        fresh: Forget the records.
        at_once: Most searches that may run at the same time.
        elsewhere: Whether other machines run them, one each: nothing is asked of this one.
        listener: Is told the limits.

    Returns:
        The plan.

    Raises:
        UsageError: A value that is not allowed, or so many searches at a time.
    """
    check_bounds(max_batch, trial_timeout)
    if elsewhere and memory_limit is None:
        raise UsageError(
            "--executor slurm: a share of this machine's memory says nothing of the cluster's; add "
            "--memory-limit SIZE"
        )
    devices = {cell.device: [c for c in cells if c.device == cell.device] for cell in cells}
    if at_once > 1 and not elsewhere and (others := sorted(set(devices) - {"cpu"})):
        raise UsageError(
            f"--jobs {at_once}: searches on {', '.join(others)} would share the device's memory; "
            "use --jobs 1"
        )
    limits = {
        device: choose_limit(
            those,
            memory_limit,
            results_dir=results_dir,
            fresh=fresh,
            at_once=at_once,
            listener=listener,
        )
        for device, those in devices.items()
    }
    bounds = (results_dir, max_batch, trial_timeout, fresh)
    jobs = [SearchJob(cell, limits[cell.device], *bounds, elsewhere=elsewhere) for cell in cells]
    searches = [look_up(job) for job in jobs]
    at_once = max(min(at_once, sum(planned.is_to_run for planned in searches)), 1)
    if elsewhere:
        return SweepPlan(searches, at_once)
    if at_once > 1:
        _check_memory(limits["cpu"].limit_bytes, at_once)
    together = [replace(each, job=replace(each.job, at_once=at_once)) for each in searches]
    return SweepPlan(together, at_once)


def in_order(plan: SweepPlan, steps: Sequence[SweepStep]) -> list[SweepStep]:
    """How the searches of a plan ended, in its order."""
    order = {planned.job.cell: number for number, planned in enumerate(plan.searches)}
    return sorted(steps, key=lambda step: order[step.job.cell])


def expected_seconds(searches: Sequence[float | None], at_once: int) -> tuple[float, int]:
    """Expected time of some searches, of which each begins where one ends.

    Args:
        searches: Seconds of each, in order; None where they are not known.
        at_once: How many run at a time.

    Returns:
        Seconds of those that are known, and the number of those that are not.
    """
    ends = [0.0] * at_once
    heapify(ends)
    for seconds in searches:
        heapreplace(ends, ends[0] + (seconds or 0.0))
    return max(ends), sum(seconds is None for seconds in searches)


def look_up(job: SearchJob) -> PlannedSearch:
    """What is stored of a search, also while it runs in another process."""
    identity = identity_of(job.cell, job.memory_limit.limit_bytes)
    if job.elsewhere:
        identity = as_elsewhere(job.results_dir, identity)
    try:
        action, stored = foresee_run(
            job.results_dir,
            identity,
            fresh=job.starts_over,
            more_wanted=lambda found: goes_further(found, job.max_batch, job.trial_timeout),
        )
    except VivitBenchError as error:
        return PlannedSearch(job, Stored.REFUSED, {}, reason=str(error))
    if action is Action.START or stored is None:
        return PlannedSearch(job, Stored.NEW, {})
    entries, _ = read_journal(stored.folder / TRIALS)
    told = stored_prediction(stored.results)
    is_finished = action is Action.RETURN
    return PlannedSearch(
        job,
        Stored.FINISHED if is_finished else Stored.INTERRUPTED,
        stored.results,
        trials=len(entries),
        spent_seconds=sum(float(entry.get("elapsed_seconds", 0.0)) for entry in entries),
        prediction=told if is_finished or (told and told.holds_for(job.max_batch)) else None,
    )


def _predict(planned: PlannedSearch, listener: Listener) -> PlannedSearch:
    job = planned.job
    try:
        (prediction,) = predict_cell(
            job.cell,
            [job.memory_limit.limit_bytes],
            max_batch=job.max_batch,
            trial_timeout=job.trial_timeout,
            listener=listener,
        )
    except VivitBenchError as error:
        return replace(planned, reason=str(error))
    return replace(planned, prediction=prediction)


def _check_memory(limit_bytes: int, at_once: int) -> None:
    """Refuse more searches at a time than there is memory for.

    Raises:
        UsageError: With what there is.
    """
    each, available = MemoryBudget(limit_bytes).watchdog_bytes, available_memory()
    if at_once * each <= available:
        return
    ways = [f"--jobs {max(available // each, 1)}"]
    share = available // at_once
    smaller = min(share - 64 * MIB, int(share / 1.1)) // (64 * MIB)
    if smaller > 0:
        ways.append(f"--memory-limit {smaller * 64}MiB")
    raise UsageError(
        f"--jobs {at_once}: as many trials under {format_size(limit_bytes)} may take "
        f"{format_size(at_once * each)} before they are stopped, and {format_size(available)} are "
        f"available now; use {' or '.join(ways)}"
    )
