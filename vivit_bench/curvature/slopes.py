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
from vivit_bench.curvature.kernels import columns_of_lower, times_lower
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.passes import Sweep, complete, sweep_gradients
from vivit_bench.curvature.plan import Piece, Plan
from vivit_bench.curvature.results import Dropped
from vivit_bench.curvature.units import BlockPlan


@dataclass(frozen=True)
class Work:
    """One attempt at a request."""

    batch: MiniBatch
    plan: Plan
    checks: Checks
    dropped: Dropped | None = None
    """Columns of V that were left out; None: not asked for."""


class Slopes(ABC):
    """Where the products of gradients with a block's coordinates come from."""

    @abstractmethod
    def empty(self, work: Work) -> Tensor | None:
        """What the pieces' shares of V^T g are added to, [M, R]."""

    @abstractmethod
    def add(self, piece: Piece, factor: Factor, slopes: Tensor | None) -> None:
        """Add a piece's share."""

    @abstractmethod
    def of_gram(self, work: Work, matrix: Tensor, slopes: Tensor | None) -> Tensor:
        """V^T g of a complete Gram matrix, of which the lower triangle is read, [M, R] float64."""

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

    def add(self, piece: Piece, factor: Factor, slopes: Tensor | None) -> None:  # noqa: D102
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

    def add(self, piece: Piece, factor: Factor, slopes: Tensor | None) -> None:  # noqa: D102
        pass

    def of_gram(self, work: Work, matrix: Tensor, slopes: Tensor | None) -> Tensor:
        """V^T grad l_n = sqrt(N) Gt[:, n] a_n, or of their mean.

        Products with the Gram matrix, not with its eigenvectors: a saturated sample's columns
        are tiny and its a_n huge, and only the Gram matrix keeps their relative precision.
        """
        work.checks.coordinates(self.coordinates)
        n, c = self.coordinates.shape
        if not self.per_sample:
            return times_lower(matrix, self.coordinates.flatten()).unsqueeze(1) / n**0.5
        found = matrix.new_zeros(len(matrix), n, dtype=torch.float64)
        step = max(128 // c, 1)
        for start in range(0, n, step):
            part = self.coordinates[start : start + step]
            columns = columns_of_lower(matrix, slice(start * c, start * c + part.numel()))
            each = columns.view(len(matrix), -1, c).mul_(part)
            found[:, start : start + step] = each.sum(2) * n**0.5
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

    def add(self, piece: Piece, factor: Factor, slopes: Tensor | None) -> None:  # noqa: D102
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

    sweep: Sweep

    def empty(self, work: Work) -> Tensor | None:  # noqa: D102
        batch = work.batch
        shape = (batch.rows, batch.batch_size)
        return torch.zeros(shape, dtype=batch.dtype, device=batch.device)

    def add(self, piece: Piece, factor: Factor, slopes: Tensor | None) -> None:  # noqa: D102
        assert slopes is not None
        factor.add_cross(self.sweep.take(piece), slopes)

    def of_gram(self, work: Work, matrix: Tensor, slopes: Tensor | None) -> Tensor:  # noqa: D102
        assert slopes is not None
        work.checks.slopes(slopes, None)
        return slopes.double()

    def of_parameters(self, work: Work, block: BlockPlan, v: Tensor) -> Tensor:  # noqa: D102
        parts = []
        for unit in block.units:
            (piece,) = work.plan.pieces(unit)
            factor = self.sweep.take(piece)
            assert isinstance(factor, ExplicitFactor)
            parts.append(factor.v[:, 0])
        found = torch.cat(parts, 1).double().t()
        work.checks.slopes(found, None)
        return found


@dataclass
class SharedGradient:
    """The gradient, where it follows from V: grad L = V a / sqrt(N).

    With exact curvature of the whole mini-batch that is one weight gradient for each layer,
    and no pass over the network; unless the plan is lean, which frees the factors.
    """

    weights: Tensor | None
    """[M]; None where there are none, or it is not wanted."""
    from_factors: bool = False
    """Whether the blocks add it up; else it comes from passes."""
    found: Direction | None = field(default=None)
    """What the blocks' shares add up to so far."""

    @property
    def for_factors(self) -> Tensor | None:
        """The weights, where blocks are to add the gradient up."""
        return self.weights if self.from_factors else None

    def add(self, share: Direction) -> None:
        """Take in a block's share."""
        if self.from_factors:
            self.found = (self.found or {}) | share


def shared_gradient(work: Work, sweep: Sweep, wanted: bool) -> SharedGradient:
    """How the gradient of a request comes along."""
    if not wanted:
        return SharedGradient(None)
    coordinates = _coordinates(work.batch, sweep)
    from_factors = coordinates is not None and not work.plan.lean
    if not from_factors:
        work.checks.gradient_pass()
    if coordinates is None:
        return SharedGradient(None)
    scaled = coordinates.flatten() * work.batch.batch_size**-0.5
    return SharedGradient(scaled.to(work.batch.dtype), from_factors)


def _coordinates(batch: MiniBatch, sweep: Sweep) -> Tensor | None:
    """a_n with grad l_n = sqrt(N) V_n a_n, [N, c]; None where there are none."""
    if not batch.gradients_in_range:
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
        return SlopesOfGradients(gradients), gradients.gradient
    totals = complete(batch, plan, sweep, None, with_gradient=True)
    assert totals.gradient is not None
    return SlopesOfDirections([totals.gradient]), totals.gradient


def in_parameter_format(batch: MiniBatch, direction: Direction | None) -> list[Tensor] | None:
    """One tensor per parameter in the model's order; zero where the output does not depend."""
    if direction is None:
        return None
    return [direction[p] if p in direction else torch.zeros_like(p) for p in batch.parameters]
