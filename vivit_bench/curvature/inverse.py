"""Products with the inverse of the damped GGN (Equation S.25, appendix C.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.curvature.factors import Direction, Factor
from vivit_bench.curvature.gram import grams
from vivit_bench.curvature.kernels import mirror_lower
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.options import Blocks
from vivit_bench.curvature.plan import UnitPlan
from vivit_bench.errors import UsageError


@torch.no_grad()
def inverse_product(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    vectors: Sequence[Sequence[Tensor]],
    *,
    damping: float,
    blocks: Blocks = Blocks.NONE,
    **options: Any,
) -> list[list[Tensor]]:
    """(G + d I)^-1 x = 1/d [x - V (d I + Gt)^-1 V^T x] for some vectors x.

    Args:
        model: See :func:`~vivit_bench.curvature.eigenvalues`.
        loss: As there.
        inputs: As there.
        targets: As there.
        vectors: Each a sequence of tensors shaped like the trainable parameters.
        damping: d > 0.
        blocks: ``none`` for the full GGN, ``layer`` for its diagonal blocks.
        **options: As there.

    Returns:
        The products in the format of ``vectors``.

    Raises:
        UsageError: If the request cannot be computed or a vector does not fit the model.
    """
    if not damping > 0:
        raise UsageError(f"damping is {damping}; the inverse needs a damping above 0")
    batch = MiniBatch(model, loss, inputs, targets, **options)
    directions = []
    for number, vector in enumerate(vectors):
        shapes = [tuple(t.shape) for t in vector]
        if shapes != [tuple(p.shape) for p in batch.parameters]:
            raise UsageError(
                f"vector {number} has shapes {shapes[:3]}...; give one tensor for each "
                "trainable parameter, of its shape"
            )
        tensors = [t.to(p) for t, p in zip(vector, batch.parameters, strict=True)]
        directions.append(dict(zip(batch.parameters, tensors, strict=True)))
    solved = solve_damped(batch, directions, damping, Blocks(blocks))
    return [[s[p] for p in batch.parameters] for s in solved]


def solve_damped(
    batch: MiniBatch, directions: Sequence[Direction], damping: float, blocks: Blocks
) -> list[Direction]:
    """(G + d I)^-1 x for vectors in parameter space, full or per layer."""
    # Parameters that no layer call reaches have zero curvature.
    solved = [{p: x / damping for p, x in d.items()} for d in directions]
    slopes = torch.zeros(
        batch.rows, len(directions), dtype=batch.dtype, device=batch.parameters[0].device
    )

    def project(unit: UnitPlan, factor: Factor) -> None:
        for column, direction in enumerate(directions):
            slopes[:, column] += factor.dot(direction)

    for gram in grams(batch, batch.collect()[0], blocks, project):
        mirror_lower(gram.matrix)
        weights = _solve(gram.take_double(), slopes.double(), damping)
        slopes.zero_()
        if gram.factor is None:
            products = batch.backward(weights)
        else:
            products = [gram.factor.combine(w.to(batch.dtype)) for w in weights.unbind(1)]
        for result, product in zip(solved, products, strict=True):
            for parameter, value in product.items():
                result[parameter] -= value / damping
    return solved


def _solve(system: Tensor, slopes: Tensor, damping: float) -> Tensor:
    """(d I + Gt)^-1 b in float64: [M, R]; ``system`` is Gt, and d I is added to it."""
    system.diagonal().add_(damping)
    return torch.cholesky_solve(slopes, torch.linalg.cholesky(system))
