"""Figure of peak memory and seconds against N, from the trials of stored searches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from vivit_bench.arguments import format_size
from vivit_bench.curvature.options import Precision
from vivit_bench.measure import Outcome, Trial
from vivit_bench.measure.budget import MIB
from vivit_bench.peers import Quantity
from vivit_bench.report.critical_batch_curves import Curve, unrecorded_seconds
from vivit_bench.report.critical_batch_marks import (
    is_predicted_of_memory,
    predicted_size,
    short_mark_of,
)
from vivit_bench.report.critical_batch_selection import circumstances, way_of_running
from vivit_bench.report.figures import STYLE, save_figure

# Okabe and Ito's palette, as in the other figures; markers differ for print without colour.
_LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
_GREY = "#555555"
Point = tuple[Trial, float, bool]
"""A trial, what it took, and whether that is all of it."""


def plot_growth(curves: Sequence[Curve], stem: Path) -> list[Path]:
    """Draw some engines' growth side by side, as PNG (200 dpi) and PDF.

    Args:
        curves: Of one figure, from `curves_of`.
        stem: Path of the files without their endings.

    Returns:
        Paths of the PNG and the PDF.

    Raises:
        UsageError: They cannot be written.
    """
    return save_figure(draw_growth(curves), stem)


def draw_growth(curves: Sequence[Curve]) -> Figure:
    """Draw the figure of ``plot_growth`` without storing it.

    Log-log, peaks in MiB left and seconds of the work right. Filled markers fit, hollow ones do
    not; an arrow marks what was stopped before its end, so that there is more of it. Dashed: what
    was expected; dotted: the memory limit; vertical lines: the critical batch sizes.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 3.3), layout="constrained")
        FigureCanvasAgg(figure)
        peaks, seconds = figure.subplots(1, 2, sharex=True)
        for number, curve in enumerate(curves):
            _draw_peaks(peaks, curve, number)
            _draw_seconds(seconds, curve, number)
        _draw_limits(peaks, curves)
        of_step = curves[0].row["quantity"] == Quantity.STEP
        of_whom = "of the process" if of_step else "over the idle process"
        for panel, label in (
            (peaks, f"peak {of_whom} (MiB)"),
            (seconds, "seconds of the work"),
        ):
            _scale(panel)
            panel.set_xlabel("mini-batch size N")
            panel.set_ylabel(label)
            _mark_critical(panel, curves)
        figure.suptitle(_title(curves), fontsize=8)
        figure.legend(handles=_legend(curves), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_peaks(panel: Axes, curve: Curve, number: int) -> None:
    colour, _ = _LOOKS[number % len(_LOOKS)]
    known = [trial for trial in curve.run if trial.peak_bytes]
    points = [(t, (t.peak_bytes or 0) / MIB, curve.is_whole(t)) for t in known]
    _draw_points(panel, points, number)
    _draw_expected(panel, curve, [(n, need / MIB) for n, need in curve.planned], colour)


def _draw_seconds(panel: Axes, curve: Curve, number: int) -> None:
    points = []
    for trial in curve.run:
        if trial.work_seconds is not None:
            points.append((trial, trial.work_seconds, True))
        elif trial.outcome is Outcome.TIMEOUT:
            points.append((trial, trial.timeout_seconds, False))
    colour = _LOOKS[number % len(_LOOKS)][0]
    _draw_expected(panel, curve, curve.expected, colour)
    # Those of one CPU are no continuation of the others.
    shared = [point for point in points if _on_one_cpu(curve, point[0])]
    _draw_points(panel, [point for point in points if point not in shared], number)
    _draw_points(panel, shared, number)
    panel.plot(
        [trial.n for trial, _, _ in shared],
        [value for _, value, _ in shared],
        "_",
        color=colour,
        markersize=9,
        zorder=4,
    )


def _draw_expected(
    panel: Axes, curve: Curve, points: Sequence[tuple[int, float]], colour: str
) -> None:
    """A dashed line over the N that were run, or where memory was expected to be full."""
    sizes = [trial.n for trial in curve.run]
    last = max([*sizes, predicted_size(curve.row)[0] or 0], default=0)
    shown = [(n, value) for n, value in points if min(sizes, default=1) <= n <= 1.15 * last]
    xs, ys = [n for n, _ in shown], [value for _, value in shown]
    panel.plot(xs, ys, "--", color=colour, linewidth=1.0, zorder=1)


def _draw_points(panel: Axes, points: Sequence[Point], number: int) -> None:
    """A line through what was run to its end, and a marker for each trial."""
    colour, marker = _LOOKS[number % len(_LOOKS)]
    look: dict[str, Any] = {"color": colour, "zorder": 3}
    whole = [(trial.n, value) for trial, value, is_whole in points if is_whole]
    panel.plot([n for n, _ in whole], [v for _, v in whole], color=colour, linewidth=0.7, alpha=0.4)
    above = ScaledTranslation(0, 6 / 72, panel.figure.dpi_scale_trans)
    for trial, value, is_whole in points:
        face = colour if trial.outcome is Outcome.FITS else "white"
        panel.plot(trial.n, value, marker, markerfacecolor=face, markersize=4, **look)
        if not is_whole:
            arrow = panel.transData + above
            panel.plot(trial.n, value, marker=r"$\uparrow$", markersize=6, transform=arrow, **look)


def _draw_limits(panel: Axes, curves: Sequence[Curve]) -> None:
    """Memory limits, and on them where engines are predicted to meet them."""
    for limit in sorted({int(curve.row["memory_limit_bytes"]) for curve in curves}):
        panel.axhline(limit / MIB, color=_GREY, linewidth=0.9, linestyle=":", zorder=1)
        panel.annotate(
            format_size(limit),
            (0.01, limit / MIB),
            xycoords=panel.get_yaxis_transform(),
            xytext=(0, 1.5),
            textcoords="offset points",
            fontsize=6,
            color=_GREY,
        )
    for number, curve in enumerate(curves):
        size, low, high = predicted_size(curve.row)
        if size is None or not _has_star(curve.row):
            continue
        ends = None if low is None or high is None else [[size - low], [high - size]]
        panel.errorbar(
            size,
            curve.row["memory_limit_bytes"] / MIB,
            xerr=ends,
            fmt="*",
            color=_LOOKS[number % len(_LOOKS)][0],
            markersize=7,
            elinewidth=0.9,
            capsize=2,
            zorder=4,
        )


def _mark_critical(panel: Axes, curves: Sequence[Curve]) -> None:
    """A vertical line for each critical batch size, its number above the panel."""
    order = sorted(range(len(curves)), key=lambda i: curves[i].row["critical_batch_size"])
    for place, number in enumerate(order):
        row, colour = curves[number].row, _LOOKS[number % len(_LOOKS)][0]
        if not row["critical_batch_size"]:
            continue
        panel.axvline(row["critical_batch_size"], color=colour, linewidth=0.8, alpha=0.7, zorder=0)
        # Numbers that are near each other grow apart.
        sides = ["center"] if len(order) == 1 else ["right", "left"]
        panel.annotate(
            _critical(row),
            (row["critical_batch_size"], 1.0),
            xycoords=panel.get_xaxis_transform(),
            xytext=(0, 2 + 7 * (place // 2)),
            textcoords="offset points",
            ha=sides[min(place, 1) if len(sides) > 1 else 0],
            fontsize=6.5,
            color=colour,
        )


def _scale(panel: Axes) -> None:
    panel.set_xscale("log")
    _tick(panel.xaxis)
    if any(len(line.get_xdata()) for line in panel.lines):  # type: ignore[arg-type]
        panel.set_yscale("log")
        bottom, top = panel.get_ylim()
        panel.set_ylim(bottom, top * (top / bottom) ** 0.07)  # room for arrows
        _tick(panel.yaxis)
    else:
        panel.set_yticks([])
    panel.grid(which="major", linewidth=0.3, alpha=0.5)


def _tick(axis: Axis) -> None:
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(curves: Sequence[Curve]) -> list[Line2D]:
    """Engines with their critical sizes, then what else there is to explain."""

    def entry(label: str, **look: Any) -> Line2D:
        return Line2D([], [], label=label, **{"color": _GREY, "linestyle": "none", **look})

    engines = [
        entry(
            f"{curve.row['engine']}: critical N {_critical(curve.row)}",
            color=_LOOKS[number % len(_LOOKS)][0],
            marker=_LOOKS[number % len(_LOOKS)][1],
            markersize=4,
            linestyle="-",
            linewidth=0.8,
        )
        for number, curve in enumerate(curves)
    ]
    run = [(curve, trial) for curve in curves for trial in curve.run]
    hollow = {"marker": "o", "markersize": 4, "markerfacecolor": "white"}
    shares = any(_on_one_cpu(c, t) and t.work_seconds is not None for c, t in run)
    predicted = any(_has_star(c.row) for c in curves)
    others = {
        "did not fit, or did not end": any(t.outcome is not Outcome.FITS for _, t in run),
        "stopped before its end: at least this": any(not c.is_whole(t) for c, t in run),
        "all threads on one CPU (small, or near the limit)": shares,
        "expected (leanest plan, or small trials)": any(c.planned or c.expected for c in curves),
        "critical N predicted (95 %)": predicted,
        "memory limit": True,
    }
    looks: list[dict[str, Any]] = [
        hollow,
        {"marker": r"$\uparrow$", "markersize": 6},
        {"marker": "_", "markersize": 9},
        {"linestyle": "--", "linewidth": 1.0},
        {"marker": "*", "markersize": 7},
        {"linestyle": ":", "linewidth": 0.9},
    ]
    return engines + [
        entry(label, **look)
        for (label, is_there), look in zip(others.items(), looks, strict=True)
        if is_there
    ]


def _has_star(row: dict[str, Any]) -> bool:
    """Whether memory did not end the search, and where it would have is predicted."""
    return bool(short_mark_of(row)) and is_predicted_of_memory(row)


def _on_one_cpu(curve: Curve, trial: Trial) -> bool:
    """Whether a trial's threads shared one CPU: it is small, or near the limit."""
    shared = trial.confirmed or trial.n in curve.found.small
    return bool(shared and curve.row["device"] == "cpu" and curve.row["threads"] != 1)


def _critical(row: dict[str, Any]) -> str:
    """A critical batch size, and what ended the search if not memory."""
    size = f"{int(row['critical_batch_size']):,}"
    mark = short_mark_of(row)
    return f"≥ {size} {mark}" if mark else size


def _title(curves: Sequence[Curve]) -> str:
    rows = pd.DataFrame([curve.row for curve in curves])
    row = curves[0].row
    draws = f"mc (M = {row['mc_samples']})" if row["mc_samples"] != 1 else row["curvature"]
    parts = [row["problem"].rsplit("/", 1)[-1], row["quantity"], draws, row["samples"]]
    parts += [row["dtype"], row["device"]]
    named = ", ".join(part for part in parts if part and part != Precision.FLOAT32)
    lines = [named, f"{circumstances(rows)}; {way_of_running(rows)}"]
    if missing := unrecorded_seconds(curves):
        lines.append(missing)
    return "\n".join(lines)
