"""``vivit-bench critical-batch`` as a user types it."""

import csv
import io
import json
from pathlib import Path

import pytest
from command_line import Run, group_runner
from critical_batch_cases import add_gradient, add_search, add_variants, trial

from vivit_bench.critical_batch.table_s1 import SubTable
from vivit_bench.measure import Observation, Outcome, Spec, TrialReport
from vivit_bench.measure.protocol import Ready

SEARCHED = ("1", "3")
"""N of the real search below."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``vivit-bench critical-batch ...`` in an empty folder, through ``main``."""
    monkeypatch.chdir(tmp_path)
    return group_runner("critical-batch", monkeypatch, capsys)


def test_a_real_search_and_its_resumption(run: Run, tmp_path: Path) -> None:
    """The real engine in real processes, all that the plan foresees at once; then from records."""
    command = ("search", "mnist_logreg", "--curvature", "mc", "--memory-limit", "256MiB")
    first = run(*command, "--max-batch", 3)
    assert first.code == 0
    told = [line.split()[:4] for line in first.err.splitlines()]
    assert [line for line in told if line[0] == "N"] == [["N", "=", n, "fits"] for n in SEARCHED]
    assert told[-2] == ["expected:", "N", "=", "3"]
    assert "critical batch size   >= 3" in first.out
    assert "the largest N allowed fits; see --max-batch" in first.out
    assert "peak memory over the idle process" in first.out
    (row,) = json.loads(run("list", "--format", "json").out)
    assert row["critical_batch_size"] == 3
    assert row["stopped_by"] == "max-batch"
    assert row["is_lower_bound"] is True
    assert row["idle_bytes"] > 100 * 2**20
    assert row["work_seconds"] > 0
    again = run(*command, "--max-batch", 2, "--format", "json", "--quiet")
    assert (again.code, again.err) == (0, "")
    found = json.loads(again.out)
    assert (found["critical_batch_size"], found["from_records"]) == (3, len(SEARCHED))
    assert found["peak_bytes"] == row["peak_bytes"]
    assert found["certificate_error"] < 1e-4
    assert "finished already" in run(*command, "--max-batch", 2).err


def test_an_unusable_problem_is_one_line_and_not_a_size(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("def net():\n    return 1\n")
    outcome = run("search", "nets.py:net", "--memory-limit", "256MiB")
    assert outcome.code == 1
    assert outcome.out == ""
    assert "vivit-bench: set-up failed: nets.py:net" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mnist_mlpp",), "did you mean 'mnist_mlp'?"),
        (("nets.py:net",), "there is no file nets.py"),
        (("nets.py",), "path/to/file.py:function"),
        (("mnist_mlp", "--threads", 0), "--threads 0: must be"),
        (("mnist_mlp", "--max-batch", 0), "--max-batch 0: must be"),
        (("mnist_mlp", "--timeout", -1), "--timeout -1: must be"),
        (("mnist_mlp", "--timeout", "inf"), "--timeout inf: must be"),
        (("mnist_mlp", "--mc-samples", 0), "--mc-samples 0: must be"),
        (("mnist_mlp", "--mc-samples", 2), "exact curvature draws no samples"),
        (("mnist_mlp", "--memory-limit", "lots"), "write for example 2GiB"),
        (("mnist_mlp", "--memory-limit", "20"), "write 20GiB or 20MiB"),
        (("mnist_mlp", "--memory-limit", "20kB"), "below 1 MiB"),
        (("mnist_mlp", "--device", "tpu"), "write cpu, cuda or cuda:0"),
        (("mnist_mlp", "--engine", "vivit"), "vivit-for-pytorch"),
        (("cifar10_3c3d", "--data", "mnist5k"), "use deepobs or synthetic"),
        (("mnist_mlp", "--checkpoint", "none.pt"), "--checkpoint none.pt: no such file"),
        (("mnist_mlp", "--quantity", "gradient", "--samples", "frac"), "leave the option out"),
    ],
)
def test_wrong_values_are_refused_in_one_line(
    run: Run, arguments: tuple[object, ...], words: str
) -> None:
    outcome = run("search", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert words in line


def test_a_checkpoint_is_of_one_problem(run: Run, tmp_path: Path) -> None:
    outcome = run("sweep", "--checkpoint", "weights.pt")
    assert (outcome.code, outcome.out) == (2, "")
    assert "name its --problem" in outcome.err
    other = run("sweep", "--checkpoint", "weights.pt", "--problem", "mnist_mlp")
    assert "--checkpoint weights.pt: no such file" in other.err


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ("--quantity", "full-newton"),
        ("--curvature", "exact"),
        ("--samples", "frac"),
        ("--data", "synthetic"),
    ],
)
def test_wrong_choices_are_refused_with_the_allowed_ones(
    run: Run, option: str, allowed: str
) -> None:
    outcome = run("search", "mnist_mlp", option, "nonsense")
    assert outcome.code == 2
    assert allowed in outcome.err
    assert "Traceback" not in outcome.err


