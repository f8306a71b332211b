"""Figures of a noise run: directions at chosen checkpoints (S.6 to S.10), and the training."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from vivit_bench.errors import UsageError
from vivit_bench.noise.records import NoiseRun
from vivit_bench.report.figures import STYLE, save_figure
from vivit_bench.report.noise import run_title

_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#D55E00")
_TRAIN, _TEST = "#0072B2", "#D55E00"
_COLUMN_INCHES, _ROW_INCHES = 2.0, 1.35

_ROWS = (
    ("gamma", r"(a) $|\gamma_k|$"),
    ("alignment", r"(b) $\gamma_k^2 \,/\, \Vert\nabla L\Vert^2$"),
    ("snr_lambda", r"(c) SNR$(\lambda_{nk})$"),
    ("snr_gamma", r"(d) SNR$(\gamma_{nk})$"),
)


def plot_directions(run: NoiseRun, steps: Sequence[int], stem: Path) -> list[Path]:
    """Draw `draw_directions` as PNG (200 dpi) and PDF; returns their paths."""
    return save_figure(draw_directions(run, steps), stem)


def plot_training(run: NoiseRun, stem: Path) -> list[Path]:
    """Draw `draw_training` as PNG (200 dpi) and PDF; returns their paths."""
    return save_figure(draw_training(run), stem)


def draw_directions(run: NoiseRun, steps: Sequence[int]) -> Figure:
    """A column per checkpoint; rows (a) slope, (b) alignment, (c, d) SNRs, over lambda_k.

    Both axes are logarithmic. Values that have no place there (zeros, and SNRs of directions
    without variance, which are infinite) are counted in the panel.

    Args:
        run: The run.
        steps: Checkpoints, one a column.

    Raises:
        UsageError: None of them has a direction.
    """
    found = {step: run.at(step) for step in steps}
    if not any(len(directions) for directions in found.values()):
        raise UsageError(
            f"{run.folder} has no direction with an eigenvalue above "
            f"{run.settings['cutoff']:g} at these checkpoints: choose others with --at"
        )
    with matplotlib.rc_context(STYLE):
        size = (0.6 + _COLUMN_INCHES * len(steps), 0.6 + _ROW_INCHES * len(_ROWS))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(_ROWS), len(steps), sharex=True, sharey="row", squeeze=False)
        for column, (step, directions) in enumerate(found.items()):
            panels[0, column].set_title(_title(run, step), pad=4)
            for row, (name, label) in enumerate(_ROWS):
                panel = panels[row, column]
                _draw_points(panel, directions["eigenvalue"], directions[name].abs(), _COLOURS[row])
                if column == 0:
                    panel.set_ylabel(label)
        for row, (name, _) in enumerate(_ROWS):
            values = pd.concat([directions[name].abs() for directions in found.values()])
            _scale_row(panels[row, 0], values.to_numpy(), is_ratio=name.startswith("snr"))
        lambdas = pd.concat([directions["eigenvalue"] for directions in found.values()])
        panels[0, 0].set_xscale("log")
        panels[0, 0].set_xlim(*_limits(lambdas.to_numpy(), run.settings["cutoff"]))
        panels[0, 0].xaxis.set_major_locator(LogLocator(numticks=5))
        for panel in panels.flat:
            panel.minorticks_off()
        figure.supxlabel(r"curvature $\lambda_k$", fontsize=8)
        figure.suptitle(textwrap.fill(run_title(run), 90), fontsize=8)
    return figure


def draw_training(run: NoiseRun) -> Figure:
    """Loss and accuracy over epochs, and K over steps with the checkpoints as points."""
    curves = run.curves
    has_accuracy = bool(curves["train_accuracy"].notna().any())
    with matplotlib.rc_context(STYLE):
        count = 3 if has_accuracy else 2
        figure = Figure(figsize=(0.4 + 2.2 * count, 2.1), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, count)
        _draw_curves(panels[0], curves, "loss")
        panels[0].set_yscale("log")
        panels[0].set_ylabel("loss")
        panels[0].legend(frameon=False)
        if has_accuracy:
            _draw_curves(panels[1], curves, "accuracy")
            panels[1].set_ylabel("accuracy")
        _draw_counts(panels[-1], run)
        figure.suptitle(textwrap.fill(run_title(run), 90), fontsize=8)
    return figure


def _title(run: NoiseRun, step: int) -> str:
    row = run.checkpoints[run.checkpoints["step"] == step].iloc[0]
    steps = "initialisation" if step == 0 else f"step {step:,} (epoch {row['epoch']:.3g})"
    return f"{steps}\nloss {row['loss']:.3g}, K = {int(row['num_directions']):,}"


def _draw_points(panel: Axes, x: "pd.Series[float]", y: "pd.Series[float]", colour: str) -> None:
    shown = np.isfinite(y) & (y > 0)
    panel.plot(
        x[shown],
        y[shown],
        linestyle="none",
        marker="o",
        markersize=2.2,
        markeredgewidth=0,
        color=colour,
        alpha=0.45,
        # Thousands of points would make a PDF of megabytes that opens slowly.
        rasterized=True,
    )
    panel.grid(linewidth=0.3, alpha=0.5)
    if hidden := _hidden(y):
        panel.text(
            0.03, 0.03, hidden, transform=panel.transAxes, fontsize=6, va="bottom", color="0.3"
        )


def _hidden(y: "pd.Series[float]") -> str:
    """What has no place on a log axis, in words."""
    kinds = {
        "zero": int((y == 0).sum()),
        "infinite": int(np.isinf(y).sum()),
        "undefined": int(y.isna().sum()),
    }
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)


def _scale_row(panel: Axes, values: NDArray[np.float64], is_ratio: bool) -> None:
    panel.set_yscale("log")
    if is_ratio:
        for shared in panel.get_shared_y_axes().get_siblings(panel):
            shared.axhline(1.0, color="0.5", linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
    panel.set_ylim(*_limits(values, 1.0 if is_ratio else None))
    panel.yaxis.set_major_locator(LogLocator(numticks=5))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _limits(values: NDArray[np.float64], also: float | None) -> tuple[float, float]:
    """Ends of a log axis with all positive finite values, and ``also``, and a margin inside."""
    shown = values[np.isfinite(values) & (values > 0)]
    if also is not None:
        shown = np.append(shown, also)
    if not len(shown):
        return 0.1, 10.0
    low, high = np.log10(shown.min()), np.log10(shown.max())
    margin = max(0.05 * (high - low), 0.1)
    return float(10 ** (low - margin)), float(10 ** (high + margin))


def _draw_curves(panel: Axes, curves: pd.DataFrame, name: str) -> None:
    for part, colour in (("train", _TRAIN), ("test", _TEST)):
        panel.plot(
            curves["epoch"], curves[f"{part}_{name}"], color=colour, linewidth=1.1, label=part
        )
    panel.set_xlabel("epoch")
    panel.set_xlim(0, max(curves["epoch"].max(), 1e-9))
    panel.grid(linewidth=0.3, alpha=0.5)


def _draw_counts(panel: Axes, run: NoiseRun) -> None:
    checkpoints = run.checkpoints
    points: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.0}
    panel.plot(checkpoints["step"], checkpoints["num_directions"], color="0.2", **points)
    panel.set_xscale("symlog", linthresh=1, linscale=0.4)
    panel.set_xlim(-0.2, max(checkpoints["step"].max(), 1) * 1.3)
    panel.set_ylim(0, 1.06 * max(checkpoints["num_directions"].max(), 1))
    panel.set_xlabel("step")
    panel.set_ylabel("directions K")
    panel.grid(linewidth=0.3, alpha=0.5)
