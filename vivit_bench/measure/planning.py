"""What an engine's leanest plan needs at several batch sizes, asked in a child; nothing is run."""

from collections.abc import Callable
from typing import Any

from vivit_bench.measure.work import EngineWork
from vivit_bench.trees import num_bytes

_LEAST, _MOST, _SPACING = 0.6, 1.4, 1.05
"""Shares of the limit between which N is asked for in steps of this factor."""


class PlanWork(EngineWork):
    """The needs of the leanest plan instead of the work itself; arguments are those of the work."""

    def warm_up(self) -> None:
        """Nothing is measured."""

    def run(self, n: int) -> object:
        """``planned_peaks`` of at most N samples: [[N, bytes], ...].

        Raises:
            UsageError: The request cannot be computed.
        """
        assert self._memory_bytes is not None
        return [list(row) for row in planned_peaks(self._need, self._memory_bytes, n)]

    def check(self, result: object) -> str:
        """See `Work`."""
        return ""

    def digest(self, result: object) -> dict[str, Any]:
        """See `Work`."""
        return {"planned_peaks": result}

    def _need(self, n: int) -> int | None:
        from vivit_bench.problems.sampling import TooFewSamplesError

        try:
            inputs, targets = self._workload.batch(n)
        except TooFewSamplesError:
            return None
        leanest = self._engine.planned_peak(
            self._quantity, self._model, self._loss, inputs, targets, self._approximation
        )
        return leanest + num_bytes(inputs, targets)


def planned_peaks(
    need: Callable[[int], int | None], limit_bytes: int, most: int
) -> list[tuple[int, int]]:
    """What is needed from N = 1 to above the limit, by doubling, and closely about the limit.

    No N beyond twice the largest within the limit is asked for: its mini-batch is made.

    Args:
        need: N -> bytes; None where the data end before.
        limit_bytes: The limit.
        most: Largest N of interest.

    Returns:
        (N, bytes), ascending; up to the last doubling before the data end.
    """
    found: dict[int, int] = {}
    n = 1
    while (size := need(n)) is not None:
        found[n] = size
        if size > limit_bytes or n >= most:
            break
        n = min(2 * n, most)
    low = max((n for n, size in found.items() if size < _LEAST * limit_bytes), default=1)
    while low < max(found, default=0) and found[low] <= _MOST * limit_bytes:
        between = min(max(int(low * _SPACING), low + 1), max(found))
        if between not in found and (size := need(between)) is not None:
            found[between] = size
        low = between
    return sorted(found.items())
