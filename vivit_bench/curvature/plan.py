"""How a request is computed in the memory it may take: what is collected when, and how solved.

Without a bound the fastest way is taken: one pass over the mini-batch collects all layers, and
dense solvers work on copies. Where memory presses, in this order:

* eigenproblems are solved in the Gram matrix's own memory (one core less, several times slower);
* layers are collected in several passes over the mini-batch, each as much as fits; a layer that
  does not fit alone is cut at its output channels, because V^T V is a sum over parameters. The
  passes' cost grows in proportion to what is kept over what there is room for;
* micro-batches and chunks of V become smaller, down to one sample and one column.

Memory is counted over what the process holds when a call begins.
"""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil

import torch

from vivit_bench.curvature.factors import (
    PAIRS_TILE_BYTES,
    AffineFactor,
    Contraction,
    ExplicitFactor,
    Factor,
)
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.options import Blocks, Goal, Memory
from vivit_bench.curvature.route import Route
from vivit_bench.curvature.units import (
    BlockPatterns,
    BlockPlan,
    UnitPlan,
    plan_blocks,
)
from vivit_bench.errors import UsageError

MARGIN = 0.92
"""Share of the memory that a plan is made for, because a prediction is off by some percent. The
leanest plan is run whatever is predicted for it."""


class DoesNotFit(UsageError):  # noqa: N818
    """A computation takes more than the memory it may take.

    Attributes:
        least: Bytes that would do.
    """

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least


@dataclass(frozen=True, eq=False)
class Piece:
    """A unit, or a part of one: what one factor holds."""

    unit: UnitPlan
    part: slice | None = None
    """Output channels of the weight, or entries of an explicit V; None: all."""
    contraction: Contraction = Contraction.EXPLICIT
    """Of this piece: that of its unit, unless another is cheaper for a part."""

    @property
    def name(self) -> str:
        """The unit's, with the part."""
        part = self.part
        return self.unit.name + ("" if part is None else f"[{part.start}:{part.stop}]")

    @property
    def size(self) -> int:
        """How many output channels, or entries of an explicit V."""
        part = self.part
        return self.unit.kept.divisible if part is None else part.stop - part.start

    def bytes(self, num_samples: int, num_columns: int) -> int:
        """Memory of the factor."""
        kept = self.unit.kept
        numbers = kept.a_sample + num_columns * kept.a_column * self.size
        return num_samples * numbers * self.unit.itemsize

    def factor(self, route: Route, num_samples: int, num_columns: int, chunk_bytes: int) -> Factor:
        """An empty factor for ``num_samples`` samples of ``num_columns`` columns."""
        unit = self.unit
        shapes = [route.uses[number] for number in unit.uses]
        if self.contraction is Contraction.EXPLICIT:
            return ExplicitFactor(unit.parameters, num_samples, num_columns, shapes, self.part)
        return AffineFactor(
            unit.parameters,
            num_samples,
            num_columns,
            shapes[0],
            self.contraction,
            chunk_bytes,
            self.part,
        )


@dataclass(frozen=True)
class Stage:
    """A part of a computation, and the memory that is held at its height."""

    name: str
    bytes: int


