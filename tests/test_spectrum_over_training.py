"""Spectra of several checkpoints: computed in one command, found in their order, and drawn."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Run, group_runner, refuse
from matplotlib.figure import Figure
from spectrum_cases import make_record, store_record

from vivit_bench.errors import Stopped, UsageError
from vivit_bench.problems.workload import WorkloadSpec, load_workload
from vivit_bench.report.spectrum_training_figures import draw_over_training, leading_eigenvalues
from vivit_bench.spectrum import compute_spectrum
from vivit_bench.spectrum.over_training import (
    by_numbers,
    short_names,
    stored_over_training,
    varying_number,
)
from vivit_bench.store import StoredRun

EXAMPLE = Path(__file__).parent.parent / "scripts" / "examples" / "small_cnn.py"
DIGITS = "small_cnn.py:digits"
CIFAR = "cifar10_3c3d"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    shutil.copy(EXAMPLE, tmp_path)
    return group_runner("spectrum", monkeypatch, capsys)


def save_weights(*names: str) -> None:
    """Weights that are smaller from file to file."""
    model = load_workload(WorkloadSpec(DIGITS, batch_size=2)).model
    for number, name in enumerate(names):
        scaled = {key: value / (number + 1) for key, value in model.state_dict().items()}
        torch.save(scaled, name)


def store(folder: Path, checkpoint: str | None, weight: str = "", **changes: Any) -> StoredRun:
    """Store a made-up spectrum of a checkpoint."""
    cutoff = changes.pop("cutoff", 1e-4)
    record = make_record(checkpoint=checkpoint, cutoff=cutoff, **changes)
    return store_record(folder, record, model=f"{checkpoint}{weight}")


def test_several_checkpoints_are_several_runs_with_the_addresses_of_one(run: Run) -> None:
    save_weights("epoch_2.pt", "epoch_10.pt")
    alone = run("compute", DIGITS, "--batch-size", 2, "--checkpoint", "epoch_10.pt")
    assert alone.code == 0, alone.err
    folders = {path.name for path in Path("results/spectrum").iterdir()}
    files = ("--checkpoint", "epoch_2.pt", "--checkpoint", "epoch_10.pt")
    both = run("compute", DIGITS, "--batch-size", 2, *files, "--format", "json")
    assert both.code == 0, both.err
    assert "finished already" in both.err
    now = {path.name for path in Path("results/spectrum").iterdir()}
    assert folders < now
    assert len(now) == 2
    rows = json.loads(both.out)
    assert [row["checkpoint"] for row in rows] == ["epoch_2.pt", "epoch_10.pt"]
    for row in rows:
        expected = compute_spectrum(DIGITS, batch_size=2, checkpoint=Path(row["checkpoint"]))
        assert row["largest_eigenvalue"] == expected.eigenvalues[0]
        assert row["trace"] == expected.trace
        assert row["batch_size"] == 2
    shown = run("compute", DIGITS, "--batch-size", 2, *files)
    assert [line.split()[0] for line in shown.out.splitlines() if "epoch" in line] == [
        "epoch_2.pt",
        "epoch_10.pt",
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--checkpoint", "a.pt"), "--checkpoint a.pt is given twice"),
        (("--checkpoint", "c.pt"), "checkpoint c.pt does not exist"),
        (("--checkpoint", "b.pt", "--name", "x"), "--name x: is of one spectrum"),
        (("--checkpoint", "b.pt", "--output", "x.csv"), "--output x.csv: is of one spectrum"),
        (("--checkpoint", "b.pt", "--eigenvectors", "x.pt"), "--eigenvectors x.pt: is of one"),
    ],
)
def test_what_is_of_one_spectrum_is_refused_before_the_first(
    run: Run, options: tuple[str, ...], says: str
) -> None:
    save_weights("a.pt", "b.pt")
    line = refuse(run("compute", DIGITS, "--batch-size", 2, "--checkpoint", "a.pt", *options))
    assert says in line
    assert not Path("results").exists()


def test_stopped_between_two_the_command_says_what_is_stored(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights("a1.pt", "a2.pt")
    load, calls = load_workload, []

    def stops(spec: WorkloadSpec) -> Any:
        calls.append(spec)
        if len(calls) == 2:
            raise Stopped(signal.SIGINT)
        return load(spec)

    monkeypatch.setattr("vivit_bench.problems.workload.load_workload", stops)
    files = ("--checkpoint", "a1.pt", "--checkpoint", "a2.pt")
    outcome = run("compute", DIGITS, "--batch-size", 2, *files)
    assert outcome.code == 130
    assert "1 of 2 spectra are stored; the same command goes on" in outcome.err
    assert len(list(Path("results/spectrum").iterdir())) == 1


def test_the_figure_is_drawn_of_all_in_the_order_of_their_numbers(run: Run) -> None:
    save_weights("epoch_10.pt", "epoch_2.pt")
    files = ("--checkpoint", "epoch_10.pt", "--checkpoint", "epoch_2.pt")
    assert run("compute", DIGITS, "--batch-size", 2, *files).code == 0
    outcome = run("plot", DIGITS, "--over-training")
    assert outcome.code == 0, outcome.err
    stem = "results/spectrum/small_cnn-digits_n2_own_seed0_exact_full_over_training"
    assert outcome.out.split() == [f"{stem}.png", f"{stem}.pdf"]
    assert outcome.err == ""
    assert Path(f"{stem}.png").stat().st_size > 10_000
    first = Path(f"{stem}.pdf").read_bytes()
    named = run("plot", DIGITS, "--over-training", *files)
    assert not {*named.out.split()} & {*outcome.out.split()}
    assert named.out.startswith("results/spectrum/small_cnn-digits_n2_own_seed0_epoch_10-")
    assert run("plot", DIGITS, "--over-training", "--output", "again.pdf").code == 0
    assert Path("again.pdf").read_bytes() == first


def test_fewer_than_two_are_one_line_with_the_command(run: Run) -> None:
    results = Path("results")
    store(results, None)
    store(results, "epoch_1.pt")
    line = refuse(run("plot", CIFAR, "--over-training"))
    assert "exact, full spectra of 1 checkpoints" in line
    assert f"compute {CIFAR} --checkpoint FIRST.pt --checkpoint SECOND.pt" in line
    line = refuse(run("plot", CIFAR, "--over-training", "--curvature", "mc", "--batch-size", 64))
    assert "mc, full spectra of 0 checkpoints" in line
    assert "--curvature mc" in line
    assert "--batch-size 64" in line
    assert "did you mean" in refuse(run("plot", "cifar10_3c3", "--over-training"))
    store(results, "epoch 2.pt")
    files = ("--checkpoint", "epoch 2.pt", "--checkpoint", "epoch 3.pt")
    line = refuse(run("plot", CIFAR, "--over-training", *files))
    assert "no exact, full spectra of epoch 3.pt" in line
    assert line.endswith("--checkpoint 'epoch 3.pt'")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ((CIFAR, "mnist_mlp", "--over-training"), "is of one problem; name one"),
        ((CIFAR, "--samples", "frac"), "--samples frac: chooses with --over-training"),
        ((CIFAR, "--curvature", "mc"), "--curvature mc: chooses with --over-training"),
        ((CIFAR, "--checkpoint", "a", "--checkpoint", "b"), "--over-training; add it"),
        ((CIFAR, "--over-training", "--checkpoint", "a", "--checkpoint", "a"), "given twice"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    run: Run, line: tuple[str, ...], says: str
) -> None:
    assert says in refuse(run("plot", *line))


def test_order_choice_and_what_is_left_out(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        store(tmp_path, f"run/epoch_{number}.pt")
    store(tmp_path, None)
    store(tmp_path, "run/epoch_4.pt", samples="frac")
    store(tmp_path, "run/epoch_5.pt", params=["fc.*"])
    store(tmp_path, "run/epoch_6.pt", drop_columns=0.1)

    def files(**options: Any) -> list[str]:
        runs, notes = stored_over_training(CIFAR, tmp_path, **options)
        assert not notes
        return [Path(run.settings["checkpoint"]).stem for run in runs]

    assert files() == ["epoch_1", "epoch_9", "epoch_10"]
    chosen = [Path("run/epoch_10.pt"), Path("run/epoch_1.pt")]
    assert files(checkpoints=chosen) == ["epoch_10", "epoch_1"]
    for number in (1, 9):
        store(tmp_path, f"run/epoch_{number}.pt", seed=3)
    with pytest.raises(UsageError, match="differ in seed 0, 3: choose with --seed"):
        files()
    assert files(seed=3) == ["epoch_1", "epoch_9"]


def test_cutoffs_must_be_chosen_where_they_differ(tmp_path: Path) -> None:
    store(tmp_path, "a1.pt")
    store(tmp_path, "a2.pt", cutoff=0.1)
    with pytest.raises(UsageError, match="differ in cutoff"):
        stored_over_training(CIFAR, tmp_path)
    runs, _ = stored_over_training(CIFAR, tmp_path, any_cutoff=True)
    assert len(runs) == 2


def test_of_a_file_that_was_written_anew_the_newest_is_drawn_and_the_older_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path, "a1.pt")
    older = store(tmp_path, "a2.pt", "before", eigenvalues=(9.0,))
    header = older.folder / "run.json"
    newer = store(tmp_path, "a2.pt", "after")
    times = {older.folder: "2026-01-01", newer.folder: "2026-01-02"}
    from vivit_bench.spectrum import over_training

    runs, notes = over_training.stored_runs(tmp_path, "spectrum")
    for one in runs:
        one.provenance["started_at"] = times.get(one.folder, "2026-01-01")
    monkeypatch.setattr(over_training, "stored_runs", lambda *_: (runs, notes))
    found, lines = stored_over_training(CIFAR, tmp_path)
    assert found[1].folder == newer.folder
    (line,) = lines
    assert str(older.folder) in line
    assert "other weights" in line
    assert header.exists()


@pytest.mark.parametrize(
    ("files", "order"),
    [
        (["e10.pt", "e9.pt"], ["e9.pt", "e10.pt"]),
        (["a/step-20/m.bin", "a/step-3/m.bin"], ["a/step-3/m.bin", "a/step-20/m.bin"]),
        (
            ["epoch=1-step=90.ckpt", "epoch=0-step=99.ckpt"],
            ["epoch=0-step=99.ckpt", "epoch=1-step=90.ckpt"],
        ),
        (["at_0.5.pt", "at_0.25.pt"], ["at_0.25.pt", "at_0.5.pt"]),
    ],
)
def test_names_are_ordered_by_their_numbers(files: list[str], order: list[str]) -> None:
    assert by_numbers(files) == order


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["a.pt", "b.pt"], "a.pt has no number"),
        (["e1.pt", "e2.pt", "last.pt"], "e1.pt has 1 number and last.pt has 0 numbers"),
        (["e1.pt", "e20.pt", "msd_20.pt"], "e20.pt and msd_20.pt have the same numbers"),
    ],
)
def test_names_that_say_no_order_are_refused(files: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=f"say no order, as {reason}; give it with --checkpoint"):
        by_numbers(files)


def test_the_number_that_grows_is_the_axis() -> None:
    assert varying_number(["epoch=0-step=5", "epoch=1-step=9"]) == ("epoch", [0, 1])
    assert varying_number(["net_2_at_5", "net_2_at_7"]) == ("at", [5, 7])
    assert varying_number(["5 steps", "7 steps"]) == ("steps", [5, 7])
    assert varying_number(["1", "2"]) == ("checkpoint", [1, 2])
    assert varying_number(["e2", "e1"]) is None
    assert varying_number(["a", "b"]) is None
    assert varying_number(["e1", "e1-5"]) is None
    assert short_names(["x/a/m.pt", "x/b/m.pt"]) == ["a", "b"]


def drawn(*names: str, **changes: Any) -> Figure:
    records = [
        make_record([8.0 / (k + 1), 1.0 / (k + 1), 1e-6], checkpoint=f"run/{name}.pt", **changes)
        for k, name in enumerate(names)
    ]
    return draw_over_training(records, cutoff=1e-4)


def test_the_figure_shows_the_numbers_and_says_of_what() -> None:
    figure = drawn("epoch_0", "epoch_1", "epoch_4")
    leading, trace, above = figure.axes
    lines = [line.get_ydata() for line in leading.lines]
    np.testing.assert_allclose(sorted(lines, key=sum), [[1e-6] * 3, [1, 0.5, 1 / 3], [8, 4, 8 / 3]])
    np.testing.assert_allclose(trace.lines[0].get_ydata(), [9 + 1e-6, 4.5 + 1e-6, 3 + 1e-6])
    assert list(above.lines[0].get_ydata()) == [2, 2, 2]
    assert all(list(axis.lines[0].get_xdata()) == [0, 1, 4] for axis in figure.axes)
    assert above.get_xlabel() == "epoch"
    assert above.get_xscale() == "linear"
    title = figure.get_suptitle().replace("\n", " ")
    for part in (
        "cifar10_3c3d",
        "N\xa0=\xa0128",
        "D\xa0=\xa0100",
        "data\xa0deepobs",
        "exact, full",
    ):
        assert part in title
    assert "epoch" not in title
    assert [text.get_text() for text in leading.texts] == [r"$\lambda_{1}$", r"$\lambda_{3}$"]


def test_early_checkpoints_are_told_apart_and_names_without_numbers_are_written() -> None:
    figure = drawn("epoch_0", "epoch_1", "epoch_10", "epoch_100", "epoch_101")
    axis = figure.axes[-1]
    assert axis.get_xscale() == "symlog"
    assert list(axis.get_xticks()) == [0, 1, 10, 101]
    assert -1 < axis.get_xlim()[0] < 0
    axis = drawn("init", "warm", "last").axes[-1]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["init", "warm", "last"]
    assert axis.get_xlabel() == "checkpoint"
    assert list(axis.get_xticks()) == [0, 1, 2]


def test_shorter_spectra_and_values_without_a_logarithm_are_gaps() -> None:
    records = [
        make_record([3.0, 0.0, -1e-9], checkpoint="a1.pt"),
        make_record([float("inf"), 2.0], checkpoint="a2.pt"),
    ]
    values = leading_eigenvalues(records)
    np.testing.assert_array_equal(values, [[3, np.nan, np.nan], [np.nan, 2, np.nan]])
    nothing = [make_record([], checkpoint=f"a{k}.pt") for k in (1, 2)]
    assert leading_eigenvalues(nothing).shape == (2, 0)
    for some in (records, nothing):
        figure = draw_over_training(some, cutoff=1e-4)
        figure.canvas.draw()