def test_a_card_alone_adds_no_table_to_a_sweep(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def cells(tables: list[SubTable], *arguments: object, **options: object) -> list[object]:
        asked.append([table.letter for table in tables])
        return []

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("vivit_bench.critical_batch.sweep.table_cells", cells)
    assert run("sweep").code == run("sweep", "--table", "d", "--table", "a").code == 0
    assert asked == [["a", "b", "c"], ["d", "a"]]
    monkeypatch.setenv("COLUMNS", "200")
    assert "[default: (a, b and c; d only where it is asked for)]" in run("sweep", "--help").out


@pytest.mark.thorough
def test_a_sweep_is_one_search_after_the_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(spec: Spec, timeout_seconds: float) -> Observation:
        found = {"ready": Ready(5), "measured": None, "report": TrialReport()}
        return Observation(Outcome.FITS, "", **found, peak_bytes=2**20 * spec.n,
                           absolute_peak_bytes=None, other_processes=0, stderr="")  # fmt: skip

    monkeypatch.setattr("vivit_bench.measure.trial.measure", fits)
    command = ("sweep", "--table", "b", "--problem", "mnist_logreg", "--no-gradient",
               "--engine", "vivit-for-pytorch",
               "--max-batch", 1, "--memory-limit", "256MiB")  # fmt: skip
    outcome = run(*command)
    assert outcome.code == 0
    assert [line.split("  ")[1].strip() for line in outcome.out.splitlines()[2:6]] == [
        f"block-newton, {variant}"
        for variant in ("exact, full", "exact, frac", "mc, full", "mc, frac")
    ]
    assert outcome.out.count(">= 1") == 4
    quiet = run(*command, "--quiet", "--format", "csv")
    assert (quiet.code, quiet.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(quiet.out)))
    assert [row["critical_batch_size"] for row in rows] == ["1"] * 4
    assert {row["stopped_by"] for row in rows} == {"max-batch"}
    assert "[4/4] mnist_logreg: block-newton, mc, frac" in outcome.err


def test_tables_are_printed_and_written(run: Run, tmp_path: Path) -> None:
    add_variants(tmp_path / "results", (10, 20, 30, 40))
    add_variants(
        tmp_path / "results", (1, 2, 3, 4), memory_limit_bytes=2**20, ended_at="2020-01-01"
    )
    outcome = run("table", "--paper", "--format", "csv")
    assert outcome.code == 0
    (row, *_) = csv.DictReader(io.StringIO(outcome.out))
    names = ("table", "engine", "problem", "curvature", "full", "full_paper", "frac_paper")
    assert [row[name] for name in names] == [
        *("a", "vivit-bench", "cifar10_3c3d", "exact", "10", "1166", "3004"),
    ]
    assert (row["full_stopped_by"], row["memory_limit_bytes"]) == ("memory", "2147483648")
    assert "warning: cpu: left out 4 searches with the memory limits 1 MiB" in outcome.err
    folder = tmp_path / "results" / "critical_batch"
    assert (folder / "table_s1a.csv").read_text() == outcome.out
    assert f"wrote {Path('results') / 'critical_batch' / 'table_s1a.csv'}" in outcome.err
    assert "wrote" not in run("table", "--paper", "--quiet").err
    small = run("table", "--memory-limit", "1MiB", "--table", "a", "--problem", "cifar10_3c3d")
    assert ["cifar10_3c3d", "exact", "1", "-", "2", "-"] in [
        line.split() for line in small.out.splitlines()
    ]
    assert (folder / "table_s1a.csv").read_text() == outcome.out
    add_variants(tmp_path / "results", (1, 2, 3, 4), quantity="full-newton")
    rows = json.loads(run("table", "--format", "json").out)
    assert [row["table"] for row in rows] == ["a"] * 3 + ["c"] * 3
    missing = run("table", "--table", "b")
    assert (missing.code, missing.out) == (2, "")
    assert "vivit-bench critical-batch sweep --table b" in missing.err


