"""How far a run is from what the machine could do at best, measured in a process of its own."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from vivit_bench.comparison.compare import EngineFailedError
from vivit_bench.comparison.reference import GEMM_SIZES
from vivit_bench.errors import UsageError
from vivit_bench.measure import Outcome, Reading, Spec, measure
from vivit_bench.measure.work import Work, load


def measure_floor(
    work: dict[str, Any], n: int, threads: int, timeout_seconds: float = 600.0
) -> dict[str, float]:
    """Seconds of the Gram products at the GEMM rate, of the eigensolver, and their sum.

    Args:
        work: Keywords of `vivit_bench.measure.work.EngineWork` but the engine.
        n: Mini-batch size.
        threads: CPU threads.
        timeout_seconds: For all of it.

    Returns:
        ``gemm_gflops``, ``gram_seconds``, ``solver_seconds`` and ``floor_seconds``.

    Raises:
        UsageError: The problem or its data cannot be had.
        EngineFailedError: Anything else failed.
    """
    spec = Spec(
        n=n,
        threads=threads,
        work=f"{__name__}:FloorWork",
        arguments={"arguments": work},
        reading=Reading.TIME,
        device=work["device"],
        digest=True,
    )
    seen = measure(spec, timeout_seconds)
    if seen.outcome is not Outcome.FITS or seen.report is None:
        usage = seen.report is not None and seen.report.usage_error
        raise (UsageError if usage else EngineFailedError)(f"--floor: {seen.message}")
    return seen.report.digest


class FloorWork(Work):
    """The fastest matrix product and the eigensolver of the size that a request needs.

    Args:
        arguments: As for `measure_floor`.
    """

    def __init__(self, arguments: dict[str, Any]):
        names = ("problem", "data", "data_dir", "seed", "checkpoint")
        self._device = arguments["device"]
        self._workload = load(**{name: arguments[name] for name in names}, device=self._device)
        self._arguments = arguments

    def run(self, n: int) -> object:
        """See `Work`; returns what `measure_floor` does."""
        from vivit_bench.curvature.options import Approximation
        from vivit_bench.curvature.session import Request, plan_request

        asked = self._arguments
        approximation = Approximation(asked["curvature"], asked["samples"], asked["mc_samples"])
        model, loss = self._workload.model, self._workload.loss
        inputs, targets = self._workload.batch(n)
        request = Request(model, loss, inputs, targets, approximation)
        batch, plan = plan_request(request)
        rate = gemm_rate(self._device)
        # The Gram products of all layers, one triangle.
        products = sum(unit.flops for unit in plan.units) / rate
        solver = eigensolver_seconds(batch.rows, self._device)
        return {
            "gemm_gflops": rate / 1e9,
            "gram_seconds": products,
            "solver_seconds": solver,
            "floor_seconds": products + solver,
        }

    def digest(self, result: object) -> dict[str, Any]:
        """See `Work`."""
        assert isinstance(result, dict)
        return result


def gemm_rate(device: str = "cpu", repeats: int = 7) -> float:
    """FLOPs per second of a float32 matrix product on a device, measured now."""
    import torch

    size = GEMM_SIZES[torch.device(device).type]
    a, b = torch.randn(2, size, size, device=device)
    times = [_seconds(lambda: torch.mm(a, b), device) for _ in range(repeats)]
    return 2 * size**3 / median(times)


def eigensolver_seconds(rows: int, device: str = "cpu") -> float:
    """Seconds of the float64 eigenvalues of an [rows, rows] matrix on a device, measured now."""
    import torch

    if device != "cpu":  # the first call loads the solver
        torch.linalg.eigvalsh(torch.eye(2, dtype=torch.float64, device=device))
    matrix = torch.randn(rows, rows, dtype=torch.float64, device=device)
    matrix = matrix @ matrix.t()
    return _seconds(lambda: torch.linalg.eigvalsh(matrix), device)


def _seconds(work: Callable[[], object], device: str) -> float:
    """Of a piece of work, from an idle device until the device is idle again."""
    _synchronise(device)
    start = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)
