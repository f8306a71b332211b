"""What a card does: its solvers, memory, failures, speed; skipped where there is none.

``make test-cuda`` runs this after the numbers of ``test_cuda.py``. What is learned of a card, from
which ``curvature/tuning.py`` and ``curvature/plan.py`` have their constants, is written to
``build/cuda.json``, or to the file that the environment variable ``VIVIT_BENCH_CUDA_JSON`` names.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vivit_bench.critical_batch import MemoryLimit, make_cell, run_search
from vivit_bench.curvature import (
    Approximation,
    Memory,
    eigenvalues,
    newton_step,
    tuning,
)
from vivit_bench.curvature.diagonalised import Diagonalised
from vivit_bench.curvature.options import Goal
from vivit_bench.curvature.session import Request, plan_request
from vivit_bench.errors import FailureKind, classify
from vivit_bench.measure import Outcome
from vivit_bench.peers import Quantity, get_engine
from vivit_bench.problems import DataSource
from vivit_bench.problems.workload import WorkloadSpec, load_workload
from vivit_bench.store import provenance

pytestmark = pytest.mark.cuda

MIB = 2**20
ROOT = Path(__file__).parent.parent
DIGITS = f"{ROOT / 'scripts/examples/small_cnn.py'}:digits"


class Learned:
    """Facts of this card by name, on disk as soon as they are known."""

    def __init__(self) -> None:
        default = ROOT / "build/cuda.json"
        self._file = Path(os.environ.get("VIVIT_BENCH_CUDA_JSON", default))
        self._facts: dict[str, Any] = {"machine": provenance("cuda:0")}

    def put(self, what: str, /, **facts: Any) -> None:
        self._facts.setdefault(what, []).append(facts)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._facts, indent=1))


@pytest.fixture(scope="module")
def learned() -> Learned:
    return Learned()


@pytest.fixture
def fraction() -> Iterator[Callable[[int], None]]:
    """Leave this process so many bytes more than it has reserved."""
    torch.cuda.empty_cache()

    def limit(size: int) -> None:
        total = torch.cuda.get_device_properties(0).total_memory
        share = (torch.cuda.memory_reserved() + size) / total
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0))

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def measured(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """The result, its seconds and its peak over what was allocated."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    found = work()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return found, round(seconds, 4), torch.cuda.max_memory_allocated() - before


def synthetic(problem: str, n: int) -> Any:
    spec = WorkloadSpec(problem, batch_size=n, data=DataSource.SYNTHETIC, device="cuda")
    return load_workload(spec).request


# --- memory


@pytest.mark.parametrize("quantity", [Goal.EIGENVALUES, Goal.STEP, Goal.INVERSE], ids=str)
@pytest.mark.parametrize(
    ("problem", "n", "mib"),
    [
        ("cifar10_3c3d", 32, 512), ("cifar10_3c3d", 256, 512), ("cifar10_3c3d", 512, 8192),
        ("fmnist_2c2d", 256, 1024), ("cifar100_allcnnc", 8, 2048),
    ],
)  # fmt: skip
def test_a_plan_s_peak_is_the_card_s(
    problem: str, n: int, mib: int, quantity: Goal, learned: Learned
) -> None:
    request, memory = synthetic(problem, n), Memory(mib * MIB, strict=False)
    planned = plan_request(
        Request(*request, Approximation(), certify=False, memory=memory, goal=quantity)
    )[1]
    options: dict[str, Any] = {"certify": False, "memory": memory}
    compute: Callable[..., Any] = eigenvalues
    if quantity is not Goal.EIGENVALUES:
        compute = newton_step
        options |= {"cutoff": None if quantity is Goal.INVERSE else 1e-4}
    compute(*request, **options)
    _, seconds, peak = measured(lambda: compute(*request, **options))
    learned.put(
        "plans", problem=problem, n=n, memory_mib=mib, quantity=quantity.value, seconds=seconds,
        planned_mib=planned.peak.bytes / MIB, peak_mib=peak / MIB, at=planned.peak.name,
        passes=len(planned.passes), on_cpu=len(planned.in_place),
    )  # fmt: skip
    assert 0.9 < planned.peak.bytes / peak < 1.1


# --- solvers


