"""Critical batch sizes predicted from small trials, also for memories that this machine lacks.

What an engine needs for N samples is known beforehand where it makes a plan: small trials that run
its leanest plan tell what the plan cannot know. Of other engines the peaks of small trials are
continued by a + b N + c N^2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vivit_bench.arguments import format_size
from vivit_bench.critical_batch.guide import PlannedPeaks
from vivit_bench.critical_batch.runner import PLAN_SECONDS, Listener, plan_spec
from vivit_bench.critical_batch.settings import Cell
from vivit_bench.errors import VivitBenchError
from vivit_bench.measure import Observation, Outcome, Spec, measure
from vivit_bench.measure.budget import format_peak

Measure = Callable[[Spec, float], Observation]

CALIBRATING_SIZES = (16, 32, 64)
"""Run by the engine's plan within the memory, to see what it cannot know."""
PLAN_ERROR = 0.02
"""Standard deviation of planned over measured peaks, where they have been compared."""
SCRATCH_BYTES = 8 * 2**20
"""The same of what libraries keep between operations of large mini-batches; 20 MiB were seen."""
NOISE_BYTES = 2 * 2**20
"""By how much the peaks of two equal trials may differ."""

_SMALL_TRIALS, _LARGE_TRIALS, _CONFIRMED_TRIALS = 3, 4, 2
_START_SECONDS = 8.0
"""A process with its libraries, model and warm-up."""
_MOST_SMALL = 512
_TRIAL_SECONDS = 10.0
"""A small trial that took longer is the last one."""
_BETWEEN = (0.625, 0.75, 0.875)
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


class Need(Protocol):
    """Memory as a function of N."""

    def at(self, n: int) -> float:
        """Bytes that N samples take."""

    def margin(self, n: int) -> float:
        """Half the width of its 95 % interval, in bytes."""


@dataclass(frozen=True)
class PlannedNeed:
    """A plan's, with what trials took beside.

    Args:
        planned: What the leanest plan needs.
        beside: Measured less planned bytes of some trials; at least one.
    """

    planned: PlannedPeaks
    beside: tuple[float, ...]

    def at(self, n: int) -> float:
        """See `Need`; what a plan foresees of libraries may show in larger trials only."""
        return self.planned.at(n) + max(float(np.mean(self.beside)), 0.0)

    def margin(self, n: int) -> float:
        """See `Need`; the plan's error grows with the peak, that of the rest does not."""
        spread = float(np.std(self.beside, ddof=1)) if len(self.beside) > 1 else 0.0
        constant = max(spread, SCRATCH_BYTES)
        return 2.0 * float(np.hypot(PLAN_ERROR * self.planned.at(n), constant))


