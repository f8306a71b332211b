"""Critical batch sizes predicted from small trials, also for memories that this machine lacks.

What an engine needs for N samples is known beforehand where it makes a plan: small trials that run
its leanest plan tell what the plan cannot know. Of everything else the peaks of small trials are
continued by a + b S + c S^2 in the number S(N) of samples that carry the curvature.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np

from vivit_bench.arguments import format_size
from vivit_bench.critical_batch.guide import PlannedPeaks
from vivit_bench.critical_batch.listener import Listener
from vivit_bench.critical_batch.needs import (
    ONE_OF,
    SCRATCH_BYTES,
    FittedNeed,
    Need,
    PlannedNeed,
    predict,
)
from vivit_bench.critical_batch.records import PREDICTED
from vivit_bench.critical_batch.search import SMALL_SIZES
from vivit_bench.critical_batch.settings import Cell
from vivit_bench.curvature.options import Samples
from vivit_bench.errors import VivitBenchError
from vivit_bench.measure import Observation, Outcome, Spec, measure
from vivit_bench.measure.budget import format_peak
from vivit_bench.measure.planning import planned_peaks

Measure = Callable[[Spec, float], Observation]

_FAR_SIZES = (1024, 4096)
CALIBRATING_SIZES = (*SMALL_SIZES[1:], *_FAR_SIZES)
"""Run by the engine's plan within the memory, to see what it cannot know; the far ones only while
what libraries keep hides peaks, and if they fit a memory even where the plan is wrong by half."""
PLAN_SECONDS = 120.0

MAX_BATCH_END, DATA_END = "--max-batch", "the end of the data"
_LAPACK = "LAPACK: at most {} eigenvectors"

_SMALL_TRIALS, _LARGE_TRIALS, _CONFIRMED_TRIALS = 3, 4, 2
_START_SECONDS = 8.0
"""A process with its libraries, model and warm-up."""
_MOST_SMALL = 4096
_TRIAL_SECONDS, _SOON, _SOON_SECONDS = 10.0, 64, 3.0
"""A small trial that took longer is the last one; from this N on, what took longer than that."""
_BETWEEN = (0.5, 0.75)
"""Sizes beside the largest small one, over it: three numbers are fitted to peaks that bend."""


@dataclass(frozen=True)
class Prediction:
    """A critical batch size that nobody has run."""

    memory_bytes: int
    critical_batch_size: int
    low: int
    """With 95 % probability it is at least this."""
    high: int
    """And at most this."""
    limited_by: str
    """What fills the memory, or is at its end before; empty where that is not known."""
    step_seconds: float | None
    """Expected of the work at this size; None where that is not known."""
    search_seconds: float | None
    """Expected of a search; None where that is not known."""

    def holds_for(self, max_batch: int) -> bool:
        """Whether it would be the same under a bound on N, or another bound decided it."""
        return self.limited_by != MAX_BATCH_END or self.critical_batch_size >= max_batch

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Forecast:
    """A prediction and what it comes from."""

    prediction: Prediction
    planned: PlannedPeaks
    """Memory over N, closely about the limit."""
    seconds: tuple[tuple[int, float], ...]
    """(N, seconds of the work), two at least where the time is known."""
    largest: int | None = None
    """N of the largest matrix that the engine's solver takes; None if it takes any."""

    def seconds_at(self, n: int) -> float | None:
        """Seconds of the work, see `continued`."""
        return continued(self.seconds, n)


class SmallTrialsEndError(VivitBenchError):
    """A small trial met an end that says how far small trials go: of memory, data, time.

    Args:
        message: What happened.
        too_large: N, if it did not fit the memory that is asked about.
    """

    def __init__(self, message: str, too_large: int | None = None) -> None:
        super().__init__(message)
        self.too_large = too_large


@dataclass
class _Ran:
    """The N of small trials and whether they fitted a memory, which no prediction contradicts."""

    peaks: dict[int, int] = field(default_factory=dict)
    """N -> bytes."""
    too_large: int | None = None
    """One that did not fit the only memory that is asked about."""

    def bounds(self, memory_bytes: int, most: int) -> tuple[int, int]:
        """The least and the largest size that is possible."""
        failed = [n for n, peak in self.peaks.items() if peak > memory_bytes]
        if self.too_large is not None:
            failed.append(self.too_large)
        above = min([*failed, most + 1])
        return max((n for n in self.peaks if n < above), default=0), above - 1


