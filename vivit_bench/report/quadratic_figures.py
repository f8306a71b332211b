"""Figures of the noisy-quadratic experiment: the loss curves (Figure 3) and the dampings."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vivit_bench.quadratic.records import Results
from vivit_bench.quadratic.settings import OptimizerName
from vivit_bench.report.figures import STYLE, save_figure
from vivit_bench.report.quadratic import curve_table

_BOOTSTRAP = "#D55E00"
_SGD = "#000000"


def plot_results(results: Results, folder: Path) -> list[Path]:
    """Draw ``figure_3`` and, with the bootstrap, ``dampings`` as PNG (200 dpi) and PDF.

    Returns:
        Paths of the files.
    """
    paths = save_figure(draw_losses(results), folder / "figure_3")
    if len(results.dampings):
        paths += save_figure(draw_dampings(results), folder / "dampings")
    return paths


def draw_losses(results: Results) -> Figure:
    """Figure 3: median loss with its quartile band against the step, a line per optimiser."""
    curves = curve_table(results)
    with matplotlib.rc_context(STYLE):
        figure, panel = _figure(4.6, 3.0)
        for label, style in _line_styles(results):
            curve = curves[curves["optimizer"] == label]
            panel.fill_between(
                curve["step"],
                curve["lower_quartile"],
                curve["upper_quartile"],
                color=style["color"],
                alpha=0.15,
                linewidth=0,
                zorder=style["zorder"] - 0.5,
            )
            panel.plot(curve["step"], curve["median"], label=_legend(label), **style)
        panel.set_yscale("log")
        panel.set_xlim(0, results.settings["steps"])
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        panel.set_xlabel("step")
        panel.set_ylabel(r"loss $L(\theta)$")
        panel.grid(axis="y", linewidth=0.3, alpha=0.5)
        figure.legend(loc="outside right center", frameon=False, handlelength=2.4)
        figure.suptitle(_title(results), fontsize=8)
    return figure


def draw_dampings(results: Results) -> Figure:
    """Dampings the bootstrap chose against the direction's true curvature.

    Above, median and quartiles of the finite ones; below, the share of infinite ones, where
    no step was taken. Early and late steps apart: the slopes' signal fades on the way.
    """
    with matplotlib.rc_context(STYLE):
        figure, (above, below) = _figure(4.0, 3.8, rows=2)
        for index, (label, chosen) in enumerate(_phases(results)):
            colour = colormaps["viridis"](0.1 + 0.37 * index)
            _draw_phase(above, below, chosen, label, colour)
        settings = results.settings
        for end in (settings["grid_low"], settings["grid_high"]):
            above.axhline(end, color="0.6", linewidth=0.6, linestyle=":")
        above.set_yscale("log")
        above.set_ylabel("chosen damping, finite ones")
        below.set_ylabel("share infinite")
        below.set_ylim(-0.03, 1.03)
        below.set_xlabel(r"curvature along the direction, $e_k^\top \nabla^2 L\, e_k$")
        below.grid(axis="y", linewidth=0.3, alpha=0.5)
        if max(settings["curvatures"]) > 100 * min(settings["curvatures"]):
            below.set_xscale("log")
        else:
            below.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10]))
        above.legend(loc="best", frameon=False)
        figure.suptitle(_title(results), fontsize=8)
    return figure


def _figure(width: float, height: float, rows: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [2, 1][:rows]
    return figure, figure.subplots(rows, 1, sharex=True, height_ratios=ratios)


def _line_styles(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and style of every optimiser, in the order of the run."""
    labels = list(dict.fromkeys(results.losses["optimizer"]))
    constants = [label for label in labels if label not in set(OptimizerName)]
    for label in labels:
        if label == OptimizerName.SGD:
            yield label, {"color": _SGD, "linestyle": (0, (4, 2)), "linewidth": 1.3, "zorder": 4}
        elif label == OptimizerName.BOOTSTRAP:
            yield label, {"color": _BOOTSTRAP, "linewidth": 2.0, "zorder": 5}
        else:
            place = constants.index(label)
            # Neighbours in colour differ in dashes.
            yield (
                label,
                {
                    "color": colormaps["viridis"](0.95 * place / max(1, len(constants) - 1)),
                    "linestyle": (0, (5, 1, 1, 1)) if place % 2 else "-",
                    "linewidth": 1.2,
                    "zorder": 3,
                },
            )


def _legend(label: str) -> str:
    """An optimiser's name in a legend: the paper's powers of ten where they fit."""
    if label == OptimizerName.SGD:
        return "SGD"
    if label in set(OptimizerName):
        return label
    name, number = label.split(" ")
    exponent = math.log10(float(number)) if float(number) > 0 else math.nan
    return rf"{name} $10^{{{exponent:.0f}}}$" if exponent.is_integer() else label


def _phases(results: Results) -> Iterator[tuple[str, pd.DataFrame]]:
    """The first step, the two after it and the rest, those that exist."""
    last = results.settings["steps"]
    for first, final in ((1, 1), (2, min(3, last)), (4, last)):
        if first <= final:
            label = f"step {first}" if first == final else f"steps {first}-{final}"
            yield label, results.dampings[results.dampings["step"].between(first, final)]


def _draw_phase(above: Axes, below: Axes, chosen: pd.DataFrame, label: str, colour: Any) -> None:
    infinite = np.isinf(chosen["damping"])
    share = infinite.groupby(chosen["curvature"]).mean()
    below.plot(share.index, share, color=colour, marker=".", markersize=4, linewidth=1)
    finite = chosen[~infinite].groupby("curvature")["damping"]
    lower, median, upper = (finite.quantile(level) for level in (0.25, 0.5, 0.75))
    above.fill_between(median.index, lower, upper, color=colour, alpha=0.18, linewidth=0)
    above.plot(
        median.index, median, color=colour, marker=".", markersize=4, linewidth=1, label=label
    )


def _title(results: Results) -> str:
    settings = results.settings
    return (
        f"noisy quadratic, D = {len(settings['curvatures'])}, N = {settings['batch_size']}, "
        f"{settings['repeats']} repetitions, seed {settings['seed']}"
        f"{results.started_on and f' ({results.started_on})'}"
    )
