"""The same numbers and records on a GPU, TF32 asked for outside; skipped where there is none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from curvature_cases import CASES, Case
from oracle import dense, relative_error
from torch import nn

from vivit_bench.critical_batch import MemoryLimit, make_cell, run_search
from vivit_bench.curvature import (
    Curvature,
    Memory,
    directional_derivatives,
    eigenvalues,
    leading_eigenvalues,
    newton_step,
)
from vivit_bench.measure import Outcome
from vivit_bench.noise import Choices, OptimizerName, run_noise
from vivit_bench.peers import Quantity
from vivit_bench.problems.workload import WorkloadSpec, load_workload
from vivit_bench.spectrum import compute_spectrum

pytestmark = pytest.mark.cuda

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
DIGITS = f"{Path(__file__).parent.parent / 'scripts/examples/small_cnn.py'}:digits"


@pytest.fixture(autouse=True)
def _reduced_precision() -> Iterator[None]:
    """A user has asked for TF32 wherever it is to be had; the request stands afterwards."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def on_gpu(case: Case, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, Any, Any]:
    model, loss, x, y = case.build(dtype)
    return model.cuda(), loss.cuda(), x.cuda(), y.cuda()


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_eigenvalues_are_those_of_the_oracle(case: Case, dtype: torch.dtype) -> None:
    expected = torch.linalg.eigvalsh(dense(*case.build(dtype)).ggn()).flip(0)
    found = eigenvalues(*on_gpu(case, dtype))
    count = len(found.eigenvalues)
    assert relative_error(found.eigenvalues.cpu(), expected[:count]) < TOLERANCE[dtype]
    assert found.certificate is not None


LEAN = Memory(1, strict=False)
"""Runs the leanest plan: parts of layers one after the other, matrices solved by the CPU."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_leanest_plan_computes_the_same(case: Case) -> None:
    expected = torch.linalg.eigvalsh(dense(*case.build(torch.float64)).ggn()).flip(0)
    found = eigenvalues(*on_gpu(case, torch.float64), memory=LEAN).eigenvalues
    assert relative_error(found.cpu(), expected[: len(found)]) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("memory", [None, LEAN], ids=["fast", "lean"])
@pytest.mark.parametrize("blocks", ["none", "layer"])
@pytest.mark.parametrize("cutoff", [None, 1e-4], ids=["whole-space", "directions"])
@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case.name)
def test_newton_steps(case: Case, cutoff: float | None, blocks: str, memory: Memory | None) -> None:
    options: dict[str, Any] = {"damping": 0.1, "cutoff": cutoff, "blocks": blocks}
    expected = newton_step(*case.build(torch.float64), **options).step
    found = newton_step(*on_gpu(case, torch.float64), **options, memory=memory).step
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("method", ["gram", "lanczos"])
def test_leading_eigenvalues(method: str) -> None:
    case = CASES[0]
    expected = torch.linalg.eigvalsh(dense(*case.build(torch.float64)).ggn()).flip(0)[:3]
    found = leading_eigenvalues(*on_gpu(case, torch.float64), k=3, method=method)
    assert relative_error(found.eigenvalues.cpu(), expected) < 1e-6


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
def test_steps_and_derivatives_are_those_of_the_cpu(case: Case) -> None:
    ours, theirs = on_gpu(case, torch.float64), case.build(torch.float64)
    steps = [newton_step(*request).step for request in (ours, theirs)]
    for a, b in zip(*steps, strict=True):
        torch.testing.assert_close(a.cpu(), b)
    found = [directional_derivatives(*request) for request in (ours, theirs)]
    torch.testing.assert_close(found[0].gammas.cpu().abs(), found[1].gammas.abs())
    torch.testing.assert_close(found[0].lambdas.cpu(), found[1].lambdas)


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
def test_dropped_columns_are_those_of_the_cpu(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vivit_bench.curvature.kept.LEAST_SHARE", 0.0)
    ours, theirs = on_gpu(case, torch.float64), case.build(torch.float64)
    trace = 0.3 * eigenvalues(*theirs).trace
    found = [directional_derivatives(*request, drop_trace=trace) for request in (ours, theirs)]
    assert found[0].dropped is not None
    assert found[1].dropped is not None
    assert found[0].dropped.num_columns == found[1].dropped.num_columns > 0
    assert found[0].dropped.trace == pytest.approx(found[1].dropped.trace)
    torch.testing.assert_close(found[0].lambdas.cpu(), found[1].lambdas)


def test_monte_carlo_draws_are_those_of_the_cpu() -> None:
    case = CASES[0]
    found = [
        eigenvalues(*request, curvature=Curvature.MC, seed=3).eigenvalues.cpu()
        for request in (on_gpu(case, torch.float64), case.build(torch.float64))
    ]
    torch.testing.assert_close(found[0], found[1])


def test_a_workload_and_its_spectrum_are_on_the_device() -> None:
    workload = load_workload(WorkloadSpec(DIGITS, batch_size=8, device="cuda"))
    _, _, inputs, targets = workload.request
    assert inputs.is_cuda
    assert targets.is_cuda
    here = compute_spectrum(DIGITS, batch_size=8, device="cuda", dtype="float64")
    there = compute_spectrum(DIGITS, batch_size=8, dtype="float64")
    assert relative_error(
        torch.from_numpy(here.eigenvalues), torch.from_numpy(there.eigenvalues)
    ) < 1e-8  # fmt: skip


def test_a_search_ends_where_device_memory_does(tmp_path: Path) -> None:
    cell = make_cell(DIGITS, quantity=Quantity.EIGENVALUES, device="cuda")
    finished = run_search(cell, MemoryLimit(64 * 2**20, True), results_dir=tmp_path, max_batch=64)
    assert finished.result.trials[0].outcome is Outcome.FITS
    assert finished.result.trials[0].peak_bytes


def test_a_training_is_monitored_on_the_device(tmp_path: Path) -> None:
    choices = Choices(
        DIGITS, OptimizerName.SGD, epochs=1, lr=0.01, checkpoints=2, device="cuda",
        monitor_batch_size=8,
    )  # fmt: skip
    assert len(run_noise(choices, tmp_path).checkpoints) == 2