class SmallTrials(Protocol):
    """What a forecast needs of a machine."""

    cell: Cell
    available: int | None
    """Samples there are, once a trial has met their end."""

    def measure(self, n: int, memory_bytes: int | None) -> tuple[int, float]:
        """Peak, and seconds of the work.

        Args:
            n: Batch size.
            memory_bytes: That the engine may take; None: no bound.

        Raises:
            SmallTrialsEndError: It met an end of memory, data, time or a library.
            VivitBenchError: It failed.
        """

    def plan(self, memory_bytes: int, most: int) -> dict[str, Any]:
        """What `PlanWork` says for a memory.

        Raises:
            VivitBenchError: It says nothing.
        """


def predict_cell(
    cell: Cell,
    memories: Sequence[int],
    *,
    max_batch: int,
    trial_timeout: float,
    listener: Listener | None = None,
    run: Measure = measure,
) -> list[Prediction]:
    """Predict a cell's critical batch size for some memories.

    Args:
        cell: From `make_cell`.
        memories: Bytes over the idle process; of the whole process for a training step.
        max_batch: Largest N to name.
        trial_timeout: Seconds for the work of one trial.
        listener: Is told what happens.
        run: Runs a child.

    Returns:
        A prediction for each, in their order.

    Raises:
        VivitBenchError: A small trial failed, or the peaks cannot be continued.
    """
    trials = _Unlimited(cell, trial_timeout, listener or Listener(), run)
    return [each.prediction for each in forecast(trials, memories, max_batch)]


def forecast(trials: SmallTrials, memories: Sequence[int], max_batch: int) -> list[Forecast]:
    """Forecast a cell's critical batch size for some memories; see `predict_cell`."""
    if trials.cell.is_planned:
        return [_by_plan(trials, memory, max_batch) for memory in memories]
    return _by_fit(trials, memories, max_batch)


def stored_prediction(header: Mapping[str, Any]) -> Prediction | None:
    """What a search's header says was predicted of it."""
    values = header.get(PREDICTED)
    names = [field.name for field in fields(Prediction)]
    if not isinstance(values, Mapping) or not set(names) - {"memory_bytes"} <= set(values):
        return None
    return Prediction(**{name: values.get(name, 0) for name in names})


def continued(points: Sequence[tuple[int, float]], n: int) -> float | None:
    """Seconds at N, as a power of N that goes on from the last point.

    Args:
        points: (N, seconds), N ascending.
        n: N.

    Returns:
        Seconds; None where the points do not tell.
    """
    points = [(m, seconds) for m, seconds in points if seconds > 0]
    if len(points) < 2 or n < 1:
        return None
    x, y = np.log([m for m, _ in points]), np.log([s for _, s in points])
    slope = max(float(np.polyfit(x, y, 1)[0]), 0.0)
    return float(np.exp(y[-1] + slope * (np.log(n) - x[-1])))


def ask_for_plan(
    cell: Cell, memory_bytes: int, most: int, run: Measure, costs_of: Sequence[int] = ()
) -> dict[str, Any]:
    """What `PlanWork` says of a cell.

    Raises:
        VivitBenchError: It says nothing.
    """
    seen = run(cell.plan_spec(memory_bytes, most, costs_of=costs_of), PLAN_SECONDS)
    if seen.report is None or not seen.report.digest:
        why = seen.message or "not even one sample is within the memory"
        raise VivitBenchError(f"{cell.label}: {format_size(memory_bytes)}: {why}")
    return seen.report.digest


