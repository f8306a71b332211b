"""A stored spectrum is returned while it holds, refused when it does not, and never lost."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from spectrum_cases import make_record, settings_with, store_made_up, store_record
from torch import nn

from vivit_bench import curvature, spectrum
from vivit_bench.arguments import problem_slug
from vivit_bench.curvature.options import Approximation, Blocks, Curvature, Precision, Samples
from vivit_bench.curvature.results import BatchInfo, Certificate, Spectrum
from vivit_bench.errors import CertificateError, Stopped, UsageError, VivitBenchError
from vivit_bench.problems.problem import Problem
from vivit_bench.problems.workload import Workload, WorkloadSpec
from vivit_bench.spectrum import (
    SpectrumSettings,
    SweepEvent,
    SweepStep,
    load_spectrum,
    store_spectrum,
    stored,
    sweep_spectra,
)
from vivit_bench.spectrum.stored import (
    figure_stem,
    identity_of,
    side_by_side,
    stored_variants,
    sweep_command,
)
from vivit_bench.store import DamagedRunError, State, find_run, load_run, stored_runs

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
        self.error: BaseException | None = None

    def __call__(self, model: nn.Module, loss: nn.Module, *batch: Any, **options: Any) -> Spectrum:
        *_, approximation = batch
        self.calls.append({**options, **asdict(approximation)})
        if self.error is not None:
            raise self.error
        info = BatchInfo(12, 4, 4, 3, len(self.values), 1.0, "float64")
        checked = {True: (0, 2), False: (), "all": (0, 1, 2, 3)}[options["certify"]]
        certificate = Certificate(checked, 4, {"loss": 0.0}, 1e-4, (), 0.1) if checked else None
        values = torch.tensor(self.values, dtype=torch.float64)
        return Spectrum(info, values, sum(self.values), certificate=certificate)

    @property
    def variants(self) -> list[tuple[str, str]]:
        return [(call["curvature"].value, call["samples"].value) for call in self.calls]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> StubEngine:
    stub = StubEngine()
    monkeypatch.setattr(curvature, "eigenvalues", stub)
    return stub


class StubWorkload(Workload):
    """Its mini-batch is of one kind, whatever its spec says of data."""

    @property
    def request(self) -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]:
        return self.model, self.loss, torch.zeros(4, 784), torch.zeros(4, dtype=torch.int64)

    @property
    def batch_fingerprint(self) -> str:
        return "batch"


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
    return SpectrumSettings(workload.spec, Approximation(seed=workload.spec.seed))


def sweep(workload: Workload, folder: Path, **options: Any) -> list[SweepStep]:
    return list(sweep_spectra(workload, results_dir=folder, **options))


def compute(workload: Workload, folder: Path, **options: Any) -> bool:
    """Whether the exact full spectrum was stored already."""
    _, reused = store_spectrum(workload, exact(workload), folder, **options)
    return reused


def folders(results_dir: Path) -> list[Path]:
    return sorted((results_dir / "spectrum").iterdir())


def test_four_variants_are_stored_then_returned(
    engine: StubEngine, workload: Workload, tmp_path: Path
):
    first = sweep(workload, tmp_path, mc_samples=2)
    assert engine.variants == ALL_FOUR
    assert [call["mc_samples"] for call in engine.calls] == [1, 1, 2, 2]
    assert [step.event for step in first] == [SweepEvent.STARTED, SweepEvent.STORED] * 4
    assert len(folders(tmp_path)) == 4
    notes: list[str] = []
    again = sweep(workload, tmp_path, mc_samples=2, note=notes.append)
    assert [step.event for step in again] == [SweepEvent.REUSED] * 4
    assert len(engine.calls) == 4
    for old, new, note in zip(first[1::2], again, notes, strict=True):
        assert old.record is not None
        assert new.record is not None
        assert new.record.eigenvalues.tolist() == old.record.eigenvalues.tolist()
        assert note.startswith(f"finished already: {new.record.folder}")


def test_fresh_computes_again(engine: StubEngine, workload: Workload, tmp_path: Path):
    sweep(workload, tmp_path)
    before = folders(tmp_path)
    sweep(workload, tmp_path, fresh=True)
    assert engine.variants == ALL_FOUR * 2
    assert folders(tmp_path) == before


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), UsageError("no"), None])
def test_failed_fresh_computation_loses_nothing(
    engine: StubEngine, workload: Workload, tmp_path: Path, error: BaseException | None
):
    compute(workload, tmp_path)
    (folder,) = folders(tmp_path)
    engine.error = error
    engine.values = [float("nan")] if error is None else [7.0]
    expected = type(error) if isinstance(error, KeyboardInterrupt) else VivitBenchError
    for attempt in (1, 2):  # the second finds the first one's remains
        with pytest.raises(expected):
            compute(workload, tmp_path, fresh=attempt == 1 or expected is VivitBenchError)
        if expected is VivitBenchError:
            assert folders(tmp_path) == [folder]
            assert load_spectrum(folder).eigenvalues.tolist() == [2.0, 1.0]
            continue
        old = [path for path in folders(tmp_path) if path.name.startswith(folder.name + ".repl")]
        assert [load_spectrum(path).eigenvalues.tolist() for path in old] == [[2.0, 1.0]]
        assert load_run(folder, "spectrum").state is State.RUNNING
    engine.error, engine.values = None, [7.0]
    assert not compute(workload, tmp_path, fresh=expected is VivitBenchError)
    assert folders(tmp_path) == [folder]
    assert load_spectrum(folder).eigenvalues.tolist() == [7.0]


def test_interrupted_sweep_goes_on(engine: StubEngine, workload: Workload, tmp_path: Path):
    steps: Iterator[SweepStep] = sweep_spectra(workload, results_dir=tmp_path)
    for step in steps:
        if step.event is SweepEvent.STORED and step.settings.samples is Samples.FRAC:
            break  # Two variants are done.
    again = sweep(workload, tmp_path)
    assert engine.variants == ALL_FOUR
    assert [step.event for step in again][:3] == [SweepEvent.REUSED] * 2 + [SweepEvent.STARTED]


@pytest.mark.parametrize("fresh", [False, True])
def test_stopped_sweep_says_what_is_stored(
    engine: StubEngine, workload: Workload, tmp_path: Path, fresh: bool
):
    steps = sweep_spectra(workload, results_dir=tmp_path, fresh=fresh)
    for step in steps:
        if step.settings.curvature is Curvature.MC:
            break
    engine.error = Stopped(2)
    with pytest.raises(Stopped) as stopped:
        next(steps)
    folder, sweep_note = stopped.value.__notes__
    assert "_mc_full_n4-" in folder
    assert folder.endswith("is not finished")
    assert sweep_note.startswith("2 of 4 spectra are stored; the same command")
    assert ("without --fresh" in sweep_note) == fresh


def test_sweep_abandoned_while_computing_holds_no_lock(
    engine: StubEngine, workload: Workload, tmp_path: Path
):
    steps = sweep_spectra(workload, results_dir=tmp_path)
    assert next(steps).event is SweepEvent.STARTED
    steps.close()
    sweep(workload, tmp_path)
    assert engine.variants == ALL_FOUR


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"data": "mnist5k"}, {"dtype": Precision.FLOAT64}, {"checkpoint": Path("w.pt")}],
)
def test_spectra_of_another_workload_are_kept_beside(
    engine: StubEngine, workload: Workload, tmp_path: Path, change: dict[str, Any]
):
    compute(workload, tmp_path)
    assert not compute(with_changes(workload, **change), tmp_path)
    assert len(folders(tmp_path)) == 2
    assert compute(workload, tmp_path)


def test_spectra_of_a_trained_model_are_kept_beside(
    engine: StubEngine, workload: Workload, tmp_path: Path
):
    compute(workload, tmp_path)
    assert not compute(replace(workload, model_fingerprint="trained"), tmp_path)
    assert len(folders(tmp_path)) == 2


def test_every_setting_has_an_address(workload: Workload):
    base = exact(workload)
    others = [
        replace(base, approximation=Approximation("mc")),
        replace(base, approximation=Approximation("mc", mc_samples=2)),
        replace(base, approximation=Approximation("exact", "frac")),
        replace(base, blocks=Blocks.LAYER),
        replace(base, blocks={"head": ["fc.*"]}),
        replace(base, blocks={"head": ["fc.weight"]}),
        replace(base, params=["fc.*"]),
        replace(base, cutoff=1e-3),
        replace(base, workload=replace(base.workload, batch_size=5)),
        replace(base, workload=replace(base.workload, device="cuda:0")),
    ]
    addresses = {identity_of(workload, settings).address for settings in [base, *others]}
    assert len(addresses) == len(others) + 1
    assert identity_of(workload, others[3]).label == "mnist_logreg_exact_full_layer_n4"
    assert identity_of(workload, others[4]).label == "mnist_logreg_exact_full_blocks_n4"
    assert identity_of(workload, others[6]).label == "mnist_logreg_exact_full_params_n4"
    assert "gpu" in identity_of(workload, others[-1]).environment
    assert "gpu" not in identity_of(workload, base).environment


def test_files_whose_names_look_alike_do_not_collide(
    engine: StubEngine, workload: Workload, tmp_path: Path
):
    for problem in ("a/b.py:f", "a-b.py:f"):
        own = with_changes(workload, problem=problem, data="own")
        assert not compute(own, tmp_path)
        assert compute(own, tmp_path)
    assert len(folders(tmp_path)) == 2
    found, _ = stored_variants("a/b.py:f", tmp_path)
    run = found[Curvature.EXACT, Samples.FULL]
    assert run is not None
    assert run.settings["problem"] == "a/b.py:f"


def test_other_mc_samples_leave_the_exact_variants_alone(
    engine: StubEngine, workload: Workload, tmp_path: Path
):
    sweep(workload, tmp_path)
    sweep(workload, tmp_path, mc_samples=3)
    assert engine.variants == ALL_FOUR + ALL_FOUR[2:]


@pytest.mark.parametrize(
    ("name", "value"),
    [("code", "changed"), ("torch", "9.9"), ("host", "elsewhere"), ("batch", "another")],
)
def test_other_conditions_are_named_and_refused(
    engine: StubEngine,
    workload: Workload,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
):
    compute(workload, tmp_path)
    real = stored.environment
    monkeypatch.setattr(stored, "environment", lambda *a, **o: {**real(*a, **o), name: value})
    for certify in (True, "all"):  # less of a check is no reason to overlook them
        with pytest.raises(UsageError, match=rf"\({name} .* -> {value}\).*--fresh") as refused:
            compute(workload, tmp_path, certify=certify)
        assert "\n" not in str(refused.value)
    assert len(engine.calls) == 1
    assert not compute(workload, tmp_path, fresh=True)
    assert len(folders(tmp_path)) == 1


def test_what_an_interruption_left_under_other_conditions_is_in_nobodys_way(
    engine: StubEngine, workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        compute(workload, tmp_path)
    engine.error = None
    monkeypatch.setattr(stored, "environment", lambda *_, **__: {"code": "changed"})
    assert not compute(workload, tmp_path)
    (folder,) = folders(tmp_path)
    assert load_run(folder, "spectrum").environment == {"code": "changed"}


def test_the_code_that_finds_and_compares_spectra_cannot_change_one(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(stored, "environment", lambda rooms, *_, **__: seen.append(rooms) or {})
    identity_of(workload, exact(workload))
    (rooms,) = seen
    assert {"curvature", "problems", "spectrum/compute"} <= set(rooms)
    assert "spectrum" not in rooms
    root = Path(spectrum.__file__).parent.parent
    assert all((root / room).is_dir() or (root / f"{room}.py").is_file() for room in rooms)


@pytest.mark.parametrize("file", ["eigenvalues.csv", "run.json"])
def test_damaged_spectrum_is_refused_and_kept(
    engine: StubEngine, workload: Workload, tmp_path: Path, file: str
):
    compute(workload, tmp_path)
    (folder,) = folders(tmp_path)
    path = folder / file
    path.write_text(path.read_text().replace("2", "9"))
    damaged = path.read_bytes()
    for certify in (True, "all"):
        with pytest.raises(DamagedRunError, match=rf"{file}.*--fresh") as refused:
            compute(workload, tmp_path, certify=certify)
        assert "\n" not in str(refused.value)
    assert path.read_bytes() == damaged
    assert len(engine.calls) == 1
    assert not compute(workload, tmp_path, fresh=True)
    assert compute(workload, tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "reused"),
    [
        (True, "all", False),
        (True, False, True),
        (False, True, False),
        (False, False, True),
        ("all", True, True),
        ("all", "all", True),
    ],
)
def test_a_spectrum_with_less_of_a_check_is_computed_again(
    engine: StubEngine, workload: Workload, tmp_path: Path, first: Any, second: Any, reused: bool
):
    compute(workload, tmp_path, certify=first)
    notes: list[str] = []
    assert compute(workload, tmp_path, certify=second, note=notes.append) == reused
    (folder,) = folders(tmp_path)
    wanted = max({True: 2, False: 0, "all": 4}[certify] for certify in (first, second))
    assert len(load_spectrum(folder).certificate.get("samples", ())) == wanted
    assert len(notes) == 1


@pytest.mark.parametrize("error", [CertificateError("wrong"), MemoryError(), KeyboardInterrupt()])
def test_a_spectrum_is_kept_where_its_whole_check_fails(
    engine: StubEngine, workload: Workload, tmp_path: Path, error: BaseException
):
    compute(workload, tmp_path)
    (folder,) = folders(tmp_path)
    engine.error = error
    with pytest.raises((VivitBenchError, KeyboardInterrupt)):
        compute(workload, tmp_path, certify="all")
    if isinstance(error, MemoryError):  # which says nothing against what is there
        old = folder
    else:
        old = next(path for path in folders(tmp_path) if path != folder)
        assert not load_run(folder, "spectrum").is_finished  # and is not taken for a checked one
    assert load_spectrum(old).eigenvalues.tolist() == [2.0, 1.0]
    engine.error = None
    assert not compute(workload, tmp_path, certify="all")
    assert folders(tmp_path) == [folder]


def test_a_chosen_name_holds_one_spectrum(engine: StubEngine, workload: Workload, tmp_path: Path):
    compute(workload, tmp_path, name="mine")
    assert compute(workload, tmp_path, name="mine")
    with pytest.raises(UsageError, match=r"seed 0 -> 1.*--fresh"):
        compute(with_changes(workload, seed=1), tmp_path, name="mine")
    assert [folder.name for folder in folders(tmp_path)] == ["mine"]


def test_result_that_is_not_finite_is_an_error_and_not_stored(
    engine: StubEngine, workload: Workload, tmp_path: Path
):
    engine.values = [float("nan")]
    with pytest.raises(VivitBenchError, match="not finite"):
        sweep(workload, tmp_path)
    assert not list(tmp_path.rglob("*.csv"))
    runs, _ = stored_runs(tmp_path, "spectrum")
    assert not [run for run in runs if run.is_finished]


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


@pytest.mark.parametrize(
    ("problem", "slug"),
    [
        ("cifar10_3c3d", "cifar10_3c3d"),
        ("net.py:make", "net-make"),
        ("./nets/small.py:make", "nets-small-make"),
        ("../a b/net.v2.py:make", "a-b-net-v2-make"),
    ],
)
def test_slug(problem: str, slug: str):
    assert problem_slug(problem) == slug


def test_variants_of_one_problem_and_structure_only(tmp_path: Path):
    full = store_made_up(tmp_path)
    layer = store_made_up(tmp_path, blocks=Blocks.LAYER)
    store_made_up(tmp_path, problem="cifar10_3c3d_exact.py:full", data="own")
    store_made_up(tmp_path, params=["fc.*"])
    variant = (Curvature.EXACT, Samples.FULL)
    found, notes = stored_variants("cifar10_3c3d", tmp_path, blocks="none")
    assert [run.folder for run in found.values() if run] == [full.folder]
    assert not notes
    found, _ = stored_variants("cifar10_3c3d", tmp_path, blocks="layer")
    assert {key: run and run.folder for key, run in found.items()}[variant] == layer.folder


def test_the_newest_of_equal_spectra_is_taken(tmp_path: Path):
    record = make_record()
    newest = store_record(tmp_path, record, name="b")
    other = store_record(tmp_path, record, name="a")
    other.provenance["started_at"] = "2020"
    (other.folder / "run.json").write_text(other.to_json())
    found, _ = stored_variants("cifar10_3c3d", tmp_path)
    assert [run.folder for run in found.values() if run] == [newest.folder]


def test_unfinished_damaged_and_replaced_spectra_are_not_stored(tmp_path: Path):
    good = store_made_up(tmp_path, samples=Samples.FRAC)
    bad = store_made_up(tmp_path)
    (bad.folder / "run.json").write_text("{}")
    moved = store_made_up(tmp_path, curvature="mc")
    moved.folder.rename(moved.folder.with_name(f"{moved.folder.name}.replaced-1"))
    found, notes = stored_variants("cifar10_3c3d", tmp_path)
    assert [run.folder for run in found.values() if run] == [good.folder]
    (note,) = notes
    assert str(bad.folder / "run.json") in note
    (good.folder / "run.json").unlink()
    with pytest.raises(
        DamagedRunError, match=r"no such spectrum.*run\.json.*vivit-bench spectrum sweep"
    ):
        stored_variants("cifar10_3c3d", tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "message", "options", "chosen"),
    [
        ({"batch_size": 8}, {"batch_size": 16}, "batch_size 8, 16", "--batch-size", 16),
        ({}, {"seed": 3}, "seed 0, 3", "--seed", 3),
        ({}, {"data": "synthetic"}, "data deepobs, synthetic", "--data", "synthetic"),
        ({}, {"dtype": "float64"}, "dtype float32, float64", "--dtype", "float64"),
        ({}, {"checkpoint": "w.pt"}, "checkpoint none, w.pt", "--checkpoint", "w.pt"),
        (
            {"checkpoint": "w.pt"},
            {"checkpoint": None},
            "checkpoint none, w.pt",
            "--checkpoint",
            "none",
        ),
    ],
)
def test_spectra_that_differ_need_a_choice(
    tmp_path: Path,
    first: dict[str, Any],
    second: dict[str, Any],
    message: str,
    options: str,
    chosen: Any,
):
    store_record(tmp_path, make_record(**first), model="a")
    wanted = store_record(tmp_path, make_record(samples=Samples.FRAC, **second), model="a")
    with pytest.raises(UsageError) as refused:
        stored_variants("cifar10_3c3d", tmp_path)
    assert f"differ in {message}: choose with {options}" in str(refused.value)
    assert "\n" not in str(refused.value)
    found, _ = stored_variants("cifar10_3c3d", tmp_path, **{next(iter(second)): chosen})
    assert [run.folder for run in found.values() if run] == [wanted.folder]


def test_several_choices_and_none(tmp_path: Path):
    store_record(tmp_path, make_record(), model="a")
    store_record(tmp_path, make_record(seed=1, data="synthetic"), model="b")
    with pytest.raises(UsageError, match=r"data .*; seed 0, 1: choose with --data and --seed$"):
        stored_variants("cifar10_3c3d", tmp_path)
    store_record(tmp_path, make_record(), model="edited")
    with pytest.raises(UsageError, match=r"in model a, edited: name single .*_full_n128-\w{10}$"):
        stored_variants("cifar10_3c3d", tmp_path, seed=0)


def test_missing_batch_size_names_the_whole_command(tmp_path: Path):
    store_made_up(tmp_path, batch_size=8)
    command = (
        "spectrum sweep cifar10_3c3d --batch-size 32 --blocks layer --mc-samples 2 "
        f"--results-dir '{tmp_path / 'a folder'}'"
    )
    chosen = {"batch_size": 32, "blocks": Blocks.LAYER}
    with pytest.raises(UsageError, match=command):
        stored_variants("cifar10_3c3d", tmp_path / "a folder", mc_samples=2, **chosen)


def test_the_command_for_missing_variants_makes_those_that_go_with_the_stored(tmp_path: Path):
    run = store_made_up(tmp_path)
    assert sweep_command(run, Path("results"), 1) == (
        "vivit-bench spectrum sweep cifar10_3c3d --batch-size 128 --data deepobs"
    )
    changes = {"seed": 3, "dtype": "float64", "checkpoint": "w.pt", "blocks": "layer"}
    run = store_made_up(tmp_path, **changes, batch_size=8, cutoff=0.5, device="cuda:1")
    assert sweep_command(run, Path("results"), 2) == (
        "vivit-bench spectrum sweep cifar10_3c3d --batch-size 8 --data deepobs --seed 3 "
        "--dtype float64 --checkpoint w.pt --device cuda:1 --blocks layer --cutoff 0.5 "
        "--mc-samples 2"
    )


def test_misspelt_problem_is_told_so(tmp_path: Path):
    with pytest.raises(UsageError, match="did you mean 'cifar10_3c3d'"):
        stored_variants("cifar10_3c3", tmp_path)


@pytest.mark.parametrize("name", ["cifar10_3c3d_exact_full", "cifar10_3c3d_exact_full_n128"])
def test_variant_is_found_by_name(tmp_path: Path, name: str):
    run = store_made_up(tmp_path)
    store_made_up(tmp_path, samples=Samples.FRAC)
    assert find_run(name, tmp_path, "spectrum", "make it").folder == run.folder
    assert find_run(str(run.folder), tmp_path, "spectrum", "make it").folder == run.folder


def test_ambiguous_and_unknown_names(tmp_path: Path):
    store_made_up(tmp_path)
    store_made_up(tmp_path, seed=8)
    with pytest.raises(UsageError, match=r"several.*seed 0 -> 8|several.*seed 8 -> 0"):
        find_run("cifar10_3c3d_exact_full", tmp_path, "spectrum", "make it")
    with pytest.raises(UsageError, match="there are cifar10_3c3d_exact_full_n128"):
        find_run("cifar10_3c3d_exact_ful_n", tmp_path, "spectrum", "make it")


def test_what_differs_side_by_side_is_said(tmp_path: Path):
    first = store_record(tmp_path, make_record(), model="a", batch="a")
    mc = store_record(tmp_path, make_record(curvature="mc", cutoff=1e-3), model="a", batch="a")
    assert side_by_side([first, mc]) == []
    seed = store_record(tmp_path, make_record(seed=1), model="b", batch="b")
    assert side_by_side([first, mc, seed]) == ["the spectra differ in seed 0, 1"]
    model = store_record(tmp_path, make_record(), model="b", batch="a")
    assert side_by_side([first, model]) == ["the spectra differ in model a, b"]
    code = store_record(tmp_path, make_record(samples="frac"), model="a", batch="c", torch="9.9")
    (line,) = side_by_side([first, code])
    assert line.startswith("the spectra were made under different conditions: ")
    assert "batch a, c" in line
    assert ", 9.9" in line


def stem_of(*changes: dict[str, Any], **options: bool) -> str:
    """The default name of the figure of some made-up spectra."""
    path = figure_stem([make_record(**each) for each in changes], Path("r"), **options)
    assert path.parent == Path("r/spectrum")
    return path.name


def the_four(**changes: Any) -> list[dict[str, Any]]:
    """Changes that make a problem's four variants; ``mc_samples`` is that of two of them."""
    draws = changes.pop("mc_samples", 1)
    return [
        {"curvature": c, "samples": s, "mc_samples": draws if c == "mc" else 1, **changes}
        for c, s in ALL_FOUR
    ]


