"""Which parameters form a unit, and how each unit's Gram matrix is best computed."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

from torch import nn

from vivit_bench.curvature.factors import Contraction
from vivit_bench.curvature.minibatch import MiniBatch, Patterns, check_patterns
from vivit_bench.curvature.options import Blocks, parse_choice
from vivit_bench.curvature.route import Route, UseShape
from vivit_bench.curvature.rules import LINEAR, Tier
from vivit_bench.curvature.tuning import tuning
from vivit_bench.errors import UsageError

BlockPatterns = Blocks | str | Mapping[str, Patterns]
"""The block structure: ``none``, ``layer``, or block name -> patterns of parameter names."""


@dataclass(frozen=True)
class Kept:
    """What is held of a unit's share of V, counted in numbers."""

    a_sample: int
    """The layer's input; nothing where V itself is held."""
    a_column: int
    """For each output channel, or for each entry of V."""
    divisible: int
    """Output channels, or entries of V: a factor may hold some of them."""
    divisor: int = 1
    """It holds a multiple of these (the output channels of one group)."""
    positions: int = 1
    """Output positions of a channel."""
    kernel: int = 1
    """Entries of the weight for each input and output channel."""
    repeated_flops: float = 0.0
    """Work that every part does anew."""
    chunk_flops: float = 0.0
    """Work of the contraction in chunks, none of which is done twice."""


@dataclass(frozen=True, eq=False)
class UnitPlan:
    """A layer's parameters in one block, or a part of them, and how their V is contracted."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    uses: tuple[int, ...]
    """Numbers of the uses in the route that concern it."""
    plain: tuple[nn.Parameter, ...]
    """Its parameters that plain autograd computes."""
    layer_type: str
    tier: Tier
    contraction: Contraction
    flops: float
    """Floating-point operations of the contraction, one triangle."""
    kept: "Kept"
    """What is held until the contraction."""
    reason: str
    advice: str
    """What would make it faster; empty if nothing would."""

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return self.parameters[0].element_size()

    def contraction_in(self, parts: int) -> Contraction:
        """How to contract it in several parts: what each does anew counts several times."""
        pairs = self.flops + (parts - 1) * self.kept.repeated_flops
        weight = tuning(self.parameters[0].device).pairs_weight
        if self.contraction is Contraction.PAIRS and weight * pairs > self.kept.chunk_flops:
            return Contraction.CHUNKS
        return self.contraction

    @property
    def num_params(self) -> int:
        """Trainable parameters of the unit."""
        return sum(p.numel() for p in self.parameters)


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """A diagonal block of the GGN, or all of it."""

    name: str
    """Of the layer or the user's; "" for the full GGN."""
    units: tuple[UnitPlan, ...]
    """None where no parameter of the block reaches the output."""
    num_params: int
    """D of the block, with parameters that do not reach the output."""
    rows: int
    """M, columns of V."""
    in_parameter_space: bool
    """Whether the D x D matrix, the smaller one, is formed instead of the Gram matrix."""

    @property
    def size(self) -> int:
        """Rows of its matrix."""
        return sum(u.num_params for u in self.units) if self.in_parameter_space else self.rows

    @property
    def num_eigenvalues(self) -> int:
        """min(M, D), those that can be non-zero."""
        return min(self.rows, self.num_params)


def plan_blocks(
    batch: MiniBatch, route: Route, blocks: BlockPatterns, lean: bool = False
) -> tuple[BlockPlan, ...]:
    """Group the parameters that reach the output into blocks and units, and plan each.

    Args:
        batch: The request.
        route: How its passes run.
        blocks: The structure.
        lean: The D x D matrix is formed only where it and V, of which it is made, take less memory
            than the Gram matrix, of which V may come in parts.

    Raises:
        UsageError: Blocks that are unknown, empty or do not cover the parameters.
    """
    layers = layers_of(batch)
    used = set(route.plain) | {r.parameter for u in route.uses for r in u.roles.values()}
    plans = []
    groups = group_parameters(batch, layers, blocks)
    for name, parameters in groups.items():
        reached = [p for p in parameters if p in used]
        size = sum(p.numel() for p in parameters)
        in_parameter_space = (1 + lean) * sum(p.numel() for p in reached) < batch.rows
        units = []
        for layer in dict.fromkeys(layers[p] for p in reached):
            own = [p for p in reached if layers[p] == layer]
            units += _plan_layer(batch, route, layer, own, in_parameter_space)
        plans.append(BlockPlan(name, tuple(units), size, batch.rows, in_parameter_space))
    return tuple(plans)


