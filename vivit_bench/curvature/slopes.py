"""Which way a request's gradients take: from V, along with its columns, or passes of their own."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vivit_bench.curvature.factors import Direction
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.passes import Sweep, complete, sweep_gradients
from vivit_bench.curvature.systems import (
    Slopes,
    SlopesFromCoordinates,
    SlopesOfDirections,
    SlopesOfGradients,
    Work,
)


@dataclass
class SharedGradient:
    """The gradient, where it follows from V: grad L = V a / sqrt(N).

    With exact curvature of the whole mini-batch that is one weight gradient for each layer,
    and no pass over the network.
    """

    weights: Tensor | None
    """[M]; None where it comes from passes, or is not wanted."""
    found: Direction | None = field(default=None)
    """What the blocks' shares add up to so far."""

    def add(self, share: Direction) -> None:
        """Take in a block's share."""
        if self.weights is not None:
            self.found = (self.found or {}) | share


def shared_gradient(work: Work, sweep: Sweep, wanted: bool) -> SharedGradient:
    """How the gradient of a request comes along."""
    if not wanted:
        return SharedGradient(None)
    coordinates = _coordinates(work.batch, sweep)
    if coordinates is None:
        work.checks.gradient_pass()
        return SharedGradient(None)
    scaled = coordinates.flatten() * work.batch.batch_size**-0.5
    return SharedGradient(scaled.to(work.batch.dtype))


def _coordinates(batch: MiniBatch, sweep: Sweep) -> Tensor | None:
    """a_n with grad l_n = sqrt(N) V_n a_n, [N, c]; None where there are none."""
    if batch.num_samples < batch.batch_size or batch.factor.noise() is not None:
        return None
    return batch.factor.coordinates(sweep.outputs, slice(0, batch.batch_size))


def find_slopes(work: Work, sweep: Sweep, *, per_sample: bool) -> tuple[Slopes, Direction | None]:
    """Where V^T g comes from, and the mean gradient if that had to be computed for it.

    Args:
        work: The attempt.
        sweep: Its sweep.
        per_sample: Of every sample's gradient, or of the mean alone.
    """
    batch, plan = work.batch, work.plan
    coordinates = _coordinates(batch, sweep)
    if coordinates is not None:
        return SlopesFromCoordinates(coordinates, per_sample), None
    work.checks.gradient_pass()
    if per_sample:
        gradients = sweep_gradients(batch, plan)
        return SlopesOfGradients(gradients.factors), gradients.gradient
    totals = complete(batch, plan, sweep, None, with_gradient=True)
    assert totals.gradient is not None
    return SlopesOfDirections([totals.gradient]), totals.gradient


def in_parameter_format(batch: MiniBatch, direction: Direction | None) -> list[Tensor] | None:
    """One tensor per parameter in the model's order; zero where the output does not depend."""
    if direction is None:
        return None
    return [direction[p] if p in direction else torch.zeros_like(p) for p in batch.parameters]
