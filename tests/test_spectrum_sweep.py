"""A sweep keeps what still holds, computes the rest, and loses nothing when interrupted."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vivit_bench import curvature, spectrum
from vivit_bench.curvature.options import Curvature, Precision, Samples
from vivit_bench.curvature.results import BatchInfo, Spectrum
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.problems.fingerprint import batch_fingerprint, model_fingerprint
from vivit_bench.spectrum import SweepEvent, SweepStep, Workload, sweep_spectra

ALL_FOUR = [
    ("exact", "full"),
    ("exact", "frac"),
    ("mc", "full"),
    ("mc", "frac"),
]


class StubEngine:
    """Stands in for the engine and remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.values = [2.0, 1.0]

    def __call__(self, model: nn.Module, loss: nn.Module, *batch: Any, **options: Any) -> Spectrum:
        *_, approximation = batch
        self.calls.append({**options, **asdict(approximation)})
        info = BatchInfo(12, 4, 4, 3, len(self.values), 1.0, "float64")
        return Spectrum(info, torch.tensor(self.values, dtype=torch.float64), sum(self.values))

    @property
    def variants(self) -> list[tuple[str, str]]:
        return [(call["curvature"].value, call["samples"].value) for call in self.calls]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> StubEngine:
    stub = StubEngine()
    monkeypatch.setattr(curvature, "eigenvalues", stub)
    return stub


@pytest.fixture
def workload() -> Workload:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = nn.Linear(3, 3), torch.rand(4, 3)
    targets = torch.tensor([0, 1, 2, 0])
    return Workload(
        problem="mnist_mlp",
        model=model,
        loss=nn.CrossEntropyLoss(),
        inputs=inputs,
        targets=targets,
        num_params=12,
        data="synthetic",
        data_dir=None,
        seed=0,
        checkpoint=None,
        dtype=Precision.FLOAT32,
        device="cpu",
        model_fingerprint="model",
        batch_fingerprint="batch",
    )


def sweep(workload: Workload, folder: Path, **options: Any) -> list[SweepStep]:
    return list(sweep_spectra(workload, results_dir=folder, **options))


def test_four_variants_are_stored_then_reused(
    engine: StubEngine, workload: Workload, tmp_path: Path
):
    first = sweep(workload, tmp_path, mc_samples=2)
    assert engine.variants == ALL_FOUR
    assert [call["mc_samples"] for call in engine.calls] == [1, 1, 2, 2]
    stored = [step for step in first if step.event is SweepEvent.STORED]
    assert len({step.path for step in stored if step.path.exists()}) == 4
    again = sweep(workload, tmp_path, mc_samples=2)
    assert [step.event for step in again] == [SweepEvent.REUSED] * 4
    assert len(engine.calls) == 4
    for old, new in zip(stored, again, strict=True):
        assert old.record is not None
        assert new.record is not None
        assert new.record.eigenvalues.tolist() == old.record.eigenvalues.tolist()


def test_fresh_computes_again(engine: StubEngine, workload: Workload, tmp_path: Path):
    sweep(workload, tmp_path)
    sweep(workload, tmp_path, fresh=True)
    assert engine.variants == ALL_FOUR * 2


def test_interrupted_sweep_goes_on(engine: StubEngine, workload: Workload, tmp_path: Path):
    steps: Iterator[SweepStep] = sweep_spectra(workload, results_dir=tmp_path)
    for step in steps:
        if step.event is SweepEvent.STORED and step.settings.samples is Samples.FRAC:
            break  # Two variants are done.
    sweep(workload, tmp_path)
    assert engine.variants == ALL_FOUR


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 1}, "seed 0 (now 1)"),
        ({"data": "mnist5k"}, "data synthetic (now mnist5k)"),
        ({"dtype": Precision.FLOAT64}, "dtype float32 (now float64)"),
        ({"model_fingerprint": "trained"}, "another model"),
        ({"batch_fingerprint": "other"}, "another mini-batch"),
    ],
)
def test_spectra_of_another_workload_are_computed_again(
    engine: StubEngine, workload: Workload, tmp_path: Path, change: dict[str, Any], reason: str
):
    sweep(workload, tmp_path)
    steps = sweep(replace(workload, **change), tmp_path)
    assert engine.variants == ALL_FOUR * 2
    assert all(reason in step.stale for step in steps if step.event is SweepEvent.STARTED)


