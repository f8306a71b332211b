"""Gradients beside the curvature: which way they take, and their products with it.

They come from V, along with its columns, or from passes of their own.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vivit_bench.curvature.checks import Checks
from vivit_bench.curvature.factors import Direction, ExplicitFactor, Factor
from vivit_bench.curvature.kernels import mirror_lower
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.passes import Sweep, complete, sweep_gradients
from vivit_bench.curvature.plan import BlockPlan, Plan, UnitPlan


@dataclass(frozen=True)
class Work:
    """One attempt at a request."""

    batch: MiniBatch
    plan: Plan
    checks: Checks


class Slopes(ABC):
    """Where the products of gradients with a block's coordinates come from."""

    @abstractmethod
    def empty(self, work: Work) -> Tensor | None:
        """What the units' shares of V^T g are added to, [M, R]."""

    @abstractmethod
    def add(self, unit: UnitPlan, factor: Factor, slopes: Tensor | None) -> None:
        """Add a unit's share."""

    @abstractmethod
    def of_gram(self, work: Work, matrix: Tensor, slopes: Tensor | None) -> Tensor:
        """V^T g of a complete Gram matrix, [M, R] float64."""

    @abstractmethod
    def of_parameters(self, work: Work, block: BlockPlan, v: Tensor) -> Tensor:
        """G itself over a block's parameters, [D, R] float64.

        Args:
            work: The attempt.
            block: Whose parameters.
            v: [N, c, D] its share of V.
        """


class NoSlopes(Slopes):
    """Nothing is asked for: eigenvalues alone, or vectors that the caller projects."""

    def empty(self, work: Work) -> Tensor | None:  # noqa: D102
        return None

    def add(self, unit: UnitPlan, factor: Factor, slopes: Tensor | None) -> None:  # noqa: D102
        pass

    def of_gram(self, work: Work, matrix: Tensor, slopes: Tensor | None) -> Tensor:  # noqa: D102
        return matrix.new_zeros(len(matrix), 0, dtype=torch.float64)

    def of_parameters(self, work: Work, block: BlockPlan, v: Tensor) -> Tensor:  # noqa: D102
        return v.new_zeros(v.shape[2], 0, dtype=torch.float64)


@dataclass
class SlopesFromCoordinates(Slopes):
    """Exact curvature of the whole mini-batch: grad l_n = sqrt(N) V_n a_n, at no further cost."""

    coordinates: Tensor
    """[N, c] a_n."""
    per_sample: bool
    """Every sample's gradient, or the mean."""

    def empty(self, work: Work) -> Tensor | None:  # noqa: D102
        return None

    def add(self, unit: UnitPlan, factor: Factor, slopes: Tensor | None) -> None:  # noqa: D102
        pass

    def of_gram(self, work: Work, matrix: Tensor, slopes: Tensor | None) -> Tensor:
        """V^T grad l_n = sqrt(N) Gt[:, n] a_n, or of their mean.

        Products with the Gram matrix, not with its eigenvectors: a saturated sample's columns
        are tiny and its a_n huge, and only the Gram matrix keeps their relative precision.
        """
        work.checks.coordinates(self.coordinates)
        mirror_lower(matrix)
        n, c = self.coordinates.shape
        found = matrix.new_zeros(len(matrix), n if self.per_sample else 1, dtype=torch.float64)
        step = max(512 // c, 1)
        for start in range(0, n, step):
            part = self.coordinates[start : start + step]
            columns = matrix[:, start * c : start * c + part.numel()].double()
            if self.per_sample:
                each = columns.view(len(matrix), -1, c) * part
                found[:, start : start + step] = each.sum(2) * n**0.5
            else:
                found[:, 0] += columns @ part.flatten() / n**0.5
        return found

    def of_parameters(self, work: Work, block: BlockPlan, v: Tensor) -> Tensor:  # noqa: D102
        n = len(v)
        each = torch.einsum("ncd,nc->dn", v.double(), self.coordinates) * n**0.5
        work.checks.slopes(each, None)
        return each if self.per_sample else each.mean(1, keepdim=True)


@dataclass
class SlopesOfDirections(Slopes):
    """Vectors in parameter space, such as the mean gradient: multiplied with each factor."""

    directions: Sequence[Direction]

    def empty(self, work: Work) -> Tensor | None:  # noqa: D102
        batch = work.batch
        shape = (batch.rows, len(self.directions))
        return torch.zeros(shape, dtype=batch.dtype, device=batch.device)

    def add(self, unit: UnitPlan, factor: Factor, slopes: Tensor | None) -> None:  # noqa: D102
        assert slopes is not None
        for column, direction in enumerate(self.directions):
            slopes[:, column] += factor.dot(direction)

    def of_gram(self, work: Work, matrix: Tensor, slopes: Tensor | None) -> Tensor:  # noqa: D102
        assert slopes is not None
        self._check(work, slopes)
        return slopes.double()

    def of_parameters(self, work: Work, block: BlockPlan, v: Tensor) -> Tensor:  # noqa: D102
        parameters = [p for unit in block.units for p in unit.parameters]
        found = torch.stack(
            [torch.cat([d[p].flatten() for p in parameters]).double() for d in self.directions], 1
        )
        self._check(work, found)
        return found

    def _check(self, work: Work, slopes: Tensor) -> None:
        for column, direction in enumerate(self.directions):
            work.checks.slopes(slopes[:, column : column + 1], direction)


@dataclass
class SlopesOfGradients(Slopes):
    """Every sample's gradient, as one more factor of each unit, contracted with V."""

    factors: dict[UnitPlan, Factor]

    def empty(self, work: Work) -> Tensor | None:  # noqa: D102
        batch = work.batch
        shape = (batch.rows, batch.batch_size)
        return torch.zeros(shape, dtype=batch.dtype, device=batch.device)

    def add(self, unit: UnitPlan, factor: Factor, slopes: Tensor | None) -> None:  # noqa: D102
        assert slopes is not None
        factor.add_cross(self.factors.pop(unit), slopes)

    def of_gram(self, work: Work, matrix: Tensor, slopes: Tensor | None) -> Tensor:  # noqa: D102
        assert slopes is not None
        work.checks.slopes(slopes, None)
        return slopes.double()

    def of_parameters(self, work: Work, block: BlockPlan, v: Tensor) -> Tensor:  # noqa: D102
        parts = []
        for unit in block.units:
            factor = self.factors.pop(unit)
            assert isinstance(factor, ExplicitFactor)
            parts.append(factor.v[:, 0])
        found = torch.cat(parts, 1).double().t()
        work.checks.slopes(found, None)
        return found


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
