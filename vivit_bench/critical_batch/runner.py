"""A search from settings to stored records."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vivit_bench.arguments import format_duration, format_size
from vivit_bench.critical_batch.guide import LEANEST_SHARE, PlannedPeaks
from vivit_bench.critical_batch.listener import Listener
from vivit_bench.critical_batch.predict import (
    CALIBRATING_SIZES,
    SmallTrialsEndError,
    ask_for_plan,
    continued,
    forecast,
    stored_prediction,
)
from vivit_bench.critical_batch.records import (
    EXPECTED,
    JOBS,
    LARGEST,
    PLANNED,
    PREDICTED,
    SMALL,
    STDERR,
    TRIALS,
    TrialRecords,
    facts_of,
    finished_records,
    goes_further,
    identity_of,
    remembered_limit,
)
from vivit_bench.critical_batch.search import (
    Bracket,
    SearchResult,
    StoppedBy,
    TrialError,
    find_critical_batch_size,
    known_bracket,
)
from vivit_bench.critical_batch.settings import (
    DEFAULT_MAX_BATCH,
    DEFAULT_TRIAL_TIMEOUT,
    Cell,
    check_bounds,
)
from vivit_bench.curvature.available import available_memory
from vivit_bench.errors import FilesChangedError, UsageError, VivitBenchError
from vivit_bench.measure import Observation, Outcome, Spec, Trial, measure
from vivit_bench.measure.budget import (
    DEFAULT_SHARE,
    DEVICE_RESERVE,
    MemoryBudget,
    check_limit,
    default_limit,
)
from vivit_bench.measure.meters import device_memory
from vivit_bench.measure.trial import Confirming, TrialRun, run_trial
from vivit_bench.store import Run, as_elsewhere, open_run

RunPlan = Callable[[Spec, float], Observation]
RunTrial = Callable[[Spec, float, Confirming], TrialRun]


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
    repeats: int = 1,
    fresh: bool = False,
    begun: bool = False,
    at_once: int = 1,
    elsewhere: bool = False,
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
        repeats: Trials of the critical N, and of N + 1.
        fresh: Forget the records and start over.
        begun: Whether `look_ahead` has begun it already, for the same command.
        at_once: Searches that run at the same time, which is stored: times are longer then.
        elsewhere: Whether it is finished, by whatever machine: it is returned and not gone on with.
        listener: Is told what happens.
        run: Runs one trial.
        plan: Runs the child that is asked for the engine's plan.

    Returns:
        The result; it is stored.

    Raises:
        TrialError: A trial failed for a reason that says nothing about memory.
        FilesChangedError: The user's files changed on the way.
        UsageError: A value that is not allowed.
        VivitBenchError: The same search is running already, or nothing was run to its end.
    """
    check_bounds(max_batch, trial_timeout, repeats)
    listener = listener or Listener()
    limit = memory_limit.limit_bytes
    identity = identity_of(cell, limit)
    with open_run(
        results_dir,
        as_elsewhere(results_dir, identity) if elsewhere else identity,
        fresh=fresh,
        begun=begun,
        more_wanted=lambda stored: goes_further(stored, max_batch, trial_timeout, repeats),
        note=listener.note,
    ) as stored:
        if elsewhere and not stored.is_returned:
            raise VivitBenchError(
                f"{stored.folder} is not finished any more; type the command again"
            )
        if stored.is_returned:
            returned = _returned(cell, memory_limit, stored, listener)
            _check_says_something(returned.result)
            return returned
        trials = _begin(
            *(cell, memory_limit, stored, max_batch, trial_timeout, at_once),
            *(listener, run, plan),
        )
        header = stored.stored.results
        planned = None
        if points := header.get(PLANNED):
            planned = PlannedPeaks.from_rows(points, LEANEST_SHARE if cell.is_planned else 0.0)
        seconds = header.get(EXPECTED, [])
        small_sizes = header.get(SMALL, [])
        result = find_critical_batch_size(
            *(trials.run, max_batch, limit, planned),
            known=trials.known([n for n in small_sizes if n <= max_batch]),
            again=trials.run,
            repeats=repeats,
            expected=lambda n: continued(seconds, n),
            recorded=trials.has,
            timeout_seconds=trial_timeout,
            largest=header.get(LARGEST),
        )
        facts = facts_of(
            result, max_batch=max_batch, trial_timeout=trial_timeout, small_sizes=small_sizes
        )
        stored.finish({**stored.stored.results, **facts}, [TRIALS])
        _check_says_something(result)
    return FinishedSearch(cell, memory_limit, result, trials.from_records, stored.folder, facts)


