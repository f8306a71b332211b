"""What a plan's parts cost: floating-point operations, and seconds on this machine now.

Operations are those of matrix products and convolutions, two for a multiplication and addition:

* a pass is counted by PyTorch on one sample and one column, to which all others are equal;
* a contraction by formula, as it is carried out: blocks on the diagonal of a Gram matrix are
  computed whole, and what every part of a layer does anew counts several times;
* a solver by its leading term in the number of rows.

Seconds extrapolate what is measured for a fraction of a second: one micro-batch of the first pass,
a matrix product, and the solver on few rows. The check by plain autograd is not counted.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vivit_bench.curvature.factors import PAIRS_TILE_BYTES, Contraction
from vivit_bench.curvature.kernels import row_block
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.options import Goal
from vivit_bench.curvature.passes import add_pulled, curvature_columns
from vivit_bench.curvature.plan import Piece, Plan, cut
from vivit_bench.curvature.rates import (
    GEMM_ROWS,
    SOLVER_ROWS,
    gemm_rate,
    solver_rate,
    solver_share,
    timed,
)
from vivit_bench.curvature.units import PAIRS_WEIGHT, BlockPlan


@dataclass(frozen=True)
class Cost:
    """Of a part of a computation."""

    name: str
    """That of its stage in the plan."""
    flops: float
    seconds: float
    """Expected."""


@dataclass(frozen=True)
class Costs:
    """Of a plan."""

    passes: tuple[Cost, ...]
    contractions: tuple[Cost, ...]
    """A unit of the plan each."""
    solvers: tuple[Cost, ...]
    """A block with parameters that reach the output each."""
    gradient: Cost
    """Passes for gradients and vectors in parameter space; of eigenvectors, of one."""
    assumption: str
    """What the seconds rest on, for people."""

    def __iter__(self) -> Iterator[Cost]:
        yield from (*self.passes, *self.contractions, *self.solvers, self.gradient)

    @property
    def flops(self) -> float:
        """Of everything."""
        return sum(cost.flops for cost in self)

    @property
    def seconds(self) -> float:
        """Of everything."""
        return sum(cost.seconds for cost in self)


def costs_of(batch: MiniBatch, plan: Plan) -> Costs:
    """Count, and time what is extrapolated from; inside `undisturbed`.

    Args:
        batch: The request.
        plan: How to compute it.

    Raises:
        GraphChanged: The network computes differently for different samples.
    """
    return _Counter(batch, plan).costs()


@dataclass(frozen=True)
class _Counter:
    batch: MiniBatch
    plan: Plan

    def costs(self) -> Costs:
        batch, plan = self.batch, self.plan
        n, total = batch.num_samples, len(plan.passes)
        # Many passes collect parts of one layer: they go back equally far.
        known: dict[tuple[int, ...], float] = {}
        backward = []
        for pieces in plan.passes:
            uses = _uses(pieces)
            if uses not in known:
                known[uses] = self._backward_flops(pieces)
            backward.append(known[uses])
        flops = [n * (self._forward + batch.factor.num_columns * b) for b in backward]
        step, width, seconds = self._time_micro_batch()
        micro = step * (self._forward + width * (backward[0] if backward else 0.0))
        rate = micro / seconds if micro else float("inf")
        passes = tuple(
            Cost(f"pass {i} of {total}" if total > 1 else "pass over the mini-batch", f, f / rate)
            for i, f in enumerate(flops, 1)
        )
        gemm = gemm_rate(batch.dtype, batch.device, torch.get_num_threads())
        contractions, solvers, rates = [], [], []
        for block in plan.blocks:
            for unit in block.units:
                pieces = plan.pieces(unit)
                found = sum(contraction_flops(batch, block, piece) for piece in pieces)
                slower = PAIRS_WEIGHT if pieces[0].contraction is Contraction.PAIRS else 1.0
                name = f"Gram matrix of {unit.name}"
                contractions.append(Cost(name, found, slower * found / gemm))
            if block.units:
                found, speed = self._solver_flops(block), self._solver_rate(block)
                solvers.append(Cost(plan.solver_name(block), found, found / speed))
                rates.append(speed)
        after = self._after(backward)
        slowest = min(rates, default=float("inf"))
        return Costs(
            passes,
            tuple(contractions),
            tuple(solvers),
            Cost("gradient", after, after / rate),
            f"seconds: passes as one micro-batch ({step} samples, {width} columns of each in "
            f"{seconds:.3f} s), contractions at {gemm / 1e9:.0f} GFLOP/s (a product of "
            f"{GEMM_ROWS} rows and columns), solvers at {slowest / 1e9:.0f} GFLOP/s (on at most "
            f"{SOLVER_ROWS} rows), all measured just now with {torch.get_num_threads()} thread(s); "
            "the check by plain autograd is not counted",
        )

    @cached_property
    def _samples(self) -> int:
        """That the passes are counted on."""
        return min(max(self.plan.route.min_samples, 1), self.batch.num_samples)

    @cached_property
    def _forward(self) -> float:
        """Of one sample."""
        return _counted(lambda: self.batch.forward(slice(0, self._samples))) / self._samples

    def _backward_flops(self, pieces: Sequence[Piece]) -> float:
        """Of one sample's column, back to what the pieces need."""
        both = _counted(lambda: self._pass(pieces, self._samples, 1)) / self._samples
        return both - self._forward

    @cached_property
    def _ordinary(self) -> float:
        """Of one sample's gradient, with its forward pass."""
        batch = self.batch

        def run() -> None:
            outputs = batch.forward(slice(0, self._samples))
            add_pulled(batch, {}, outputs, torch.ones_like(outputs), keep_graph=False)

        return _counted(run) / self._samples

    def _pass(self, pieces: Sequence[Piece], samples: int, columns: int) -> None:
        """A micro-batch."""
        batch, route = self.batch, self.plan.route
        uses = _uses(pieces)
        plain: set[nn.Parameter] = {p for piece in pieces for p in piece.unit.plain}
        some = slice(0, samples)
        outputs = batch.forward(some)
        reading = route.read(batch, outputs)
        s = curvature_columns(batch)(outputs.detach(), some)[:, :columns]
        route.backpropagate(outputs, reading, s, uses, plain)

    def _time_micro_batch(self) -> tuple[int, int, float]:
        """Samples, columns of each, and seconds of one micro-batch of the first pass."""
        batch, plan = self.batch, self.plan
        pieces = plan.passes[0] if plan.passes else ()
        uses = _uses(pieces)
        columns = batch.factor.num_columns
        step, width = cut(batch, plan.route, uses, batch.num_samples, columns, True)
        step = min(max(step, self._samples), batch.num_samples)
        return step, width, timed(lambda: self._pass(pieces, step, width), batch.device)

    def _after(self, backward: Sequence[float]) -> float:
        """Passes that follow the columns', or go with them."""
        batch, plan, goal = self.batch, self.plan, self.plan.goal
        n, ordinary = batch.batch_size, self._ordinary
        flops = (n - batch.num_samples) * self._forward  # their loss
        if goal.lifts and not plan.keeps_factors:
            flops += batch.num_samples * ordinary
        if goal in (Goal.EIGENVALUES, Goal.EIGENVECTORS) or batch.gradients_in_range:
            return flops
        if not goal.per_sample:
            return flops + n * ordinary
        cross = 2.0 * batch.rows * n * batch.num_params
        return flops + sum(n * (self._forward + b) for b in backward) + cross

    def _solver_flops(self, block: BlockPlan) -> float:
        m, goal = float(block.size), self.plan.goal
        slopes = 2 * m * m * self.batch.batch_size if goal.per_sample else 0.0
        return solver_share(goal, block in self.plan.in_place) * m**3 + slopes

    def _solver_rate(self, block: BlockPlan) -> float:
        in_place = block in self.plan.in_place
        threads = torch.get_num_threads()
        return solver_rate(block.size, self.plan.goal, in_place, self.batch.device, threads)


