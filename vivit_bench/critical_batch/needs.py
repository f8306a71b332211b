"""Memory as a function of N with its uncertainty, and what fits a memory by it. Pure functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vivit_bench.critical_batch.guide import PlannedPeaks
from vivit_bench.curvature.options import Samples

PLAN_ERROR = 0.02
"""Standard deviation of planned over measured peaks, where they have been compared."""
SCRATCH_BYTES = 8 * 2**20
"""The same of what libraries keep between operations of large mini-batches; 20 MiB were seen."""
CURVE_ERROR = 0.008
"""Standard deviation of what grows with N from `FittedNeed`'s parabola, relative to it: with 0.005,
8 of 10 intervals held what the search found."""
ONE_OF = 8
"""`Samples.FRAC` takes one of so many samples."""
NOISE_BYTES = 2**18
"""Standard deviation of a small trial's peak, which is read on one CPU."""

_RISE_BYTES = 2 * 2**20
SLOPE_ERROR = 0.05
"""Standard deviation of what grows beyond the largest trial, where two show a plan's factor."""


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
        slope: By which planned bytes are multiplied before, where trials show one.
        shown: Bytes of the largest of these trials.
    """

    planned: PlannedPeaks
    beside: tuple[float, ...]
    slope: float | None = None
    shown: float = 0.0

    @classmethod
    def from_trials(
        cls, planned: PlannedPeaks, compared: Sequence[tuple[int, int]], far: int = 0
    ) -> "PlannedNeed":
        """Of planned and measured bytes, N ascending.

        Args:
            planned: What the leanest plan needs.
            compared: (planned, measured).
            far: So many of the last ones were made because those before told nothing: two that
                rise well above noise show by what factor a plan is wrong.
        """
        if far > 1:
            (p0, m0), (p1, m1) = compared[-2:]
            if min(p1 - p0, m1 - m0) >= _RISE_BYTES:
                slope = (m1 - m0) / (p1 - p0)
                return cls(planned, (m1 - slope * p1,), slope, float(m1))
        return cls(planned, tuple(float(m - p) for p, m in compared) or (0.0,))

    def at(self, n: int) -> float:
        """See `Need`; what a plan foresees of libraries may show in larger trials only."""
        if self.slope is not None:
            return self.slope * self.planned.at(n) + self.beside[0]
        return self.planned.at(n) + max(float(np.mean(self.beside)), 0.0)

    def margin(self, n: int) -> float:
        """See `Need`; the plan's error grows with the peak, that of the rest does not."""
        if self.slope is not None:
            beyond = max(self.at(n) - self.shown, 0.0)
            error = np.hypot(PLAN_ERROR * self.shown, SLOPE_ERROR * beyond)
            return 2.0 * float(np.hypot(error, NOISE_BYTES))
        spread = float(np.std(self.beside, ddof=1)) if len(self.beside) > 1 else 0.0
        constant = max(spread, SCRATCH_BYTES)
        return 2.0 * float(np.hypot(PLAN_ERROR * self.planned.at(n), constant))


class FittedNeed:
    """A + b S + c S^2 through measured peaks, by weighted least squares, of S(N) = N samples.

    Where only some of the samples carry the curvature, S is their number: it rises in steps, and
    its remainder, the samples N that make no step yet, gets a term of its own.

    Args:
        points: (N, bytes), three at least, N ascending.
        samples: Which of N samples carry the curvature.

    Raises:
        ValueError: They are fewer, or do not rise, or all have the same S.
    """

    def __init__(self, points: Sequence[tuple[int, int]], samples: Samples = Samples.FULL) -> None:
        self._samples = samples
        if len(points) < 3:
            raise ValueError(f"{len(points)} small trials, and a curve takes three")
        if points[-1][1] <= points[0][1]:
            raise ValueError(f"{len(points)} peaks that do not rise")
        if samples.size(points[0][0]) == samples.size(points[-1][0]):
            raise ValueError(f"{len(points)} peaks of as many curvature samples")
        self._n = [n for n, _ in points]
        self._y = np.array([peak for _, peak in points], dtype=float)
        self._weights = 1 / np.hypot(CURVE_ERROR * (self._y - self._y.min()), NOISE_BYTES)
        self._bends = len(points) > 3 and len({samples.size(n) for n in self._n}) > 2
        self._fit()
        # Peaks do not bend down; and a bend that is none would decide far away.
        if self._bends and self._found[-1] < 2 * np.sqrt(self._covariance[-1, -1]):
            self._bends = False
            self._fit()

    def _fit(self) -> None:
        design = np.stack([self._row(n) for n in self._n]) * self._weights[:, None]
        self._found, *_ = np.linalg.lstsq(design, self._weights * self._y, rcond=None)
        left = design @ self._found - self._weights * self._y
        freedom = max(len(self._n) - design.shape[1], 1)
        # Errors are at least what the weights say: few points may agree by chance.
        scale = max(float(left @ left) / freedom, 1.0)
        self._covariance = scale * np.linalg.pinv(design.T @ design)

    def _row(self, n: int) -> npt.NDArray[np.float64]:
        carrying = self._samples.size(n)
        row = [1, carrying]
        if self._samples is Samples.FRAC:
            row.append(n - ONE_OF * carrying)
        return np.array([*row, carrying**2] if self._bends else row, dtype=float)

    def at(self, n: int) -> float:
        """See `Need`."""
        return float(self._row(n) @ self._found)

    def margin(self, n: int) -> float:
        """See `Need`."""
        row = self._row(n)
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
