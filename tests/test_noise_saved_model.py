"""The last weights of a training in a file, and columns that its monitor left out."""

from pathlib import Path

import pytest
import torch
from command_line import Run, group_runner
from noise_cases import CHOICES, contents, with_changes, write_tiny
from test_noise_training import Killer

from vivit_bench.errors import StorageError, UsageError
from vivit_bench.noise import load_run, run_noise
from vivit_bench.noise.data import load_run_data
from vivit_bench.noise.training import evaluate
from vivit_bench.problems import DataSource, load_problem
from vivit_bench.report.noise import checkpoint_table

TINY = "tiny.py:tiny"
OPTIONS = "--optimizer sgd --lr 0.05 --epochs 2 --batch-size 16 --monitor-batch-size 8 --name mine"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return group_runner("noise", monkeypatch, capsys)


def test_the_saved_weights_are_those_of_the_last_row(folder: Path) -> None:
    file = folder / "last.pt"
    done = run_noise(CHOICES, folder, save_model=file)
    problem = load_problem(TINY, seed=0, checkpoint=file)
    data = load_run_data(load_problem(TINY, seed=0), DataSource.OWN, None, 0)
    cpu = torch.device("cpu")
    loss, accuracy = evaluate(problem.model, problem.loss, *data.test, cpu)
    last = done.curves.iloc[-1]
    assert loss == pytest.approx(last["test_loss"], rel=1e-7)
    assert accuracy == last["test_accuracy"]
    other, _ = evaluate(load_problem(TINY, seed=0).model, problem.loss, *data.test, cpu)
    assert other != pytest.approx(loss, rel=1e-3)


def test_an_interrupted_training_saves_the_same_weights_at_its_end(folder: Path) -> None:
    whole, parts = folder / "whole.pt", folder / "parts.pt"
    run_noise(CHOICES, folder, name="whole", save_model=whole)
    with pytest.raises(KeyboardInterrupt):
        run_noise(CHOICES, folder, name="parts", save_model=parts, listener=Killer(20))
    assert not parts.exists()
    run_noise(CHOICES, folder, name="parts", save_model=parts)
    assert parts.read_bytes() == whole.read_bytes()
    # Where the file cannot be written, the run keeps its state and goes on.
    missing = folder / "a file"
    missing.touch()
    with pytest.raises(StorageError):
        run_noise(CHOICES, folder, name="late", save_model=missing / "last.pt")
    run_noise(CHOICES, folder, name="late", save_model=parts)
    assert parts.read_bytes() == whole.read_bytes()


def test_a_finished_run_has_no_weights_but_those_of_the_file(folder: Path) -> None:
    file = folder / "last.pt"
    run_noise(CHOICES, folder, name="without")
    with pytest.raises(UsageError, match=r"without is finished.*--fresh"):
        run_noise(CHOICES, folder, name="without", save_model=file)
    run_noise(CHOICES, folder, name="with", save_model=file)
    before = file.read_bytes()
    run_noise(CHOICES, folder, name="with", save_model=file)  # returned: they are there
    assert file.read_bytes() == before
    file.write_bytes(b"of somebody else")
    with pytest.raises(UsageError, match="not in this file"):
        run_noise(CHOICES, folder, name="with", save_model=file)
    assert file.read_bytes() == b"of somebody else"
    run_noise(CHOICES, folder, name="with", save_model=file, fresh=True)
    assert file.read_bytes() == before


def test_command_line(run: Run) -> None:
    done = run("run", TINY, *OPTIONS.split(), "--checkpoints", 2, "--save-model", "last.txt")
    assert done.code == 2
    assert "must end in .pt" in done.err
    done = run("run", TINY, *OPTIONS.split(), "--checkpoints", 2, "--save-model", "last.pt")
    assert done.code == 0, done.err
    assert "wrote last.pt" in done.err
    load_problem(TINY, checkpoint=Path("last.pt"))


def test_dropped_columns_are_recorded_and_bounded(folder: Path) -> None:
    """A large cutoff stands for a confident network."""
    choices = with_changes(cutoff=1.0, drop_columns=1.0)
    done = run_noise(choices, folder, name="dropping")
    plain = run_noise(with_changes(cutoff=1.0), folder, name="plain")
    assert "drop_columns" not in plain.settings
    assert "dropped" not in plain.stored.results
    dropped = done.stored.results["dropped"]
    assert list(dropped) == ["0", "1", "5", "24"]
    assert sum(found["num_columns"] for found in dropped.values()) > 0
    assert all(found["trace"] <= 1.0 for found in dropped.values())
    for step, found in dropped.items():
        ours, theirs = (r.at(int(step))["eigenvalue"].to_numpy() for r in (done, plain))
        assert (theirs[: len(ours)] - ours <= found["trace"] + 1e-5 * theirs[0]).all()
    (note,) = [n for n in checkpoint_table(done).notes if "dropped" in n]
    assert f"{max(found['trace'] for found in dropped.values()):.2e}" in note
    # Interrupted, it ends the same.
    with pytest.raises(KeyboardInterrupt):
        run_noise(choices, folder, name="parts", listener=Killer(7))
    run_noise(choices, folder, name="parts")
    parts = load_run(folder / "noise" / "parts")
    assert parts.stored.results["dropped"] == dropped
    assert contents(parts.folder) == contents(done.folder)


@pytest.mark.parametrize("share", ["1.5", "-0.1", "nan"])
def test_a_share_that_makes_no_sense_is_one_line(run: Run, share: str) -> None:
    done = run("run", TINY, *OPTIONS.split(), "--drop-columns", share)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert f"--drop-columns {share}" in line
