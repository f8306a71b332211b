"""Noise over a training: directions at every checkpoint, behind one slider."""

from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from vivit_bench.errors import VivitBenchError
from vivit_bench.noise.records import EXPERIMENT, NoiseRun, read_run
from vivit_bench.report.noise import checkpoint_table, run_table, run_title
from vivit_bench.report.page import charts
from vivit_bench.report.page.parts import (
    Chart,
    Charts,
    Control,
    Heading,
    PageTable,
    Section,
    name_of,
)
from vivit_bench.report.page.training import training_charts
from vivit_bench.store import State, stored_runs

_POINTS = 9_000
"""Directions that a page draws at most, so that it stays small."""
_LEADING = 40
"""Directions of largest curvature that are always drawn."""
_PANELS = {
    "gamma": ("slope |γ|", "#0072B2"),
    "alignment": ("share of the gradient γ² / ‖∇L‖²", "#009E73"),
    "snr_lambda": ("signal-to-noise of the curvature, SNR(λ)", "#CC79A7"),
    "snr_gamma": ("signal-to-noise of the slope, SNR(γ)", "#D55E00"),
}
_SIGNALS = ("snr_lambda", "snr_gamma")


def section(results_dir: Path) -> Section | None:
    """Of every run its summary, directions, training curves and checkpoints."""
    found = Section(
        "noise",
        "Noise over training",
        "The directions of a held-out mini-batch's GGN while a network is trained: their curvature "
        "λ, slope γ and signal-to-noise ratios. Move the slider from checkpoint to checkpoint; "
        "point at a direction, and it is marked in all four charts.",
    )
    runs = readable_runs(results_dir, found.warnings)
    for number, run in enumerate(runs):
        of_run, of_checkpoints = (
            name_of(f"noise_{part}", number, run.folder.name) for part in ("run", "checkpoints")
        )
        found.blocks.append(Heading(run_title(run)))
        if run.stored.state is not State.RUNNING:
            found.blocks.append(PageTable(run_table(run), of_run))
        found.blocks.append(_directions(run, number, _POINTS // len(runs), found))
        found.blocks.append(Charts(training_charts(run, number, found.data), is_small=True))
        found.blocks.append(PageTable(checkpoint_table(run), of_checkpoints))
    return found if runs or found.warnings else None


def readable_runs(results_dir: Path, warnings: list[str]) -> list[NoiseRun]:
    """Runs with at least one checkpoint, finished or not.

    Args:
        results_dir: Folder of all results.
        warnings: Is told of the others.
    """
    stored, damaged = stored_runs(results_dir, EXPERIMENT)
    warnings += damaged
    runs = []
    for each in stored:
        try:
            runs.append(read_run(each))
        except VivitBenchError as error:
            warnings.append(f"left out: {error}")
    return runs


def drawn_directions(run: NoiseRun, most: int) -> pd.DataFrame:
    """The directions that are drawn, a row each, with ``checkpoint`` from 0.

    Args:
        run: The run.
        most: Rows, about; of each checkpoint the leading directions, then every so many.
    """
    steps = run.checkpoints["step"].tolist()
    each = max(_LEADING + 20, most // max(len(steps), 1))
    parts = []
    for place, step in enumerate(steps):
        rows = run.at(step)
        kept = np.arange(len(rows))
        if len(rows) > each:
            rest = np.linspace(_LEADING, len(rows) - 1, each - _LEADING).round().astype(int)
            kept = np.union1d(np.arange(_LEADING), rest)
        part = rows.iloc[kept][["direction", "eigenvalue", *_PANELS]].assign(checkpoint=place)
        parts.append(part)
    frame = pd.concat(parts, ignore_index=True)
    frame["gamma"] = frame["gamma"].abs()
    return frame


def _directions(run: NoiseRun, number: int, most: int, section: Section) -> Charts:
    frame = drawn_directions(run, most)
    key = name_of("directions", number)
    section.data[key] = charts.csv_of(frame, 4)
    title = run_title(run)
    made = [_panel(frame, key, name, title) for name in _PANELS]
    left_out = len(run.directions) - len(frame)
    caption = "Zeros and infinite ratios (directions without variance) have no place on the axes."
    if left_out:
        caption += (
            f" Of each checkpoint the {_LEADING} leading directions are drawn, and some of the "
            f"others: {len(frame):,} of {len(run.directions):,} in all."
        )
    choices = [
        f"step {row['step']:,.0f}, epoch {row['epoch']:.3g}: loss {row['loss']:.3g}, "
        f"K = {row['num_directions']:,.0f}"
        for row in run.checkpoints.to_dict("records")
    ]
    control = Control("Checkpoint", choices, is_slider=True) if len(choices) > 1 else None
    return Charts(made, f"{key}_group", control, caption)


def _panel(frame: pd.DataFrame, key: str, name: str, run_name: str) -> Chart:
    title, look = _PANELS[name]
    chosen = alt.param(name=charts.CHOSEN, value=0)
    pointed = alt.param(name=charts.POINTED, value=0)
    hover = alt.selection_point(
        name="hover",
        on="pointerover",
        nearest=True,
        fields=["direction"],
        empty=False,
        clear="pointerout",
    )
    x = charts.log_axis(alt.X, "eigenvalue", frame["eigenvalue"], "curvature λ")
    y = charts.log_axis(alt.Y, name, [*frame[name], *([1.0] if name in _SIGNALS else [])])
    is_pointed = f"datum.direction == {charts.POINTED}"
    points = (
        alt.Chart(charts.data_of(key, frame))
        .transform_filter(
            f"datum.checkpoint == {charts.CHOSEN} && datum.{name} > 0 && datum.eigenvalue > 0"
        )
        .mark_point(filled=True, color=look)
        .encode(
            x=x,
            y=y,
            size=alt.condition(is_pointed, alt.value(170), alt.value(22)),
            opacity=alt.condition(is_pointed, alt.value(1), alt.value(0.55)),
            stroke=alt.condition(is_pointed, alt.value(charts.INK), alt.value("transparent")),
            tooltip=[
                charts.tip("direction", "direction k", ",d"),
                charts.tip("eigenvalue", "λ", ".3g"),
                charts.tip("gamma", "|γ|", ".3g"),
                charts.tip("alignment", "γ² / ‖∇L‖²", ".3g"),
                charts.tip("snr_lambda", "SNR(λ)", ".3g"),
                charts.tip("snr_gamma", "SNR(γ)", ".3g"),
            ],
        )
        .add_params(chosen, pointed, hover)
    )
    layers: Any = points
    if name in _SIGNALS:
        frame_of_one = alt.Chart(alt.Data(values=[{}])).mark_rule(strokeDash=[4, 3], opacity=0.5)
        layers = frame_of_one.encode(y=alt.datum(1.0)) + points
    text = (
        f"{title} of each direction over its curvature, at a checkpoint of {run_name}; all values "
        "stand in the run's directions.csv"
    )
    return charts.finish(layers, f"{key}_{name}", title[0].upper() + title[1:], text, height=210)
