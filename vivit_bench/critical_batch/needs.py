"""Memory as a function of N with its uncertainty, and what fits a memory by it. Pure functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vivit_bench.critical_batch.guide import PlannedPeaks

PLAN_ERROR = 0.02
"""Standard deviation of planned over measured peaks, where they have been compared."""
SCRATCH_BYTES = 8 * 2**20
"""The same of what libraries keep between operations of large mini-batches; 20 MiB were seen."""
CURVE_ERROR = 0.008
"""Standard deviation of what grows with N from a + b N + c N^2, relative to it: with 0.005, 8 of 10
intervals held what the search found."""
NOISE_BYTES = 2**18
"""Standard deviation of a small trial's peak, which is read on one CPU."""


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
    """A + b N + c N^2 through measured peaks, by weighted least squares.

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
        self._weights = 1 / np.hypot(CURVE_ERROR * (self._y - self._y.min()), NOISE_BYTES)
        self._powers = 3 if len(points) > 3 else 2
        self._fit()
        # Peaks do not bend down; and a bend that is none would decide far away.
        if self._powers == 3 and self._found[2] < 2 * np.sqrt(self._covariance[2, 2]):
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
