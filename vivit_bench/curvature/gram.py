"""Gram matrices V^T V of a mini-batch, full or per layer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from vivit_bench.curvature.factors import Factor
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.options import Blocks
from vivit_bench.curvature.plan import UnitPlan

Visit = Callable[[UnitPlan, Factor], None]


@dataclass
class Gram:
    """The Gram matrix of one block of the GGN."""

    units: list[UnitPlan]
    factor: Factor | None
    """The factor of a per-layer block; None for the full GGN, whose factors are freed."""
    matrix: Tensor
    """[M, M] in the model's dtype; only the lower triangle is valid."""

    def take_double(self) -> Tensor:
        """The matrix in float64; ``matrix`` is empty from then on, and its memory free."""
        double = self.matrix.double()
        self.matrix = self.matrix.new_empty(0)
        return double


def grams(
    batch: MiniBatch,
    factors: dict[UnitPlan, Factor],
    blocks: Blocks,
    visit: Visit | None = None,
) -> Iterator[Gram]:
    """The full GGN's Gram matrix, or each layer's in forward order, one alive at a time.

    Args:
        batch: The request.
        factors: From :meth:`MiniBatch.collect`; emptied, each freed as soon as it can be.
        blocks: Full or per layer.
        visit: Called once with every unit and its factor.
    """
    per_layer = blocks is Blocks.LAYER
    groups = [[unit] for unit in batch.units] if per_layer else [batch.units[::-1]]
    for units in groups:
        matrix = batch.new_gram()
        for unit in units:
            factor = factors.pop(unit)
            factor.add_gram(matrix)
            batch.add_gradient_of(factor)
            if visit is not None:
                visit(unit, factor)
            if not per_layer:
                del factor
        gram = Gram(units, factor if per_layer else None, matrix)
        del matrix
        yield gram
        del gram
