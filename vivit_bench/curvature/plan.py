"""How a request is computed in the memory it may take: what is collected when, and how solved.

Without a bound the fastest way is taken: one pass over the mini-batch collects all layers, and
dense solvers work on copies. Where memory presses, in this order:

* eigenproblems are solved in the Gram matrix's own memory (one core less, several times slower),
  which for a GPU's matrix is the CPU's: the device holds it once, where its solver holds six;
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

from vivit_bench.curvature.banded import band_bytes
from vivit_bench.curvature.factors import (
    AffineFactor,
    Contraction,
    ExplicitFactor,
    WholeFactor,
    expanding_bytes,
)
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.options import Blocks, Goal, Memory
from vivit_bench.curvature.route import Route
from vivit_bench.curvature.tuning import expand_bytes, largest_rows, tile_bytes, tuning
from vivit_bench.curvature.units import (
    BlockPatterns,
    BlockPlan,
    UnitPlan,
    plan_blocks,
)
from vivit_bench.errors import UsageError
from vivit_bench.trees import leaves

LIBRARY_BYTES = 5 * 2**20
"""Buffers that libraries keep from the first large products on."""

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

    def factor(
        self, route: Route, num_samples: int, num_columns: int, chunk_bytes: int
    ) -> WholeFactor:
        """An empty factor for ``num_samples`` samples of ``num_columns`` columns."""
        unit = self.unit
        shapes = [route.uses[number] for number in unit.uses]
        if self.contraction is Contraction.EXPLICIT:
            return ExplicitFactor(
                unit.parameters, num_samples, num_columns, shapes, chunk_bytes, self.part
            )
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
    collects: bool = False
    """Whether cutting layers makes it leaner."""


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
    """Blocks whose matrix is solved in its own memory, by the CPU."""
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
    def _on_cpu(self) -> bool:
        return all(unit.parameters[0].device.type == "cpu" for unit in self.units[:1])

    @property
    def rows_on_cpu(self) -> int:
        """Of the largest matrix that is ever in the CPU's memory."""
        blocks = self.blocks if self._on_cpu else self.in_place
        return max((block.size for block in blocks), default=0)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user of a device is told of the plan."""
        if self._on_cpu or not self.in_place:
            return ()
        return (f"a matrix of {self.rows_on_cpu:,} rows was solved by the CPU",)

    def within(self, collecting: int, most: int) -> bool:
        """Whether no stage takes more than ``most``, and none that collects more than that."""
        return all(s.bytes <= (collecting if s.collects else most) for s in self.stages)

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
    asked = (batch, route, structure, goal, certified)
    if memory is None:
        return next(_planners(*asked)).fastest()

    least = leanest_peak(*asked)
    if memory.strict and least.bytes > memory.bytes:
        raise DoesNotFit(
            f"memory of {size_text(memory.bytes)} does not suffice for N = {batch.batch_size}: "
            f"the leanest plan takes {size_text(least.bytes)}, at '{least.name}'; give as much, a "
            "smaller batch, or fewer curvature samples",
            least.bytes,
        )
    comfortable = int(MARGIN * memory.bytes)
    most = max(comfortable, least.bytes)
    # Where a solver alone takes more than is comfortable, passes that can do with less keep to it.
    for target in dict.fromkeys((comfortable, most)):
        for planner in _planners(*asked, target, most):
            fastest = planner.fastest()
            if fastest.within(target, most):
                return fastest
            if planner.leanest().within(target, most):  # known without cutting every layer
                packed = planner.packed()
                if packed.within(target, most):
                    return packed
    raise AssertionError("the leanest plan is within every target")


def leanest_peak(
    batch: MiniBatch,
    route: Route,
    structure: BlockPatterns = Blocks.NONE,
    goal: Goal = Goal.EIGENVALUES,
    certified: bool = True,
) -> Stage:
    """The peak of the leanest plan, in a time that does not depend on its passes.

    It collects one part of a layer after the other, each as small as can be. How many there are
    does not matter to the peak, so that the largest of each layer stands for all.

    Args:
        batch: See `make_plan`, as for the others.
        route: As there.
        structure: As there.
        goal: As there.
        certified: As there.

    Raises:
        UsageError: Blocks that are unknown, empty or do not cover the parameters.
    """
    peaks = []
    for planner in _planners(batch, route, structure, goal, certified):
        peaks += [planner.fastest().peak, planner.leanest().peak]
    return min(peaks, key=lambda stage: stage.bytes)


def _planners(
    batch: MiniBatch,
    route: Route,
    structure: BlockPatterns,
    goal: Goal,
    certified: bool,
    target: int = 0,
    most: int = 0,
) -> Iterator["_Planner"]:
    """From the fastest choice of matrices and micro-batches to the leanest."""
    diagonal = structure != Blocks.NONE
    for blocks in _block_plans(batch, route, structure):
        for working in _halved(batch.working_bytes):
            smaller = replace(batch, working_bytes=working)
            yield _Planner(smaller, route, blocks, diagonal, goal, certified, target, most)


def _block_plans(
    batch: MiniBatch, route: Route, structure: BlockPatterns
) -> Iterator[tuple[BlockPlan, ...]]:
    """The fast choice of each block's matrix, then the one that takes less memory, if another."""
    fast = plan_blocks(batch, route, structure)
    yield fast
    lean = plan_blocks(batch, route, structure, lean=True)
    if any(a.in_parameter_space != b.in_parameter_space for a, b in zip(fast, lean, strict=True)):
        yield lean


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
    target: int
    """Memory for stages that collect."""
    most: int
    """Memory for the others."""
    before: int = 0
    """Memory of the vectors of earlier blocks."""
    first: bool = True
    """Whether nothing is collected before, so that the libraries' buffers are not there yet."""

    def fastest(self) -> Plan:
        """The fastest plan for these micro-batches, whatever it takes."""
        whole = tuple(
            Piece(unit, None, unit.contraction)
            for block in self.blocks
            for unit in block.units[::-1]
        )
        return self._made([whole], self._solved_in_place(None), lean=False)

    def packed(self) -> Plan:
        """The plan with the fewest passes that keep to the memory, or else the leanest."""
        in_place = self._solved_in_place(self.most)
        return self._made(self._packed(in_place), in_place, lean=True)

    def leanest(self) -> Plan:
        """A plan with the peak of the leanest one, that collects a part of each unit alone."""
        passes = []
        for block in self.blocks:
            if block.in_parameter_space:
                passes.append(tuple(Piece(u, None, u.contraction) for u in block.units[::-1]))
                continue
            for unit in block.units[::-1]:
                largest = _largest_part(unit, unit.kept.divisible // unit.kept.divisor)
                passes.append((largest,))
                if largest.part is not None:  # the next one, beside the matrix
                    passes.append((replace(largest),))
        return self._made(passes, self._solved_in_place(0), lean=True)

    def _solved_in_place(self, most: int | None) -> frozenset[BlockPlan]:
        """Blocks whose solver's copies do not fit, and that take less in their own memory.

        And those that are too large for a device's solver.
        """
        largest = largest_rows(self.batch.device)

        def must_be(block: BlockPlan) -> bool:
            if block.size > largest:
                return True
            copied = self._solved_peak(block, in_place=False)
            fits = most is None or self._held_beside(block) + copied <= most
            return not fits and self._solved_peak(block, in_place=True) < copied

        return frozenset(filter(must_be, self.blocks))

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
            if self._fit([*together, *own], in_place, first=not any(passes)):
                together += own
                continue
            passes.append(tuple(together))
            together = own
            fits = self._fit(own, in_place, first=not any(passes))
            if not fits and not block.in_parameter_space:
                passes += self._cut(block)
                together = []
        return [*passes, tuple(together)]

    def _fit(self, pieces: list[Piece], in_place: frozenset[BlockPlan], first: bool) -> bool:
        """Whether whole blocks fit that are collected in one pass."""
        units = {piece.unit for piece in pieces}
        blocks = tuple(block for block in self.blocks if units.issuperset(block.units))
        before = self._vectors_before(blocks[0])
        alone = replace(self, blocks=blocks, before=before, first=first)
        plan = alone._made([tuple(pieces)], in_place, lean=True)
        return plan.within(self.target, self.most)

    def _cut(self, block: BlockPlan) -> list[tuple[Piece, ...]]:
        """Passes that each collect as much of a block as fits beside its matrix."""
        room = self.target - self._held_beside(block) - self._forming(block)
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
            if self._collecting([_largest_part(unit, count)]) <= room:
                break
            count = max(count + 1, int(count * 1.1))
        return _cut_unit(unit, count)

    @property
    def _on_cpu(self) -> bool:
        return self.batch.device.type == "cpu"

    @property
    def _base(self) -> int:
        """What is held throughout: outputs, the certificate's vectors, libraries' buffers."""
        batch = self.batch
        vectors = 8 * batch.num_params if self.certified else 0
        outputs = 3 * batch.batch_size * batch.output_shape.numel()
        return (vectors + outputs) * batch.dtype.itemsize + LIBRARY_BYTES

    @property
    def _gradient(self) -> int:
        """Memory of a vector in parameter space."""
        return self.batch.num_params * self.batch.dtype.itemsize

    @property
    def _comes_along(self) -> bool:
        """Whether gradients of the samples with curvature come with the first pass."""
        return self.batch.factor.num_columns == 1

    @property
    def _beside(self) -> int:
        """What is held beside factors and matrix: the base, and a gradient that is there early."""
        early = self._comes_along or (self.goal.lifts and not self.batch.gradients_in_range)
        return self._base + (self._gradient if early else 0)

    def _vectors(self, block: BlockPlan) -> int:
        """Memory of what a block's coordinates become."""
        own = sum(unit.num_params * unit.itemsize for unit in block.units)
        return own if self.goal.lifts else 0

    def _vectors_before(self, block: BlockPlan) -> int:
        return sum(map(self._vectors, self.blocks[: self.blocks.index(block)]))

    def _held_beside(self, block: BlockPlan) -> int:
        """What is held beside a block's factors and its matrix, with the vectors before it."""
        return self._beside + self._vectors_before(block)

    def _stages(self, plan: Plan) -> Iterator[Stage]:
        """The plan's parts in their order, with the memory that is held at the height of each."""
        batch, base, total = self.batch, self._beside + self.before, len(plan.passes)
        tensors = [*batch.names, batch.targets, *(leaf for _, leaf in leaves(batch.inputs))]
        largest = max(tensor.numel() * tensor.element_size() for tensor in tensors)
        yield Stage("checks of the request", self._base + int(1.75 * largest))
        blocks = {unit: block for block in plan.blocks for unit in block.units}
        from_factors = batch.gradients_in_range and not plan.lean
        started: BlockPlan | None = None  # its matrix is there
        for number, pieces in enumerate(plan.passes, 1):
            matrix = 0 if started is None else self._forming(started)
            name = f"pass {number} of {total}" if total > 1 else "pass over the mini-batch"
            there = LIBRARY_BYTES if number == 1 and self.first else 0  # not yet
            yield Stage(name, base - there + matrix + self._sweeping(pieces), collects=True)
            held = sum(map(self._kept, pieces))
            for piece in pieces:
                block = started = blocks[piece.unit]
                matrix = self._forming(block)
                vector = piece.unit.num_params * piece.unit.itemsize
                own = self._contracting(piece)
                if from_factors:
                    own = max(own, vector + self._combining(piece))
                name = f"Gram matrix of {piece.unit.name}"
                yield Stage(name, base + held + matrix + own, collects=True)
                if from_factors and piece is plan.pieces(piece.unit)[-1]:
                    base += vector
                solved = piece is plan.pieces(block.units[0])[-1]
                if not plan.keeps_factors:
                    held -= self._kept(piece)
                if solved:
                    yield from self._solved(plan, block, base + held)
                    base += self._vectors(block)
                    started = None
                    if plan.keeps_factors:
                        own_pieces = (p for unit in block.units for p in plan.pieces(unit))
                        held -= sum(map(self._kept, own_pieces))
        vectors = self._gradient if self.goal.lifts else 0
        yield Stage("result", self._base + self._gradient + 2 * vectors)
        if not from_factors and not (self._comes_along and batch.num_samples == batch.batch_size):
            yield Stage("gradient", self._base + vectors + self._pulling(self._gradient))

    def _solved(self, plan: Plan, block: BlockPlan, held: int) -> Iterator[Stage]:
        """A block's solver, and the vectors that are made of its coordinates."""
        where = f" of {block.name}" if block.name else ""
        in_place = block in plan.in_place
        yield Stage(plan.solver_name(block), held + self._solving(block, in_place))
        if not self._lifts(block):
            return
        if plan.keeps_factors:
            pieces = [piece for unit in block.units for piece in plan.pieces(unit)]
            lifting = self._vectors(block) + max(map(self._combining, pieces))
        else:
            lifting = self._pulling(self._vectors(block))
        yield Stage("vectors" + where, held + self._solution(block, in_place) + lifting)

    def _solved_peak(self, block: BlockPlan, in_place: bool) -> int:
        """The height of what `_solved` counts where factors are freed."""
        peak = self._solving(block, in_place)
        if not self._lifts(block):
            return peak
        return max(peak, self._solution(block, in_place) + self._pulling(self._vectors(block)))

    def _lifts(self, block: BlockPlan) -> bool:
        return self.goal.lifts and not block.in_parameter_space

    def _solution(self, block: BlockPlan, in_place: bool) -> int:
        """Memory of a block's matrix once it is solved."""
        m = block.size
        if not in_place:
            return 8 * m * m
        return _triangle(m, 8, self.batch.device) + _PIECES * m if self._on_cpu else 0

    def _combining(self, piece: Piece) -> int:
        """V w of a piece's factor, beside the sum: a weight gradient, and samples' cotangents."""
        unit = piece.unit
        own = unit.num_params * unit.itemsize
        if piece.contraction is Contraction.EXPLICIT:
            return own
        outputs = unit.kept.positions * piece.size * unit.itemsize
        return own + 2 * min(self.batch.num_samples * outputs, self.batch.working_bytes // 8)

    def _collecting(self, pieces: Sequence[Piece]) -> int:
        """A pass and what follows: the larger of its micro-batches and of a contraction."""
        contracting = max(map(self._contracting, pieces), default=0)
        return max(self._sweeping(pieces), sum(map(self._kept, pieces)) + contracting)

    def _sweeping(self, pieces: Sequence[Piece]) -> int:
        """A pass at its height, in the last micro-batch.

        Its cotangents are all there before they are written to the factors, of which all but
        those of an explicit V, which are added to zeros, have taken no memory until then.
        """
        batch, route = self.batch, self.route
        columns, kept = batch.factor.num_columns, sum(map(self._kept, pieces))
        uses = sorted({number for piece in pieces for number in piece.unit.uses})
        step, width = cut(batch, route, uses, batch.num_samples, columns, True)
        if route.plain:
            per_sample, per_column = sample_bytes(batch, route, uses, True)
            return kept + step * (per_sample + width * per_column)
        explicit = [p for p in pieces if p.contraction is Contraction.EXPLICIT]
        written = kept - sum(self._kept(p) for p in pieces if p not in explicit) * step * width // (
            max(batch.num_samples * columns, 1)
        )
        graph = step * route.saved_bytes
        backward = graph + step * self._sending(uses, width, collected=True)
        putting = graph + step * width * sum(map(self._output, uses))
        for piece in explicit:
            for number in piece.unit.uses:
                one = expanding_bytes(piece.unit.parameters, route.uses[number], width)
                most = expand_bytes(batch.device, batch.working_bytes)
                expanding = min(max(most // one, 1), step) * one
                putting = max(putting, graph + step * width * self._output(number) + expanding)
        found = max(written + max(self._forward(step), backward), kept + putting)
        if self._comes_along or (self.goal.lifts and not batch.gradients_in_range):
            along = self._comes_along
            vector = self._gradient
            gradient = (
                self._pulled(step, batch.num_samples, vector) if along else self._pulling(vector)
            )
            # The sum is held from now on; the buffers are there.
            found = max(found, kept + gradient - vector + LIBRARY_BYTES)
        return found

    def _output(self, number: int) -> int:
        """Memory of one sample's output at a use, or of a cotangent there."""
        return self.route.uses[number].output.numel() * self.batch.dtype.itemsize

    def _sending(self, uses: Sequence[int], width: int, collected: bool) -> int:
        """What one sample's columns take on their way back to the uses, beside the graph.

        A layer's input gradient is made of cotangents that a convolution has copied, and copied
        back, twice if it has strides; its activation multiplies it with a mask that becomes
        numbers. Uses are in the order in which columns reach them.
        """
        most = there = through = 0
        itemsize = self.batch.dtype.itemsize
        for number in range(max(uses, default=-1) + 1):
            use, output = self.route.uses[number], self._output(number)
            most = max(most, width * (there + 2 * output) + output, width * (there + through))
            if collected and number in uses:
                there += output
            entries = use.saved["input"].numel() * itemsize if "input" in use.saved else 0
            through = entries
            if "geometry" in use.constants:
                through = output + gradient_copies(use.constants["geometry"]["stride"]) * entries
        return most

    def _forward(self, step: int) -> int:
        """The forward pass of some samples: the graph, and copies.

        A convolution copies its input and output; behind one, activation, padding and pooling
        hold a result each beside its own, pooling a copy and wide indices as well.
        """
        widest = max(map(self._output, range(len(self.route.uses))), default=0)
        return step * max(self.route.saved_bytes + 2 * widest, 5 * widest)

    def _pulled(self, step: int, count: int, vector: int) -> int:
        """An ordinary backward pass of some of the samples, beside the vector they add up to.

        Where a cotangent is widest, most of the graph is freed already: what is left is a mask.
        """
        uses = range(len(self.route.uses))
        masked = max(map(self._output, uses), default=0) // 4
        sending = self._sending(uses, 1, collected=False) + masked
        backward = vector + step * max(self.route.saved_bytes, sending)
        sum_of_others = vector if step < count else 0
        return max(sum_of_others + max(backward, self._forward(step)), 2 * vector)

    def _pulling(self, vector: int) -> int:
        """A pass over the mini-batch for a vector of so many bytes in parameter space."""
        batch, route = self.batch, self.route
        step, _ = cut(batch, route, None, batch.batch_size, 1, False)
        if route.plain:
            per_sample, per_column = sample_bytes(batch, route, None, False)
            return 2 * vector + step * (per_sample + per_column)
        return self._pulled(step, batch.batch_size, vector)

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
                most = tuning(batch.device).row_block[1]
                return most * (rows + batch.num_samples) * itemsize
            case Contraction.PAIRS:
                product = batch.factor.num_columns * kept.positions * piece.size * itemsize
                most = max(product, batch.num_samples * kept.positions**2 * itemsize)
                tile = tile_bytes(batch.device, batch.working_bytes)
                tile = min(tile, batch.num_samples * most)
                tiles = (6 if self._on_cpu else 3) * tile
                if product > tile:  # one tile at a time
                    tiles = product + 2 * tile
                patch = self.route.uses[piece.unit.uses[0]].saved["input"][1] * kept.kernel
                patches = batch.num_samples * kept.positions * patch * itemsize
                if patches > batch.working_bytes // 2:  # made again for every tile
                    return tiles
                return patches + max(patches, tiles)
            case Contraction.CHUNKS:
                own = kept.divisor if kept.divisor > 1 else piece.size
                channel = (rows * own + batch.num_samples * kept.positions) * kept.kernel * itemsize
                channels = self.route.uses[piece.unit.uses[0]].saved["input"][1]
                step = min(max(batch.working_bytes // 2 // max(channel, 1), 1), channels)
                padded = batch.num_samples * kept.a_sample // max(channels, 1) * itemsize
                return step * (channel + padded)

    def _forming(self, block: BlockPlan) -> int:
        """Memory of a block's matrix before it is solved."""
        m, itemsize = block.size, self.batch.dtype.itemsize
        widest = tuning(self.batch.device).row_block[1]
        whole_blocks = m * min(m, widest) // 2 * itemsize  # on the diagonal
        formed = _triangle(m, itemsize, self.batch.device) + whole_blocks
        return min(formed, m * m * (8 if self._on_cpu else itemsize))

    def _solving(self, block: BlockPlan, in_place: bool) -> int:
        """Memory of a block's matrix and its solver."""
        m = block.size
        if not self._on_cpu:
            if in_place:
                return m * m * self.batch.dtype.itemsize
            return int((16.5 if self.goal is Goal.INVERSE else _DIRECT_ON_DEVICE) * m * m)
        if not in_place:
            return int(_DIRECT[self.goal] * m * m)
        if self.goal is Goal.INVERSE:
            return 8 * m * m + _PIECES * m  # which keeps the matrix in the upper triangle
        beside = {Goal.EIGENVALUES: band_bytes(m), Goal.STEP: 2 * _PIECES * m}
        vectors = 8 * m * 256 * 4
        return _triangle(m, 8, self.batch.device) + beside.get(self.goal, vectors)


_DIRECT = {
    Goal.EIGENVALUES: 16.7,
    Goal.EIGENVECTORS: 24.5,
    Goal.DERIVATIVES: 32.5,
    Goal.STEP: 24.5,
    Goal.POLICY_STEP: 32.5,
    Goal.INVERSE: 20.0,
}
"""Bytes over m^2 that a matrix and its solver take, where the solver may make copies."""
_DIRECT_ON_DEVICE = 48.2
"""The same of cuSOLVER's syevd under PyTorch 2.11, with and without eigenvectors (measured at
m = 1,152 to 33,000)."""
_PIECES = 2048
"""Bytes a row that eigenvectors in their matrix's own memory leave in small pieces of the heap
(measured at m = 1,200 to 5,200: 1,550 to 2,300)."""


def gradient_copies(stride: Sequence[int]) -> int:
    """How many times its memory a convolution's input gradient takes: with oneDNN's copies of it.

    Args:
        stride: Of each spatial axis.
    """
    return 2 if len(stride) == 2 and max(stride) == 1 else 3


def _triangle(m: int, itemsize: int, device: torch.device) -> int:
    """Memory of an [m, m] matrix of which only the lower triangle is written.

    Pages that are never written take none on the CPU; a row begins and ends within one.
    """
    whole = m * m * itemsize
    if device.type != "cpu":
        return whole
    return min(8 * m * m, whole // 2 + m * (itemsize // 2 + mmap.PAGESIZE))


def _largest_part(unit: UnitPlan, count: int) -> Piece:
    """The largest of a unit's parts, if there are so many."""
    kept = unit.kept
    steps = kept.divisible // kept.divisor
    if count == 1 or steps <= 1:
        return Piece(unit, None, unit.contraction)
    size = ceil(steps / count) * kept.divisor
    return Piece(unit, slice(0, size), unit.contraction_in(count))


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
