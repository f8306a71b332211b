"""The search for the critical batch size: a pure function of "does N fit?".

Which batch size is run next decides only how long the search takes. The result is always
an N that fitted beside an N + 1 that did not. An engine that plans guides it by its plan
(`vivit_bench.critical_batch.guide`), any other by the peaks that were measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vivit_bench.critical_batch.guide import PlannedPeaks, predict_critical_batch_size
from vivit_bench.errors import VivitBenchError
from vivit_bench.measure import Outcome, Trial
from vivit_bench.measure.budget import MemoryBudget

SMALL_SIZES = (1, 8, 64)
"""Run before a planned size that is 8 times as large, beside which they cost nothing: failures are
seen early, and something fits."""

_STEPS = (0, 0, 0, 1, 4, 16, 100)
"""Percent by which a search leaves a planned size, one trial after the other; 0: by one sample."""


class StoppedBy(StrEnum):
    """Why a search ended."""

    MEMORY = "memory"
    """N fits and N + 1 does not: the critical batch size."""
    MAX_BATCH = "max-batch"
    """The largest batch size allowed fits."""
    TIMEOUT = "timeout"
    """A trial took too long; the critical batch size may be larger."""
    LIMIT = "limit"
    """A trial met a limit that is not memory; the critical batch size may be larger."""
    DATA = "data"
    """All samples there are fit; with more data, the critical batch size may be larger."""


@dataclass(frozen=True)
class Bracket:
    """What is known so far."""

    fits: int = 0
    """Largest batch size that fitted; 0 if none was run."""
    too_large: int | None = None
    """Smallest batch size that ran out of memory; None if none did."""


def next_batch_size(
    bracket: Bracket,
    trials: Sequence[Trial],
    max_batch: int,
    limit_bytes: int | None = None,
    planned: PlannedPeaks | None = None,
) -> int | None:
    """The batch size to run next: doubled while all fit, then bisected.

    With a memory limit, bisection is guided: the next N is where the peaks measured so far
    say the limit is. Every sixth trial of the bisection halves the bracket all the same.
    With a plan there is no doubling: a few small N, then the one that the plan names.

    Args:
        bracket: What is known so far.
        trials: All trials so far, in the order they were run.
        max_batch: Largest batch size allowed.
        limit_bytes: Memory limit that the trials' peaks are compared with; None: do not guide.
        planned: What the engine's leanest plan needs; None: it makes none.

    Returns:
        N, or None if nothing is left to run.
    """
    fits, too_large = bracket.fits, bracket.too_large
    if fits >= max_batch or too_large == fits + 1:
        return None
    if planned is not None and limit_bytes is not None:
        return _next_planned(bracket, trials, max_batch, limit_bytes, planned)
    if too_large is None:
        return min(max(2 * fits, 1), max_batch)
    most = min(too_large - 1, max_batch)
    middle = (fits + too_large) // 2
    doubling = next(i for i, t in enumerate(trials) if t.outcome is Outcome.OUT_OF_MEMORY)
    bisected = len(trials) - doubling - 1
    predicted = None if limit_bytes is None else _predict(trials, limit_bytes)
    if predicted is None or bisected % 6 == 5:
        return min(middle, most)
    return min(max(predicted, fits + 1), most)


def _next_planned(
    bracket: Bracket,
    trials: Sequence[Trial],
    max_batch: int,
    limit_bytes: int,
    planned: PlannedPeaks,
) -> int:
    """The planned size, then where it is after each trial's correction.

    Whatever the plan says, both sides of the bracket are left in widening steps until the other
    side is known; from then on every fifth trial halves it, and any where the plan is refuted.
    """
    fits, too_large = bracket.fits, bracket.too_large
    predicted = predict_critical_batch_size(planned, trials, limit_bytes, max_batch)
    fitted = sum(t.outcome is Outcome.FITS and t.n not in SMALL_SIZES for t in trials)
    failed = sum(t.outcome is Outcome.OUT_OF_MEMORY for t in trials)
    if too_large is None:
        small = next((n for n in SMALL_SIZES if n > fits), None)
        if small is not None and (small == 1 or 8 * small <= predicted):
            return min(small, max_batch)
        return min(max(predicted, fits + _step(fits, fitted)), max_batch)
    if not fitted and failed < len(_STEPS) - 1:
        peak = next(t.peak_bytes for t in trials if t.n == too_large) or 0
        # How far above the limit is known only of a trial that was run to its end.
        whole = limit_bytes < peak < MemoryBudget(limit_bytes).watchdog_bytes
        predicted = min(predicted, too_large - _step(too_large, failed + (0 if whole else 2)))
    elif (fitted + failed) % 5 == 0 or not fitted or not fits <= predicted < too_large:
        predicted = (fits + too_large) // 2
    return min(max(predicted, fits + 1), too_large - 1, max_batch)


def _step(n: int, number: int) -> int:
    """How far to go from N in the so manieth step."""
    return max(n * _STEPS[min(number, len(_STEPS) - 1)] // 100, 1)


def _predict(trials: Sequence[Trial], limit_bytes: int) -> int | None:
    """Largest N whose peak is within the limit, if peaks follow a quadratic in N.

    The quadratic passes through three that fitted, the largest and two well apart from it or,
    where the smallest that did not fit was run to its end all the same, through that one
    and the first two.

    Args:
        trials: All so far.
        limit_bytes: The limit.

    Returns:
        N, or None if the peaks are no rising curve.
    """
    points: list[tuple[int, int]] = []
    peaks = {t.n: t.peak_bytes for t in trials if t.outcome is Outcome.FITS and t.peak_bytes}
    for n, peak in sorted(peaks.items(), reverse=True):
        # Between neighbours the peaks differ less than they vary.
        if len(points) < 3 and (not points or n <= 0.9 * points[0][0]):
            points.insert(0, (n, peak))
    failed = {t.n: t.peak_bytes or 0 for t in trials if t.outcome is Outcome.OUT_OF_MEMORY}
    too_large = min(failed)
    # The peak of a trial that was stopped says nothing.
    whole = limit_bytes < failed[too_large] < MemoryBudget(limit_bytes).watchdog_bytes
    if whole and points and too_large > 1.02 * points[-1][0]:
        points = [*points[-2:], (too_large, failed[too_large])]
    if len(points) < 3:
        return None
    (x0, y0), (x1, y1), (x2, y2) = points
    slope01, slope12 = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = max((slope12 - slope01) / (x2 - x0), 0.0)
    # peak(N) = y1 + slope (N - x1) + bend (N - x1)^2
    slope, rest = slope12 - bend * (x2 - x1), limit_bytes - y1
    if slope <= 0 or rest < 0:
        return None
    predicted = int(x1 + 2 * rest / (slope + (slope**2 + 4 * bend * rest) ** 0.5))
    if not whole and predicted >= too_large:
        # Refuted, and by how much is not known: go down by 1 %, then by 4 %, then by 16 %.
        predicted = too_large - too_large * min(4 ** (len(failed) - 1), 50) // 100
    return predicted


@dataclass(frozen=True)
class SearchResult:
    """A finished search."""

    critical_batch_size: int
    """Largest batch size that fitted; 0 if not even one sample does."""
    stopped_by: StoppedBy
    message: str
    """What ended the search early; empty otherwise."""
    trials: tuple[Trial, ...]
    """In the order they were run."""

    @property
    def is_lower_bound(self) -> bool:
        """Whether a larger batch may fit: memory did not stop the search."""
        return self.stopped_by is not StoppedBy.MEMORY

    @property
    def critical_trial(self) -> Trial | None:
        """The trial of the critical batch size; None if that is 0."""
        sizes = {trial.n: trial for trial in self.trials}
        return sizes.get(self.critical_batch_size)


class TrialError(VivitBenchError):
    """A trial failed for a reason that says nothing about memory."""

    def __init__(self, trial: Trial):
        set_up = trial.message.startswith("set-up failed")
        what = "" if set_up else f"N = {trial.n} failed, which says nothing of its memory: "
        super().__init__(f"{what}{trial.message}")
        self.trial = trial


def find_critical_batch_size(
    run: Callable[[int, Bracket], Trial],
    max_batch: int,
    limit_bytes: int | None = None,
    planned: PlannedPeaks | None = None,
) -> SearchResult:
    """Find the largest batch size that fits.

    Doubling from 1 until a trial runs out of memory, then bisection, guided by the measured
    peaks, to the exact number; or from the size that the engine's plan names (see
    `next_batch_size`). The critical N and N + 1 have both been run, if memory stopped the search;
    so has ``max_batch``, if that did, or all samples there are, if a trial met the end of the data.
    A time-out or another limit ends the search at the largest N known to fit.

    Args:
        run: Runs one batch size. It is also told what is known so far, and is called at most
            once for every N.
        max_batch: Largest batch size to run, at least 1.
        limit_bytes: What the trials' peaks must not exceed, to guide the bisection.
        planned: What the engine's leanest plan needs; None: it makes none.

    Returns:
        The result.

    Raises:
        TrialError: A trial ended with `Outcome.ERROR`.
    """
    bracket = Bracket()
    trials: list[Trial] = []
    most, all_samples = max_batch, None
    while (n := next_batch_size(bracket, trials, most, limit_bytes, planned)) is not None:
        trial = run(n, bracket)
        trials.append(trial)
        match trial.outcome:
            case Outcome.FITS:
                bracket = Bracket(n, bracket.too_large)
            case Outcome.OUT_OF_MEMORY:
                bracket = Bracket(bracket.fits, n)
            case Outcome.DATA:
                assert trial.available_samples is not None
                most = all_samples = min(trial.available_samples, n - 1)
            case Outcome.ERROR:
                raise TrialError(trial)
            case Outcome.TIMEOUT | Outcome.LIMIT:
                reason = StoppedBy(trial.outcome.value)
                message = f"N = {n}: {trial.message}"
                return SearchResult(bracket.fits, reason, message, tuple(trials))
    found = tuple(trials)
    if bracket.too_large == bracket.fits + 1:
        return SearchResult(bracket.fits, StoppedBy.MEMORY, "", found)
    if all_samples is not None:
        message = f"the data end at {all_samples} samples"
        return SearchResult(bracket.fits, StoppedBy.DATA, message, found)
    return SearchResult(bracket.fits, StoppedBy.MAX_BATCH, "", found)
