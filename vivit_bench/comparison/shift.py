"""By how much one sample lies above another, whatever the distribution."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Shift:
    """The shift between two samples, and an interval that holds it."""

    estimate: float
    """Hodges and Lehmann's: the median of all differences."""
    low: float
    high: float


def shift_between(first: Sequence[float], second: Sequence[float], level: float) -> Shift | None:
    """How far the second sample's distribution is shifted against the first's.

    The interval is that of the rank-sum test (Mann and Whitney): from the k-th smallest to the k-th
    largest of the n m differences, with the largest k for which ``2 P(U < k) <= 1 - level``. U is
    counted exactly; outliers cost no more than their ranks.

    Args:
        first: n independent values.
        second: m values, independent of them.
        level: The least probability with which the interval is to hold the shift.

    Returns:
        The shift; None where n and m are too small for an interval of this level.
    """
    most = (1 - level) / 2 * (1 + 1e-12)
    counts = _arrangements(len(first), len(second))
    total = math.comb(len(first) + len(second), len(first))
    k, below = 0, 0
    while k < len(counts) and (below + counts[k]) / total <= most:
        below += counts[k]
        k += 1
    if k == 0:
        return None
    differences = sorted(b - a for a in first for b in second)
    return Shift(median(differences), differences[k - 1], differences[-k])


@functools.cache
def _arrangements(n: int, m: int) -> tuple[int, ...]:
    """In how many orders of n + m values U of them is 0, 1, ..., n m.

    The coefficients of the Gaussian binomial, the product over i = 1 .. n of
    (1 - x^(m + i)) / (1 - x^i).
    """
    size = n * m + 1
    counts = [1] + [0] * (size - 1)
    for i in range(1, n + 1):
        for u in range(size - 1, m + i - 1, -1):
            counts[u] -= counts[u - m - i]
        for u in range(i, size):
            counts[u] += counts[u - i]
    return tuple(counts)
