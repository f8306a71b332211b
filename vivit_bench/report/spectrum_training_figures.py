"""Spectra over a training run: leading eigenvalues, trace and rank against the checkpoint."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from vivit_bench.report.figures import STYLE, save_figure
from vivit_bench.report.spectrum_figures import (
    COLUMN_INCHES,
    common_cutoff,
    computed_when,
    workload_of,
)
from vivit_bench.spectrum.over_training import short_names, varying_number
from vivit_bench.spectrum.record import SpectrumRecord

LEADING = 10
"""Eigenvalues that are drawn one by one."""

_BLUE, _ORANGE = "#0072B2", "#D55E00"
# From this ratio of the last to the first step on, early checkpoints would lie on each other.
_LOGARITHMIC_FROM = 30
_AXIS_INCHES, _DIGIT_INCHES = 2.6, 0.06


def plot_over_training(
    records: Sequence[SpectrumRecord], stem: Path, *, cutoff: float | None = None
) -> list[Path]:
    """Draw spectra of one model's checkpoints against the checkpoint, as PNG (200 dpi) and PDF.

    Args:
        records: A spectrum per checkpoint, in their order.
        stem: Path of the files without their endings.
        cutoff: Eigenvalues above it are counted; None: the one the spectra were made with.

    Returns:
        Paths of the PNG and the PDF.

    Raises:
        UsageError: No cutoff is given and the spectra have different ones.
    """
    chosen = common_cutoff(records) if cutoff is None else cutoff
    return save_figure(draw_over_training(records, cutoff=chosen), stem)


def draw_over_training(records: Sequence[SpectrumRecord], *, cutoff: float) -> Figure:
    """Draw the figure of ``plot_over_training`` without storing it."""
    names = short_names([str(record.settings.workload.checkpoint) for record in records])
    growing = varying_number(names)
    places = np.array(growing[1] if growing else range(len(records)), dtype=float)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_INCHES, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
        _draw_leading(panels[0], places, leading_eigenvalues(records))
        _draw_line(panels[1], places, [record.trace for record in records], "trace", _BLUE)
        above = [int((record.eigenvalues > cutoff).sum()) for record in records]
        _draw_line(panels[2], places, above, f"eigenvalues\n> {cutoff:g}", _ORANGE)
        _from_zero(panels[2], above)
        if all(record.trace > 0 for record in records):
            panels[1].set_yscale("log")
            _few_decades(panels[1], [record.trace for record in records])
        if growing:
            _scale_steps(panels[-1], places)
            panels[-1].set_xlabel(growing[0])
        else:
            _name_checkpoints(panels[-1], names)
        for panel in panels:
            panel.grid(axis="y", linewidth=0.3, alpha=0.5)
        figure.suptitle(_title(records), fontsize=8)
        figure.align_ylabels(panels)
    return figure


def leading_eigenvalues(records: Sequence[SpectrumRecord]) -> NDArray[np.float64]:
    """The largest eigenvalues of each spectrum.

    Returns:
        [records, at most `LEADING`], descending in a row; NaN where a spectrum has fewer or one
        is not positive and finite, for which a logarithmic axis has no place.
    """
    count = min(LEADING, max((len(record.eigenvalues) for record in records), default=0))
    values = np.full((len(records), count), np.nan)
    for row, record in zip(values, records, strict=True):
        own = record.eigenvalues[:count]
        row[: len(own)] = np.where((own > 0) & np.isfinite(own), own, np.nan)
    return values


def _draw_leading(panel: Axes, places: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    count = values.shape[1]
    for k in reversed(range(count)):  # the largest lies on top
        colour = colormaps["viridis"](0.85 * k / max(count - 1, 1))
        panel.plot(places, values[:, k], "o-", color=colour, markersize=2.2, linewidth=1)
    panel.set_ylabel("GGN eigenvalue")
    finite = values[np.isfinite(values)]
    if len(finite):
        panel.set_yscale("log")
        _few_decades(panel, finite)
    # Said at the ends of the lines, as a legend of ten would hide them.
    for k in dict.fromkeys((0, count - 1)) if count else ():
        if np.isfinite(values[-1, k]):
            panel.annotate(
                rf"$\lambda_{{{k + 1}}}$",
                (places[-1], values[-1, k]),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                annotation_clip=False,
            )


def _draw_line(
    panel: Axes,
    places: NDArray[np.float64],
    values: Sequence[float],
    label: str,
    colour: str,
) -> None:
    panel.plot(places, values, "o-", color=colour, markersize=2.5, linewidth=1)
    panel.set_ylabel(label)


def _from_zero(panel: Axes, counts: Sequence[int]) -> None:
    panel.set_ylim(0, 1.1 * max(*counts, 1))
    panel.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _few_decades(panel: Axes, values: Sequence[float] | NDArray[np.float64]) -> None:
    """Label a logarithmic axis at 1, 2 and 5 where it has less than two decades."""
    low, high = np.log10(min(values)), np.log10(max(values))
    if high - low < 1.8:
        marks = [d * 10.0**e for e in range(int(low) - 2, int(high) + 2) for d in (1, 2, 5)]
        panel.yaxis.set_major_locator(FixedLocator(marks))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _scale_steps(panel: Axes, places: NDArray[np.float64]) -> None:
    """A tick at each checkpoint that has room for its number; early ones told apart."""
    positive = places[places > 0]
    if len(positive) and positive[-1] / positive[0] >= _LOGARITHMIC_FROM:
        # Linear up to the first positive one, as training begins at 0.
        panel.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    scale = panel.xaxis.get_transform()
    drawn = scale.transform(places)
    length = drawn[-1] - drawn[0]
    # Matplotlib's margins of such an axis are a third of it.
    ends = np.array([drawn[0] - 0.05 * length, drawn[-1] + 0.05 * length])
    panel.set_xlim(*scale.inverted().transform(ends))
    inches = (drawn - drawn[0]) / length * _AXIS_INCHES
    widths = [_DIGIT_INCHES * (len(f"{place:g}") + 1) for place in places]
    shown = [len(places) - 1]  # the last is the one that matters most
    for k in range(len(places) - 2, -1, -1):
        if inches[shown[-1]] - inches[k] >= (widths[k] + widths[shown[-1]]) / 2:
            shown.append(k)
    panel.xaxis.set_major_locator(FixedLocator([float(places[k]) for k in reversed(shown)]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())


def _name_checkpoints(panel: Axes, names: Sequence[str]) -> None:
    """Names below equally spaced points, slanted where they are long."""
    every = -(-len(names) // 12)
    shown = range(0, len(names), every)
    panel.xaxis.set_major_locator(FixedLocator(list(shown)))
    slanted = max(map(len, names)) * _DIGIT_INCHES * len(shown) > _AXIS_INCHES
    panel.set_xticklabels(
        [textwrap.shorten(names[k], 24, placeholder="...") for k in shown],
        rotation=35 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor",
    )
    panel.set_xlabel("checkpoint")


def _title(records: Sequence[SpectrumRecord]) -> str:
    first = records[0]
    described = f"{workload_of(first, with_weights=False)}, {first.settings.variant}"
    return textwrap.fill(f"{described}{computed_when(records)}", 56)