def layers_of(batch: MiniBatch) -> dict[nn.Parameter, str]:
    """Parameter -> its layer's name; layers that share a parameter are one, ``a+b``."""
    owners: dict[nn.Parameter, list[str]] = {p: [] for p in batch.names}
    for name, parameter in batch.model.named_parameters(remove_duplicate=False):
        if parameter in owners:
            owners[parameter].append(_layer_of(name))
    groups: list[set[str]] = []
    for names in owners.values():
        touching = [g for g in groups if g & set(names)]
        groups = [g for g in groups if g not in touching] + [set(names).union(*touching)]
    order = list(dict.fromkeys(name for names in owners.values() for name in names))
    joined = {name: "+".join(sorted(group, key=order.index)) for group in groups for name in group}
    return {p: joined[names[0]] for p, names in owners.items()}


def _layer_of(name: str) -> str:
    """The module that a parameter belongs to, whatever parametrises it."""
    path = name.split(".")[:-1]
    if "parametrizations" in path:
        path = path[: path.index("parametrizations")]
    return ".".join(path) or "model"


def group_parameters(
    batch: MiniBatch, layers: Mapping[nn.Parameter, str], blocks: BlockPatterns
) -> dict[str, list[nn.Parameter]]:
    """Block name -> parameters."""
    groups: dict[str, list[nn.Parameter]] = {}
    if isinstance(blocks, str):
        structure = parse_choice(Blocks, "blocks", blocks)
        for parameter in batch.names:
            key = layers[parameter] if structure is Blocks.LAYER else ""
            groups.setdefault(key, []).append(parameter)
        return groups
    if not isinstance(blocks, Mapping):
        raise UsageError(
            f"blocks is {blocks!r}; use 'none', 'layer', or a dict of block name -> patterns"
        )
    left = dict(batch.names)
    for block, patterns in blocks.items():
        wanted = check_patterns(f"block {block!r}", patterns)
        found = [p for p, name in left.items() if any(fnmatchcase(name, w) for w in wanted)]
        if not found:
            raise UsageError(
                f"block {block!r} matches no parameter that no earlier block has; "
                f"its patterns are {', '.join(wanted)}"
            )
        groups[block] = found
        for parameter in found:
            del left[parameter]
    if left:
        raise UsageError(
            f"{len(left)} parameter(s) are in no block, the first is {next(iter(left.values()))}; "
            "add a block with the pattern '*', or leave them out with params"
        )
    return groups


def _plan_layer(
    batch: MiniBatch,
    route: Route,
    layer: str,
    parameters: list[nn.Parameter],
    in_parameter_space: bool,
) -> list[UnitPlan]:
    """The units of a layer: its weight with a use of the fast tier, and the rest."""
    places: dict[nn.Parameter, list[tuple[int, str]]] = {p: [] for p in parameters}
    for number, use in enumerate(route.uses):
        for name, role in use.roles.items():
            if role.parameter in places:
                places[role.parameter].append((number, name))
    units, rest = [], dict.fromkeys(parameters)
    for parameter in parameters:
        if in_parameter_space or len(places[parameter]) != 1:
            continue
        number, name = places[parameter][0]
        use = route.uses[number]
        fast = use.rule.tier is Tier.FAST and use.reached and use.output.numel() > 0
        if not fast or name == "bias":
            continue
        own = [p for p in rest if p is parameter or places[p] == [(number, "bias")]]
        unit = _plan_affine(batch, layer, own, number, use)
        if unit.contraction is not Contraction.EXPLICIT:
            units.append(unit)
            for taken in own:
                del rest[taken]
    if rest:
        explicit = _plan_explicit(batch, route, layer, list(rest), places, in_parameter_space)
        units.append(explicit)
    return units