def test_other_mc_samples_leave_the_exact_variants_alone(
    engine: StubEngine, workload: Workload, tmp_path: Path
):
    sweep(workload, tmp_path)
    sweep(workload, tmp_path, mc_samples=3)
    assert engine.variants == ALL_FOUR + ALL_FOUR[2:]


def test_other_code_is_computed_again(
    engine: StubEngine, workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sweep(workload, tmp_path)
    changed = {**spectrum.sweep.provenance(), "code": "changed", "host": "elsewhere"}
    monkeypatch.setattr(spectrum.sweep, "provenance", lambda: changed)
    steps = sweep(workload, tmp_path)
    assert len(engine.calls) == 8
    assert "(now changed)" in steps[0].stale
    assert "host" not in steps[0].stale


def test_damaged_file_is_computed_again(engine: StubEngine, workload: Workload, tmp_path: Path):
    path = sweep(workload, tmp_path)[-1].path
    path.write_text(path.read_text().replace("2.0", "9.0"))
    steps = sweep(workload, tmp_path)
    assert engine.variants == [*ALL_FOUR, ALL_FOUR[-1]]
    assert "not those" in steps[-2].stale


def test_result_that_is_not_finite_is_an_error_and_not_stored(
    engine: StubEngine, workload: Workload, tmp_path: Path
):
    engine.values = [float("nan")]
    with pytest.raises(VivitBenchError, match="not finite"):
        sweep(workload, tmp_path)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_lack_of_memory_is_one_line(
    workload: Workload, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(curvature, "eigenvalues", fail)
    with pytest.raises(VivitBenchError, match=r"not enough memory.*--batch-size"):
        spectrum.compute_on(workload, workload.settings())


def test_other_runtime_errors_are_not_taken_for_lack_of_memory(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(curvature, "eigenvalues", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        spectrum.compute_on(workload, workload.settings())


def test_settings_that_make_no_sense_are_refused(workload: Workload):
    with pytest.raises(UsageError, match="exact curvature draws no samples"):
        workload.settings(Curvature.EXACT, mc_samples=2)
    for cutoff in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="--cutoff"):
            workload.settings(cutoff=cutoff)


def test_model_fingerprint_sees_parameters_buffers_structure_and_frozen_layers():
    def fingerprint(change: str = "") -> str:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        if change == "parameter":
            model[0].weight.data[0, 0] += 1e-6
        elif change == "buffer":
            model[1].running_mean += 1e-6
        elif change == "frozen":
            model[0].requires_grad_(False)
        elif change == "structure":
            model.append(nn.ReLU())
        loss = nn.MSELoss() if change == "loss" else nn.CrossEntropyLoss()
        return model_fingerprint("mnist_mlp", model, loss)

    assert fingerprint() == fingerprint()
    changes = ["", "parameter", "buffer", "frozen", "structure", "loss"]
    assert len({fingerprint(change) for change in changes}) == len(changes)


def test_model_fingerprint_sees_the_users_file(tmp_path: Path):
    file = tmp_path / "net.py"
    model, loss = nn.Flatten(), nn.MSELoss()
    prints = set()
    for source in ("x = 1", "x = 2"):
        file.write_text(source)
        prints.add(model_fingerprint(f"{file}:make", model, loss))
    assert len(prints) == 2


def test_batch_fingerprint_sees_values_shape_and_type():
    inputs, targets = torch.zeros(2, 3), torch.tensor([0, 1])
    variants = [
        (inputs, targets),
        (inputs + 1e-30, targets),
        (inputs.view(3, 2), targets),
        (inputs.double(), targets),
        (inputs, targets + 1),
    ]
    assert len({batch_fingerprint(*batch) for batch in variants}) == len(variants)
    assert batch_fingerprint(inputs, targets) == batch_fingerprint(inputs.clone(), targets)
