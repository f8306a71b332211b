"""How far a run is from what the machine could do at best."""

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from vivit_bench.curvature.options import Approximation
from vivit_bench.curvature.session import Request, plan_request
from vivit_bench.problems import DataSource, load_batch, load_problem


def gemm_rate(size: int = 2048, repeats: int = 7) -> float:
    """FLOPs per second of a float32 matrix product, measured now."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / median(times)


def eigensolver_seconds(rows: int) -> float:
    """Seconds of the float64 eigenvalues of an [rows, rows] matrix, measured now."""
    matrix = torch.randn(rows, rows, dtype=torch.float64)
    matrix = matrix @ matrix.t()
    start = time.perf_counter()
    torch.linalg.eigvalsh(matrix)
    return time.perf_counter() - start


def measure_floor(work: dict[str, Any], n: int, threads: int) -> dict[str, float]:
    """Seconds of the Gram products at the GEMM rate, of the eigensolver, and their sum.

    Args:
        work: Arguments of `EngineWorkload` but the engine.
        n: Mini-batch size.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    problem = load_problem(work["problem"], seed=work["seed"])
    folder = Path(work["data_dir"]) if work["data_dir"] else None
    inputs, targets = load_batch(problem, n, DataSource(work["data"]), folder, work["seed"])
    approximation = Approximation(work["curvature"], work["samples"], work["mc_samples"])
    batch, plan = plan_request(Request(problem.model, problem.loss, inputs, targets, approximation))
    rate = gemm_rate()
    # The Gram products of all layers, one triangle.
    products = sum(unit.flops for unit in plan.units) / rate
    solver = eigensolver_seconds(batch.rows)
    return {
        "gemm_gflops": rate / 1e9,
        "gram_seconds": products,
        "solver_seconds": solver,
        "floor_seconds": products + solver,
    }
