"""What an engine's leanest plan needs at several batch sizes, asked in a child; nothing is run."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from vivit_bench.curvature.options import Curvature
from vivit_bench.measure.work import EngineWork
from vivit_bench.trees import num_bytes

_LEAST, _MOST, _SPACING = 0.6, 1.4, 1.05
"""Shares of the limit between which N is asked for in steps of this factor."""


class PlanWork(EngineWork):
    """The needs of the leanest plan instead of the work itself.

    Args:
        costs_of: If not empty, also ``limited_by``, what fills the memory at the largest N within
            it, ``seconds``, [[N, seconds], ...] of that N and its half, and for each of these N
            that are smaller ``plans``, the peak of the plan within the memory.
        arguments: Those of the work. Of an engine without a plan only ``columns`` is told, those of
            V for a sample.
    """

    def __init__(self, *, costs_of: Sequence[int] = (), **arguments: Any) -> None:
        super().__init__(**arguments)
        self._costs_of = costs_of
        self._at: dict[int, str] = {}
        self._needs: dict[int, int] = {}
        self._available: int | None = None

    def load(self) -> None:
        """The mini-batches that are asked for are made then."""

    def warm_up(self) -> None:
        """Nothing is measured."""

    def run(self, n: int) -> object:
        """``planned_peaks`` of at most N samples, [[N, bytes], ...], and what belongs to the costs.

        Raises:
            UsageError: The request cannot be computed.
        """
        if self._quantity not in self._engine.planned:
            exact = self._approximation.curvature is Curvature.EXACT
            outputs = math.prod(self._workload.problem.output_shape)
            return {"columns": outputs if exact else self._approximation.mc_samples}
        assert self._memory_bytes is not None
        rows = planned_peaks(self._need, self._memory_bytes, n)
        if self._available is not None:
            n = min(n, self._available)
            rows = planned_peaks(self._need, self._memory_bytes, n)
        told: dict[str, Any] = {"planned_peaks": [list(row) for row in rows]}
        fitting = [n for n, size in rows if size <= self._memory_bytes]
        if self._costs_of and fitting:
            small = [n for n in self._costs_of if n <= fitting[-1]] or fitting[:1]
            told["plans"] = [[n, self._costs(n)[0]] for n in small]
            last = fitting[-1]
            told["seconds"] = [[n, self._costs(n)[1]] for n in sorted({max(last // 2, 1), last})]
            told["limited_by"] = self._at[last]
        return told

    def check(self, result: object) -> str:
        """See `Work`."""
        return ""

    def digest(self, result: object) -> dict[str, Any]:
        """See `Work`."""
        assert isinstance(result, dict)
        return result

    def _need(self, n: int) -> int | None:
        from vivit_bench.problems.sampling import TooFewSamplesError

        if n in self._needs:
            return self._needs[n]
        try:
            inputs, targets = self._workload.batch(n)
        except TooFewSamplesError as error:
            self._available = error.available
            return None
        leanest, self._at[n] = self._engine.planned_peak(
            self._quantity, self._model, self._loss, inputs, targets, self._approximation
        )
        self._needs[n] = leanest + num_bytes(inputs, targets)
        return self._needs[n]

    def _costs(self, n: int) -> tuple[int, float]:
        """Bytes with the mini-batch, and seconds."""
        assert self._memory_bytes is not None
        inputs, targets = self._workload.batch(n)
        batch = num_bytes(inputs, targets)
        peak, seconds = self._engine.planned_costs(
            self._quantity,
            self._model,
            self._loss,
            inputs,
            targets,
            self._approximation,
            max(self._memory_bytes - batch, 1),
        )
        return peak + batch, seconds


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
        (N, bytes), ascending; up to the last doubling before the data end, or `most`.
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
