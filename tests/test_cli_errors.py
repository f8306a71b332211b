"""Whatever is typed, a wrong request is one line and exit code 2, a failed one exit code 1."""

import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import Outcome, group_runner

from vivit_bench.cli import main
from vivit_bench.cli.options import (
    complete_engine,
    complete_problem,
    complete_stored,
)

PROBLEMS = """
import sys

import torch
from torch import nn

X, Y = torch.ones(20, 4), torch.arange(20) % 3


def ok():
    return nn.Linear(4, 3), nn.CrossEntropyLoss(), (X, Y)


def raises():
    raise RuntimeError("two\\nlines")


def exits():
    sys.exit(7)


def prints():
    print("a word")
    return ok()


def undefined():
    model = nn.Linear(4, 3)
    model.weight.data.fill_(float("nan"))
    return model, nn.CrossEntropyLoss(), (X, Y)


class Exits(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) if self.calls < 4 else sys.exit(5)


def exits_late():
    return Exits(4, 3), nn.CrossEntropyLoss(), (X, Y)


def broken_batch():
    def batch(n, seed):
        if n > 2:
            raise OSError("disk")
        return X[:n], Y[:n]

    return nn.Linear(4, 3), nn.CrossEntropyLoss(), batch
"""
LONG = "n" * 300
TRAIN = "noise run p.py:ok --optimizer sgd --lr 0.1 --epochs 1"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a whole command line in a folder with problems and files that are no results."""
    monkeypatch.chdir(tmp_path)
    Path("p.py").write_text(PROBLEMS)
    Path("exits.py").write_text("import sys; sys.exit()")
    Path("binary.pt").write_bytes(bytes(range(256)))
    Path("binary.csv").write_bytes(bytes(range(256)))
    Path("file").write_text("")
    Path("folder").mkdir()
    torch.save({"weight": torch.zeros(2, 2)}, "other.pt")
    runs = Path("results/noise/old")
    runs.mkdir(parents=True)
    (runs / "run.json").write_text('{"format": 1}')
    for name in ("directions", "checkpoints", "curves"):
        (runs / f"{name}.csv").write_text("step,lambda\n0,1\n")

    def run_line(line: str) -> Outcome:
        group, *arguments = shlex.split(line)
        return group_runner(group, monkeypatch, capsys)(*arguments)

    return run_line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("curvature newton p.py:ok --damping nan", "damping"),
        ("curvature newton p.py:ok --cutoff nan", "--cutoff nan"),
        ("curvature newton p.py:ok --whole-space --cutoff 1e-2", "--whole-space has no cutoff"),
        ("curvature newton p.py:ok --seed -1", "0 .. 2^63 - 1"),
        ("curvature newton p.py:ok --seed 18446744073709551616", "0 .. 2^63 - 1"),
        ("curvature explain p.py:ok --seed -1", "0 .. 2^63 - 1"),
        ("spectrum sweep p.py:ok --seed -1", "0 .. 2^63 - 1"),
        (f"{TRAIN} --seed 9223372036854775808", "2^63 - 1"),
        ("problems show p.py:ok --seed -1", "0 .. 2^63 - 1"),
        ("curvature newton p.py:ok --batch-size 99999999999999999999", "2^31 - 1"),
        ("curvature newton p.py:ok --batch-size 21", "20"),
        (f"curvature newton p.py:ok --curvature mc --mc-samples {2**62}", "2^31 - 1"),
        ("curvature newton p.py:ok --threads 99999", "--threads 99999"),
        (f"curvature newton p.py:ok --device cuda:{'9' * 40}", "--device cuda"),
        ("curvature newton p.py:ok --device ''", "write cpu, cuda"),
        ("curvature newton p.py:ok --blocks a=nothing", "nothing"),
        ("curvature newton p.py:ok --params ''", "''"),
        ("curvature newton p.py:ok --output folder", "this is a folder"),
        ("curvature newton p.py:ok --output file/x.pt", "cannot write"),
        ("curvature newton p.py:ok --output nowhere/x.pt", "there is no folder nowhere; make it"),
        ("spectrum compute p.py:ok --drop-columns 10%", "for example 0.1 (see"),
        ("spectrum compute p.py:ok --results-dir file", "--results-dir file: is a file"),
        (f"curvature newton p.py:ok --output {LONG}.pt", "File name too long"),
        ("curvature directional p.py:ok --output o.txt", "must end in .csv"),
        ("curvature explain p.py:ok --output o.txt", "must end in .csv"),
        ("curvature eigenvalues p.py:ok --output o.txt", "must end in .csv"),
        ("curvature eigenvalues p.py:ok --tolerance nan", "tolerance is nan; it must lie"),
        ("curvature newton p.py:ok --engine-memory 3", "--engine-memory 3: a unit is missing"),
        ("curvature newton p.py:ok --method gram --max-products 9", "max_products is 9: it is for"),
        ("curvature newton p.py:ok --batch-size 4 --method lanczos --damping bootstrap", "policy"),
        ("curvature eigenvectors p.py:ok --output o.npy", "must end in .pt"),
        ("curvature newton p.py:ok --checkpoint binary.pt", "cannot be read as tensors"),
        ("curvature newton p.py:ok --checkpoint other.pt", "of another model"),
        (f"curvature newton p.py:ok --checkpoint {LONG}", "File name too long"),
        ("curvature newton ''", "unknown problem"),
        (f"curvature newton {LONG}.py:f", "File name too long"),
        ("curvature newton folder:f", "no problem"),
        ("curvature newton p.py:raises", "two lines"),
        ("curvature newton p.py:exits", "SystemExit"),
        ("curvature newton exits.py:f", "SystemExit"),
        ("curvature newton p.py:exits_late", "sys.exit(5)"),
        ("curvature explain p.py:undefined", "NaN"),
        ("curvature explain p.py:broken_batch --batch-size 4", "disk"),
        ("spectrum plot binary.csv", "no run of this name"),
        (f"spectrum compare {LONG}.csv b.csv", "no run of this name"),
        (f"spectrum plot {LONG}.py:f", "no such spectrum"),
        ("spectrum compare '' ''", "no run of this name"),
        ("spectrum compute p.py:ok --name ..", "--name"),
        (f"spectrum compute p.py:ok --name {LONG}", "longer than 200 bytes"),
        (f"noise table {LONG}", "no run of this name"),
        (f"{TRAIN} --lr nan", "--lr nan"),
        (f"{TRAIN} --at ٣steps", "--at"),
        ("noise run p.py:ok --optimizer sgd --lr 1 --epochs 99999999999", "--epochs"),
    ],
)
def test_a_wrong_request_is_one_line(run, line: str, message: str) -> None:
    outcome = run(line)
    assert outcome.code == 2, outcome.err
    assert not outcome.out
    (said,) = outcome.err.splitlines()
    assert said.startswith("vivit-bench: ")
    assert message in said
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("CUDA error: an illegal memory access was encountered\nCUDA kernel", "illegal memory"),
        ("CUDA driver error: out of memory", "not enough memory for p.py:ok"),
        ("GET was unable to find an engine to execute", "perhaps for want of memory"),
        ("lwork (2147516418) is too large to fit into a int (4 bytes)", "arrays of this size"),
    ],
)
@pytest.mark.parametrize(
    ("line", "function"),
    [
        ("curvature newton p.py:ok", "curvature.newton_step"),
        ("curvature directional p.py:ok", "curvature.directional_derivatives"),
        ("curvature eigenvalues p.py:ok", "curvature.leading_eigenvalues"),
        ("curvature eigenvectors p.py:ok --output v.pt", "curvature.eigenvectors"),
        ("curvature explain p.py:ok", "curvature.explain"),
        ("spectrum compute p.py:ok", "curvature.eigenvalues"),
        ("spectrum sweep p.py:ok --quiet", "curvature.eigenvalues"),
        (TRAIN, "noise.run_noise"),
    ],
)
def test_a_library_s_failure_is_one_line(
    run, monkeypatch: pytest.MonkeyPatch, line: str, function: str, message: str, said: str
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(f"vivit_bench.{function}", fails)
    batch = "--batch-size 4" if function.startswith("curvature") else ""
    outcome = run(f"{line} {batch}")
    assert (outcome.code, outcome.out) == (1, "")
    (told,) = outcome.err.splitlines()
    assert told.startswith("vivit-bench: ")
    assert said in told


@pytest.mark.parametrize("group", ["noise", "spectrum"])
def test_a_run_whose_header_is_damaged_fails_in_one_line(run, group: str) -> None:
    Path(f"results/{group}/old").mkdir(parents=True, exist_ok=True)
    Path(f"results/{group}/old/run.json").write_text('{"format": 1}')
    outcome = run(f"{group} plot old")
    assert outcome.code == 1
    (said,) = outcome.err.splitlines()
    assert f"results/{group}/old/run.json is no header of a run" in said
    assert "--fresh" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("curvature newton", "missing argument 'PROBLEM'"),
        ("curvature newton p.py:ok --batch-size x", "--batch-size x: must be a valid integer"),
        ("curvature newton p.py:ok --batch-size 0", "--batch-size 0: must be"),
        (f"curvature newton p.py:ok --batch-size '{LONG * 9}'", "must be a valid integer"),
        ("curvature newton p.py:ok --data x", "'deepobs', 'mnist5k', 'synthetic', 'own'"),
        ("curvature newton p.py:ok --unknown", "no such option: --unknown"),
        ("curvature newton p.py:ok more", "unexpected extra argument"),
        ("curvature newton p.py:ok --data", "'--data' requires an argument"),
        ("curvature newtons", "Did you mean 'newton'?"),
        ("noise run p.py:ok", "missing option '--optimizer'. Choose from: sgd, adam"),
        ("env --format text", "'table', 'csv', 'json', 'markdown', 'latex'"),
    ],
)
def test_what_cannot_be_parsed_is_one_line_that_says_where_to_look(
    run, line: str, message: str
) -> None:
    outcome = run(line)
    assert (outcome.code, outcome.out) == (2, "")
    (said,) = outcome.err.splitlines()
    assert said.startswith("vivit-bench: ")
    assert message in said
    assert re.search(r"\(see vivit-bench( \w+)* --help\)$", said)
    assert len(said) < 1000


def test_help_is_printed_whether_asked_for_or_not(run) -> None:
    assert run("curvature --help").code == 0
    without = run("curvature")
    assert (without.code, without.err) == (2, "")
    assert "newton" in without.out


def test_the_environment_is_a_record_in_every_format(run) -> None:
    facts = json.loads(run("env").out)
    assert facts["python"] in run("env --format table").out
    assert run("env --format csv").out.splitlines()[0] == ",".join(facts)


def test_names_that_are_not_utf8_are_one_line(run) -> None:
    outcome = run("spectrum compute p.py:ok --batch-size 2 --blocks \udcff=*")
    assert outcome.code == 2
    assert "vivit-bench: a name is not UTF-8" in outcome.err.splitlines()[-1]


def test_a_long_name_does_not_make_a_long_message(run) -> None:
    outcome = run(f"curvature newton {'x' * 5000}")
    assert outcome.code == 2
    assert "unknown problem" in outcome.err
    assert len(outcome.err) < 1_600


@pytest.mark.parametrize(
    ("command", "start"),
    [
        ("curvature explain p.py:prints --batch-size 2 --quiet --format csv", "kind,name,type"),
        ("problems show p.py:prints --format csv", "name,model,loss"),
    ],
)
def test_what_a_problem_prints_is_not_among_the_results(run, command: str, start: str) -> None:
    outcome = run(command)
    assert outcome.code == 0
    assert set(outcome.err.splitlines()) == {"a word"}
    assert outcome.out.startswith(start)


def test_a_closed_standard_output_is_refused_in_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["vivit-bench", "env"])
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "standard output is closed" in line


def test_the_shell_completes_problems_and_stored_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("noise/mnist_sgd", "spectrum/mnist_n8-1", "spectrum/mnist_n8-1.replaced-2"):
        folder = Path("r", path)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    Path("r/spectrum/figures").mkdir()
    context = SimpleNamespace(params={"results_dir": Path("r")})
    assert complete_problem("cifar10_") == ["cifar10_3c3d"]
    assert complete_engine("viv") == ["vivit-bench", "vivit-for-pytorch"]
    assert complete_stored("noise")(context, "mn") == ["mnist_sgd"]
    assert complete_stored("noise")(context, "x") == []
    assert complete_stored("spectrum")(context, "") == ["mnist_n8-1"]
    assert complete_stored("spectrum")(SimpleNamespace(params={}), "") == []


@pytest.mark.parametrize("command", ["curvature eigenvectors", "spectrum compute"])
def test_help_keeps_its_brackets_and_has_examples(run, monkeypatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = run(f"{command} --help").out
    assert "eigenvalues [k]" in shown
    assert "[k, *shape]" in shown
    assert f"vivit-bench {command} mnist_2c2d" in shown


def test_the_environment_names_the_folder_of_all_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIVIT_BENCH_RESULTS", "mine")
    run = group_runner("quadratic", monkeypatch, capsys)
    small = ["--repeats", "2", "--steps", "1", "--name", "a"]
    assert run("run", *small).code == 0
    assert run("run", *small, "--results-dir", "others").code == 0  # the option goes before it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "others"]
    assert run("table", "a").code == 0
    assert group_runner("check", monkeypatch, capsys)().code == 0
