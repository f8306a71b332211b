"""How well the memory plan's predicted peak holds: predicted and measured, row by row, as CSV.

    python scripts/memory_plans.py --problem mnist_2c2d --batch-size 32,128 --memory-limit 2GiB

Each row is one trial of the engine in a process of its own, as a critical-batch search runs it.
Without a memory limit the fastest plan is measured.
"""

import argparse
import csv
import sys

from vivit_bench.arguments import parse_size
from vivit_bench.curvature.options import VARIANTS, Approximation, Memory
from vivit_bench.curvature.plan import Goal
from vivit_bench.curvature.session import Request, plan_request
from vivit_bench.hardware import parse_device
from vivit_bench.measure import Spec, measure
from vivit_bench.measure.work import work_of
from vivit_bench.peers import Quantity
from vivit_bench.problems.workload import WorkloadSpec, load_workload
from vivit_bench.trees import num_bytes

COLUMNS = (
    "problem", "quantity", "curvature", "samples", "N", "limit_bytes", "passes", "in_place",
    "predicted_bytes", "where", "measured_bytes", "ratio", "outcome", "seconds",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", default="mnist_2c2d,cifar10_3c3d,cifar100_allcnnc")
    parser.add_argument("--quantity", default="eigenvalues,block-newton,full-newton")
    parser.add_argument("--batch-size", default="32,128,512")
    parser.add_argument("--memory-limit", default=None)
    parser.add_argument("--variants", type=int, default=1, help="of the four approximations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600)
    parser.add_argument("--device", type=parse_device, default="cpu", help="cpu, cuda or cuda:i")
    given = parser.parse_args()
    limit = None if given.memory_limit is None else parse_size(given.memory_limit)
    out = csv.DictWriter(sys.stdout, COLUMNS)
    out.writeheader()
    for problem in given.problem.split(","):
        for quantity in map(Quantity, given.quantity.split(",")):
            for curvature, samples in VARIANTS[: given.variants]:
                for n in map(int, given.batch_size.split(",")):
                    approximation = Approximation(curvature, samples)
                    out.writerow(_row(problem, quantity, approximation, n, limit, given))
                    sys.stdout.flush()


def _row(
    problem: str,
    quantity: Quantity,
    approximation: Approximation,
    n: int,
    limit: int | None,
    given: argparse.Namespace,
) -> dict[str, object]:
    workload = load_workload(WorkloadSpec(problem, n, device=given.device), "memory")
    model, loss, inputs, targets = workload.request
    data = num_bytes(inputs, targets)
    goal = Goal.EIGENVALUES if quantity is Quantity.EIGENVALUES else Goal.STEP
    blocks = "layer" if quantity is Quantity.BLOCK_NEWTON else "none"
    memory = None if limit is None else Memory(limit - data, strict=False)
    request = Request(
        model, loss, inputs, targets, approximation, blocks, certify=False, memory=memory, goal=goal
    )
    _, plan = plan_request(request)
    arguments = {
        **work_of(workload.spec, quantity, approximation),
        "engine": "vivit-bench",
        "memory_bytes": limit,
    }
    spec = Spec(
        n=n, threads=given.threads, arguments=arguments, limit_bytes=limit, device=given.device
    )
    seen = measure(spec, given.timeout)
    predicted = plan.peak.bytes + data
    measured = seen.peak_bytes
    report = seen.report
    return {
        "problem": problem,
        "quantity": quantity.value,
        **{k: v for k, v in approximation.record().items() if k != "mc_samples"},
        "N": n,
        "limit_bytes": limit,
        "passes": len(plan.passes),
        "in_place": len(plan.in_place),
        "predicted_bytes": predicted,
        "where": plan.peak.name,
        "measured_bytes": measured,
        "ratio": None if measured is None else round(predicted / measured, 3),
        "outcome": seen.outcome.value,
        "seconds": None if report is None else getattr(report, "seconds", None),
    }


if __name__ == "__main__":
    main()