class _Unlimited:
    """Runs small trials without a limit, each once."""

    def __init__(self, cell: Cell, timeout: float, listener: Listener, run: Measure) -> None:
        self.cell, self.listener = cell, listener
        self._timeout, self._run = timeout, run
        self._seen: dict[tuple[int, int | None], tuple[int, float]] = {}
        self.available: int | None = None

    def measure(self, n: int, memory_bytes: int | None) -> tuple[int, float]:
        if (n, memory_bytes) not in self._seen:
            spec = self.cell.small_spec(n, memory_bytes=memory_bytes)
            seen = self._run(spec, self.cell.small_timeout(self._timeout))
            if seen.report is not None and seen.outcome is Outcome.DATA:
                self.available = seen.report.available_samples
            if seen.outcome is not Outcome.FITS or seen.peak_bytes is None or not seen.measured:
                failed = seen.outcome in (Outcome.ERROR, Outcome.FITS)
                kind = VivitBenchError if failed else SmallTrialsEndError
                raise kind(f"{self.cell.label}: N = {n}: {seen.message}")
            seconds = self.cell.of_all_threads(seen.measured.wall_seconds or 0.0)
            within = "" if memory_bytes is None else f" within {format_size(memory_bytes)}"
            self.listener.note(
                f"N = {n}{within}: peak {format_peak(seen.peak_bytes)}, {seconds:.1f} s"
            )
            self._seen[n, memory_bytes] = seen.peak_bytes, seconds
        return self._seen[n, memory_bytes]

    def plan(self, memory_bytes: int, most: int) -> dict[str, Any]:
        return ask_for_plan(self.cell, memory_bytes, most, self._run, CALIBRATING_SIZES)


def _by_plan(trials: SmallTrials, memory_bytes: int, most: int) -> Forecast:
    told = trials.plan(memory_bytes, most)
    rows = told["planned_peaks"]
    planned = _curve(rows)
    compared: list[tuple[int, int]] = []
    ran = _Ran()
    for n, peak in told.get("plans", []):
        if n in _FAR_SIZES and not _tells_more(ran.peaks, planned.at(n), memory_bytes):
            break
        try:
            measured, took = trials.measure(n, memory_bytes)
        except SmallTrialsEndError as error:
            if n not in _FAR_SIZES:
                raise
            ran.too_large = error.too_large
            break
        ran.peaks[n] = measured
        compared.append((peak, measured))
        if took > (_TRIAL_SECONDS if n < _SOON else _SOON_SECONDS):
            break
    last, needed = rows[-1]
    ends = needed <= memory_bytes and last < most  # the data do
    most = last if ends else most
    far = [n in _FAR_SIZES for n in ran.peaks].count(True)
    need = PlannedNeed.from_trials(planned, compared, far)
    curve = PlannedPeaks(tuple((n, max(round(need.at(n)), 1)) for n, _ in planned.points))
    seconds = [(n, seconds) for n, seconds in told.get("seconds", [])]
    end = DATA_END if ends else MAX_BATCH_END
    by = told.get("limited_by", "")
    return _forecast(trials.cell, need, curve, memory_bytes, most, end, seconds, by, ran)


def _tells_more(peaks: Mapping[int, int], planned: float, memory_bytes: int) -> bool:
    """Whether a far size is to be run: so far peaks are small, and its own leaves a margin."""
    return max(peaks.values(), default=0) < SCRATCH_BYTES and 2 * planned <= memory_bytes


def _by_fit(trials: SmallTrials, memories: Sequence[int], max_batch: int) -> list[Forecast]:
    ran = _Ran()
    points = _small_peaks(trials, memories, max_batch, ran)
    try:
        need = FittedNeed([(n, peak) for n, peak, _ in points], _samples(trials.cell))
    except ValueError as error:
        raise VivitBenchError(f"{trials.cell.label}: {error}: nothing can be predicted") from error
    ends = {max_batch: MAX_BATCH_END}
    if trials.available is not None:
        ends[trials.available] = DATA_END
    largest = None
    if (matrix := trials.cell.largest_matrix) is not None:
        largest = _largest_batch(trials, matrix, min(memories))
        ends[largest] = _LAPACK.format(matrix)
    most = min(ends)
    seconds = [(n, seconds) for n, _, seconds in points]
    found = []
    for memory in memories:
        rows = planned_peaks(lambda n: max(round(need.at(n)), 1), memory, most + 1)
        made = _forecast(
            trials.cell, need, _curve(rows), memory, most, ends[most], seconds, "", ran
        )
        found.append(replace(made, largest=largest))
    return found


def _curve(rows: Sequence[Sequence[int]]) -> PlannedPeaks:
    """Of (N, bytes); where one sample is all that was asked for, two are taken to need twice it."""
    (n, need), *others = rows
    return PlannedPeaks.from_rows(rows if others else [(n, need), (2 * n, 2 * need)])