@dataclass(frozen=True, eq=False)
class Plan:
    """How a request is computed."""

    route: Route
    blocks: tuple[BlockPlan, ...]
    diagonal: bool
    """Whether the blocks are diagonal blocks, rather than the full GGN."""
    goal: Goal
    passes: tuple[tuple[Piece, ...], ...]
    """What each pass over the mini-batch collects, in the order in which it is used."""
    working_bytes: int
    """Memory target of one micro-batch; a chunk of V takes at most half of it."""
    in_place: frozenset[BlockPlan] = frozenset()
    """Blocks whose matrix is solved in its own memory."""
    lean: bool = False
    """Factors are freed as soon as their Gram matrix is formed: gradients, and vectors V w of
    diagonal blocks, come from passes of their own."""
    stages: tuple[Stage, ...] = ()
    _pieces: Mapping[UnitPlan, list[Piece]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        found: dict[UnitPlan, list[Piece]] = {}
        for pieces in self.passes:
            for piece in pieces:
                found.setdefault(piece.unit, []).append(piece)
        object.__setattr__(self, "_pieces", found)

    @property
    def units(self) -> tuple[UnitPlan, ...]:
        """Of all blocks."""
        return tuple(unit for block in self.blocks for unit in block.units)

    @property
    def keeps_factors(self) -> bool:
        """Whether vectors V w of a diagonal block are made of its factors."""
        return self.diagonal and self.goal.lifts and not self.lean

    def pieces(self, unit: UnitPlan) -> list[Piece]:
        """Of a unit, in the order in which they are collected."""
        return self._pieces[unit]

    def solver_name(self, block: BlockPlan) -> str:
        """Of the stage that solves a block's matrix."""
        name = "eigenvalues" if self.goal is Goal.EIGENVALUES else "solver"
        return f"{name} of {block.name}" if block.name else name

    @property
    def peak(self) -> Stage:
        """Where most memory is held."""
        return max(self.stages, key=lambda stage: stage.bytes)


def make_plan(
    batch: MiniBatch,
    route: Route,
    structure: BlockPatterns = Blocks.NONE,
    goal: Goal = Goal.EIGENVALUES,
    memory: Memory | None = None,
    certified: bool = True,
) -> Plan:
    """Plan a request within its memory.

    Args:
        batch: The request.
        route: How its passes run.
        structure: Of the blocks.
        goal: What is computed.
        memory: That it may take; None: as much as the fastest way takes.
        certified: The result is checked.

    Raises:
        UsageError: Blocks that are unknown, empty or do not cover the parameters.
        DoesNotFit: The memory does not suffice even for the leanest plan.
    """
    blocks = plan_blocks(batch, route, structure)
    diagonal = structure != Blocks.NONE
    if memory is None:
        return _Planner(batch, route, blocks, diagonal, goal, certified, None).plan()

    def plan_within(target: int) -> Plan:
        """The fastest plan within a target, or else the leanest."""
        best: Plan | None = None
        for working in _halved(batch.working_bytes):
            smaller = replace(batch, working_bytes=working)
            plan = _Planner(smaller, route, blocks, diagonal, goal, certified, target).plan()
            if best is None or plan.peak.bytes < best.peak.bytes:
                best = plan
            if plan.peak.bytes <= target:
                return plan
        assert best is not None
        return best

    target = int(MARGIN * memory.bytes)
    plan = plan_within(target)
    if plan.peak.bytes <= target:
        return plan
    # The fastest of those that take no more.
    plan = plan_within(plan.peak.bytes)
    if memory.strict and plan.peak.bytes > memory.bytes:
        raise DoesNotFit(
            f"memory of {size_text(memory.bytes)} does not suffice for N = {batch.batch_size}: "
            f"the leanest plan takes {size_text(plan.peak.bytes)}, at '{plan.peak.name}'; give as "
            "much, a smaller batch, or fewer curvature samples",
            plan.peak.bytes,
        )
    return plan


def _halved(most: int) -> Iterator[int]:
    """The memory target of a micro-batch, from the fastest to the leanest."""
    value = most
    while value > 2**16:
        yield value
        value //= 2
    yield min(most, 1)


def size_text(size: int) -> str:
    """Bytes as people type them, rounded up: what is named as enough is enough."""
    small = size < 16 * 2**20
    return f"{ceil(size / 2**10)}KiB" if small else f"{ceil(size / 2**20)}MiB"


def sample_bytes(
    batch: MiniBatch, route: Route, uses: Sequence[int] | None, per_sample: bool
) -> tuple[int, int]:
    """Memory that backpropagation takes for each sample, and for each of its columns.

    The forward pass keeps layer outputs, masks and indices. Cotangents of all layers that are
    collected are returned at once; a few more of the widest are alive on their way through
    activations and pooling.

    Args:
        batch: The request.
        route: How its passes run.
        uses: Those whose cotangents are returned; None: all.
        per_sample: Samples are told apart.
    """
    itemsize = batch.dtype.itemsize
    sizes = [use.output.numel() for use in route.uses]
    returned = sizes if uses is None else [sizes[number] for number in uses]
    if route.plain:
        own = [route.activations]
        own += [parameter.numel() for parameter in route.plain if per_sample]
        sizes, returned = [*sizes, *own], [*returned, *own]
    kept = 2 * sum(sizes) * itemsize
    per_column = (sum(returned) + 3 * max(sizes) or 1) * itemsize
    return kept, per_column


def cut(
    batch: MiniBatch,
    route: Route,
    uses: Sequence[int] | None,
    num_samples: int,
    columns: int,
    per_sample: bool,
) -> tuple[int, int]:
    """Samples, and columns of each, that run at a time."""
    kept, per_column = sample_bytes(batch, route, uses, per_sample)
    step = max(batch.working_bytes // (kept + columns * per_column), 1)
    if per_sample and route.layouts is None:
        step = 1
    least = route.min_samples if per_sample else 1
    pieces = max(ceil(num_samples / max(step, least)), 1)
    step = ceil(num_samples / pieces) or 1  # no small rest
    return step, min(max((batch.working_bytes - kept) // per_column, 1), columns)


@dataclass(frozen=True)
class _Planner:
    """Packs units into passes for one size of micro-batches."""

    batch: MiniBatch
    route: Route
    blocks: tuple[BlockPlan, ...]
    diagonal: bool
    goal: Goal
    certified: bool
    target: int | None
    """Memory; None: no bound."""

    def plan(self) -> Plan:
        """The fastest plan for these micro-batches within the target, or else the leanest."""
        whole = tuple(
            Piece(unit, None, unit.contraction)
            for block in self.blocks
            for unit in block.units[::-1]
        )
        fastest = self._made([whole], frozenset(), lean=False)
        if self.target is None or fastest.peak.bytes <= self.target:
            return fastest
        in_place = frozenset(
            block
            for block in self.blocks
            if self.batch.device.type == "cpu"
            and self._base + self._solving(block, in_place=False) > self.target
        )
        return self._made(self._packed(in_place), in_place, lean=True)

    def _made(
        self, passes: Sequence[tuple[Piece, ...]], in_place: frozenset[BlockPlan], lean: bool
    ) -> Plan:
        passes = tuple(pieces for pieces in passes if pieces)
        plan = Plan(
            self.route,
            self.blocks,
            self.diagonal,
            self.goal,
            passes,
            self.batch.working_bytes,
            in_place,
            lean,
        )
        return replace(plan, stages=tuple(self._stages(plan)))

    def _packed(self, in_place: frozenset[BlockPlan]) -> list[tuple[Piece, ...]]:
        """Passes of whole blocks where several fit, and of parts of a block where it does not."""
        passes: list[tuple[Piece, ...]] = []
        together: list[Piece] = []
        for block in self.blocks:
            own = [Piece(unit, None, unit.contraction) for unit in block.units[::-1]]
            if self._fit([*together, *own], in_place):
                together += own
                continue
            passes.append(tuple(together))
            together = own
            if not self._fit(own, in_place) and not block.in_parameter_space:
                passes += self._cut(block)
                together = []
        return [*passes, tuple(together)]

    def _fit(self, pieces: list[Piece], in_place: frozenset[BlockPlan]) -> bool:
        """Whether whole blocks fit that are collected in one pass."""
        assert self.target is not None
        units = {piece.unit for piece in pieces}
        blocks = tuple(block for block in self.blocks if units.issuperset(block.units))
        alone = replace(self, blocks=blocks)
        return alone._made([tuple(pieces)], in_place, lean=True).peak.bytes <= self.target

    def _cut(self, block: BlockPlan) -> list[tuple[Piece, ...]]:
        """Passes that each collect as much of a block as fits beside its matrix."""
        assert self.target is not None
        room = self.target - self._base - self._forming(block)
        passes: list[tuple[Piece, ...]] = []
        together: list[Piece] = []
        for unit in block.units[::-1]:
            parts = self._parts(unit, room)
            for piece in parts:
                if together and self._collecting([*together, piece]) > room:
                    passes.append(tuple(together))
                    together = []
                together.append(piece)
                if len(parts) > 1 and piece is not parts[-1]:
                    passes.append(tuple(together))  # two parts would be one
                    together = []
        return [*passes, tuple(together)]

    def _parts(self, unit: UnitPlan, room: int) -> list[Piece]:
        """A unit, cut into as few parts as make each fit."""
        kept = unit.kept
        steps, count = kept.divisible // kept.divisor, 1
        while count < steps:
            size = ceil(steps / count) * kept.divisor
            largest = Piece(unit, slice(0, size), unit.contraction_in(count))
            if self._collecting([largest]) <= room:
                break
            count = max(count + 1, int(count * 1.1))
        return _cut_unit(unit, count)

    @property
    def _base(self) -> int:
        """What is held throughout: outputs, and the certificate's vectors."""
        batch = self.batch
        vectors = 6 * batch.num_params if self.certified else 0
        outputs = 3 * batch.batch_size * batch.output_shape.numel()
        return (vectors + outputs) * batch.dtype.itemsize

    def _stages(self, plan: Plan) -> Iterator[Stage]:
        """The plan's parts in their order, with the memory that is held at the height of each."""
        base, total = self._base, len(plan.passes)
        gradient = self.batch.num_params * self.batch.dtype.itemsize
        if not plan.lean and self.batch.gradients_in_range:
            base += gradient  # from the factors, beside the matrix
        blocks = {unit: block for block in plan.blocks for unit in block.units}
        started: BlockPlan | None = None  # its matrix is there
        for number, pieces in enumerate(plan.passes, 1):
            matrix = 0 if started is None else self._forming(started)
            name = f"pass {number} of {total}" if total > 1 else "pass over the mini-batch"
            yield Stage(name, self._base + matrix + self._sweeping(pieces))
            held = sum(map(self._kept, pieces))
            for piece in pieces:
                block = started = blocks[piece.unit]
                matrix = self._forming(block)
                name = f"Gram matrix of {piece.unit.name}"
                yield Stage(name, base + held + matrix + self._contracting(piece))
                solved = piece is plan.pieces(block.units[0])[-1]
                if not plan.keeps_factors:
                    held -= self._kept(piece)
                if solved:
                    name = plan.solver_name(block)
                    size = self._solving(block, block in plan.in_place)
                    yield Stage(name, base + held + size)
                    started = None
                    if plan.keeps_factors:
                        own = (p for unit in block.units for p in plan.pieces(unit))
                        held -= sum(map(self._kept, own))
        vectors = gradient * (3 if self.goal.lifts else 2)
        yield Stage("gradient", self._base + vectors + self._working(None, 1, False))

    def _collecting(self, pieces: Sequence[Piece]) -> int:
        """A pass and what follows: the larger of its micro-batches and of a contraction."""
        contracting = max(map(self._contracting, pieces), default=0)
        return max(self._sweeping(pieces), sum(map(self._kept, pieces)) + contracting)

    def _sweeping(self, pieces: Sequence[Piece]) -> int:
        """A pass: what it keeps, and a micro-batch."""
        uses = sorted({number for piece in pieces for number in piece.unit.uses})
        working = self._working(uses, self.batch.factor.num_columns, True)
        return sum(map(self._kept, pieces)) + working

    def _working(self, uses: Sequence[int] | None, columns: int, per_sample: bool) -> int:
        """Memory of one micro-batch.

        The coefficients are measured, on the three networks of the paper: `sample_bytes`, by which
        micro-batches are cut, is on the safe side.
        """
        count = self.batch.num_samples if per_sample else self.batch.batch_size
        step, width = cut(self.batch, self.route, uses, count, columns, per_sample)
        kept, per_column = sample_bytes(self.batch, self.route, uses, per_sample)
        if self.route.plain:
            return step * (kept + width * per_column)
        widest = max(use.output.numel() for use in self.route.uses) * self.batch.dtype.itemsize
        return step * (kept // 2 + int(3.5 * widest) + width * (per_column - widest))

    def _kept(self, piece: Piece) -> int:
        """Memory of a piece's factors."""
        batch = self.batch
        size = piece.bytes(batch.num_samples, batch.factor.num_columns)
        if self.goal.per_sample and not batch.gradients_in_range:
            size += piece.bytes(batch.batch_size, 1)
        return size

    def _contracting(self, piece: Piece) -> int:
        """Memory beside a piece's factor and the matrix while one is added to the other."""
        batch, rows, kept = self.batch, self.batch.rows, piece.unit.kept
        itemsize = piece.unit.itemsize
        match piece.contraction:
            case Contraction.EXPLICIT:
                return 0
            case Contraction.GRAM_PRODUCT:
                return 512 * (rows + batch.num_samples) * itemsize
            case Contraction.PAIRS:
                product = batch.factor.num_columns * kept.positions * piece.size * itemsize
                if product > PAIRS_TILE_BYTES:  # one tile at a time
                    return product + 2 * PAIRS_TILE_BYTES
                return 6 * PAIRS_TILE_BYTES
            case Contraction.CHUNKS:
                own = kept.divisor if kept.divisor > 1 else piece.size
                channel = (rows * own + batch.num_samples * kept.positions) * kept.kernel
                return int(1.15 * max(batch.working_bytes // 2, channel * itemsize))

    def _forming(self, block: BlockPlan) -> int:
        """Memory of a block's matrix before it is solved."""
        return _triangle(block.size, self.batch.dtype.itemsize, self.batch.device)

    def _solving(self, block: BlockPlan, in_place: bool) -> int:
        """Memory of a block's matrix and its solver."""
        m = block.size
        if not in_place:
            return int(_DIRECT[self.goal] * m * m)
        if self.goal is Goal.EIGENVALUES:
            return _triangle(m, 8, self.batch.device)
        return _triangle(m, 8, self.batch.device) + 8 * m * 256 * 4


_DIRECT = {
    Goal.EIGENVALUES: 16.7,
    Goal.EIGENVECTORS: 24.5,
    Goal.DERIVATIVES: 32.5,
    Goal.STEP: 24.5,
    Goal.POLICY_STEP: 32.5,
    Goal.INVERSE: 20.0,
}
"""Bytes over m^2 that a matrix and its solver take, where the solver may make copies."""


def _triangle(m: int, itemsize: int, device: torch.device) -> int:
    """Memory of an [m, m] matrix of which only the lower triangle is written.

    Pages that are never written take none on the CPU.
    """
    whole = m * m * itemsize
    if device.type != "cpu":
        return whole
    return min(whole, whole // 2 + m * (itemsize + mmap.PAGESIZE) // 2)


def _cut_unit(unit: UnitPlan, count: int) -> list[Piece]:
    """A unit in about as many parts, of about the same size."""
    kept = unit.kept
    steps = kept.divisible // kept.divisor
    count = min(count, steps)
    if count == 1:
        return [Piece(unit, None, unit.contraction)]
    contraction = unit.contraction_in(count)
    edges = [i * steps // count * kept.divisor for i in range(count + 1)]
    return [Piece(unit, slice(a, b), contraction) for a, b in pairwise(edges)]
