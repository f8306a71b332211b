"""Which parameters form a unit, and how each unit's Gram matrix is best computed."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from vivit_bench.curvature.capture import LayerCall, own_parameters
from vivit_bench.curvature.expand import is_affine
from vivit_bench.curvature.factors import AffineFactor, Contraction, ExplicitFactor, Factor

PAIRS_WEIGHT = 1.25
"""Time of a FLOP in the sample-pair contraction over one in a large matrix product:
its products are small (measured on the layers of 3c3d and All-CNN-C)."""


@dataclass(frozen=True, eq=False)
class UnitPlan:
    """A unit: the layers that share parameters (almost always one), and its contraction."""

    name: str
    calls: tuple[int, ...]
    """Positions of the unit's calls in the order of the forward pass."""
    parameters: tuple[nn.Parameter, ...]
    layer_type: str
    contraction: Contraction
    flops: float
    """Floating-point operations of the contraction, one triangle."""
    bytes: int
    """Memory of what is kept until the contraction."""
    reason: str

    @property
    def num_params(self) -> int:
        """Trainable parameters of the unit."""
        return sum(p.numel() for p in self.parameters)

    def factor(
        self, num_samples: int, num_columns: int, calls: Sequence[LayerCall], chunk_bytes: int
    ) -> Factor:
        """An empty factor for ``num_samples`` samples of ``num_columns`` columns."""
        if self.contraction is Contraction.EXPLICIT:
            return ExplicitFactor(num_samples, num_columns, self.parameters)
        call = calls[self.calls[0]]
        return AffineFactor(num_samples, num_columns, call, self.contraction, chunk_bytes)


def plan_units(calls: Sequence[LayerCall], num_samples: int, num_columns: int) -> list[UnitPlan]:
    """Group the calls of a one-sample forward pass into units and plan each.

    Args:
        calls: Layer calls of one sample.
        num_samples: N of the curvature.
        num_columns: c, columns per sample.
    """
    return [_plan(group, calls, num_samples, num_columns) for group in _groups(calls)]


def _groups(calls: Sequence[LayerCall]) -> list[list[int]]:
    """Calls connected by shared parameters, in forward order."""
    groups: list[tuple[list[int], set[nn.Parameter]]] = []
    for index, call in enumerate(calls):
        members, parameters = [index], set(own_parameters(call.module).values())
        for other in [g for g in groups if g[1] & parameters]:
            members = other[0] + members
            parameters |= other[1]
            groups.remove(other)
        groups.append((sorted(members), parameters))
    return sorted((members for members, _ in groups), key=lambda m: m[0])


def _plan(members: list[int], calls: Sequence[LayerCall], n: int, c: int) -> UnitPlan:
    parameters = tuple(
        dict.fromkeys(p for i in members for p in own_parameters(calls[i].module).values())
    )
    call = calls[members[0]]
    names = dict.fromkeys(calls[i].name or "model" for i in members)
    rows, size = n * c, sum(p.numel() for p in parameters)
    itemsize = parameters[0].element_size()

    def unit(rule: Contraction, flops: float, kept: int, reason: str) -> UnitPlan:
        return UnitPlan(
            name="+".join(names),
            calls=tuple(members),
            parameters=parameters,
            layer_type=type(call.module).__name__,
            contraction=rule,
            flops=flops,
            bytes=kept * itemsize,
            reason=reason,
        )

    explicit = float(rows) ** 2 * size
    if len(members) > 1:
        return unit(Contraction.EXPLICIT, explicit, rows * size, "parameters used more than once")
    if not is_affine(call.module):
        return unit(Contraction.EXPLICIT, explicit, rows * size, "no affine structure")

    is_linear = isinstance(call.module, nn.Linear)
    z = call.inputs[0]
    outputs = call.output_shape[-1 if is_linear else 1]
    out_size = call.output_shape.numel()
    positions = out_size // outputs
    weight = call.module.weight
    assert isinstance(weight, nn.Parameter)
    patch = weight[0].numel()
    affine_kept = n * z.numel() + rows * out_size
    if positions == 1:
        flops = float(n) ** 2 * patch + float(rows) ** 2 * outputs
        return unit(Contraction.GRAM_PRODUCT, flops, affine_kept, "one output position")
    chunks = 2.0 * rows * out_size * patch + explicit
    pairs = float(n) ** 2 * positions**2 * patch + float(n) * rows * outputs * positions**2
    pairs += float(rows) ** 2 * out_size
    if PAIRS_WEIGHT * pairs < chunks:
        return unit(
            Contraction.PAIRS, pairs, affine_kept, f"{chunks / pairs:.1f}x fewer FLOPs than chunks"
        )
    if rows * size <= affine_kept:
        return unit(Contraction.EXPLICIT, chunks, rows * size, "V is smaller than its factors")
    return unit(
        Contraction.CHUNKS, chunks, affine_kept, f"pairs need {pairs / chunks:.1f}x the FLOPs"
    )
