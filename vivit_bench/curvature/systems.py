"""Eigenpairs of the Gram matrix together with V^T g: what directions and steps are made of."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vivit_bench.curvature.factors import Direction, Factor
from vivit_bench.curvature.gram import grams
from vivit_bench.curvature.kernels import mirror_lower
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.options import Blocks
from vivit_bench.curvature.plan import UnitPlan
from vivit_bench.curvature.solve import eigenpairs_of


@dataclass
class GramSystem:
    """One block's eigenpairs and V^T g, for every sample's gradient or their mean."""

    eigenvalues: Tensor
    """[K] float64, ascending."""
    vectors: Tensor
    """[M, K] float64."""
    slopes: Tensor
    """V^T g: [M, N], one column a sample, or [M, 1] for the mean gradient; float64."""
    num_samples: int
    """Samples that carry the curvature."""

    def gammas(self) -> Tensor:
        """[N or 1, K]: e_k = V u_k / sqrt(l_k), so gamma_nk = u_k^T (V^T g_n) / sqrt(l_k)."""
        return (self.slopes.t() @ self.vectors) / self.eigenvalues.sqrt()

    def lambdas(self) -> Tensor:
        """[num_samples, K]: lambda_nk = N l_k ||u_k[n]||^2."""
        columns = len(self.vectors) // self.num_samples
        squares = self.vectors.square().unflatten(0, (self.num_samples, columns)).sum(1)
        return squares * self.eigenvalues * self.num_samples


@dataclass
class Block:
    """A GGN block: its units, the last unit's factor (for per-layer blocks), its system."""

    units: list[UnitPlan]
    factor: Factor | None
    system: GramSystem


def gram_systems(
    batch: MiniBatch, cutoff: float, *, blocks: Blocks = Blocks.NONE, per_sample: bool = True
) -> Iterator[Block]:
    """Solve the full GGN's system, or each layer's in forward order, one alive at a time.

    Args:
        batch: The request.
        cutoff: Directions have eigenvalues above it.
        blocks: Full or per layer. The factor of a full block's units is freed as soon as
            it is contracted.
        per_sample: V^T grad l_n of every sample, or only of the mean gradient.
    """
    factors, outputs = batch.collect()
    source = _Slopes(batch, outputs, per_sample)
    for gram in grams(batch, factors, blocks, source.add):
        slopes = source.take(gram.matrix)
        values, vectors = eigenpairs_of(gram.take_double(), cutoff)
        system = GramSystem(values, vectors, slopes.double(), batch.num_samples)
        yield Block(gram.units, gram.factor, system)


class _Slopes:
    """Where V^T g comes from.

    With exact curvature on the whole mini-batch grad l_n = sqrt(N) V_n a_n: the Gram
    matrix's own columns times a_n, at no further cost. Otherwise the mean gradient is
    multiplied with each factor, or every sample's gradient, as one more factor, is
    contracted with V.
    """

    def __init__(self, batch: MiniBatch, outputs: Tensor, per_sample: bool):
        self._per_sample = per_sample
        self._coordinates: Tensor | None = None
        self._mean: Direction | None = None
        self._each: dict[UnitPlan, Factor] | None = None
        self._shape = (batch.rows, batch.batch_size if per_sample else 1)
        self._slopes: Tensor | None = None
        if batch.num_samples == batch.batch_size:
            self._coordinates = batch.factor_of_loss.coordinates(outputs, batch.targets)
        if self._coordinates is None and per_sample:
            self._each = batch.collect_gradients()
        elif self._coordinates is None:
            self._mean = batch.gradient()

    def add(self, unit: UnitPlan, factor: Factor) -> None:
        """Add a unit's share (nothing where the slopes come from the Gram matrix)."""
        if self._coordinates is not None:
            return
        if self._slopes is None:
            parameter = unit.parameters[0]
            self._slopes = torch.zeros(self._shape, dtype=parameter.dtype, device=parameter.device)
        if self._each is not None:
            factor.add_cross(self._each.pop(unit), self._slopes)
        elif self._mean is not None:
            self._slopes[:, 0] += factor.dot(self._mean)

    def take(self, matrix: Tensor) -> Tensor:
        """The slopes of the block whose Gram matrix is ``matrix``."""
        if self._coordinates is not None:
            return _slopes_from_gram(matrix, self._coordinates, self._per_sample)
        slopes, self._slopes = self._slopes, None
        assert slopes is not None
        return slopes


def _slopes_from_gram(matrix: Tensor, coordinates: Tensor, per_sample: bool) -> Tensor:
    """V^T grad l_n = sqrt(N) Gt[:, n] a_n, [M, N], or of their mean, [M, 1].

    Products with the Gram matrix, not with its eigenvectors: a saturated sample's columns
    are tiny and its a_n huge, and only the Gram matrix keeps their relative precision.

    Args:
        matrix: [M, M] Gram matrix, lower triangle valid (mirrored here).
        coordinates: [N, c] a_n.
        per_sample: Every sample or the mean.
    """
    mirror_lower(matrix)
    n, c = coordinates.shape
    slopes = matrix.new_zeros(len(matrix), n if per_sample else 1, dtype=torch.float64)
    step = max(512 // c, 1)
    for start in range(0, n, step):
        part = coordinates[start : start + step]
        columns = matrix[:, start * c : start * c + part.numel()].double()
        if per_sample:
            each = columns.view(len(matrix), -1, c) * part
            slopes[:, start : start + step] = each.sum(2) * n**0.5
        else:
            slopes[:, 0] += columns @ part.flatten() / n**0.5
    return slopes