def _largest_batch(trials: SmallTrials, rows: int, memory_bytes: int) -> int:
    """The largest N whose matrix has no more rows."""
    samples = rows // int(trials.plan(memory_bytes, 1)["columns"])
    partly = _samples(trials.cell) is Samples.FRAC
    return ONE_OF * samples + ONE_OF - 1 if partly else samples


def _samples(cell: Cell) -> Samples:
    """Those that carry the curvature; the gradient and a step have all."""
    return Samples.FULL if cell.approximation is None else cell.approximation.samples


def _forecast(
    cell: Cell,
    need: Need,
    curve: PlannedPeaks,
    memory_bytes: int,
    most: int,
    end: str,
    seconds: Sequence[tuple[int, float]],
    limited_by: str,
    ran: _Ran,
) -> Forecast:
    """Put together what is known.

    Args:
        cell: Of the forecast.
        need: Of memory.
        curve: The same at some N.
        memory_bytes: That there is.
        most: Largest N to name.
        end: What is at its end there.
        seconds: (N, seconds of the work).
        limited_by: What fills the memory.
        ran: Small trials.
    """
    least, largest = ran.bounds(memory_bytes, most)
    found, low, high = (min(max(n, least), largest) for n in predict(need, memory_bytes, most))
    if not found:
        limited_by = f"one sample: {format_size(round(max(need.at(1), ran.peaks.get(1, 0))))}"
    step = continued(seconds, found)
    prediction = Prediction(
        memory_bytes=memory_bytes,
        critical_batch_size=found,
        low=low,
        high=high,
        limited_by=limited_by if found < most else end,
        step_seconds=step,
        search_seconds=None if step is None else _search_seconds(step, cell.threads),
    )
    return Forecast(prediction, curve, tuple(seconds))


def _search_seconds(step_seconds: float, threads: int) -> float:
    """Of a search; those of its trials that are near the limit are read once more on one CPU."""
    confirmed = 0 if threads == 1 else _CONFIRMED_TRIALS * threads
    trials = _LARGE_TRIALS + confirmed
    return _SMALL_TRIALS * _START_SECONDS + trials * (step_seconds + _START_SECONDS)


def _small_peaks(
    trials: SmallTrials, memories: Sequence[int], most: int, ran: _Ran
) -> list[tuple[int, int, float]]:
    """N, peak and seconds: fourfold while trials are small and quick, then some between.

    They go up to a quarter of the smallest memory that holds more than a sample or two. The
    smallest only see failures early: below a quarter of the largest, fixed costs decide.
    """
    samples = _samples(trials.cell)
    points: list[tuple[int, int, float]] = []
    n = 2 if trials.cell.is_step else 1  # batch normalisation does not train on one sample
    while n <= min(_MOST_SMALL, most):
        try:
            peak, seconds = trials.measure(n, None)
        except SmallTrialsEndError as error:
            if len(points) < 2:
                raise
            ran.too_large = error.too_large
            break
        points.append((n, peak, seconds))
        most_seconds = _TRIAL_SECONDS if n < _SOON else _SOON_SECONDS
        fewest, first, _ = points[0]
        memory = min((size for size in memories if size >= 2 * first), default=first)
        enough = seconds > most_seconds or peak - first > (memory - first) // 4
        if enough and samples.size(n) > samples.size(fewest):
            break
        n = max(min(4 * n, most), n + 1)
    if not points:
        return points
    last = points[-1][0]
    known = {n for n, *_ in points}
    lower, upper = (round(share * last) for share in _BETWEEN)
    if samples is Samples.FRAC and upper % ONE_OF == 0:
        upper += ONE_OF // 2  # a multiple of 8 tells nothing that its eighth does not
    between = {n for n in (lower, upper) if points[0][0] < n < last}
    points += [(n, *trials.measure(n, None)) for n in sorted(between - known)]
    ran.peaks.update((n, peak) for n, peak, _ in points)
    return sorted(point for point in points if 4 * point[0] >= last)


def is_of_memory(limited_by: str | None) -> bool:
    """Whether `Prediction.limited_by` names what fills the memory, and no end before it."""
    ends = (MAX_BATCH_END, DATA_END, _LAPACK.partition(":")[0])
    return not (limited_by or "").startswith(ends)