def _check_says_something(result: SearchResult) -> None:
    """Refuse a lower bound of 0.

    Raises:
        VivitBenchError: It is one.
    """
    if result.is_lower_bound and not result.critical_batch_size:
        longer = result.stopped_by is StoppedBy.TIMEOUT
        raise VivitBenchError(
            f"no batch size was run to its end: {result.message}"
            f"{'; give a longer --timeout' if longer else ''}"
        )


def _returned(
    cell: Cell, memory_limit: MemoryLimit, stored: Run, listener: Listener
) -> FinishedSearch:
    """A finished search as it is stored: its trials need not be those that would be run now."""
    facts = stored.stored.results
    trials = tuple(finished_records(stored.stored).trials.values())
    for trial in trials:
        listener.finished(trial, True)
    result = SearchResult(
        facts["critical_batch_size"],
        StoppedBy(facts["stopped_by"]),
        facts["message"],
        trials,
        facts.get("repeats", 1),
    )
    return FinishedSearch(cell, memory_limit, result, len(trials), stored.folder, facts)


def look_ahead(
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
) -> None:
    """Begin a search with its small trials, which say what is expected of it; see `run_search`.

    `run_search` goes on with it.

    Raises:
        TrialError: A trial failed for a reason that says nothing about memory.
        FilesChangedError: The user's files changed on the way.
        UsageError: A value that is not allowed.
        VivitBenchError: The same search is running already.
    """
    check_bounds(max_batch, trial_timeout)
    listener = listener or Listener()
    with open_run(
        results_dir,
        identity_of(cell, memory_limit.limit_bytes),
        fresh=fresh,
        more_wanted=lambda stored: goes_further(stored, max_batch, trial_timeout),
        note=listener.note,
    ) as stored:
        if not stored.is_returned:  # another process may have finished it
            _begin(
                *(cell, memory_limit, stored, max_batch, trial_timeout, at_once),
                *(listener, run, plan),
            )


def _begin(
    cell: Cell,
    memory_limit: MemoryLimit,
    stored: Run,
    max_batch: int,
    trial_timeout: float,
    at_once: int,
    listener: Listener,
    run: RunTrial,
    plan: RunPlan,
) -> "_Trials":
    """The trials of a search that goes on; its header says what is expected."""
    stored.update(limit_chosen_by_user=memory_limit.chosen_by_user)
    if at_once > stored.stored.results.get(JOBS, 1):
        stored.update(**{JOBS: at_once})
    journal = stored.journal(TRIALS)
    for damaged in journal.notes:
        listener.note(damaged)
    records = TrialRecords(journal.entries, journal)
    limit = memory_limit.limit_bytes
    trials = _Trials(cell, limit, stored, records, trial_timeout, listener, run)
    if not has_looked_ahead(stored.stored.results, max_batch):
        trials.check_limit()
        small = _SmallTrials(cell, trials, plan)
        stored.update(**_look_ahead(small, limit, max_batch, listener))
    return trials


def has_looked_ahead(header: Mapping[str, Any], max_batch: int) -> bool:
    """Whether it says what is expected of the search, up to a bound on N."""
    told = stored_prediction(header)
    return PLANNED in header and (told is None or told.holds_for(max_batch))


def _look_ahead(
    small: "_SmallTrials", limit_bytes: int, max_batch: int, listener: Listener
) -> dict[str, Any]:
    """What is expected of a search, for its header; where nothing can be, it is not guided."""
    try:
        (found,) = forecast(small, [limit_bytes], max_batch)
    except (TrialError, FilesChangedError):
        raise
    except (VivitBenchError, ValueError) as error:
        listener.note(f"nothing guides the search: {error}")
        return {PLANNED: [], EXPECTED: [], SMALL: small.sizes, PREDICTED: None}
    told = found.prediction
    step = "" if told.step_seconds is None else f", {format_duration(told.step_seconds)} a trial"
    listener.note(
        f"expected: N = {told.critical_batch_size} ({told.low} - {told.high}, 95 %){step}"
    )
    return {
        PLANNED: [list(point) for point in found.planned.points],
        EXPECTED: [list(point) for point in found.seconds],
        SMALL: small.sizes,
        LARGEST: found.largest,
        PREDICTED: told.to_json(),
    }


