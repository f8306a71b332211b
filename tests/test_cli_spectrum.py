"""``vivit-bench spectrum`` as a user types it, on real digits and a problem of one's own."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import Run, group_runner, refuse
from spectrum_cases import make_record, store_made_up, store_record

from vivit_bench.curvature.options import Curvature
from vivit_bench.problems.sources import DataSource
from vivit_bench.problems.workload import WorkloadSpec, load_workload
from vivit_bench.spectrum import SpectrumRecord, compute_spectrum, load_spectrum
from vivit_bench.store import find_run

EXAMPLE = Path(__file__).parent.parent / "scripts" / "examples" / "small_cnn.py"
DIGITS, DIGITS_SLUG = "small_cnn.py:digits", "small_cnn-digits"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``vivit-bench spectrum ...`` in an empty folder with the example, through ``main``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copy(EXAMPLE, tmp_path)
    return group_runner("spectrum", monkeypatch, capsys)


def stored(label: str) -> SpectrumRecord:
    return load_spectrum(find_run(label, Path("results"), "spectrum", "make it"))


def test_compute_writes_what_python_computes(run: Run):
    outcome = run("compute", DIGITS, "--batch-size", 4, "--output", "copy.csv")
    assert outcome.code == 0, outcome.err
    (folder,) = Path("results/spectrum").iterdir()
    assert folder.name.startswith(f"{DIGITS_SLUG}_exact_full_n4-")
    assert str(folder) in outcome.out.replace("\n", "").replace(" ", "")
    assert "certified by plain autograd on 2 of 4" in outcome.err
    path = folder / "eigenvalues.csv"
    assert Path("copy.csv").read_bytes() == path.read_bytes()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = [float(row["eigenvalue"]) for row in rows]
    expected = compute_spectrum(DIGITS, batch_size=4)
    assert values == expected.eigenvalues.tolist()
    assert values == sorted(values, reverse=True)
    header = json.loads((folder / "run.json").read_text())
    results = header["results"]
    assert results["num_columns"] == len(values) == 4 * 9
    assert results["num_zeros"] == 3_818 - 36
    assert results["trace"] == pytest.approx(sum(values), rel=1e-6)
    assert results["num_above_cutoff"] == sum(value > 1e-4 for value in values)
    assert header["provenance"]["torch"]


def test_a_stored_spectrum_is_returned_until_more_is_asked_for(run: Run):
    line = ("compute", DIGITS, "--batch-size", 4)
    first = run(*line)
    again = run(*line, "--certify", "none")
    assert again.out == first.out  # with its seconds
    assert "finished already: results/spectrum/" in again.err
    assert "certified by plain autograd on 2 of 4" in again.err
    checked = run(*line, "--certify", "all")
    assert "certified by plain autograd on 4 of 4" in checked.err
    assert "until this run is finished" in checked.err
    assert "on 4 of 4" in run(*line).err
    assert len(list(Path("results/spectrum").iterdir())) == 1
    shown = run(*line, "--format", "json")
    values = json.loads(shown.out)
    assert values["folder"] == str(next(Path("results/spectrum").iterdir()))
    assert run(*line, "--quiet").err == ""


def test_other_seeds_are_kept_and_other_conditions_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    line = ("compute", DIGITS, "--batch-size", 2)
    assert run(*line).code == run(*line, "--seed", 1).code == 0
    assert len(list(Path("results/spectrum").iterdir())) == 2
    source = Path("small_cnn.py")
    source.write_text(source.read_text() + "\n# another model, as far as anyone knows\n")
    assert run(*line).code == 0
    assert len(list(Path("results/spectrum").iterdir())) == 3
    monkeypatch.setattr("vivit_bench.spectrum.stored.environment", lambda *_, **__: {"code": "x"})
    assert "--fresh" in refuse(run(*line))
    assert run(*line, "--fresh").code == 0
    assert "on 2 of 2" in run(*line).err


def test_damage_is_one_line(run: Run):
    record = make_record()
    folder = store_record(Path("results"), record, name="s").folder
    (folder / "eigenvalues.csv").write_text("")
    for line in (("plot", "s"), ("compare", "s", "s")):
        outcome = run(*line)
        assert outcome.code == 1
        (said,) = outcome.err.splitlines()
        assert "eigenvalues.csv is not the file" in said
        assert "--fresh" in said


@pytest.mark.thorough
def test_real_digits_of_a_deepobs_problem_in_a_process_of_its_own(tmp_path: Path):
    command = "spectrum compute mnist_mlp --data mnist5k --batch-size 8 --curvature mc"
    options = "--mc-samples 2 --threads 1 --output mlp.csv"
    done = subprocess.run(
        [sys.executable, "-m", "vivit_bench", *command.split(), *options.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = compute_spectrum(
        "mnist_mlp",
        data=DataSource.MNIST5K,
        batch_size=8,
        curvature=Curvature.MC,
        mc_samples=2,
        threads=1,
    )
    assert (tmp_path / "mlp.csv").read_text() == here.table()
    (folder,) = (tmp_path / "results" / "spectrum").iterdir()
    record = load_spectrum(folder)
    assert len(record.eigenvalues) == 16
    assert record.threads == 1
    assert record.settings.workload.data == "mnist5k"


def test_layer_blocks_in_float64(run: Run):
    run("compute", DIGITS, "--batch-size", 2, "--blocks", "layer", "--dtype", "float64")
    record = stored(f"{DIGITS_SLUG}_exact_full_layer_n2")
    assert len(record.blocks) == 3
    full = compute_spectrum(DIGITS, batch_size=2, dtype=record.settings.workload.dtype)
    assert record.trace == pytest.approx(full.trace, rel=1e-10)
    assert record.num_zeros == 3_818 - 3 * 18


def test_squared_error_with_fewer_parameters_than_columns(run: Run):
    problem = "small_cnn.py:regression"
    run("compute", problem, "--batch-size", 80, "--name", "r")
    record = load_spectrum("results/spectrum/r")
    assert record.num_columns == 160
    assert len(record.eigenvalues) == record.num_params == 114
    assert record.num_zeros == 0


def test_sweep_plot_and_compare(run: Run):
    first = run("sweep", DIGITS, "--batch-size", 16)
    assert first.code == 0, first.err
    assert first.err.count("computing") == 4
    again = run("sweep", DIGITS, "--batch-size", 16)
    assert again.err.count("finished already") == len(again.err.splitlines()) == 4
    assert again.out == first.out
    assert run("sweep", DIGITS, "--batch-size", 16, "--fresh").err.count("computing") == 4

    plotted = run("plot", DIGITS)
    assert plotted.out.split() == [
        f"results/spectrum/{DIGITS_SLUG}_n16_own_seed0.png",
        f"results/spectrum/{DIGITS_SLUG}_n16_own_seed0.pdf",
    ]
    assert not plotted.err
    assert all(Path(name).stat().st_size > 1000 for name in plotted.out.split())

    names = [f"{DIGITS_SLUG}_{variant}" for variant in ("exact_full", "mc_full")]
    compared = run("compare", *names, "--top", 3)
    assert compared.code == 0, compared.err
    assert "eigenvalue 3" in compared.out
    assert "eigenvalue 4" not in compared.out
    assert max(map(len, compared.out.splitlines())) <= 80
    assert run("compare", *names, "--top", 3, "--output", "c.csv").out == ""
    with open("c.csv", newline="") as file:
        rows = {row["quantity"]: row for row in csv.DictReader(file)}
    exact, mc = map(stored, names)
    assert float(rows["eigenvalue 1"]["a"]) == exact.eigenvalues[0]
    assert float(rows["eigenvalue 1"]["b"]) == mc.eigenvalues[0]
    assert run("compare", *names, "--format", "markdown").out.startswith("| quantity")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compute mnist_ml", "did you mean 'mnist_mlp'"),
        ("compute mnist_mlp --mc-samples 3", "--curvature mc"),
        ("compute mnist_mlp --cutoff 0", "--cutoff 0"),
        ("compute mnist_mlp --device tpu", "write cpu, cuda"),
        ("compute mnist_mlp --output s.txt", "must end in .csv"),
        ("compute mnist_mlp --data own", "use deepobs"),
        ("sweep small_cnn.py:nothing", "no function 'nothing'"),
        ("plot mnist_mlp", "vivit-bench spectrum sweep mnist_mlp"),
        ("plot nowhere.csv", "nowhere.csv: no run of this name in results/spectrum"),
        ("plot cifar10_3c3", "make one with: vivit-bench spectrum compute"),
        ("compare nothing nowhere", "nothing: no run of this name in results/spectrum"),
        ("compare small_cnn.py nowhere", "small_cnn.py: no run of this name"),
        ("compute mnist_mlp --name a/b", "--name 'a/b'"),
    ],
)
def test_wrong_requests_are_one_line(run: Run, arguments: str, message: str):
    assert message in refuse(run(*arguments.split()))


def test_a_folder_that_is_no_spectrum_is_refused(run: Run):
    folder = Path("results/spectrum/mine")
    folder.mkdir(parents=True)
    (folder / "precious").write_text("")
    for words in (("plot", folder), ("plot", "mine"), ("compare", folder, folder)):
        assert "no run of this name" in refuse(run(*words))
    line = ("compute", DIGITS, "--batch-size", 2, "--name", "mine")
    for fresh in ([], ["--fresh"]):
        assert "is left alone" in refuse(run(*line, *fresh))
    assert (folder / "precious").exists()


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ("--curvature", "exact"),
        ("--samples", "frac"),
        ("--blocks", "layer"),
        ("--dtype", "float64"),
        ("--data", "synthetic"),
    ],
)
def test_wrong_values_name_the_allowed_ones(run: Run, option: str, allowed: str):
    outcome = run("compute", "mnist_mlp", option, "wrong")
    assert outcome.code == 2
    assert "wrong" in outcome.err
    assert allowed in outcome.err


def test_plot_of_some_variants_names_the_missing(run: Run):
    store_made_up(Path("results"), batch_size=8, seed=3)
    damaged = store_made_up(Path("results"), batch_size=8, seed=3, curvature="mc")
    (damaged.folder / "run.json").write_text("{}")
    outcome = run("plot", "cifar10_3c3d", "--output", "figure.pdf")
    assert outcome.code == 0
    assert "left out: exact, frac; mc, full; mc, frac" in outcome.err
    # What is missing is made to go with what is stored.
    command = "vivit-bench spectrum sweep cifar10_3c3d --batch-size 8 --data deepobs --seed 3"
    assert command in outcome.err
    assert "warning: left out: " in outcome.err
    assert outcome.out.split() == ["figure.png", "figure.pdf"]


def test_plot_of_a_problem_whose_spectra_differ_needs_a_choice(run: Run):
    store_made_up(Path("results"))
    store_made_up(Path("results"), seed=1)
    store_made_up(Path("results"), data="mnist5k", problem="mnist_2c2d")
    said = refuse(run("plot", "cifar10_3c3d"))
    assert "differ in seed 0, 1: choose with --seed" in said
    assert run("plot", "cifar10_3c3d", "--seed", 1).out.split() == [
        "results/spectrum/cifar10_3c3d_n128_deepobs_seed1_exact_full.png",
        "results/spectrum/cifar10_3c3d_n128_deepobs_seed1_exact_full.pdf",
    ]
    assert run("plot", "mnist_2c2d", "--data", "mnist5k", "--dtype", "float32").code == 0
    assert "no such spectrum" in refuse(run("plot", "mnist_2c2d", "--data", "synthetic"))


def test_plots_of_one_checkpoint_after_the_other_are_kept(run: Run):
    for number in (1, 2):
        store_made_up(Path("results"), checkpoint=f"epoch_{number}.pt")
    done = [
        run("plot", "cifar10_3c3d", "--checkpoint", f"epoch_{n}.pt").out.split() for n in (1, 2)
    ]
    assert len({*done[0], *done[1]}) == 4
    for number, files in enumerate(done, 1):
        start = f"results/spectrum/cifar10_3c3d_n128_deepobs_seed0_epoch_{number}-"
        assert all(file.startswith(start) and Path(file).exists() for file in files)


def test_plot_of_a_single_spectrum_refuses_options_that_it_does_not_fit(run: Run):
    store_record(Path("results"), make_record(blocks="layer", layers={"a": [1.0]}), name="a:b")
    line = ("plot", "a:b", "--output", "f")
    said = refuse(run(*line, "--seed", 1))
    assert "--seed 1 is asked for, but this spectrum is of 0" in said
    assert run(*line, "--seed", 0, "--blocks", "layer").code == 0
    assert run(*line).code == 0


def test_plot_takes_names_of_problems_for_problems_where_a_folder_is_called_so(run: Run):
    store_made_up(Path("results"))
    Path("cifar10_3c3d").mkdir()
    assert "left out: exact, frac" in run("plot", "cifar10_3c3d").err


def test_plot_warns_of_eigenvalues_that_are_not_finite(run: Run):
    store_record(Path("results"), make_record([float("inf"), 1.0, float("nan")]), name="s")
    outcome = run("plot", "s")
    assert outcome.code == 0
    assert "2 eigenvalues are not finite" in outcome.err


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"problem": "mnist_mlp"}, "the spectra differ in problem cifar10_3c3d, mnist_mlp"),
        ({"seed": 7}, "the spectra differ in seed 0, 7"),
        ({"data": "synthetic", "batch_size": 8}, "batch_size 128, 8; data deepobs, synthetic"),
        ({"curvature": "mc"}, ""),
    ],
)
def test_compare_and_plot_warn_of_what_differs(run: Run, changes: dict[str, object], warning: str):
    store_record(Path("results"), make_record(), name="a")
    store_record(Path("results"), make_record(**changes), name="b")
    for line in ("compare a b", "plot a b --output f"):
        outcome = run(*line.split())
        assert outcome.code == 0
        assert len(outcome.err.splitlines()) == bool(warning)
        assert warning in outcome.err
        assert outcome.err.startswith("warning: " if warning else "")


def test_compare_warns_of_other_conditions_and_refuses_other_sizes(run: Run):
    store_record(Path("results"), make_record(), name="a")
    store_record(Path("results"), make_record(curvature="mc"), name="b", code="old")
    store_record(Path("results"), make_record(num_params=50), name="c")
    assert "under different conditions: code " in run("compare", "a", "b").err
    assert "D = 50" in refuse(run("compare", "a", "c"))


def test_compute_also_writes_leading_eigenvectors(run: Run):
    outcome = run(
        "compute", DIGITS, "--batch-size", 8, "--dtype", "float64",
        "--eigenvectors", "e.pt", "--top", 3,
    )  # fmt: skip
    assert outcome.code == 0
    spectrum = stored(f"{DIGITS_SLUG}_exact_full_n8")
    vectors = torch.load("e.pt", weights_only=True)
    assert vectors.pop("eigenvalues").numpy() == pytest.approx(spectrum.eigenvalues[:3])
    work = load_workload(WorkloadSpec(DIGITS, batch_size=8, dtype="float64"))
    assert list(vectors) == [name for name, _ in work.model.named_parameters()]
    e = torch.cat([v.flatten(1) for v in vectors.values()], 1)
    assert torch.allclose(e @ e.t(), torch.eye(3, dtype=e.dtype), atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--top", 3), "add --eigenvectors"),
        (("--eigenvectors", "e.pt", "--blocks", "layer"), "leave out --blocks layer"),
        (("--eigenvectors", "e.csv"), "must end in .pt"),
        (("--eigenvectors", "v.pt"), "this is a folder"),
        (("--eigenvectors", "small_cnn.py/e.pt"), "cannot write"),
    ],
)
def test_compute_refuses_eigenvectors_it_cannot_write(run: Run, arguments, words: str):
    Path("v.pt").mkdir()
    assert words in refuse(run("compute", DIGITS, "--batch-size", 4, *arguments))
    assert not Path("results").exists()


def test_columns_that_cannot_matter_are_dropped_on_request(run: Run):
    model = load_workload(WorkloadSpec(DIGITS, 16)).model
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter *= 200
    torch.save(model.state_dict(), "confident.pt")
    options = ("--batch-size", 16, "--checkpoint", "confident.pt", "--cutoff", 0.1)
    assert run("compute", DIGITS, *options).code == 0
    outcome = run("compute", DIGITS, *options, "--drop-columns", 0.5, "--format", "json")
    assert outcome.code == 0, outcome.err
    whole = stored(f"{DIGITS_SLUG}_exact_full_n16")
    part = stored(f"{DIGITS_SLUG}_exact_full_dropped_n16")
    assert "drop_columns" not in whole.settings.to_json()
    assert part.settings.drop_columns == 0.5
    assert part.dropped["num_columns"] > 36
    assert part.dropped["trace"] <= 0.05
    below = whole.eigenvalues - part.eigenvalues
    assert below.min() > -1e-5 * whole.eigenvalues[0]
    assert below.max() <= part.dropped["trace"] + 1e-5 * whole.eigenvalues[0]
    row = json.loads(outcome.out)
    assert row["dropped_num_columns"] == part.dropped["num_columns"]
    assert f"dropped {part.dropped['num_columns']} of {part.num_columns} columns" in outcome.err
    again = run("compute", DIGITS, *options, "--drop-columns", 0.5)
    assert "finished already" in again.err
    assert "error at most" in again.out
    # A figure of the problem's variants takes the ordinary one, and names what differs in pairs.
    assert run("plot", DIGITS).code == 0
    compared = run("compare", whole.folder.name, part.folder.name)
    assert "drop_columns" in compared.err + compared.out
    line = refuse(run("compute", DIGITS, "--drop-columns", 2))
    assert "--drop-columns 2" in line


def test_engine_memory_bounds_a_spectrum_and_is_no_setting_of_it(run: Run):
    line = ("compute", DIGITS, "--batch-size", 16)
    refused = refuse(run(*line, "--engine-memory", "40KiB"))
    assert "memory of 40KiB does not suffice for N = 16: the leanest plan takes" in refused
    least = re.findall(r"\d+KiB", refused)[-1]
    bounded = run(*line, "--engine-memory", least)
    assert bounded.code == 0, bounded.err
    values = stored(f"{DIGITS_SLUG}_exact_full_n16").eigenvalues
    expected = compute_spectrum(DIGITS, batch_size=16).eigenvalues
    assert values == pytest.approx(expected, abs=1e-6)
    again = run(*line)
    assert "finished already" in again.err
    vectors = run(*line, "--engine-memory", "40KiB", "--eigenvectors", "v.pt")
    assert vectors.code == 2
    assert "leanest plan takes" in vectors.err
    sweep = run("sweep", DIGITS, "--batch-size", 8, "--engine-memory", "40KiB")
    assert sweep.code == 2
    assert "leanest plan takes" in sweep.err
    assert len(list(Path("results/spectrum").glob("*/eigenvalues.csv"))) == 1