def test_a_figure_per_problem_and_device(run: Run, tmp_path: Path) -> None:
    add_gradient(tmp_path / "results", 1000)
    add_variants(tmp_path / "results", (10, 20, 30, 40))
    add_variants(tmp_path / "results", (1, 2, 3, 4), problem="nets/a.py:net", device="cuda:0")
    outcome = run("plot")
    assert outcome.code == 0
    paths = [Path(line) for line in outcome.out.splitlines()]
    assert [path.name for path in paths] == [
        "critical_batch_cifar10_3c3d_cpu.png",
        "critical_batch_cifar10_3c3d_cpu.pdf",
        "critical_batch_nets-a-net_cuda.png",
        "critical_batch_nets-a-net_cuda.pdf",
    ]
    assert all(path.stat().st_size > 1_000 for path in paths)


def test_growth_is_drawn_per_cell(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    old = [trial(n, work_seconds=None) for n in (1, 2)]
    add_search(folder, ran=old)
    add_search(folder, ran=[trial(1)], engine="vivit-for-pytorch")
    add_search(folder, ran=[trial(1)], curvature="mc", mc_samples=2, problem="nets/a.py:net")
    engines = ("--engine", "vivit-bench", "--engine", "vivit-for-pytorch", "--mc-samples", 2)
    outcome = run("plot", "--kind", "growth", *engines)
    assert outcome.code == 0
    paths = [Path(line) for line in outcome.out.splitlines()]
    assert sorted(path.name for path in paths) == [
        "critical_batch_growth_cifar10_3c3d_eigenvalues_exact_full_cpu.pdf",
        "critical_batch_growth_cifar10_3c3d_eigenvalues_exact_full_cpu.png",
        "critical_batch_growth_nets-a-net_eigenvalues_mc_full_m2_cpu.pdf",
        "critical_batch_growth_nets-a-net_eigenvalues_mc_full_m2_cpu.png",
    ]
    assert all(path.stat().st_size > 1_000 for path in paths)
    (note,) = outcome.err.splitlines()
    assert "note: critical_batch_growth_cifar10_3c3d_eigenvalues_exact_full_cpu: 2 of 3" in note
    quiet = run("plot", "--kind", "growth", *engines, "--quiet")
    assert (quiet.out, quiet.err) == (outcome.out, "")
    assert "sizes" in run("plot", "--kind", "bars").err


def test_what_is_left_out_is_told_also_by_plot(run: Run, tmp_path: Path) -> None:
    add_search(tmp_path / "results", ran=[trial(1)], ended_at="2027-01-01")
    add_search(tmp_path / "results", ran=[trial(1)], seed=1)
    for arguments in (("plot",), ("plot", "--kind", "growth"), ("table",)):
        outcome = run(*arguments, "--quiet")
        assert outcome.code == 0
        (line,) = outcome.err.splitlines()
        assert "warning: cpu: left out 1 search of cifar10_3c3d with seed 1" in line
    listed = run("list", "--quiet", "--format", "json")
    assert (len(json.loads(listed.out)), listed.err) == (2, "")


@pytest.mark.parametrize("command", ["table", "plot"])
def test_no_searches_yet(run: Run, command: str) -> None:
    outcome = run(command)
    assert (outcome.code, outcome.out) == (2, "")
    assert "make some with: vivit-bench critical-batch sweep" in outcome.err
