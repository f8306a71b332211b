"""What a plan's parts cost: floating-point operations, and seconds on this machine now.

Operations are those of matrix products and convolutions, two for a multiplication and addition:

* a pass is counted by PyTorch on one sample and one column, to which all others are equal;
* a contraction by formula, as it is carried out: blocks on the diagonal of a Gram matrix are
  computed whole, and what every part of a layer does anew counts several times;
* a solver by its leading term in the number of rows.

Seconds extrapolate what is measured for about a second: one micro-batch of passes over the same
layers, a matrix product, and the solver on few rows. The check by plain autograd is not
counted.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vivit_bench.curvature.factors import Contraction
from vivit_bench.curvature.kernels import product_block, row_block
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.options import Goal
from vivit_bench.curvature.passes import add_pulled, curvature_columns, put
from vivit_bench.curvature.plan import Piece, Plan, cut
from vivit_bench.curvature.rates import (
    GEMM_ROWS,
    SOLVER_ROWS,
    gemm_rate,
    solver_rate,
    solver_share,
    timed,
)
from vivit_bench.curvature.tuning import tile_bytes, tuning
from vivit_bench.curvature.units import BlockPlan, UnitPlan

TIMED_SECONDS = 0.5
"""After so long no further micro-batch is timed."""


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
        passes, timed_ones = self._passes()
        rate = _rate(passes[-1].flops, passes[-1].seconds) if passes else float("inf")
        gemm = gemm_rate(batch.dtype, batch.device, torch.get_num_threads())
        weight = tuning(batch.device).pairs_weight
        contractions, solvers, rates = [], [], []
        for block in plan.blocks:
            for unit in block.units:
                pieces = plan.pieces(unit)
                found = sum(contraction_flops(batch, block, piece) for piece in pieces)
                slower = weight if pieces[0].contraction is Contraction.PAIRS else 1.0
                name = f"Gram matrix of {unit.name}"
                contractions.append(Cost(name, found, slower * found / gemm))
            if block.units:
                found, speed = self._solver_flops(block), self._solver_rate(block)
                solvers.append(Cost(plan.solver_name(block), found, found / speed))
                rates.append(speed)
        after = self._after(passes)
        slowest = min(rates, default=float("inf"))
        return Costs(
            passes,
            tuple(contractions),
            tuple(solvers),
            Cost("gradient", after, after / rate),
            f"seconds: passes as {timed_ones} micro-batch(es) of theirs, contractions at "
            f"{gemm / 1e9:.0f} GFLOP/s (a product of {GEMM_ROWS} rows and columns), solvers "
            f"at {slowest / 1e9:.0f} GFLOP/s (on at most {SOLVER_ROWS} rows), measured just now "
            f"with {torch.get_num_threads()} thread(s); the check by plain autograd is not counted",
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
        """Of one sample's column, back to what the pieces need; with V where it is kept itself."""
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
        found = route.backpropagate(outputs, reading, s, uses, plain)
        factors = {piece: piece.factor(route, samples, columns, 1) for piece in pieces}
        put(route, factors, some, slice(0, columns), reading, found)

    def _passes(self) -> tuple[tuple[Cost, ...], int]:
        """The passes, and how many micro-batches were timed."""
        batch, plan, total = self.batch, self.plan, len(self.plan.passes)
        n, columns = batch.num_samples, batch.factor.num_columns
        # Many passes collect parts of the same layers.
        known: dict[frozenset[UnitPlan], tuple[float, float]] = {}
        spent, rate, count, found = 0.0, float("inf"), 0, []
        for number, pieces in enumerate(plan.passes, 1):
            units = frozenset(piece.unit for piece in pieces)
            if units not in known:
                flops = n * (self._forward + columns * self._backward_flops(pieces))
                if spent < TIMED_SECONDS:
                    once, shares = self._time_micro_batch(pieces)
                    spent, count = spent + 2 * once, count + 1
                    known[units] = flops, once * shares
                    rate = _rate(flops, once * shares)
                else:
                    known[units] = flops, flops / rate
            name = f"pass {number} of {total}" if total > 1 else "pass over the mini-batch"
            found.append(Cost(name, *known[units]))
        return tuple(found), count

    def _time_micro_batch(self, pieces: Sequence[Piece]) -> tuple[float, float]:
        """Seconds of one micro-batch, and how many the pass has."""
        batch, plan = self.batch, self.plan
        n, columns = batch.num_samples, batch.factor.num_columns
        step, width = cut(batch, plan.route, _uses(pieces), n, columns, True)
        step = min(max(step, self._samples), n)
        seconds = timed(lambda: self._pass(pieces, step, width), batch.device)
        return seconds, n / step * (columns / width)

    def _after(self, passes: Sequence[Cost]) -> float:
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
        # A gradient of each sample is one more column of it, and contracted with all others.
        cross = 2.0 * batch.rows * n * batch.num_params
        backward = sum(c.flops for c in passes) - len(passes) * batch.num_samples * self._forward
        share = n / batch.rows
        return flops + len(passes) * n * self._forward + share * backward + cross

    def _solver_flops(self, block: BlockPlan) -> float:
        m, goal = float(block.size), self.plan.goal
        slopes = 2 * m * m * self.batch.batch_size if goal.per_sample else 0.0
        return solver_share(goal, block in self.plan.in_place) * m**3 + slopes

    def _solver_rate(self, block: BlockPlan) -> float:
        in_place = block in self.plan.in_place
        threads = torch.get_num_threads()
        return solver_rate(block.size, self.plan.goal, in_place, self.batch.device, threads)


