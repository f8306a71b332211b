"""A sweep keeps what still holds, computes the rest, and loses nothing when interrupted."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from spectrum_cases import settings_with
from torch import nn

from vivit_bench import curvature, spectrum
from vivit_bench.curvature.options import Approximation, Precision, Samples
from vivit_bench.curvature.results import BatchInfo, Spectrum
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.problems.fingerprint import batch_fingerprint, model_fingerprint
from vivit_bench.problems.problem import Problem
from vivit_bench.problems.workload import Workload, WorkloadSpec
from vivit_bench.spectrum import SpectrumSettings, SweepEvent, SweepStep, sweep_spectra

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


class StubWorkload(Workload):
    """Its mini-batch is called what the spec's data folder is called."""

    @property
    def batch_fingerprint(self) -> str:
        return str(self.spec.data_dir)


@pytest.fixture
def workload() -> Workload:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(784, 10)
    problem = Problem(
        name="mnist_logreg",
        model=model,
        loss=nn.CrossEntropyLoss(),
        num_params=7850,
        input_shape=(1, 28, 28),
        output_shape=(10,),
        target_shape=(),
        target_dtype=torch.int64,
        default_batch_size=4,
        spectrum_batch_size=4,
        default_epochs=1,
    )
    spec = WorkloadSpec("mnist_logreg", batch_size=4, data="synthetic")
    return StubWorkload(spec, problem, "model")


def with_changes(workload: Workload, **changes: Any) -> Workload:
    return replace(workload, spec=replace(workload.spec, **changes))


def exact(workload: Workload) -> SpectrumSettings:
    return SpectrumSettings(workload.spec, Approximation())


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
        ({"data_dir": Path("other")}, "another mini-batch"),
    ],
)
def test_spectra_of_another_workload_are_computed_again(
    engine: StubEngine, workload: Workload, tmp_path: Path, change: dict[str, Any], reason: str
):
    sweep(workload, tmp_path)
    steps = sweep(with_changes(workload, **change), tmp_path)
    assert engine.variants == ALL_FOUR * 2
    assert all(reason in step.stale for step in steps if step.event is SweepEvent.STARTED)


def test_spectra_of_a_trained_model_are_computed_again(
    engine: StubEngine, workload: Workload, tmp_path: Path
):
    sweep(workload, tmp_path)
    steps = sweep(replace(workload, model_fingerprint="trained"), tmp_path)
    assert "another model" in steps[0].stale


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
        spectrum.compute_on(workload, exact(workload))


def test_other_runtime_errors_are_not_taken_for_lack_of_memory(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(curvature, "eigenvalues", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        spectrum.compute_on(workload, exact(workload))


def test_settings_that_make_no_sense_are_refused(workload: Workload):
    with pytest.raises(UsageError, match="exact curvature draws no samples"):
        settings_with(mc_samples=2)
    for cutoff in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="--cutoff"):
            SpectrumSettings(workload.spec, Approximation(), cutoff=cutoff)
    with pytest.raises(UsageError, match="a spectrum has one"):
        SpectrumSettings(workload.spec, Approximation(seed=1))
    with pytest.raises(UsageError, match="need a batch size"):
        SpectrumSettings(WorkloadSpec("mnist_mlp"), Approximation())


def test_settings_survive_their_flat_record():
    for changes in (
        {"curvature": "mc", "mc_samples": 3, "seed": 5, "dtype": "float64", "device": "cuda:7"},
        {"blocks": {"head": ["fc.*"]}, "params": ["layer4.*"], "checkpoint": "w.pt"},
        {"blocks": "layer", "samples": "frac", "cutoff": 1e-3},
    ):
        settings = settings_with(**changes)
        record = settings.to_json()
        assert {key: record[key] for key in changes} == changes
        assert SpectrumSettings.from_json(json.loads(json.dumps(record))) == settings
    for wrong in ({**record, "colour": 1}, {k: v for k, v in record.items() if k != "seed"}):
        with pytest.raises((KeyError, TypeError), match=r"colour|seed"):
            SpectrumSettings.from_json(wrong)


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
