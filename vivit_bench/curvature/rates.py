"""How fast this machine is now, measured for a fraction of a second."""

import time
from collections.abc import Callable
from functools import cache

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from vivit_bench.curvature.banded import WIDTH, band_eigenvalues, by_band, reduce_to_band
from vivit_bench.curvature.diagonalised import Diagonalised
from vivit_bench.curvature.options import Goal
from vivit_bench.curvature.solvers import (
    Tridiagonal,
    cholesky_solve_in_place,
    eigenvalues_in_place,
)
from vivit_bench.curvature.systems import ONE_THREAD_ROWS, threads_for
from vivit_bench.curvature.tridiagonal import Doubles

GEMM_ROWS = 1024
SOLVER_ROWS = 768
"""Rows of the matrices that are timed, at most."""


def timed(work: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Seconds, after one run that is not timed; the shortest of some."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return max(min(times[1:]), 1e-9)


@cache
def gemm_rate(dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """FLOP/s of a matrix product."""
    a = torch.ones(GEMM_ROWS, GEMM_ROWS, dtype=dtype, device=device)
    return 2.0 * GEMM_ROWS**3 / timed(lambda: a @ a, device, 3)


def solver_share(goal: Goal, in_place: bool) -> float:
    """Operations of a solver over m^3.

    4/3 for the tridiagonal form, or a band; at most 4/3 for its eigenvectors by divide and conquer
    and 2 for the product with the reflectors, where they are formed (LAPACK Users' Guide); 1/3 for
    a Cholesky factorisation.
    """
    if goal is Goal.INVERSE:
        return 1 / 3
    if goal is Goal.EIGENVALUES:
        return 4 / 3
    if in_place:
        return 4 / 3 + (2 if goal.per_sample else 0)
    return 14 / 3


@cache
def solver_rate(rows: int, goal: Goal, in_place: bool, device: torch.device, threads: int) -> float:
    """FLOP/s of a solver, measured on at most `SOLVER_ROWS` rows and as many threads as of all.

    Args:
        rows: Of the matrix that is to be solved.
        goal: What it is solved for.
        in_place: In its own memory, by the CPU.
        device: Where it is.
        threads: CPU threads.
    """
    few = min(rows, SOLVER_ROWS)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(few, few, generator=generator, dtype=torch.float64)
    matrix = (v @ v.t() / few).to("cpu" if in_place else device)
    right = matrix[:, :1].clone()

    def solve() -> None:
        own = matrix.clone()
        if goal is Goal.INVERSE:
            if in_place:
                cholesky_solve_in_place(own, 1.0, right)
            else:
                torch.linalg.cholesky_ex(own)
        elif goal is Goal.EIGENVALUES:
            if in_place:
                eigenvalues_in_place(own)
            else:
                torch.linalg.eigvalsh(own)
        else:
            solver = Tridiagonal(own) if in_place else Diagonalised(own)
            for _ in solver.vectors(0, few if goal.per_sample else 0):
                pass

    one_thread = {Goal.EIGENVALUES: ONE_THREAD_ROWS, Goal.INVERSE: 0}
    with threads_for(rows, one_thread.get(goal, ONE_THREAD_ROWS // 3)):
        if goal is Goal.EIGENVALUES and in_place and by_band(rows):
            return solver_share(goal, in_place) * rows**3 / _band_seconds(matrix, rows)
        return solver_share(goal, in_place) * few**3 / timed(solve, device)


def _band_seconds(few: Tensor, rows: int) -> float:
    """Of the eigenvalues of a matrix by way of a band, whose two stages grow differently.

    On few rows the second, O(m^2), is half of all.
    """
    cpu = torch.device("cpu")
    with threadpool_limits(torch.get_num_threads(), user_api="blas"):
        bands: list[Doubles] = []
        first = timed(lambda: bands.append(reduce_to_band(few.numpy().copy(), WIDTH)), cpu)
        second = timed(lambda: band_eigenvalues(bands.pop()), cpu)
    return first * (rows / len(few)) ** 3 + second * (rows / len(few)) ** 2
