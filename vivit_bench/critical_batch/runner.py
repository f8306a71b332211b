"""A search from settings to stored records."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivit_bench.arguments import format_size
from vivit_bench.critical_batch.guide import PlannedPeaks
from vivit_bench.critical_batch.records import (
    JOBS,
    PLANNED,
    STDERR,
    TRIALS,
    TrialRecords,
    facts_of,
    finished_records,
    goes_further,
    identity_of,
    remembered_limit,
)
from vivit_bench.critical_batch.search import Bracket, SearchResult, find_critical_batch_size
from vivit_bench.critical_batch.settings import (
    DEFAULT_MAX_BATCH,
    DEFAULT_TRIAL_TIMEOUT,
    Cell,
    check_bounds,
)
from vivit_bench.curvature.available import available_memory
from vivit_bench.errors import UsageError
from vivit_bench.measure import Observation, Outcome, Reading, Spec, Trial, measure
from vivit_bench.measure.budget import (
    DEFAULT_SHARE,
    DEVICE_RESERVE,
    MemoryBudget,
    check_limit,
    default_limit,
)
from vivit_bench.measure.meters import device_memory
from vivit_bench.measure.trial import Confirming, TrialRun, run_trial
from vivit_bench.peers import get_engine
from vivit_bench.store import Run, open_run

_PLAN_WORK = "vivit_bench.measure.planning:PlanWork"
PLAN_SECONDS = 120.0

RunPlan = Callable[[Spec, float], Observation]
RunTrial = Callable[[Spec, float, Confirming], TrialRun]


class Listener:
    """Is told what happens during a search; this one ignores it."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def started(self, n: int, bracket: Bracket) -> None:
        """A trial begins."""

    def confirming(self, n: int, reading: int, seconds: float) -> None:
        """A trial's peak is too near to the limit: it is measured again.

        Args:
            n: Batch size.
            reading: The how-manieth time, of at most `MOST_CONFIRMATIONS`.
            seconds: The trial took so far.
        """

    def finished(self, trial: Trial, from_records: bool) -> None:
        """A trial ended, or its record was used."""


@dataclass(frozen=True)
class MemoryLimit:
    """A budget and who chose it."""

    limit_bytes: int
    chosen_by_user: bool


@dataclass(frozen=True)
class FinishedSearch:
    """A search's result and where it is stored."""

    cell: Cell
    memory_limit: MemoryLimit
    result: SearchResult
    from_records: int
    """Trials that were not run because their records were there."""
    folder: Path
    """Where it is stored."""
    facts: dict[str, Any]
    """Its result as it is stored, see `facts_of`."""


def run_search(
    cell: Cell,
    memory_limit: MemoryLimit,
    *,
    results_dir: Path,
    max_batch: int = DEFAULT_MAX_BATCH,
    trial_timeout: float = DEFAULT_TRIAL_TIMEOUT,
    fresh: bool = False,
    at_once: int = 1,
    listener: Listener | None = None,
    run: RunTrial = run_trial,
    plan: RunPlan = measure,
) -> FinishedSearch:
    """Search the critical batch size of a cell, going on from records if there are any.

    Args:
        cell: From `make_cell`.
        memory_limit: From `choose_limit`.
        results_dir: Folder of all results.
        max_batch: Largest batch size to run.
        trial_timeout: Seconds for the work of one trial.
        fresh: Forget the records and start over.
        at_once: Searches that run at the same time, which is stored: times are longer then.
        listener: Is told what happens.
        run: Runs one trial.
        plan: Runs the child that is asked for the engine's plan.

    Returns:
        The result; it is stored.

    Raises:
        TrialError: A trial failed for a reason that says nothing about memory.
        UsageError: A value that is not allowed.
        VivitBenchError: The same search is running already.
    """
    check_bounds(max_batch, trial_timeout)
    listener = listener or Listener()
    limit = memory_limit.limit_bytes
    with open_run(
        results_dir,
        identity_of(cell, limit),
        fresh=fresh,
        more_wanted=lambda stored: goes_further(stored, max_batch, trial_timeout),
        note=listener.note,
    ) as stored:
        if stored.is_returned:
            facts = stored.stored.results
            max_batch, trial_timeout = facts["max_batch"], facts["trial_timeout_seconds"]
            records = finished_records(stored.stored)
        else:
            stored.update(limit_chosen_by_user=memory_limit.chosen_by_user)
            if at_once > stored.stored.results.get(JOBS, 1):
                stored.update(**{JOBS: at_once})
            journal = stored.journal(TRIALS)
            for damaged in journal.notes:
                listener.note(damaged)
            records = TrialRecords(journal.entries, journal)
        trials = _Trials(cell, memory_limit, stored, records, trial_timeout, listener, run)
        begins = not stored.is_returned and PLANNED not in stored.stored.results
        if begins and not records.trials and cell.quantity in get_engine(cell.engine).planned:
            trials.check_limit()
            stored.update(**{PLANNED: _ask_for_plan(cell, limit, max_batch, plan, listener)})
        planned = None
        if points := stored.stored.results.get(PLANNED):
            planned = PlannedPeaks.from_rows(points)
        result = find_critical_batch_size(trials.run, max_batch, limit, planned)
        if not stored.is_returned:
            facts = facts_of(result, max_batch=max_batch, trial_timeout=trial_timeout)
            stored.finish({**stored.stored.results, **facts}, [TRIALS])
    return FinishedSearch(cell, memory_limit, result, trials.from_records, stored.folder, facts)


