"""What dropping columns of V saves on a trained network, and what it changes.

    vivit-bench noise run mnist_2c2d --optimizer sgd --data mnist5k --epochs 60 --at end \
        --name saved --save-model last.pt
    python scripts/drop_columns.py mnist_2c2d last.pt --data mnist5k

The monitoring call of a noise run (directional derivatives and gradient on its held-out samples)
and the eigenvalues alone, with and without dropping, in turn; CPU time is that of all threads, and
with --device cuda it is wall-clock time until the device is done. The largest change of an
eigenvalue above the cutoff is measured in float64, because float32 rounds the largest eigenvalues
by as much as the bound.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vivit_bench.curvature import directional_derivatives, eigenvalues
from vivit_bench.hardware import cpu_threads, parse_device
from vivit_bench.noise.data import load_run_data
from vivit_bench.problems import DataSource, load_problem
from vivit_bench.trees import map_tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("problem", help="DeepOBS name, or path/to/file.py:function")
    parser.add_argument("checkpoint", type=Path, help="of vivit-bench noise run --save-model")
    parser.add_argument("--data", type=DataSource, default=DataSource.DEEPOBS)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--cutoff", type=float, default=1e-4)
    parser.add_argument("--share", type=float, default=0.1, help="of the cutoff")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:i")
    given = parser.parse_args()
    trace, device = given.share * given.cutoff, parse_device(given.device)

    problem = load_problem(given.problem, seed=0, checkpoint=given.checkpoint)
    data = load_run_data(problem, given.data, None, 0)
    model, loss = problem.model.eval().to(device), problem.loss.to(device)
    inputs, targets = data.monitor_batch(given.batch_size)
    inputs, targets = map_tree(lambda t: t.to(device), inputs), targets.to(device)

    def monitoring(drop: float | None) -> object:
        return directional_derivatives(
            model,
            loss,
            inputs,
            targets,
            cutoff=given.cutoff,
            with_gradient=True,
            drop_trace=drop,
        )

    def spectrum(drop: float | None) -> object:
        return eigenvalues(model, loss, inputs, targets, drop_trace=drop)

    with cpu_threads(given.threads):
        for name, call in (("monitoring call", monitoring), ("eigenvalues", spectrum)):
            plain, dropping = in_turn(call, trace, given.repeats, device)
            clock = "CPU time" if device == "cpu" else f"time on {device}"
            print(
                f"{name}: {plain:.2f} s of {clock} without, {dropping:.2f} s with dropping "
                f"({plain / dropping:.2f} times less; medians of {given.repeats})"
            )
        model.double()
        loss.double()
        request = (model, loss, inputs.double(), targets)
        whole, part = eigenvalues(*request), eigenvalues(*request, drop_trace=trace)
    assert part.dropped is not None
    print(part.dropped.line(part.info.num_columns))
    above = whole.eigenvalues > given.cutoff
    change = (whole.eigenvalues - part.eigenvalues)[above].abs().max().item()
    print(
        f"largest change of the {int(above.sum())} eigenvalues above {given.cutoff:g}, in float64: "
        f"{change:.2e}"
    )
    if change > part.dropped.trace * (1 + 1e-6):
        raise SystemExit(f"this is more than the bound {part.dropped.trace:.2e}")


def in_turn(
    call: Callable[[float | None], object], trace: float, repeats: int, device: str
) -> tuple[float, float]:
    """Median seconds without and with dropping, after one call of each."""
    times: dict[float | None, list[float]] = {None: [], trace: []}
    for number in range(repeats + 1):
        for drop, seconds in times.items():
            start = clock(device)
            call(drop)
            if number:
                seconds.append(clock(device) - start)
    return statistics.median(times[None]), statistics.median(times[trace])


def clock(device: str) -> float:
    """Of all CPU threads; for a CUDA device of the wall, once the device is idle."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
