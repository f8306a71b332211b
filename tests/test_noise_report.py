"""Tables and figures of noise runs, finished or not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from vivit_bench.errors import UsageError
from vivit_bench.noise import NoiseRun, parse_positions
from vivit_bench.report.noise import (
    checkpoint_table,
    choose_checkpoints,
    directions_for,
    state_note,
)
from vivit_bench.report.noise_figures import draw_directions, draw_training, run_title
from vivit_bench.report.tables import TableFormat, render
from vivit_bench.store import State, StoredRun

INF, NAN = float("inf"), float("nan")
STEPS = (0, 1, 10, 40)


def made_up(folder: Path, *, accuracy: bool = True, **header: Any) -> NoiseRun:
    """Four checkpoints of three directions, one of them without variance; none at step 40."""
    directions = pd.DataFrame(
        {
            "step": np.repeat(STEPS[:3], 3),
            "epoch": np.repeat(STEPS[:3], 3) / 20,
            "direction": 3 * [1, 2, 3],
            "eigenvalue": [4.0, 0.2, 1e-3] * 3,
            "gamma": [-0.5, 0.1, 0.0] * 3,
            "alignment": [0.9, 0.05, 0.0] * 3,
            "snr_gamma": [0.5, 2.0, NAN] * 3,
            "snr_lambda": [7.0, INF, 0.4] * 3,
        }
    )
    checkpoints = pd.DataFrame(
        {
            "step": STEPS,
            "epoch": np.array(STEPS) / 20,
            "loss": [2.3, 1.1, 0.9, 0.12345],
            "num_directions": [3, 3, 3, 0],
            "num_columns": 1152,
            "gradient_norm_squared": 2.0,
            "alignment_sum": [0.95, 0.95, 0.95, 0.0],
            "zero_variance_gamma": [1, 1, 1, 0],
            "zero_variance_lambda": [1, 1, 1, 0],
        }
    )
    curves = pd.DataFrame(
        {
            "step": [0, 1, 10, 20, 40],
            "epoch": [0, 0.05, 0.5, 1, 2],
            "train_loss": [2.3, 2.2, 1.0, 0.5, 0.1],
            "train_accuracy": [0.1, 0.2, 0.5, 0.9, 1.0] if accuracy else NAN,
            "test_loss": [2.4, 2.3, 1.1, 0.6, 0.2],
            "test_accuracy": [0.1, 0.2, 0.5, 0.8, 0.975] if accuracy else NAN,
        }
    )
    settings = {
        "problem": "cifar10_3c3d",
        "optimizer": "sgd",
        "data": "deepobs",
        "seed": 0,
        "monitor_batch_size": 128,
        "curvature": "exact",
        "samples": "full",
        "mc_samples": 1,
        "cutoff": 1e-4,
    }
    stored = StoredRun(
        folder=folder,
        experiment="noise",
        label="cifar10_3c3d_sgd",
        state=header.pop("state", State.FINISHED),
        settings={**settings, **header.pop("settings", {})},
        environment={},
        provenance={"started_at": "2026-01-02T03:04:05+00:00"},
        results={
            "sizes": {"num_outputs": 2, "steps_per_epoch": 20, "total_steps": 40},
            "timing": {
                "train_seconds": {"0": 2.0, "1": 2.0},
                "evaluate_seconds": 1.0,
                "monitor_seconds": dict.fromkeys(map(str, STEPS), 0.5),
            },
            **header,
        },
    )
    return NoiseRun(stored, directions, checkpoints, curves)


def test_table_has_a_line_per_checkpoint(tmp_path: Path) -> None:
    rows = checkpoint_table(made_up(tmp_path)).rows
    assert [row["step"] for row in rows] == list(STEPS)
    first, last = rows[0], rows[-1]
    assert (first["train_loss"], first["test_loss"], first["test_accuracy"]) == (2.3, 2.4, 0.1)
    assert (first["num_directions"], first["largest_eigenvalue"]) == (3, 4.0)
    assert first["directions_for_bulk"] == 1
    assert first["leading_snr_gamma"] == 1.25  # of the C = 2 largest curvatures
    assert first["leading_snr_lambda"] == INF
    assert [row["zero_variance"] for row in rows] == [2, 2, 2, 0]
    assert last["directions_for_bulk"] is None
    assert last["largest_eigenvalue"] is None


def test_a_direction_without_any_variance_is_one(tmp_path: Path) -> None:
    run = made_up(tmp_path)
    run.directions.loc[0, ["snr_gamma", "snr_lambda"]] = INF
    run.checkpoints.loc[0, ["zero_variance_gamma", "zero_variance_lambda"]] = 2
    assert [row["zero_variance"] for row in checkpoint_table(run).rows] == [3, 2, 2, 0]


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [([0.1, 0.85, 0.05], 2), ([0.95, 0.0], 1), ([0.5, 0.3], None), ([], None), ([NAN], None)],
)
def test_directions_for_nine_tenths(alignment: list[float], expected: int | None) -> None:
    found = directions_for(pd.Series(alignment, dtype=float), 0.9)
    assert found == expected


def test_formats(tmp_path: Path) -> None:
    table = checkpoint_table(made_up(tmp_path))
    csv = render(table, TableFormat.CSV).splitlines()
    assert csv[0].startswith("step,epoch,train_loss")
    assert len(csv) == 1 + len(STEPS)
    assert json.loads(render(table, TableFormat.JSON))[0]["leading_snr_lambda"] == "Infinity"
    markdown = render(table, TableFormat.MARKDOWN)
    assert markdown.startswith("| step |")
    assert "above 0.0001" in markdown
    latex = render(table, TableFormat.LATEX)
    assert r"\toprule" in latex
    assert r"97.5\%" in latex
    terminal = render(table, TableFormat.TABLE, 80)
    assert terminal.splitlines()[2].split()[:2] == ["step", "epoch"]
    assert "97.5%" in terminal
    assert "nan" not in terminal
    assert max(map(len, terminal.splitlines())) <= 80


def test_unfinished_and_diverged_runs_say_so(tmp_path: Path) -> None:
    assert state_note(made_up(tmp_path)) == ""
    assert "goes on" in checkpoint_table(made_up(tmp_path, state=State.RUNNING)).notes[-1]
    diverged = made_up(tmp_path, state=State.FAILED, diverged_at={"step": 41, "loss": "nan"})
    assert "diverged: loss nan at step 41" in checkpoint_table(diverged).notes[-1]


def test_checkpoints_are_chosen_by_place(tmp_path: Path) -> None:
    run = made_up(tmp_path)
    assert choose_checkpoints(run, None) == [0, 10, 40]
    assert choose_checkpoints(run, parse_positions("end,1steps,0.5epochs")) == [1, 10, 40]
    with pytest.raises(UsageError, match=r"--at 5steps .* choose from 0,1steps,10steps,40steps$"):
        choose_checkpoints(run, parse_positions("5steps"))


def test_figure_has_a_column_per_checkpoint_and_a_row_per_quantity(tmp_path: Path) -> None:
    figure = draw_directions(made_up(tmp_path), [0, 10, 40])
    figure.canvas.draw()
    panels = np.array(figure.axes).reshape(4, 3)
    assert [panel.get_title() for panel in panels[0]] == [
        "initialisation\nloss 2.3, K = 3",
        "step 10 (epoch 0.5)\nloss 0.9, K = 3",
        "step 40 (epoch 2)\nloss 0.123, K = 0",
    ]
    for panel in panels.flat:
        assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    drawn = [panel.get_lines()[0].get_ydata().tolist() for panel in panels[:, 0]]
    assert drawn == [[0.5, 0.1], [0.9, 0.05], [7.0, 0.4], [0.5, 2.0]]
    for row, panel in enumerate(panels[:, 0]):
        low, high = panel.get_ylim()
        assert low < min(drawn[row])
        assert high > max(drawn[row])
        assert panel.get_xlim()[0] < 1e-4 < 4 < panel.get_xlim()[1]
    notes = [[text.get_text() for text in panel.texts] for panel in panels[:, 0]]
    assert notes == [["1 zero"], ["1 zero"], ["1 infinite"], ["1 undefined"]]
    with pytest.raises(UsageError, match=r"no direction .* --at"):
        draw_directions(made_up(tmp_path), [40])


@pytest.mark.parametrize("accuracy", [True, False])
def test_training_figure(tmp_path: Path, accuracy: bool) -> None:
    figure = draw_training(made_up(tmp_path, accuracy=accuracy))
    figure.canvas.draw()
    panels = figure.axes
    assert len(panels) == (3 if accuracy else 2)
    assert [line.get_label() for line in panels[0].get_lines()] == ["train", "test"]
    assert panels[-1].get_lines()[0].get_ydata().tolist() == [3, 3, 3, 0]


def test_titles_say_what_a_run_is(tmp_path: Path) -> None:
    run = made_up(tmp_path)
    day = run.stored.provenance["started_at"][:10]
    assert run_title(run) == (
        f"cifar10_3c3d, SGD, data {run.settings['data']}, seed {run.settings['seed']}, N = 128, "
        f"GGN exact, full ({day})"
    )
    other = {"curvature": "mc", "mc_samples": 2, "data": "mnist5k", "optimizer": "adam"}
    assert (
        run_title(made_up(tmp_path, settings=other))
        == f"cifar10_3c3d, Adam, data mnist5k, seed {run.settings['seed']}, N = 128, "
        f"GGN mc (M = 2), full ({day})"
    )