def _plan_explicit(
    batch: MiniBatch,
    route: Route,
    layer: str,
    parameters: list[nn.Parameter],
    places: Mapping[nn.Parameter, list[tuple[int, str]]],
    in_parameter_space: bool,
) -> UnitPlan:
    numbers = tuple(sorted({number for p in parameters for number, _ in places[p]}))
    plain = tuple(p for p in parameters if p in route.plain)
    rules = {route.uses[n].rule for n in numbers}
    size = sum(p.numel() for p in parameters)
    flops = float(batch.rows) * size * (size if in_parameter_space else batch.rows)
    advice = ""
    if plain:
        tier, reason = Tier.PLAIN, f"{batch.names[plain[0]]} is {route.plain[plain[0]]}"
        advice = (
            "a Linear, Conv, norm or Embedding module of its own is faster; so is leaving it "
            "out with params"
        )
    else:
        tier = Tier.FAST if all(r.tier is Tier.FAST for r in rules) else Tier.SMALL
        reason = "V is smaller than its factors" if tier is Tier.FAST else "few parameters"
        if any(len(places[p]) > 1 for p in parameters):
            reason = "parameters used more than once"
    if in_parameter_space:
        reason += "; the D x D matrix is the smaller one"
    return UnitPlan(
        name=layer,
        parameters=tuple(parameters),
        uses=numbers,
        plain=plain,
        layer_type="+".join(sorted({r.label for r in rules})) or "any",
        tier=tier,
        contraction=Contraction.EXPLICIT,
        flops=flops,
        kept=Kept(0, 1, size),
        reason=reason,
        advice=advice,
    )


def _plan_affine(
    batch: MiniBatch, layer: str, parameters: list[nn.Parameter], number: int, use: UseShape
) -> UnitPlan:
    n, rows = batch.num_samples, batch.rows
    size = sum(p.numel() for p in parameters)
    is_linear = use.rule is LINEAR
    out_size = use.output.numel()
    outputs = use.output[1]
    positions = out_size // outputs
    groups = use.constants.get("groups", 1)
    weight = next(p for p in parameters if p.ndim > 1)
    patch = weight.numel() // outputs if is_linear else weight[0].numel()
    numbers = prod(use.saved["input"])
    factors = n * numbers + rows * out_size

    def unit(rule: Contraction, flops: float, reason: str) -> UnitPlan:
        return UnitPlan(
            name=layer,
            parameters=tuple(parameters),
            uses=(number,),
            plain=(),
            layer_type=use.rule.label,
            tier=Tier.FAST,
            contraction=rule,
            flops=flops,
            kept=Kept(0, 1, size) if rule is Contraction.EXPLICIT else kept,
            reason=reason,
            advice="",
        )

    explicit = float(rows) ** 2 * size
    chunks = 2.0 * rows * out_size * patch + explicit
    repeated = float(n) ** 2 * positions**2 * patch
    kernel = 1 if is_linear else prod(use.constants["geometry"]["kernel"])
    divisor = outputs // groups if groups > 1 else 1
    kept = Kept(numbers, positions, outputs, divisor, positions, kernel, repeated, chunks)
    if positions == 1 and groups == 1:
        flops = float(n) ** 2 * patch + float(rows) ** 2 * outputs
        return unit(Contraction.GRAM_PRODUCT, flops, "one output position")
    pairs = repeated + float(n) * rows * outputs * positions**2 + float(rows) ** 2 * out_size
    if groups == 1 and tuning(batch.device).pairs_weight * pairs < chunks:
        return unit(Contraction.PAIRS, pairs, f"{chunks / pairs:.1f}x fewer FLOPs than chunks")
    if rows * size <= factors:
        return unit(Contraction.EXPLICIT, chunks, "V is smaller than its factors")
    reason = f"pairs need {pairs / chunks:.1f}x the FLOPs" if groups == 1 else "grouped convolution"
    return unit(Contraction.CHUNKS, chunks, reason)