def _rate(flops: float, seconds: float) -> float:
    """FLOP/s; of a network without products, which tell nothing of its time, infinite."""
    return flops / seconds if flops else float("inf")


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
            return 2.0 * rows * _triangle(block.size, batch) * piece.size / block.size
        return 2.0 * piece.size * _triangle(rows, batch)
    outputs, positions = piece.size, kept.positions
    patch = kept.repeated_flops / (n * positions) ** 2
    if piece.contraction is Contraction.CHUNKS:
        size = unit.num_params * outputs / kept.divisible
        return 2.0 * rows * outputs * positions * patch + 2.0 * size * _triangle(rows, batch)
    if piece.contraction is Contraction.GRAM_PRODUCT:
        return 2.0 * _lower(n, product_block(c, batch.device)) * (patch + c * c * outputs)
    product = c * outputs * positions * unit.itemsize
    columns = max(tile_bytes(batch.device, batch.working_bytes) // product, 1)
    pairs = _lower(n, columns)
    return pairs * (2.0 * positions**2 * patch + _pair(c, outputs, positions))


def _pair(c: int, outputs: int, positions: int) -> float:
    """Of two samples' block of the Gram matrix, once their inputs' product is there."""
    return 2.0 * c * outputs * positions * (positions + c)


def _triangle(rows: int, batch: MiniBatch) -> int:
    """Entries of a Gram matrix that are computed."""
    return _lower(rows, row_block(rows, batch.device))


def _lower(rows: int, block: int) -> int:
    """Entries of a lower triangle in row blocks, the blocks on the diagonal whole."""
    stops = [min(start + block, rows) for start in range(0, rows, block)]
    return sum((stop - start) * stop for start, stop in zip([0, *stops], stops, strict=False))


class _Products(TorchDispatchMode):
    """Adds up the operations of PyTorch's table; its own counter hooks into the user's modules."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
        found = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=found)
        return found


def _counted(work: Callable[[], object]) -> float:
    # oneDNN's recurrent layers hide their products; what it says of TF32 is no news to a user.
    warnings.filterwarnings("ignore", message=".*TF32 acceleration")
    with torch.backends.mkldnn.flags(enabled=False), _Products() as products:
        work()
    return products.flops