def rotated(eigenvalues: Tensor) -> Tensor:
    """A symmetric matrix with these eigenvalues: H diag(l) H with a reflector H."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    v = torch.randn(len(eigenvalues), device="cuda", dtype=torch.float64, generator=generator)
    v /= v.norm()
    scaled = eigenvalues * v
    matrix = torch.diag(eigenvalues)
    matrix -= torch.outer(2 * scaled, v)
    matrix -= torch.outer(2 * v, scaled)
    matrix += torch.outer(4 * torch.dot(v, scaled) * v, v)
    return matrix


@pytest.mark.parametrize("rows", [1152, 4096, 10_240, 22_000, 33_000])
def test_the_card_s_eigensolver(rows: int, learned: Learned) -> None:
    """As large as ``tuning.largest_rows`` says, as much memory as the plan says."""
    if 50 * rows**2 > torch.cuda.mem_get_info()[0]:
        pytest.skip("the card has too little memory")
    expected = torch.linspace(0, 1, rows, device="cuda", dtype=torch.float64) ** 4
    matrix = rotated(expected)
    if rows > tuning.largest_rows(matrix.device):
        pytest.skip("the CPU solves it")
    found, seconds, peak = measured(lambda: torch.linalg.eigvalsh(matrix))
    error = (found - expected).abs().max().item()
    learned.put("eigvalsh", rows=rows, seconds=seconds, peak_over_m2=peak / rows**2, error=error)
    assert error < 1e-12
    assert peak < 40.2 * rows**2 + 2 * MIB
    if rows <= 10_240:
        solver, seconds, peak = measured(lambda: Diagonalised(matrix))
        learned.put("eigh", rows=rows, seconds=seconds, peak_over_m2=peak / rows**2)
        assert (solver.values - expected).abs().max() < 1e-12


# --- failures: their texts are of real libraries


def fails(work: Callable[[], Any], learned: Learned, what: str) -> FailureKind:
    with pytest.raises(Exception) as raised:  # noqa: PT011, PT012
        work()
        torch.cuda.synchronize()
    kind = classify(raised.value)
    learned.put("failures", what=what, text=str(raised.value)[:300], kind=kind.value)
    return kind


def test_an_allocation_that_is_refused(fraction: Callable[[int], None], learned: Learned) -> None:
    fraction(100 * MIB)
    kind = fails(lambda: torch.empty(200 * MIB, dtype=torch.uint8, device="cuda"), learned, "empty")
    assert kind is FailureKind.MEMORY


def test_a_convolution_without_room(fraction: Callable[[int], None], learned: Learned) -> None:
    x = torch.rand(64, 16, 64, 64, device="cuda")
    w = torch.rand(64, 16, 5, 5, device="cuda", requires_grad=True)
    fraction(8 * MIB)
    work = lambda: torch.nn.functional.conv2d(x, w).sum().backward()  # noqa: E731
    assert fails(work, learned, "convolution") is FailureKind.MEMORY


def test_a_solver_without_room(fraction: Callable[[int], None], learned: Learned) -> None:
    matrix = torch.rand(3000, 3000, device="cuda", dtype=torch.float64)
    fraction(80 * MIB)
    kind = fails(lambda: torch.linalg.eigvalsh(matrix), learned, "eigvalsh")
    assert kind is FailureKind.MEMORY


def test_a_card_that_is_full(learned: Learned) -> None:
    """By others: libraries that start then cannot be told from any that run out of memory."""
    code = (
        "import torch, sys\n"
        "hog = torch.empty(torch.cuda.mem_get_info()[0] - 40 * 2**20, dtype=torch.uint8, "
        "device='cuda')\n"
        "from vivit_bench.errors import classify\n"
        "a = torch.rand(512, 512, dtype=torch.float64)\n"
        "try:\n"
        "    a = a.cuda(); (a @ a); torch.linalg.eigvalsh(a + a.T); torch.cuda.synchronize()\n"
        "    torch.rand(9000, 9000, device='cuda')\n"
        "except Exception as error:\n"
        "    print(classify(error).value, type(error).__name__, str(error)[:200])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    learned.put("failures", what="full card", text=done.stdout)
    assert done.stdout.split()[0] in ("memory", "ambiguous"), done.stdout + done.stderr


def test_a_sticky_error_is_told_in_one_line() -> None:
    code = (
        "import torch\n"
        "from vivit_bench.hardware import library_errors\n"
        "with library_errors('x on cuda:0', 'use less'):\n"
        "    torch.zeros(3, device='cuda')[torch.tensor([9], device='cuda')]\n"
        "    torch.cuda.synchronize()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert "VivitBenchError" in done.stderr.splitlines()[-1] or "x on cuda:0" in done.stderr


# --- peers, noise, searches, commands


@pytest.mark.parametrize("name", ["backpack", "vivit-for-pytorch", "curvlinops"])
def test_peers_agree(name: str) -> None:
    pytest.importorskip({"vivit-for-pytorch": "vivit"}.get(name, name))
    found = []
    for engine in map(get_engine, ("vivit-bench", name)):
        model, loss, inputs, targets = synthetic("mnist_mlp", 8)
        model, loss = engine.prepare(model, loss)
        result = engine.run(Quantity.EIGENVALUES, model, loss, inputs, targets, Approximation())
        found.append(result["eigenvalues"][:3].double().cpu())
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-6)


def test_a_training_repeats_bit_for_bit_also_when_it_was_killed(tmp_path: Path) -> None:
    common = [
        sys.executable, "-m", "vivit_bench", "noise", "run", DIGITS, "--optimizer", "sgd",
        "--lr", "0.01", "--epochs", "2", "--checkpoints", "4", "--monitor-batch-size", "8",
        "--device", "cuda", "--results-dir", str(tmp_path),
    ]  # fmt: skip
    once = subprocess.run([*common, "--name", "a"], cwd=ROOT, capture_output=True, text=True)
    assert once.returncode == 0, once.stderr
    killed = subprocess.Popen([*common, "--name", "b"], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    looked_at = tmp_path / "noise/b/checkpoints.csv"
    while killed.poll() is None and time.monotonic() < deadline and not looked_at.exists():
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    again = subprocess.run([*common, "--name", "b"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    for name in ("directions", "checkpoints", "curves"):
        a, b = ((tmp_path / f"noise/{run}/{name}.csv").read_bytes() for run in "ab")
        assert a == b, name
    for run in "ab":
        results = json.loads((tmp_path / f"noise/{run}/run.json").read_text())["results"]
        assert results["deterministic"] is True, results


def test_a_search_ends_at_the_same_size_twice(tmp_path: Path, learned: Learned) -> None:
    cell = make_cell("mnist_mlp", quantity=Quantity.EIGENVALUES, device="cuda")
    limit, found = MemoryLimit(64 * MIB, True), []
    for run in "ab":
        start = time.perf_counter()
        result = run_search(cell, limit, results_dir=tmp_path / run).result
        peaks = {t.n: t.peak_bytes for t in result.trials}
        learned.put("searches", peaks=peaks, seconds=time.perf_counter() - start)
        outcomes = {trial.n: trial.outcome for trial in result.trials}
        assert result.critical_batch_size is not None
        assert outcomes[result.critical_batch_size] is Outcome.FITS
        assert outcomes[result.critical_batch_size + 1] is Outcome.OUT_OF_MEMORY
        found.append((result.critical_batch_size, peaks))
    assert found[0][0] == found[1][0]
    assert found[0][1] == found[1][1]


COMMANDS = [
    f"curvature eigenvalues {DIGITS} --batch-size 8",
    f"curvature eigenvalues {DIGITS} --batch-size 8 --top 3 --method lanczos",
    f"curvature newton {DIGITS} --batch-size 8",
    f"curvature directional {DIGITS} --batch-size 8",
    f"curvature explain {DIGITS} --batch-size 8",
    f"spectrum compute {DIGITS} --batch-size 8",
    f"compare-engines {DIGITS} --batch-size 8 --repeats 1",
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[:2]))
def test_every_command_runs_on_the_card(command: str, tmp_path: Path) -> None:
    results = [] if command.startswith("curvature") else ["--results-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "vivit_bench", *command.split(), "--device", "cuda", *results],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


# --- speed: no assertion, but the constants of tuning.CUDA should be near the best


@pytest.mark.parametrize(("problem", "n"), [("cifar10_3c3d", 512), ("cifar100_allcnnc", 32)])
def test_what_sizes_cost(
    problem: str, n: int, learned: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, base = synthetic(problem, n), tuning.CUDA
    sizes: list[dict[str, Any]] = [
        {}, {"tile_bytes": 16 * MIB}, {"tile_bytes": 256 * MIB}, {"pairs_weight": 1.25},
        {"pairs_weight": 1e9}, {"working_bytes": 256 * MIB}, {"working_bytes": 4096 * MIB},
    ]  # fmt: skip
    for changed in sizes:
        monkeypatch.setattr(tuning, "CUDA", replace(base, **changed))
        eigenvalues(*request, certify=False)
        seconds = [measured(lambda: eigenvalues(*request, certify=False))[1] for _ in range(3)]
        learned.put("speed", problem=problem, n=n, sizes=changed, seconds=seconds)
