"""The monitor for a training loop of one's own: one call per step."""

import reprlib
from collections.abc import Iterable
from operator import index

import pandas as pd
from torch import Tensor, nn

from vivit_bench.curvature import Approximation
from vivit_bench.errors import UsageError
from vivit_bench.noise.measurement import Measurement, measure
from vivit_bench.trees import Tree


class NoiseMonitor:
    """Watches a model on a fixed mini-batch while somebody else trains it.

        >>> monitor = NoiseMonitor(model, loss, inputs, targets, at=[0, 10, 100])
        >>> for x, y in batches:
        ...     train_step(x, y)
        ...     monitor.step()
        >>> monitor.table()

    Monitoring does not change the training: see `measure`.

    Args:
        model: As it is trained, in any mode; the same object throughout.
        loss: One that `vivit_bench.curvature` knows.
        inputs: Tensors [N, ...] of the monitor batch, best held out from training.
        targets: Theirs.
        at: Numbers of optimizer steps after which to look; 0 is now. None: after every step,
            and now.
        approximation: As for `measure`.
        cutoff: As there.
        drop_trace: As there.
        memory: As there.
        start: Optimizer steps that were made before, of a training that goes on.

    Raises:
        UsageError: No steps, a negative one, or what the engine cannot compute.
        CertificateError: What it computed failed its check.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        inputs: Tree,
        targets: Tensor,
        at: Iterable[int] | None = None,
        *,
        approximation: Approximation | None = None,
        cutoff: float = 1e-4,
        drop_trace: float | None = None,
        memory: int | None = None,
        start: int = 0,
    ) -> None:
        self._request = (model, loss, inputs, targets)
        self._approximation, self._cutoff, self._memory = approximation, cutoff, memory
        self._drop_trace = drop_trace
        self._at = None if at is None else _steps(at)
        self.steps = start
        """Optimizer steps so far."""
        self.measurements: dict[int, Measurement] = {}
        """Step -> what was seen, with all per-sample values."""
        self._look()

    def step(self) -> Measurement | None:
        """Count an optimizer step; call it after each. Returns what was seen, if it looked."""
        self.steps += 1
        return self._look()

    def table(self) -> pd.DataFrame:
        """All directions of all looks: ``step`` and the columns of `direction_table`."""
        parts = [self.measurements[step].directions for step in self.measurements]
        if not parts:
            return pd.DataFrame()
        return (
            pd.concat(parts, keys=self.measurements, names=["step"])
            .reset_index("step")
            .reset_index(drop=True)
        )

    def summary(self) -> pd.DataFrame:
        """One row per look: ``step`` and the values of `Measurement.summary`."""
        rows = [{"step": step, **seen.summary()} for step, seen in self.measurements.items()]
        return pd.DataFrame(rows)

    def _look(self) -> Measurement | None:
        if self._at is not None and self.steps not in self._at:
            return None
        seen = measure(
            *self._request,
            self._approximation,
            cutoff=self._cutoff,
            drop_trace=self._drop_trace,
            memory=self._memory,
        )
        self.measurements[self.steps] = seen
        return seen


def _steps(at: Iterable[int]) -> frozenset[int]:
    """Numbers of steps, which are whole.

    Raises:
        UsageError: They are none.
    """
    try:
        steps = frozenset(index(step) for step in at)
    except TypeError:
        steps = frozenset()
    if not steps:
        raise UsageError(
            f"at={reprlib.repr(at)}: the numbers of the optimizer steps after which to look, for "
            "example at=[0, 10, 100]; None looks after each"
        )
    if min(steps) < 0:
        raise UsageError(f"at has step {min(steps)}: steps are counted from 0, the start")
    return steps
