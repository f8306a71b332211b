"""``vivit-bench noise`` as a user types it."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from command_line import Run, group_runner
from noise_cases import write_tiny
from rich.console import Console

from vivit_bench.cli.noise_progress import TrainingProgress

TINY = "tiny.py:tiny"
OPTIONS = [
    *("--optimizer", "sgd", "--lr", "0.05", "--epochs", "2"),
    *("--batch-size", "16", "--monitor-batch-size", "6"),
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``vivit-bench noise ...`` in a folder with the problem, through ``main``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    write_tiny(tmp_path)
    return group_runner("noise", monkeypatch, capsys)


def test_run_plot_and_table(run: Run) -> None:
    done = run("run", TINY, *OPTIONS, "--at", "0,3steps,end", "--momentum", 0.5, "--threads", 1)
    assert done.code == 0, done.err
    assert "learning rate 0.05: as given" in done.err
    assert "128 training samples, 6 of 16 held out for the monitor, 16 test samples" in done.err
    assert done.err.count("monitor loss") == 3
    assert "monitoring calls     3" in done.out
    (folder,) = Path("results/noise").iterdir()
    assert folder.name.startswith("tiny-tiny_sgd-")
    assert str(folder) in done.out
    directions = pd.read_csv(folder / "directions.csv")
    assert sorted(directions["step"].unique()) == [0, 3, 16]
    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert (settings["momentum"], settings["betas"]) == (0.5, None)

    again = run("run", TINY, *OPTIONS, "--at", "0,3steps,end", "--momentum", 0.5, "--threads", 1)
    assert again.code == 0
    assert "finished already" in again.err
    quiet = run("run", TINY, *OPTIONS, "--at", "0,3steps,end", "--momentum", 0.5, "--threads", 1,
                "--quiet", "--format", "json")  # fmt: skip
    assert (quiet.err, json.loads(quiet.out)["monitoring_calls"]) == ("", 3)

    plotted = run("plot", "tiny-tiny_sgd", "--at", "0,end")
    assert plotted.code == 0, plotted.err
    names = ["directions.png", "directions.pdf", "training.png", "training.pdf"]
    assert plotted.out.split() == [str(folder / name) for name in names]
    for name in names:
        start = (folder / name).read_bytes()[:4]
        assert start == (b"\x89PNG" if name.endswith("png") else b"%PDF")

    table = run("table", folder, "--format", "csv")
    assert pd.read_csv(io.StringIO(table.out))["step"].tolist() == [0, 3, 16]
    assert (folder / "table.csv").read_text() == table.out
    assert "K: directions with" in run("table", folder).out
    assert run("table", "tiny.py:tiny_sgd", "--format", "csv").out == table.out
    assert run("table", folder, "--format", "markdown").out.startswith("| step |")
    assert run("table", folder, "--format", "latex").out.startswith(r"\begin{tabular}")

    # Nothing that a run, plot or table wrote outlives the run.
    options = ["--at", "0,3steps,end", "--momentum", 0.5, "--threads", 1, "--fresh"]
    assert run("run", TINY, *OPTIONS, *options).code == 0
    assert list(Path("results/noise").iterdir()) == [folder]
    assert not (folder / "table.csv").exists()


def test_default_rates_and_folder_of_a_deepobs_problem_on_real_digits(run: Run) -> None:
    options = "--data mnist5k --epochs 1 --batch-size 1800 --monitor-batch-size 4 --checkpoints 2"
    done = run("run", "mnist_logreg", "--optimizer", "adam", "--lr", 1e-3, *options.split())
    assert done.code == 0, done.err
    assert "3,600 training samples, 4 of 400 held out" in done.err
    assert "K = 36 of 36" in done.err
    assert "results/noise/mnist_logreg_adam" in done.out


def test_a_diverged_run_is_one_line_and_stays_readable(run: Run) -> None:
    options = ["tiny.py:regression", *OPTIONS, "--lr", "1e6", "--name", "wild", "--checkpoints", 6]
    done = run("run", *options)
    assert done.code == 1
    assert not done.out
    (line,) = [line for line in done.err.splitlines() if line.startswith("vivit-bench: ")]
    assert "the training diverged: loss" in line
    assert "try a smaller --lr" in line
    table = run("table", "wild")
    assert table.code == 0
    assert "The training diverged" in table.out
    plotted = run("plot", "wild")
    assert plotted.code == 0
    assert "note: the training diverged" in plotted.err


def test_a_model_that_fails_is_one_line_and_what_is_stored_stays_readable(run: Run) -> None:
    """Its output has another shape in training, which loading does not see, from step 3 on."""
    source = Path("tiny.py")
    source.write_text(
        f"{source.read_text()}\n\nclass Fails(nn.Linear):\n    calls = 0\n\n"
        "    def forward(self, x):\n        self.calls += self.training\n"
        "        outputs = super().forward(x)\n"
        "        return outputs[:, :, None] if self.calls > 3 else outputs\n\n\n"
        "def fails():\n    return Fails(6, 3), *tiny()[1:]\n"
    )
    options = ["tiny.py:fails", *OPTIONS, "--name", "mine", "--at", "0,2steps,end"]
    for _ in range(2):
        done = run("run", *options)
        assert done.code == 1
        assert not done.out
        last = done.err.splitlines()[-1]
        assert last.startswith("vivit-bench: tiny.py:fails: model or loss failed in step ")
        assert "Traceback" not in done.err
        table = run("table", "mine", "--format", "csv")
        assert pd.read_csv(io.StringIO(table.out))["step"].tolist() == [0, 2]


def test_damaged_files_are_one_line(run: Run) -> None:
    options = [TINY, *OPTIONS, "--checkpoints", 2, "--name", "mine"]
    assert run("run", *options).code == 0
    for name in ("curves.csv", "run.json"):
        path = Path("results/noise/mine", name)
        for content in (b"", b"\xff" + path.read_bytes(), b"[]"):
            path.write_bytes(content)
            for command in (["run", *options], ["plot", "mine"], ["table", "mine"]):
                done = run(*command)
                assert done.code == 1
                assert not done.out
                assert name in done.err.splitlines()[-1]
                assert "Traceback" not in done.err
    assert "mine/run.json" in run("table", "min").err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (f"run {TINY} --optimizer sgd", "give one with --lr"),
        (f"run {TINY} --optimizer sgd --lr 0.1", "--epochs 10"),
        (f"run {TINY} --optimizer adam --lr 0.1 --momentum 0.9", "leave it out for adam"),
        (f"run {TINY} --optimizer sgd --lr 0.1 --epochs 1 --at 5", "write 5steps or 5epochs"),
        (f"run {TINY} --optimizer sgd --lr 1 --epochs 1 --monitor-batch-size 99", "16 held-out"),
        ("run mnist_2c2 --optimizer sgd", "did you mean 'mnist_2c2d'"),
        ("run cifar100_3c3d --optimizer sgd", "Table S.2 of the paper does not have it"),
        ("plot nothing", "vivit-bench noise run PROBLEM"),
        ("table nothing", "no run of this name in results/noise"),
        (f"run {TINY} --optimizer sgd --lr 0.1 --epochs 1 --name x/../y --fresh", "is a path"),
        ("plot nothing --at 5", "write 5steps or 5epochs"),
    ],
)
def test_wrong_requests_are_one_line(run: Run, arguments: str, message: str) -> None:
    done = run(*arguments.split())
    assert done.code == 2
    assert not done.out
    (line,) = done.err.splitlines()
    assert message in line


def test_missing_data_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("vivit_bench.problems.downloads._download", offline)
    done = run("run", "mnist_logreg", "--optimizer", "sgd", "--lr", 0.1, "--data-dir", "nowhere")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert "MNIST is not in nowhere" in line
    assert "--data mnist5k" in line


def test_an_option_of_a_list_names_the_allowed_values(run: Run) -> None:
    done = run("run", TINY, "--optimizer", "lbfgs")
    assert done.code == 2
    assert "adam" in done.err


def test_progress_on_a_terminal_and_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("vivit_bench.cli.noise_progress.time.monotonic", lambda: clock[0])
    for is_terminal in (True, False):
        text = io.StringIO()
        console = Console(file=text, force_terminal=is_terminal, width=120, highlight=False)
        progress = TrainingProgress(console)
        progress.started(10, 100, 20)
        progress.evaluated({"test_loss": 1.5})
        clock[0] += 100.0
        row = {
            "step": 10,
            "loss": 1.0,
            "num_directions": 3,
            "num_columns": 9,
            "alignment_sum": 1,
            "certificate_error": 1e-7,
        }
        progress.measured(row, 100.0)
        clock[0] += 30.0
        progress.stepped(40, 2.0)
        progress.stepped(41, 1.0)
        progress.close()
        shown = text.getvalue()
        assert "epoch 2." in shown
        assert "of 5, loss " in shown
        assert "test loss 1.5" in shown
        if not is_terminal:
            assert shown.splitlines()[0].startswith(
                "step 10: monitor loss 1, K = 3 of 9 with 100.0%"
            )
            assert shown.splitlines()[1:] == [
                "epoch 2.0 of 5, loss 2, test loss 1.5, about 0:01:00 left"
            ]


def test_engine_memory_bounds_the_looks_and_is_no_setting(run: Run) -> None:
    line = ("run", TINY, *OPTIONS, "--at", "0,end")
    refused = run(*line, "--engine-memory", "100B")
    assert refused.code == 2
    assert "the leanest plan takes" in refused.err.splitlines()[-1]
    done = run(*line, "--engine-memory", "64MiB")
    assert done.code == 0, done.err
    again = run(*line)
    assert "finished already" in again.err
