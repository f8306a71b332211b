"""Figure of the engines' cost against N."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from vivit_bench.comparison.scaling import Series
from vivit_bench.measure import Outcome
from vivit_bench.measure.budget import MIB
from vivit_bench.report.comparison import ENDINGS, describe
from vivit_bench.report.figures import STYLE, write_figure

# Okabe and Ito's palette, as in the other figures; markers differ for print without colour.
_LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
_PANELS = {
    "time": ("time (s), median with interval", 1),
    "peak": ("peak over the idle process (MiB)", MIB),
}
_ENDS = ("wall_low_seconds", "wall_high_seconds")


def plot_series(series: Series, path: Path) -> None:
    """Draw time and peak against N into one file.

    Args:
        series: With at least one row.
        path: Its ending says the format: ``.png`` (200 dpi), ``.pdf`` or ``.svg``.

    Raises:
        StorageError: It cannot be written.
    """
    write_figure(draw_series(series), path)


def draw_series(series: Series) -> Figure:
    """Draw the figure of ``plot_series`` without storing it.

    Log-log; medians with their intervals (of peaks there is one reading), a fitted power law dashed
    over the N that it was fitted over, and its exponent in the legend; a cross on the upper edge
    where an engine failed.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 2.9), layout="constrained")
        FigureCanvasAgg(figure)
        for panel, cost in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            _draw_panel(panel, series, cost)
        figure.suptitle(describe(series), fontsize=8)
    return figure


def _draw_panel(panel: Axes, series: Series, cost: str) -> None:
    label, unit = _PANELS[cost]
    panel.set_xscale("log")
    panel.set_yscale("log")
    for number, engine in enumerate(series.engines):
        colour, marker = _LOOKS[number % len(_LOOKS)]
        costs = {n: value / unit for n, value in series.costs(engine, cost).items()}
        law = series.law(engine, cost)
        name = engine if law is None else f"{engine}: $N^{{{law.exponent:.2f}}}$"
        panel.errorbar(
            list(costs),
            list(costs.values()),
            yerr=_bars(series, engine, costs) if cost == "time" else None,
            fmt=marker,
            markersize=3.5,
            color=colour,
            elinewidth=0.8,
            capsize=2,
            label=name,
        )
        if law is not None:
            ends = [law.batch_sizes[0], law.batch_sizes[-1]]
            line = [law(n) / unit for n in ends]
            panel.plot(ends, line, color=colour, linewidth=0.9, linestyle="--", zorder=1)
        _cross_out(panel, [row for row in series.rows if row["engine"] == engine], number)
    sizes = sorted({row["batch_size"] for row in series.rows})
    panel.set_xticks(sizes, [str(n) for n in sizes])
    panel.xaxis.set_minor_locator(NullLocator())
    low, high = panel.get_ylim()
    panel.set_ylim(low / 1.3, high * 1.6)  # room for the legend, and for more than one label
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("mini-batch size N")
    panel.set_ylabel(label)
    panel.grid(which="major", linewidth=0.3, alpha=0.5)
    panel.legend(loc="best", frameon=False)


def _cross_out(panel: Axes, rows: list[dict[str, Any]], number: int) -> None:
    """Mark where an engine failed, and beside the first of these N how."""
    failed = [row for row in rows if row["failure"]]
    if not failed:
        return
    # Engines that fail at the same N have their crosses below each other.
    height, colour = 0.98 - 0.05 * number, _LOOKS[number % len(_LOOKS)][0]
    edge = panel.get_xaxis_transform()
    sizes = [row["batch_size"] for row in failed]
    panel.plot(sizes, [height] * len(sizes), "x", transform=edge, markersize=4.5, color=colour)
    panel.annotate(
        ENDINGS[Outcome(failed[0]["outcome"])],
        (sizes[0], height),
        xycoords=edge,
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=6,
        color=colour,
    )


def _bars(series: Series, engine: str, medians: dict[int, float]) -> list[list[float]]:
    """How far an interval goes below and above each median; not at all where there is none."""
    rows = {row["batch_size"]: row for row in series.rows if row["engine"] == engine}
    ends = {n: [rows[n].get(name) or medians[n] for name in _ENDS] for n in medians}
    below = [max(medians[n] - low, 0.0) for n, (low, _) in ends.items()]
    above = [max(high - medians[n], 0.0) for n, (_, high) in ends.items()]
    return [below, above]