def test_a_figures_name_says_what_its_spectra_share():
    usual = "cifar10_3c3d_n128_deepobs_seed0"
    assert stem_of(*the_four()) == usual
    assert stem_of(*the_four(blocks="layer")) == "cifar10_3c3d_layer_n128_deepobs_seed0"
    assert stem_of({}, {"curvature": "mc"}) == f"{usual}_exact_full_mc_full"
    assert stem_of({"curvature": "mc"}, {}) == f"{usual}_exact_full_mc_full"
    assert stem_of({"seed": 1}, {"seed": 2}) == "cifar10_3c3d_n128_deepobs_exact_full"
    both = [*the_four(), *the_four(problem="mnist_mlp")]
    assert stem_of(*both) == "spectra_n128_deepobs_seed0"


def test_figures_of_other_weights_precision_draws_or_devices_have_other_names():
    usual = "cifar10_3c3d_n128_deepobs_seed0"
    named = {
        "float64": {"dtype": "float64"},
        "cuda1": {"device": "cuda:1"},
        "m10": {"mc_samples": 10},
        "dropped0.1": {"drop_columns": 0.1},
    }
    for part, changes in named.items():
        assert stem_of(*the_four(**changes)) == f"{usual}_{part}"
    different = [
        *(
            {"checkpoint": f"{run}/epoch_{n}.{kind}"}
            for run in "ab"
            for n in "12"
            for kind in ("pt", "ckpt")
        ),
        *({"params": [pattern]} for pattern in ("a", "b")),
        *({"blocks": {"a": [pattern]}} for pattern in ("a", "b")),
        {},
        *named.values(),
    ]
    alone = [stem_of(*the_four(**changes)) for changes in different]
    beside = [stem_of(*the_four(), *the_four(**changes)) for changes in different[:-1]]
    assert len({*alone, *beside}) == len(alone) + len(beside) - 1  # twice the usual four
    assert alone[0].startswith(f"{usual}_epoch_1-")


def test_figures_over_training_name_weights_that_were_chosen():
    def over_training(*files: str, **options: bool) -> str:
        return stem_of(*({"checkpoint": f} for f in files), over_training=True, **options)

    name = "cifar10_3c3d_n128_deepobs_seed0_exact_full_over_training"
    assert over_training("a/1.pt", "a/2.pt", names_weights=False) == name
    many = {over_training(*(f"{run}/epoch_{n}.pt" for n in range(300))) for run in "ab"}
    assert len(many) == 2
    assert max(map(len, many)) < 150
