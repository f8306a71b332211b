"""Where the limit is by the engine's plan, corrected by what trials measured. Pure functions.

An engine that is given the trial's limit runs the fastest plan within it: its peaks rise to just
below the limit and stay there for a wide range of N. What decides is the need of its leanest plan,
which is known for any N without running it, to some percent; a trial that ran the leanest plan
tells by how much it is off.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import exp, log
from statistics import fmean

from vivit_bench.measure import Outcome, Trial
from vivit_bench.measure.budget import MemoryBudget

LEANEST_SHARE = 0.93
"""Where the leanest plan needs this share of the limit, the trial ran it: faster ones are made for
less (`vivit_bench.curvature.plan.MARGIN`)."""


@dataclass(frozen=True)
class PlannedPeaks:
    """What the leanest plan needs at some batch sizes, and so, as it is smooth, at all.

    Args:
        points: (N, bytes), N ascending, all above 0; two at least.

    Raises:
        ValueError: They are not.
    """

    points: tuple[tuple[int, int], ...]
    share: float = LEANEST_SHARE
    """Where it needs this share of the limit, a trial shows what it really takes; 0: each does."""

    @classmethod
    def from_rows(
        cls, rows: Iterable[Sequence[int]], share: float = LEANEST_SHARE
    ) -> "PlannedPeaks":
        """Of (N, bytes).

        Raises:
            ValueError: They are no such rows.
        """
        return cls(tuple((n, need) for n, need in rows), share)

    def __post_init__(self) -> None:
        sizes = [n for n, _ in self.points]
        rising = all(a < b for a, b in pairwise(sizes))
        if len(sizes) < 2 or not rising or min(*sizes, *(b for _, b in self.points)) < 1:
            raise ValueError(f"no planned peaks: {self.points}")

    def at(self, n: int) -> float:
        """Bytes at N: between two points, and beyond the last two, a power of N."""
        logs, x = self._logs, log(n)
        right = min(max(bisect_left(logs, (x, 0.0)), 1), len(logs) - 1)
        (x0, y0), (x1, y1) = logs[right - 1 : right + 1]
        return exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0))

    @cached_property
    def _logs(self) -> list[tuple[float, float]]:
        rising = accumulate((need for _, need in self.points), max)  # whatever a plan says
        return [(log(n), log(need)) for (n, _), need in zip(self.points, rising, strict=True)]


def predict_critical_batch_size(
    planned: PlannedPeaks, trials: Iterable[Trial], limit_bytes: int, most: int
) -> int:
    """The largest N whose leanest plan is within the limit, as far as is known.

    A trial that ran the leanest plan gives the ratio of its measured to its planned peak; between
    two of them the ratio is interpolated, elsewhere it is that of the nearest, and 1 without any.
    Once something did not fit, the two trials about the limit correct what they refute: what fitted
    took the leanest plan's need at least, what was stopped at most.

    Args:
        planned: What the leanest plan needs.
        trials: What was measured so far.
        limit_bytes: The limit.
        most: Largest N to name.

    Returns:
        N, 0 if not even one sample is within the limit.
    """
    ratios = _ratios(planned, list(trials), limit_bytes)

    def fits(n: int) -> bool:
        return planned.at(n) * _interpolated(ratios, n) <= limit_bytes

    if not fits(1):
        return 0
    low, high = 1, most + 1  # low fits; that more need more is taken for granted
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _ratios(
    planned: PlannedPeaks, trials: Sequence[Trial], limit_bytes: int
) -> list[tuple[int, float]]:
    """(N, measured / planned peak), N ascending."""
    found: dict[int, list[float]] = {}
    for trial in trials:
        if _tells(planned, trial, limit_bytes):
            assert trial.peak_bytes
            found.setdefault(trial.n, []).append(trial.peak_bytes / planned.at(trial.n))
    ratios = [(n, fmean(found[n])) for n in sorted(found)]
    failed = [t for t in trials if t.outcome is Outcome.OUT_OF_MEMORY]
    if not failed:
        return ratios
    above = min(failed, key=lambda t: t.n)
    fitted = (t for t in trials if t.outcome is Outcome.FITS and t.n < above.n)
    below = max(fitted, key=lambda t: t.n, default=None)
    # What was stopped had not reached its peak; what does not grow with N decides small peaks.
    for end, sign, least in ((above, 1, limit_bytes), (below, -1, limit_bytes // 2)):
        if end is None or end.n in found or (end.peak_bytes or 0) <= least:
            continue
        ratio = (end.peak_bytes or 0) / planned.at(end.n)
        if sign * ratio > sign * _interpolated(ratios, end.n):
            ratios = sorted([*ratios, (end.n, ratio)])
    return ratios


def _tells(planned: PlannedPeaks, trial: Trial, limit_bytes: int) -> bool:
    """Whether a trial's peak is the leanest plan's, or too large although it ran to its end."""
    peak = trial.peak_bytes or 0
    if trial.outcome is Outcome.OUT_OF_MEMORY:
        return is_whole(trial, limit_bytes)
    lean = planned.at(trial.n) >= planned.share * limit_bytes
    return trial.outcome is Outcome.FITS and peak > 0 and lean


def is_whole(trial: Trial, limit_bytes: int) -> bool:
    """Whether what did not fit was run to its end: its peak is no bound."""
    return limit_bytes < (trial.peak_bytes or 0) < MemoryBudget(limit_bytes).watchdog_bytes


def _interpolated(points: Sequence[tuple[int, float]], n: int) -> float:
    if not points:
        return 1.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= n <= x1:
            return y0 + (y1 - y0) * (n - x0) / (x1 - x0)
    return points[0][1] if n < points[0][0] else points[-1][1]