def _uses(pieces: Sequence[Piece]) -> tuple[int, ...]:
    return tuple(sorted({number for piece in pieces for number in piece.unit.uses}))


def contraction_flops(batch: MiniBatch, block: BlockPlan, piece: Piece) -> float:
    """Of a piece's share of its block's matrix.

    Args:
        batch: The request.
        block: The piece's.
        piece: A unit, or a part of one.
    """
    unit, kept = piece.unit, piece.unit.kept
    n, c, rows = batch.num_samples, batch.factor.num_columns, batch.rows
    if piece.contraction is Contraction.EXPLICIT:
        if block.in_parameter_space:  # one product for all units
            return 2.0 * rows * _lower(block.size, row_block(block.size)) * piece.size / block.size
        return 2.0 * piece.size * _lower(rows, row_block(rows))
    outputs, positions = piece.size, kept.positions
    patch = kept.repeated_flops / (n * positions) ** 2
    if piece.contraction is Contraction.CHUNKS:
        size = unit.num_params * outputs / kept.divisible
        return 2.0 * rows * outputs * positions * patch + 2.0 * size * _lower(rows, row_block(rows))
    if piece.contraction is Contraction.GRAM_PRODUCT:
        return 2.0 * _lower(n, max(512 // max(c, 1), 1)) * (patch + c * c * outputs)
    product = c * outputs * positions * unit.itemsize
    high = max(PAIRS_TILE_BYTES // product, 1)
    wide = max(PAIRS_TILE_BYTES // int(positions * max(high * positions, patch) * unit.itemsize), 1)
    flops = 0.0
    for start in range(0, n, wide):
        stop = min(start + wide, n)
        flops += 2.0 * (n - start) * (stop - start) * positions**2 * patch
        for i in range(start, stop, high):
            end = min(i + high, n)
            flops += _pair(c, outputs, positions) * (end - i) * (min(stop, end) - start)
        below = n - min(start + high * -(-(stop - start) // high), n)
        flops += _pair(c, outputs, positions) * below * (stop - start)
    return flops


def _pair(c: int, outputs: int, positions: int) -> float:
    """Of two samples' block of the Gram matrix, once their inputs' product is there."""
    return 2.0 * c * outputs * positions * (positions + c)


def _lower(rows: int, block: int) -> int:
    """Entries of a lower triangle in row blocks, the blocks on the diagonal whole."""
    stops = [min(start + block, rows) for start in range(0, rows, block)]
    return sum((stop - start) * stop for start, stop in zip([0, *stops], stops, strict=False))


def _counted(work: Callable[[], object]) -> float:
    # oneDNN's recurrent layers hide their products; what it says of TF32 is no news to a user.
    warnings.filterwarnings("ignore", message=".*TF32 acceleration")
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())
