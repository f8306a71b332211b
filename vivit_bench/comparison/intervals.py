"""How well a median is known, whatever the distribution."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

LEVEL = 0.95
"""The least probability with which an interval is to hold the median."""


@dataclass(frozen=True)
class Interval:
    """Two of the values themselves, and how sure it is that the median lies between them."""

    low: float
    high: float
    level: float
    """Below the one asked for where the values are too few for it."""


def median_interval(values: Iterable[float], level: float = LEVEL) -> Interval | None:
    """The order-statistic (sign test) interval of a distribution's median.

    The median of the distribution that x_(1) <= ... <= x_(n) are independent draws of lies between
    x_(k) and x_(n+1-k) with a probability of at least ``1 - 2 P(B < k)``, B ~ Binomial(n, 1/2).
    The largest k that reaches the level is taken: k = 1, the whole range, up to n = 8, with a
    level of 98.4 % for n = 7.

    Args:
        values: For the ratio of two engines: that of each round, as they are measured in turn.
        level: With fewer than 6 values none reaches 95 %, and the range is returned with the
            level that it has.

    Returns:
        The interval; None for fewer than two values, of which nothing can be said.
    """
    ordered = sorted(values)
    n = len(ordered)
    if n < 2:
        return None
    k = 1
    while 2 * (k + 1) <= n and _level(n, k + 1) >= level:
        k += 1
    return Interval(ordered[k - 1], ordered[n - k], _level(n, k))


def _level(n: int, k: int) -> float:
    return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n
