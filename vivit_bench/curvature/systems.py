"""The small symmetric matrices that everything is solved with, and V^T g beside them.

A block's Gram matrix V^T V [M, M] has the non-zero spectrum of its GGN V V^T [D, D]; where
D < M the GGN itself is the smaller one. Either is formed piece by piece, one alive at a time.

Eigenproblems are solved in float64: LAPACK's float32 solver has an absolute error of about
1e-5 of the largest eigenvalue, more than the cutoff that eigenvalues are compared with; the
float32 matrix itself is far better than that.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vivit_bench.curvature.diagonalised import Diagonalised, Elsewhere, Solver
from vivit_bench.curvature.factors import Direction, ExplicitFactor, Factor
from vivit_bench.curvature.kernels import add_lower, mirror_lower
from vivit_bench.curvature.passes import Sweep, pull
from vivit_bench.curvature.plan import Piece
from vivit_bench.curvature.slopes import Slopes, SlopesOfDirections, Work
from vivit_bench.curvature.solvers import (
    Tridiagonal,
    cholesky_solve_in_place,
    eigenvalues_in_place,
)
from vivit_bench.curvature.square import Square
from vivit_bench.curvature.tuning import tuning
from vivit_bench.curvature.units import BlockPlan
from vivit_bench.errors import UsageError

ONE_THREAD_ROWS = 4000
"""Below, LAPACK's tridiagonal reduction is faster on one core than on two (measured:
n = 1152 in 0.09 against 0.23 s, n = 3000 in 0.8 against 1.5 s, n = 5000 in 3.6 against 2.5 s)."""


INVERSE = "inverse"
"""Name of the check of products with the damped inverse."""


class System(ABC):
    """One block's matrix, complete; solving it uses it up."""

    def __init__(self, work: Work, block: BlockPlan, square: Square, slopes: Tensor) -> None:
        self.work, self.block = work, block
        self._square = square
        diagonal = square.view().diagonal()
        self.trace = diagonal.double().sum().item()
        """Of the block."""
        if not diagonal.isfinite().all():
            raise UsageError(
                "the GGN is not finite: the backward pass overflows or is NaN for some sample; "
                "scale inputs, targets or weights down, or use float64"
            )
        self.slopes = slopes
        """[m, R] float64, products of the gradients with this block's coordinates."""

    @property
    def _in_place(self) -> bool:
        return self.block in self.work.plan.in_place

    def _widened(self) -> Tensor:
        """The matrix in float64, where it is solved."""
        return self._square.widen_on_cpu() if self._in_place else self._square.widen()

    def _diagonalised(self, matrix: Tensor) -> Solver:
        if not self._in_place:
            return Diagonalised(matrix)
        solver, device = Tridiagonal(matrix), self.work.batch.device
        return solver if device.type == "cpu" else Elsewhere(solver, device)

    def eigenvalues(self) -> Tensor:
        """The min(M, D) that can be non-zero, [K] float64 on the CPU, descending."""
        checks = self.work.checks
        squares = _squared_norm(self._square.view()) if checks.active else 0.0
        matrix = self._widened()
        with threads_for(len(matrix), ONE_THREAD_ROWS):
            if self._in_place:
                values = eigenvalues_in_place(matrix).flip(0)
            else:
                values = torch.linalg.eigvalsh(matrix).flip(0).cpu()
        checks.eigenvalues(values, self.trace, squares)
        missing = max(self.block.num_eigenvalues - len(values), 0)  # of unused parameters
        return torch.cat([values, values.new_zeros(missing)])[: self.block.num_eigenvalues]

    def eigenpairs(self, cutoff: float) -> "Eigenpairs":
        """Eigenvalues above the cutoff, and above rounding, and what belongs to them."""
        rounding = torch.finfo(self.work.batch.dtype).eps
        matrix = self._widened()
        # Eigenvectors spend more of their time in matrix products, which gain from threads.
        with threads_for(len(matrix), ONE_THREAD_ROWS // 3):
            solver = self._diagonalised(matrix)
        values = solver.values
        least = max(cutoff, rounding * values[-1].item()) if len(values) else cutoff
        return Eigenpairs(self, solver, int((values <= least).sum()))

    @abstractmethod
    def solve(self, damping: float) -> list[Direction]:
        """(G + damping I)^-1 x over the block for every x that the slopes belong to."""

    @abstractmethod
    def solve_in_range(self, damping: float, weights: Tensor) -> Direction:
        """(G + damping I)^-1 x over the block for x = V w, [M], where the slopes belong to x."""

    @abstractmethod
    def scales(self, values: Tensor) -> Tensor:
        """[K] factors between eigenvectors of this matrix and unit vectors e_k."""

    @abstractmethod
    def curvatures(self, values: Tensor, vectors: Tensor) -> Tensor:
        """lambda_nk = e_k^T J_n^T H_n J_n e_k, [num_samples, K]."""

    @abstractmethod
    def _lift(self, weights: Tensor) -> list[Direction]:
        """Vectors in parameter space for coordinates [m, R]."""

    def lift(self, what: str, weights: Tensor, products: Tensor | None = None) -> list[Direction]:
        """Vectors in parameter space for coordinates [m, R].

        Args:
            what: Under which name they are checked.
            weights: The coordinates.
            products: See ``Checks.lifted``.
        """
        found = self._lift(weights)
        self.work.checks.lifted(what, weights, found, products)
        return found

    def _solve(self, damping: float, right: Tensor) -> Tensor:
        """(matrix + d I)^-1 b in float64, [m, R]."""
        matrix = self._widened()
        if self._in_place:
            weights = cholesky_solve_in_place(matrix, damping, right.cpu()).to(right.device)
        else:
            weights = _cholesky_solve(matrix, damping, right)
        self.work.checks.solved(weights, right, damping)
        return weights


class Eigenpairs:
    """A block's directions: eigenvalues above the cutoff and their eigenvectors.

    Args:
        system: The block's.
        solver: Its matrix, solved.
        first: Number of the smallest eigenvalue that counts.
    """

    def __init__(self, system: System, solver: Solver, first: int) -> None:
        self.system, self._solver, self._first = system, solver, first

    @property
    def values(self) -> Tensor:
        """[K] float64, ascending."""
        return self._solver.values[self._first :]

    def keep(self, k: int) -> None:
        """Drop all but the k largest."""
        self._first += max(len(self.values) - k, 0)

    def vectors(self, first: int = 0, last: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Eigenvectors of the system's matrix in slices of consecutive ones, [m, k] float64.

        Args:
            first: Number of the first one, of those that count.
            last: Where to stop.
        """
        stop = len(self.values) if last is None else last
        offset = self._first
        for found, vectors in self._solver.vectors(offset + first, offset + stop):
            own = slice(found.start - offset, found.stop - offset)
            self.system.work.checks.eigenpairs(self.values[own], vectors, self.values[-1].item())
            yield own, vectors

    def derivatives(self) -> tuple[Tensor, Tensor]:
        """gamma_nk = e_k^T grad l_n, [R, K], and lambda_nk, [num_samples, K].

        The gradients are those that the system's slopes are of.
        """
        system, values = self.system, self.values
        slopes, scales = system.slopes, system.scales(values)
        gammas = slopes.new_empty(slopes.shape[1], len(values))
        lambdas = slopes.new_empty(system.work.batch.num_samples, len(values))
        for own, vectors in self.vectors():
            gammas[:, own] = (slopes.t() @ vectors) * scales[own]
            lambdas[:, own] = system.curvatures(values[own], vectors)
        return gammas, lambdas

    def step(self, dampings: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of -sum_k gamma_k / (l_k + d_k) e_k, [m, 1], for dampings [K].

        Returns:
            Them, and [m, 1] y with v_n . s = coordinates_n y for the step s.
        """
        products = -1 / (self.values + dampings)
        weights = products * self.system.scales(self.values).square()
        wanted = [weights, products]
        checks = self.system.work.checks
        if checks.active:
            damped = torch.where(dampings.isinf(), -1, dampings * products)
            wanted += [damped, torch.ones_like(products)]
        mean = self.system.slopes.mean(1, keepdim=True)
        found = self._solver.functions(self._first, torch.stack(wanted), mean)
        if checks.active:
            checks.step(found[1], found[2], found[3])
        return found[0], found[1]

    def coordinates(self, first: int, last: int) -> Tensor:
        """Coordinates of some eigenvectors e_k, [m, last - first]."""
        scales = self.system.scales(self.values)
        parts = [vectors * scales[own] for own, vectors in self.vectors(first, last)]
        return torch.cat(parts, 1)


class GramSystem(System):
    """V^T V. Eigenvectors are e_k = V u_k / sqrt(l_k) (A.2)."""

    def __init__(
        self,
        work: Work,
        block: BlockPlan,
        square: Square,
        slopes: Tensor,
        factors: Sequence[Factor],
        directions: Sequence[Direction],
    ) -> None:
        super().__init__(work, block, square, slopes)
        self._factors = factors
        """Of a diagonal block; none for the full GGN, and where the plan frees them."""
        self._directions = directions

    def scales(self, values: Tensor) -> Tensor:  # noqa: D102
        return values.rsqrt()

    def curvatures(self, values: Tensor, vectors: Tensor) -> Tensor:
        """lambda_nk = N l_k ||u_k[n]||^2."""
        n, kept = self.work.batch.num_samples, self.work.batch.kept
        if kept is not None:
            squares = vectors.new_zeros(n, vectors.shape[1])
            squares.index_add_(0, kept.samples, vectors.square())
        else:
            squares = torch.stack([part.square().sum(0) for part in vectors.chunk(n)])
        return squares.mul_(values * n)

    def _lift(self, weights: Tensor) -> list[Direction]:
        """V w: ordinary backward passes, or one weight gradient a unit of a diagonal block."""
        work = self.work
        if not self._factors:
            own = [p for unit in self.block.units for p in unit.parameters]
            return pull(work.batch, work.plan, weights, own)
        found: list[Direction] = []
        for column in weights.to(work.batch.dtype).unbind(1):
            direction: Direction = {}
            for factor in self._factors:
                direction |= factor.combine(column)
            found.append(direction)
        return found

    def solve(self, damping: float) -> list[Direction]:
        """1/d [x - V (d I + Gt)^-1 V^T x] (Equation S.25)."""
        weights = self._solve(damping, self.slopes)
        products = self.lift("projection", weights)
        parameters = [p for unit in self.block.units for p in unit.parameters]
        solved = [
            {p: (x[p] - product[p]) / damping for p in parameters}
            for x, product in zip(self._directions, products, strict=True)
        ]
        # V^T of the result is (d I + Gt)^-1 V^T x; the difference above may have cancelled.
        self.work.checks.lifted(INVERSE, None, solved, weights)
        return solved

    def solve_in_range(self, damping: float, weights: Tensor) -> Direction:
        """V (d I + Gt)^-1 w, which is no difference."""
        solved = self._solve(damping, weights.double().unsqueeze(1))
        return self.lift("step", solved)[0]


class ParameterSystem(System):
    """V V^T itself, over a block with fewer parameters than columns."""

    def __init__(
        self, work: Work, block: BlockPlan, square: Square, slopes: Tensor, v: Tensor | None
    ) -> None:
        super().__init__(work, block, square, slopes)
        self._v = v
        """[N, c, D], where curvatures of single samples are wanted; of kept columns [K, 1, D]."""

    def scales(self, values: Tensor) -> Tensor:  # noqa: D102
        return torch.ones_like(values)

    def curvatures(self, values: Tensor, vectors: Tensor) -> Tensor:  # noqa: D102
        assert self._v is not None
        n, c, d = self._v.shape
        squares = torch.zeros(n, vectors.shape[1], dtype=torch.float64, device=vectors.device)
        step = max(2**22 // max(c * d, 1), 1)
        for start in range(0, n, step):
            products = self._v[start : start + step].double() @ vectors
            squares[start : start + step] = products.square().sum(1)
        batch = self.work.batch
        if batch.kept is not None:
            by_sample = squares.new_zeros(batch.num_samples, squares.shape[1])
            squares = by_sample.index_add_(0, batch.kept.samples, squares)
        return squares * batch.num_samples

    def _lift(self, weights: Tensor) -> list[Direction]:
        parameters = [p for unit in self.block.units for p in unit.parameters]
        sizes = [p.numel() for p in parameters]
        found = []
        for column in weights.unbind(1):
            parts = column.split(sizes)
            found.append(
                {p: x.view_as(p).to(p.dtype) for p, x in zip(parameters, parts, strict=True)}
            )
        return found

    def solve(self, damping: float) -> list[Direction]:  # noqa: D102
        return self.lift(INVERSE, self._solve(damping, self.slopes))

    def solve_in_range(self, damping: float, weights: Tensor) -> Direction:  # noqa: D102
        return self.solve(damping)[0]


@dataclass(frozen=True)
class Formed:
    """A block's system, and its share of the gradient where that follows from V."""

    system: System
    gradient: Direction


def form_systems(
    work: Work, sweep: Sweep, slopes: Slopes, gradient_weights: Tensor | None
) -> Iterator[Formed]:
    """Every block's system in the plan's order, one alive at a time.

    Args:
        work: The attempt.
        sweep: Whose factors are used up, each freed as soon as it can be.
        slopes: Where V^T g comes from.
        gradient_weights: [M] w with grad L = V w; None: the gradient is not wanted, or comes
            from passes.
    """
    for block in work.plan.blocks:
        if not block.units:
            continue
        form = _form_parameters if block.in_parameter_space else _form_gram
        yield form(work, block, sweep, slopes, gradient_weights)


def _form_gram(
    work: Work, block: BlockPlan, sweep: Sweep, source: Slopes, gradient_weights: Tensor | None
) -> Formed:
    batch = work.batch
    square = Square(batch.rows, batch.dtype, batch.device)
    slopes = source.empty(work)
    gradient: Direction = {}
    kept: list[Factor] = []

    def contract(piece: Piece) -> Factor:
        factor = sweep.take(piece)
        factor.add_gram(square.view())
        source.add(piece, factor, slopes)
        return factor

    for unit in block.units[::-1]:
        *parts, last = work.plan.pieces(unit)
        for part in parts:
            contract(part)  # and freed, before the next pass
        factor = contract(last)
        work.checks.unit(unit, factor, square.view())
        if gradient_weights is not None:
            gradient |= factor.combine(gradient_weights)
            work.checks.gradient_weights(unit, factor, gradient_weights)
        if work.plan.keeps_factors:
            kept.append(factor)
        del factor
    work.checks.system(block, square.view(), None)
    products = source.of_gram(work, square.view(), slopes)
    directions = source.directions if isinstance(source, SlopesOfDirections) else ()
    return Formed(GramSystem(work, block, square, products, kept, directions), gradient)


def _form_parameters(
    work: Work, block: BlockPlan, sweep: Sweep, source: Slopes, gradient_weights: Tensor | None
) -> Formed:
    gradient: Direction = {}
    parts = []
    for unit in block.units:
        (piece,) = work.plan.pieces(unit)
        factor = sweep.take(piece)
        assert isinstance(factor, ExplicitFactor)
        work.checks.unit(unit, factor, None)
        if gradient_weights is not None:
            gradient |= factor.combine(gradient_weights)
            work.checks.gradient_weights(unit, factor, gradient_weights)
        parts.append(factor.v)
        del factor
    v: Tensor | None = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    parts.clear()
    assert v is not None
    square = Square(v.shape[2], v.dtype, v.device)
    add_lower(square.view(), v.flatten(0, 1).t())
    work.checks.system(block, square.view(), v)
    products = source.of_parameters(work, block, v)
    if not work.plan.goal.per_sample:
        v = None
    return Formed(ParameterSystem(work, block, square, products, v), gradient)


def _cholesky_solve(matrix: Tensor, damping: float, right: Tensor) -> Tensor:
    """(matrix + damping I)^-1 right [m, R], from the lower triangle; works on copies."""
    mirror_lower(matrix)
    matrix.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed:
        return torch.cholesky_solve(right, factor)
    del factor
    # Rounding made an eigenvalue smaller than -damping.
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ ((vectors.t() @ right) / values.clamp(min=damping).unsqueeze(1))


def _squared_norm(matrix: Tensor) -> float:
    """||A||_F^2 of a symmetric matrix, of which the lower triangle is valid."""
    total = torch.zeros((), dtype=torch.float64, device=matrix.device)
    block = tuning(matrix.device).row_block[1]
    for start in range(0, len(matrix), block):
        rows = matrix[start : start + block, : start + block].double()
        square = rows[:, start:]
        total += 2 * rows[:, :start].square().sum()
        total += 2 * square.tril(-1).square().sum() + square.diagonal().square().sum()
    return total.item()


@contextmanager
def threads_for(rows: int, one_thread_rows: int) -> Iterator[None]:
    """Inside, small problems run on one thread."""
    threads = torch.get_num_threads()
    if rows <= one_thread_rows:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