class _SmallTrials:
    """Small trials of a search, as a forecast asks for them: under the limit, and recorded."""

    def __init__(self, cell: Cell, trials: "_Trials", plan: RunPlan) -> None:
        self.cell = cell
        self._trials = trials
        self._plan = plan
        self.available: int | None = None
        self.sizes: list[int] = []
        """N of the trials so far."""

    def measure(self, n: int, memory_bytes: int | None) -> tuple[int, float]:
        trial = self._trials.run(n, self._trials.bracket, small=True)
        self.sizes.append(n)
        if trial.outcome is Outcome.DATA:
            self.available = trial.available_samples
        if trial.outcome is Outcome.ERROR:
            raise TrialError(trial)
        if trial.outcome is not Outcome.FITS or trial.peak_bytes is None:
            failed = trial.outcome is Outcome.OUT_OF_MEMORY
            raise SmallTrialsEndError(f"N = {n}: {trial.message}", n if failed else None)
        return trial.peak_bytes, self.cell.of_all_threads(trial.work_seconds or 0.0)

    def plan(self, memory_bytes: int, most: int) -> dict[str, Any]:
        return ask_for_plan(self.cell, memory_bytes, most, self._plan, CALIBRATING_SIZES)


class _Trials:
    """Runs trials, or takes their records."""

    def __init__(
        self,
        cell: Cell,
        limit_bytes: int,
        stored: Run,
        records: TrialRecords,
        timeout: float,
        listener: Listener,
        run: RunTrial,
    ):
        self._cell = cell
        self._limit = limit_bytes
        self._stored = stored
        self._records = records
        self._timeout = timeout
        self._listener = listener
        self._run = run
        self._limit_checked = False
        self._seen: dict[tuple[int, int], Trial] = {}
        self.from_records = 0

    @property
    def bracket(self) -> Bracket:
        """What is known so far."""
        return known_bracket(list(self._seen.values()))

    def known(self, sizes: Sequence[int]) -> list[Trial]:
        """Those of some trials, made before, that tell of memory."""
        found = [self.run(n, self.bracket) for n in sizes if self.has(n)]
        return [t for t in found if t.outcome in (Outcome.FITS, Outcome.OUT_OF_MEMORY)]

    def has(self, n: int) -> bool:
        """Whether the trial of N needs not be run."""
        return self._records.reusable(n, self._timeout) is not None

    def run(self, n: int, bracket: Bracket, repeat: int = 0, small: bool = False) -> Trial:
        """A trial, from the records where it is there; what was told once is not told again."""
        if (n, repeat) not in self._seen:
            self._seen[n, repeat] = self._run_or_recall(n, bracket, repeat, small)
        return self._seen[n, repeat]

    def _run_or_recall(self, n: int, bracket: Bracket, repeat: int, small: bool) -> Trial:
        recorded = self._records.reusable(n, self._timeout, repeat)
        if recorded is not None:
            self.from_records += 1
            self._listener.finished(recorded, True)
            return recorded
        self.check_limit()
        self._check_files(n)
        self._listener.started(n, bracket)
        make = self._cell.small_spec if small else self._cell.spec
        done = self._run(
            make(n, memory_bytes=self._limit, limit_bytes=self._limit),
            self._cell.small_timeout(self._timeout) if small else self._timeout,
            lambda reading, seconds: self._listener.confirming(n, reading, seconds),
        )
        self._check_files(n)  # a child of the next trial would run other code than the last one's
        trial = replace(done.trial, repeat=repeat)
        self._records.append(trial)
        if trial.outcome is Outcome.ERROR and done.stderr:
            self._stored.write(STDERR, f"{done.stderr}\n")
            log = self._stored.folder / STDERR
            self._listener.note(f"what the trial of N = {n} wrote to stderr: {log}")
        self._listener.finished(trial, False)
        return trial

    def _check_files(self, n: int) -> None:
        header = self._stored.stored
        self._cell.workload.check_files(
            header.settings, header.environment, f"the trial of N = {n}"
        )

    def check_limit(self) -> None:
        """Refuse a budget that cannot be given now; records alone need none."""
        if not self._limit_checked:
            check_available(self._limit, self._cell.device)
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
