"""``vivit-bench spectrum`` as a user types it, on real digits and a problem of one's own."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import Outcome, Run, group_runner
from spectrum_cases import make_record

from vivit_bench.problems.workload import WorkloadSpec, load_workload
from vivit_bench.spectrum import compute_spectrum, load_spectrum
from vivit_bench.spectrum.paths import default_path

EXAMPLE = Path(__file__).parent.parent / "scripts" / "examples" / "small_cnn.py"
DIGITS, DIGITS_SLUG = "small_cnn.py:digits", "small_cnn-digits"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``vivit-bench spectrum ...`` in an empty folder with the example, through ``main``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copy(EXAMPLE, tmp_path)
    return group_runner("spectrum", monkeypatch, capsys)


def refuse(outcome: Outcome) -> str:
    """Check for a usage error of one line without output, and return the line."""
    assert outcome.code == 2
    assert not outcome.out
    (line,) = outcome.err.splitlines()
    return line


def test_compute_writes_what_python_computes(run: Run):
    outcome = run("compute", DIGITS, "--batch-size", 4)
    assert outcome.code == 0, outcome.err
    path = Path(f"results/spectrum/{DIGITS_SLUG}_exact_full_n4.csv")
    assert str(path) in outcome.out
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = [float(row["eigenvalue"]) for row in rows]
    expected = compute_spectrum(DIGITS, batch_size=4)
    assert values == expected.eigenvalues.tolist()
    assert values == sorted(values, reverse=True)
    stored = json.loads(path.with_suffix(".json").read_text())
    assert stored["num_columns"] == len(values) == 4 * 9
    assert stored["num_zeros"] == 3_818 - 36
    assert stored["trace"] == pytest.approx(sum(values), rel=1e-6)
    assert stored["num_above_cutoff"] == sum(value > 1e-4 for value in values)
    assert stored["provenance"]["torch"]


def test_real_digits_of_a_deepobs_problem_in_a_process_of_its_own(tmp_path: Path):
    command = "spectrum compute mnist_mlp --data mnist5k --batch-size 8 --curvature mc"
    options = "--mc-samples 2 --threads 1 --output mlp.csv"
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "vivit_bench", *command.split(), *options.split()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.append((tmp_path / "mlp.csv").read_bytes())
    assert outputs[0] == outputs[1]
    record = load_spectrum(tmp_path / "mlp.csv")
    assert len(record.eigenvalues) == 16
    assert record.threads == 1
    assert record.settings.workload.data == "mnist5k"


def test_layer_blocks_in_float64(run: Run):
    run("compute", DIGITS, "--batch-size", 2, "--blocks", "layer", "--dtype", "float64")
    record = load_spectrum(Path(f"results/spectrum/{DIGITS_SLUG}_exact_full_layer_n2.csv"))
    assert len(record.blocks) == 3
    full = compute_spectrum(DIGITS, batch_size=2, dtype=record.settings.workload.dtype)
    assert record.trace == pytest.approx(full.trace, rel=1e-10)
    assert record.num_zeros == 3_818 - 3 * 18


def test_squared_error_with_fewer_parameters_than_columns(run: Run):
    problem = "small_cnn.py:regression"
    run("compute", problem, "--batch-size", 80, "--output", "r.csv")
    record = load_spectrum("r.csv")
    assert record.num_columns == 160
    assert len(record.eigenvalues) == record.num_params == 114
    assert record.num_zeros == 0


def test_sweep_plot_and_compare(run: Run):
    first = run("sweep", DIGITS, "--batch-size", 16)
    assert first.code == 0, first.err
    assert first.err.count("computing") == 4
    again = run("sweep", DIGITS, "--batch-size", 16)
    assert again.err.count("stored already") == 4
    assert again.out == first.out
    assert run("sweep", DIGITS, "--batch-size", 16, "--fresh").err.count("computing") == 4

    plotted = run("plot", DIGITS)
    assert plotted.out.split() == [
        f"results/spectrum/{DIGITS_SLUG}_n16.png",
        f"results/spectrum/{DIGITS_SLUG}_n16.pdf",
    ]
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
    exact, mc = (load_spectrum(f"results/spectrum/{name}_n16.csv") for name in names)
    assert float(rows["eigenvalue 1"]["a"]) == exact.eigenvalues[0]
    assert float(rows["eigenvalue 1"]["b"]) == mc.eigenvalues[0]
    assert run("compare", *names, "--format", "markdown").out.startswith("| quantity")


def test_replacing_other_settings_is_said(run: Run):
    assert "replaced" not in run("compute", DIGITS, "--batch-size", 2).err
    outcome = run("compute", DIGITS, "--batch-size", 2, "--seed", 1)
    assert "replaced, it was made with seed 0 (now 1)" in outcome.err


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
        ("plot nowhere.csv", "nowhere.csv is missing"),
        ("compare nothing nowhere", "neither a .csv file nor a stored spectrum"),
        ("compare small_cnn.py nowhere", "neither a .csv file"),
    ],
)
def test_wrong_requests_are_one_line(run: Run, arguments: str, message: str):
    assert message in refuse(run(*arguments.split()))


def test_a_file_that_is_no_spectrum_is_refused(run: Run):
    Path("table.csv").write_text("a,b\n1,2\n")
    Path("table.json").write_text("{}")
    for command in ("plot table.csv", "compare table.csv table.csv"):
        assert "not a stored spectrum" in refuse(run(*command.split()))


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
    record = make_record()
    record.save(default_path(record.settings, Path("results")))
    outcome = run("plot", "cifar10_3c3d", "--output", "figure.pdf")
    assert outcome.code == 0
    assert "left out: exact, frac; mc, full; mc, frac" in outcome.err
    assert "vivit-bench spectrum sweep cifar10_3c3d" in outcome.err
    assert outcome.out.split() == ["figure.png", "figure.pdf"]


def test_plot_warns_of_eigenvalues_that_are_not_finite(run: Run):
    make_record([float("inf"), 1.0, float("nan")]).save("s.csv")
    outcome = run("plot", "s.csv")
    assert outcome.code == 0
    assert "2 eigenvalues are not finite" in outcome.err


def test_compare_warns_of_different_problems_and_refuses_different_sizes(run: Run):
    record = make_record()
    record.save("a.csv")
    make_record(problem="mnist_mlp").save("b.csv")
    make_record(num_params=50).save("c.csv")
    outcome = run("compare", "a.csv", "b.csv")
    assert outcome.code == 0
    assert outcome.err.startswith("warning: different problems: A is cifar10_3c3d, B is mnist_mlp")
    assert "D = 50" in refuse(run("compare", "a.csv", "c.csv"))


def test_compute_also_writes_leading_eigenvectors(run: Run):
    outcome = run(
        "compute", DIGITS, "--batch-size", 8, "--dtype", "float64",
        "--eigenvectors", "v/e.pt", "--top", 3,
    )  # fmt: skip
    assert outcome.code == 0
    stored = load_spectrum(Path(f"results/spectrum/{DIGITS_SLUG}_exact_full_n8.csv"))
    vectors = torch.load("v/e.pt", weights_only=True)
    assert vectors.pop("eigenvalues").numpy() == pytest.approx(stored.eigenvalues[:3])
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