class FittedNeed:
    """A + b N + c N^2 through measured peaks, by least squares of their relative errors.

    Args:
        points: (N, bytes), three at least, N ascending.

    Raises:
        ValueError: They are fewer, or do not rise.
    """

    def __init__(self, points: Sequence[tuple[int, int]]) -> None:
        if len(points) < 3 or points[-1][1] <= points[0][1]:
            raise ValueError(f"{len(points)} peaks that do not rise")
        self._x = np.array([n for n, _ in points], dtype=float)
        self._y = np.array([peak for _, peak in points], dtype=float)
        self._weights = 1 / np.hypot(0.005 * self._y, NOISE_BYTES / 2)
        self._powers = 3 if len(points) > 3 else 2
        self._fit()
        if self._powers == 3 and self._found[2] < 0:  # peaks do not bend down
            self._powers = 2
            self._fit()

    def _fit(self) -> None:
        design = self._row(self._x) * self._weights[:, None]
        self._found, *_ = np.linalg.lstsq(design, self._weights * self._y, rcond=None)
        left = design @ self._found - self._weights * self._y
        freedom = max(len(self._x) - self._powers, 1)
        # Errors are at least what the weights say: few points may agree by chance.
        scale = max(float(left @ left) / freedom, 1.0)
        self._covariance = scale * np.linalg.pinv(design.T @ design)

    def _row(self, n: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.stack([n**k for k in range(self._powers)], axis=-1)

    def at(self, n: int) -> float:
        """See `Need`."""
        return float(self._row(np.array(float(n))) @ self._found)

    def margin(self, n: int) -> float:
        """See `Need`."""
        row = self._row(np.array(float(n)))
        return 2.0 * float(np.sqrt(row @ self._covariance @ row))


def largest(needed: Callable[[int], float], memory_bytes: int, most: int) -> int:
    """The largest N up to ``most`` whose need is within the memory; 0 if none is."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle) <= memory_bytes else (low, middle)
    return low


def predict(need: Need, memory_bytes: int, most: int) -> tuple[int, int, int]:
    """The critical batch size and the ends of its 95 % interval.

    Args:
        need: Of memory.
        memory_bytes: That there is.
        most: Largest N to name.
    """
    low, found, high = (
        largest(lambda n, s=sign: need.at(n) + s * need.margin(n), memory_bytes, most)  # type: ignore[misc]
        for sign in (1, 0, -1)
    )
    return found, low, high


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
        memories: Bytes over the idle process.
        max_batch: Largest N to name.
        trial_timeout: Seconds for the work of one trial.
        listener: Is told what happens.
        run: Runs a child.

    Returns:
        A prediction for each, in their order.

    Raises:
        VivitBenchError: A small trial failed, or the peaks cannot be continued.
    """
    trials = _SmallTrials(cell, trial_timeout, listener or Listener(), run)
    if cell.is_planned:
        return [_by_plan(trials, memory, max_batch) for memory in memories]
    return _by_fit(trials, memories, max_batch)


class _SmallTrials:
    """Runs small trials, each once."""

    def __init__(self, cell: Cell, timeout: float, listener: Listener, run: Measure) -> None:
        self.cell, self.listener = cell, listener
        self._timeout, self._run = timeout, run
        self._seen: dict[tuple[int, int | None], tuple[int, float]] = {}
        self.available: int | None = None
        """Samples there are, once a trial has met their end."""

    def measure(self, n: int, memory_bytes: int | None) -> tuple[int, float]:
        """Peak over the idle process, and seconds of the work.

        Args:
            n: Batch size.
            memory_bytes: That the engine may take; None: no bound.

        Raises:
            VivitBenchError: It did not end well.
        """
        if (n, memory_bytes) not in self._seen:
            seen = self._run(self.cell.spec(n, memory_bytes=memory_bytes), self._timeout)
            if seen.report is not None and seen.outcome is Outcome.DATA:
                self.available = seen.report.available_samples
            if seen.outcome is not Outcome.FITS or seen.peak_bytes is None or not seen.measured:
                raise VivitBenchError(f"{self.cell.label}: N = {n}: {seen.message}")
            seconds = seen.measured.wall_seconds or 0.0
            self.listener.note(f"N = {n}: peak {format_peak(seen.peak_bytes)}, {seconds:.1f} s")
            self._seen[n, memory_bytes] = seen.peak_bytes, seconds
        return self._seen[n, memory_bytes]

    def plan(self, memory_bytes: int, most: int) -> dict[str, Any]:
        """What `PlanWork` says for a memory.

        Raises:
            VivitBenchError: It says nothing.
        """
        spec = plan_spec(self.cell, memory_bytes, most, costs_of=CALIBRATING_SIZES)
        seen = self._run(spec, PLAN_SECONDS)
        if seen.report is None or not seen.report.digest:
            why = seen.message or "not even one sample is within the memory"
            raise VivitBenchError(f"{self.cell.label}: {format_size(memory_bytes)}: {why}")
        return seen.report.digest


def _by_plan(trials: _SmallTrials, memory_bytes: int, most: int) -> Prediction:
    told = trials.plan(memory_bytes, most)
    if "plans" not in told:
        raise VivitBenchError(
            f"{trials.cell.label}: {format_size(memory_bytes)} do not suffice for one sample"
        )
    planned = PlannedPeaks.from_rows(told["planned_peaks"])
    beside = [trials.measure(n, memory_bytes)[0] - peak for n, peak in told["plans"]]
    last, need = planned.points[-1]
    ends = need <= memory_bytes and last < most  # the data do
    most = last if ends else most
    found, low, high = predict(PlannedNeed(planned, tuple(map(float, beside))), memory_bytes, most)
    limited_by = _end(found, most, ends) or str(told["limited_by"])
    seconds = told["seconds"]
    return Prediction(
        *(memory_bytes, found, low, high, limited_by, seconds),
        _search_seconds(seconds, trials.cell.threads),
    )


def _by_fit(trials: _SmallTrials, memories: Sequence[int], most: int) -> list[Prediction]:
    points = _small_peaks(trials, min(memories))
    try:
        need = FittedNeed([(n, peak) for n, peak, _ in points])
    except ValueError as error:
        raise VivitBenchError(f"{trials.cell.label}: {error}: nothing can be predicted") from error
    ends = trials.available is not None and trials.available < most
    most = min(most, trials.available or most)
    found = []
    for memory in memories:
        n, low, high = predict(need, memory, most)
        seconds = _seconds(points, n)
        found.append(
            Prediction(
                *(memory, n, low, high, _end(n, most, ends), seconds),
                _search_seconds(seconds, trials.cell.threads),
            )
        )
    return found


def _search_seconds(step_seconds: float | None, threads: int) -> float | None:
    """Of a search whose trials near the limit are read on one CPU."""
    if step_seconds is None:
        return None
    confirmed = 0 if threads == 1 else _CONFIRMED_TRIALS * threads
    trials = _LARGE_TRIALS + confirmed
    return _SMALL_TRIALS * _START_SECONDS + trials * (step_seconds + _START_SECONDS)


def _end(found: int, most: int, of_data: bool) -> str:
    """What ends before the memory does; empty if nothing."""
    if found < most:
        return ""
    return "the end of the data" if of_data else "--max-batch"


def _small_peaks(trials: _SmallTrials, memory_bytes: int) -> list[tuple[int, int, float]]:
    """N, peak and seconds: doubling while trials are small and quick, then some between."""
    points: list[tuple[int, int, float]] = []
    n = 1
    while n <= _MOST_SMALL:
        try:
            peak, seconds = trials.measure(n, None)
        except VivitBenchError:
            if len(points) < 3:
                raise
            break  # the engine's, or the data's, end
        points.append((n, peak, seconds))
        if seconds > _TRIAL_SECONDS or peak > memory_bytes // 4:
            break
        n *= 2
    last = points[-1][0]
    known = {n for n, *_ in points}
    between = sorted({round(share * last) for share in _BETWEEN} - known - {0})
    return sorted([*points, *((n, *trials.measure(n, None)) for n in between)])


def _seconds(points: Sequence[tuple[int, int, float]], n: int) -> float | None:
    """Continued as a power of N over the larger half."""
    half = [(m, s) for m, _, s in points[len(points) // 2 :] if s > 0]
    if len(half) < 2 or n < 1:
        return None
    x, y = np.log([m for m, _ in half]), np.log([s for _, s in half])
    slope = max(float(np.polyfit(x, y, 1)[0]), 0.0)
    return float(np.exp(y[-1] + slope * (np.log(n) - x[-1])))