def plan_spec(cell: Cell, memory_bytes: int, max_batch: int, **others: Any) -> Spec:
    """Of a child that tells of the engine's plan; other arguments are those of `PlanWork`."""
    return Spec(
        n=max_batch,
        threads=cell.threads,
        arguments={**cell.work(), "memory_bytes": memory_bytes, **others},
        work=_PLAN_WORK,
        reading=Reading.TIME,
        device=cell.device,
        digest=True,
    )


def _ask_for_plan(
    cell: Cell, limit_bytes: int, max_batch: int, plan: RunPlan, listener: Listener
) -> list[list[int]]:
    """Rows of the engine's leanest plan, see `PLANNED`; none where it cannot guide a search."""
    seen = plan(plan_spec(cell, limit_bytes, max_batch), PLAN_SECONDS)
    points = seen.report.digest.get(PLANNED) if seen.report is not None else None
    try:
        PlannedPeaks.from_rows(points or ())
    except ValueError:
        why = seen.message or "not even one sample is within the limit"
        listener.note(f"the engine's plan does not guide the search: {why}")
        return []
    return points or []


class _Trials:
    """Runs trials, or takes their records."""

    def __init__(
        self,
        cell: Cell,
        memory_limit: MemoryLimit,
        stored: Run,
        records: TrialRecords,
        timeout: float,
        listener: Listener,
        run: RunTrial,
    ):
        self._spec: dict[str, Any] = {
            "limit_bytes": memory_limit.limit_bytes,
            "threads": cell.threads,
            "arguments": {**cell.work(), "memory_bytes": memory_limit.limit_bytes},
            "device": cell.device,
        }
        self._stored = stored
        self._records = records
        self._timeout = timeout
        self._listener = listener
        self._run = run
        self._limit_checked = False
        self.from_records = 0

    def run(self, n: int, bracket: Bracket) -> Trial:
        recorded = self._records.reusable(n, self._timeout)
        if recorded is not None:
            self.from_records += 1
            self._listener.finished(recorded, True)
            return recorded
        self.check_limit()
        self._listener.started(n, bracket)
        done = self._run(
            Spec(n=n, **self._spec),
            self._timeout,
            lambda reading, seconds: self._listener.confirming(n, reading, seconds),
        )
        self._records.append(done.trial)
        if done.trial.outcome is Outcome.ERROR and done.stderr:
            self._stored.write(STDERR, f"{done.stderr}\n")
            log = self._stored.folder / STDERR
            self._listener.note(f"what the trial of N = {n} wrote to stderr: {log}")
        self._listener.finished(done.trial, False)
        return done.trial

    def check_limit(self) -> None:
        """Refuse a budget that cannot be given now; records alone need none."""
        if not self._limit_checked:
            check_available(self._spec["limit_bytes"], self._spec["device"])
        self._limit_checked = True


def choose_limit(
    cells: list[Cell],
    asked_bytes: int | None,
    *,
    results_dir: Path,
    fresh: bool = False,
    at_once: int = 1,
    listener: Listener | None = None,
) -> MemoryLimit:
    """The user's memory limit, or a share of what is available now.

    Without the user's choice, the limit with which an earlier search of one of the cells began
    is kept: the same command must go on with the same search.

    Args:
        cells: What is to be searched, on one device.
        asked_bytes: The user's choice.
        results_dir: Folder of all results.
        fresh: Choose anew.
        at_once: Searches that share the memory.
        listener: Is told the limit and its reason.

    Returns:
        The limit.

    Raises:
        UsageError: The user's choice is too small to be measured.
    """
    if asked_bytes is not None:
        check_limit(asked_bytes)
        return MemoryLimit(asked_bytes, True)
    listener = listener or Listener()
    kept = None if fresh else remembered_limit(results_dir, cells)
    if kept is not None:
        listener.note(
            f"memory limit: {format_size(kept)}, chosen when the search began "
            "(--fresh or --memory-limit SIZE chooses anew)"
        )
        return MemoryLimit(kept, False)
    device = cells[0].device
    available = available_memory() if device == "cpu" else device_memory(device).free_bytes
    limit = default_limit(available // at_once)
    shared = "" if at_once == 1 else f", shared by {at_once} searches"
    listener.note(
        f"memory limit: {format_size(limit)}, {DEFAULT_SHARE:.0%} of the memory available now"
        f"{shared} (choose with --memory-limit SIZE)"
    )
    return MemoryLimit(limit, False)


def check_available(limit_bytes: int, device: str = "cpu") -> None:
    """Refuse a budget larger than what the machine, or its CUDA device, can give now.

    Args:
        limit_bytes: The budget.
        device: ``cpu`` or ``cuda:i``.

    Raises:
        UsageError: With the memory available.
    """
    limit = f"--memory-limit {format_size(limit_bytes)}"
    if device == "cpu":
        available = available_memory()
        needed = MemoryBudget(limit_bytes).watchdog_bytes
        if needed > available:
            raise UsageError(
                f"{limit}: a trial may take {format_size(needed)} before it is stopped, and "
                f"{format_size(available)} are available now; use a smaller limit or free memory"
            )
        return
    memory = device_memory(device)
    card, total = f"{device} ({memory.name})", format_size(memory.total_bytes)
    if limit_bytes > memory.total_bytes:
        raise UsageError(f"{limit}: {card} has {total} in all; use a smaller limit")
    needed = limit_bytes + DEVICE_RESERVE
    if needed > memory.free_bytes:
        raise UsageError(
            f"{limit}: a trial needs {format_size(needed)} free, and {card} has "
            f"{format_size(memory.free_bytes)} of {total} free now; use a smaller limit or free "
            "memory"
        )
