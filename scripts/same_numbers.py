"""Whether another version of the code gives the same numbers, to the bit.

    python scripts/same_numbers.py REVISION

Both versions compute spectra, directions, Newton steps and plans of memory of the paper's problems,
run a training and the noisy quadratic, and search a critical batch size (some minutes). Where all
of it is equal (the size to 2 %, as a repeated search gives it), it prints lines for
`vivit_bench/store/same_numbers.py`, by which results of that revision are results of this one;
otherwise what differs, the lines of experiments that this does not concern, and the exit code is 1.
"""

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROBLEMS = ("fmnist_2c2d", "cifar10_3c3d", "cifar100_allcnnc")
APPROXIMATIONS = tuple(itertools.product(("exact", "mc"), ("full", "frac")))
_SIZE = "critical batch size"
_HEADERS = ("critical_batch", "comparison", "spectrum", "noise", "quadratic")
_OF_MEMORY = ("critical_batch", "comparison")
"""Experiments whose results depend on the memory that is planned."""


def numbers() -> Iterator[tuple[str, str]]:
    """Names and hashes of what the version that is imported gives."""
    import torch

    from vivit_bench.curvature import directional_derivatives, eigenvalues, newton_step
    from vivit_bench.curvature.options import Approximation, Curvature, Goal, Samples
    from vivit_bench.curvature.session import Request, leanest_of
    from vivit_bench.problems.workload import WorkloadSpec, load_workload

    torch.set_num_threads(1)
    for problem, (curvature, samples) in itertools.product(PROBLEMS, APPROXIMATIONS):
        is_large = problem == "cifar100_allcnnc"
        size = 2 if is_large else 16
        given = load_workload(WorkloadSpec(problem, size, "synthetic", None, 0, None)).request
        how = {"curvature": curvature, "samples": samples, "certify": False}
        name = f"{problem}, {curvature}, {samples}"
        approximation = Approximation(Curvature(curvature), Samples(samples), 1, 0)
        requests = [Request(*given, approximation, certify=False, goal=goal) for goal in Goal]
        least = [leanest_of(request).bytes for request in requests]
        yield f"{name}: least memory", _hash(least)
        bound = int(1.1 * max(least))
        for memory in (None,) if is_large else (None, bound):
            more = {**how, "memory": memory}
            where = f"{name}, memory {'free' if memory is None else 'bounded'}"
            found = eigenvalues(*given, with_gradient=True, **more)
            yield f"{where}: eigenvalues", _hash([found.eigenvalues, found.gradient])
            along = directional_derivatives(*given, **more)
            yield f"{where}: directions", _hash([along.gammas, along.lambdas])
            for blocks, cutoff in (("none", 1e-4), ("none", None), ("layer", 1e-4)):
                step = newton_step(*given, damping=1.0, cutoff=cutoff, blocks=blocks, **more)
                yield f"{where}: step, {blocks}, cutoff {cutoff}", _hash(step.step)


def _hash(value: Any) -> str:
    """Of tensors in any nesting, to the bit."""
    import torch

    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(part, list | tuple):
            for each in part:
                add(each)
        else:
            digest.update(repr(part).encode())

    add(value)
    return digest.hexdigest()[:16]


COMMANDS = (
    ("spectrum", "sweep", "mnist_2c2d", "--data", "mnist5k", "--batch-size", "64"),
    ("noise", "run", "mnist_2c2d", "--optimizer", "sgd", "--data", "mnist5k", "--epochs", "1"),
    ("quadratic", "run", "--name", "small", "--repeats", "5"),
    ("critical-batch", "search", "mnist_mlp", "--memory-limit", "24MiB", "--threads", "1"),
    (
        *("compare-engines", "mnist_mlp", "--batch-size", "8", "--repeats", "1", "--threads", "1"),
        *("--engine", "vivit-bench", "--engine", "vivit-for-pytorch"),
    ),
)


def commands(version: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What commands store, and the codes that they store it under."""
    environment = {**os.environ, "PYTHONPATH": str(version), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            line = [sys.executable, "-P", "-m", "vivit_bench", *command, "--quiet"]
            subprocess.run(
                [*line, "--results-dir", folder],
                env=environment,
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        found, codes = {}, {}
        for header in sorted(Path(folder).glob("*/*/run.json")):
            run = json.loads(header.read_text())
            codes[header.parent.parent.name] = run["environment"]["code"]
            name = f"{header.parent.parent.name}: {run['label']}"
            for path in sorted(header.parent.glob("*.csv")):
                found[f"{name}, {path.name}"] = _results_in(path)
            if size := run["results"].get("critical_batch_size"):
                found[f"{name}, {_SIZE}"] = str(size)
    return found, codes


def _results_in(path: Path) -> str:
    """Of a table, without times and without what checks found, which are no results."""
    import pandas as pd

    table = pd.read_csv(path)
    names = map(str, table)
    kept = [n for n in names if not (n.endswith("seconds") or n.startswith("certifi"))]
    return hashlib.sha256(table[kept].to_csv().encode()).hexdigest()[:16]


def _same(name: str, old: str | None, new: str | None) -> bool:
    if old and new and name.endswith(_SIZE):
        return abs(int(old) - int(new)) <= 0.02 * int(old)
    return old == new


def _version(version: Path) -> tuple[dict[str, str], dict[str, str]]:
    line = [sys.executable, "-P", str(Path(__file__).resolve()), "--numbers"]
    environment = {**os.environ, "PYTHONPATH": str(version), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    stored, codes = commands(version)
    return {**json.loads(done.stdout.splitlines()[-1]), **stored}, codes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("revision", nargs="?")
    parser.add_argument("--numbers", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.numbers:
        print(json.dumps(dict(numbers())))
        return
    if arguments.revision is None:
        parser.error("which revision? For example: same_numbers.py HEAD~3")
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run(
            [*git, "add", "--detach", "--quiet", str(other), arguments.revision], check=True
        )
        try:
            with ThreadPoolExecutor(2) as pool:
                (before, old), (after, new) = pool.map(_version, (other, ROOT))
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
    names = {**before, **after}
    differing = [name for name in names if not _same(name, before.get(name), after.get(name))]
    for name in differing:
        print(f"differs: {name}: {before.get(name)} -> {after.get(name)}")
    print(f"{len(after) - len(differing)} of {len(after)} results are the same to the bit")
    only_memory = all(name.endswith(("least memory", _SIZE)) for name in differing)
    for experiment in _HEADERS:
        if not differing or (only_memory and experiment not in _OF_MEMORY):
            print(f'    ("{old[experiment]}", "{new[experiment]}"),  # {experiment}')
    if differing:
        sys.exit(1)


if __name__ == "__main__":
    main()
