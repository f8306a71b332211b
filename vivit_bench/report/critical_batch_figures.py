"""Bar plots of critical batch sizes (Figures 1b, S.4b and S.5b)."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vivit_bench.arguments import format_size
from vivit_bench.report.critical_batch_marks import predicted_beyond
from vivit_bench.report.critical_batch_selection import circumstances, words_of_options
from vivit_bench.report.figures import STYLE, save_figure

# Okabe and Ito's palette, as in the spectra; light ones carry a fraction of the samples.
_BARS = {
    ("exact", "full"): ("exact, full", "#0072B2"),
    ("exact", "frac"): ("exact, frac", "#8CC3E3"),
    ("mc", "full"): ("mc, full", "#D55E00"),
    ("mc", "frac"): ("mc, frac", "#F2B084"),
}
_ALONE = {"gradient": ("gradient", "#7F7F7F"), "step": ("step", "#009E73")}
_QUANTITIES = ("gradient", "step", "eigenvalues", "block-newton", "full-newton")
_BAR_INCHES = 0.36
_PREDICTED = "predicted"

Group = tuple[str, list[dict[str, Any]]]


def plot_critical_batch_sizes(rows: pd.DataFrame, stem: Path) -> list[Path]:
    """Draw one problem's critical batch sizes on one device, as PNG (200 dpi) and PDF.

    Args:
        rows: Of one problem and device, from a `Selection`.
        stem: Path of the files without their endings.

    Returns:
        Paths of the PNG and the PDF.

    Raises:
        UsageError: They cannot be written.
    """
    return save_figure(draw_critical_batch_sizes(rows), stem)


def draw_critical_batch_sizes(rows: pd.DataFrame) -> Figure:
    """Draw the bars of ``plot_critical_batch_sizes`` without storing them.

    One group per quantity (and engine, if there are several), the gradient first; log axis;
    every bar with its number. An outline goes on to where memory is predicted to end a search that
    time, say, ended before.
    """
    groups = _groups(rows)
    bars = sum(len(group) for _, group in groups)
    width = max(3.4, 0.9 + _BAR_INCHES * (bars + len(groups)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 2.5), layout="constrained")
        FigureCanvasAgg(figure)
        panel = figure.subplots()
        _draw_groups(panel, groups)
        panel.set_yscale("log")
        # Bars begin below 1 so that a 1 is seen; there is room for the numbers above.
        panel.set_ylim(0.7, max(10, panel.dataLim.y1) * 2.5)
        first = rows.iloc[0]
        limits = " / ".join(format_size(int(v)) for v in sorted(set(rows["memory_limit_bytes"])))
        about = [_short(first["problem"]), first["device"], *words_of_options(rows)]
        panel.set_title(f"{', '.join(about)}, memory limit {limits}\n{circumstances(rows)}")
        panel.set_ylabel("critical batch size")
        named = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        labels = sorted(named, key=lambda label: label == _PREDICTED)  # which comes last
        handles = [named[label] for label in labels]
        columns = 6 if width >= 5.5 else 3
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _groups(rows: pd.DataFrame) -> list[Group]:
    """Label of each group and its bars, in the order of the axis."""
    engines = sorted(set(rows["engine"]), key=lambda name: (name != "vivit-bench", name))
    several = rows.loc[rows["quantity"] != "gradient", "engine"].nunique() > 1
    groups: list[Group] = []
    for quantity in _QUANTITIES:
        for engine in engines:
            if quantity == "gradient" and groups:
                continue  # one of them is enough
            part = rows[(rows["quantity"] == quantity) & (rows["engine"] == engine)]
            ordered = [
                part[(part["curvature"] == curvature) & (part["samples"] == samples)]
                for curvature, samples in (("", ""), *_BARS)
            ]
            bars = [dict(found.iloc[-1].items()) for found in ordered if not found.empty]
            if bars:
                named = several and quantity != "gradient"
                groups.append((f"{quantity}\n{engine}" if named else quantity, bars))
    return groups


def _draw_groups(panel: Axes, groups: list[Group]) -> None:
    labelled: set[str] = set()
    ticks = []
    position = 0.0
    for _, bars in groups:
        places = position + np.arange(len(bars))
        ticks.append(float(places.mean()))
        for place, bar in zip(places, bars, strict=True):
            label, colour = _ALONE.get(bar["quantity"]) or _BARS[bar["curvature"], bar["samples"]]
            size = int(bar["critical_batch_size"])
            shown = "" if label in labelled else label
            panel.bar(place, size, width=0.9, color=colour, edgecolor="white", label=shown)
            labelled.add(label)
            at_least = r"$\geq$" if bar["is_lower_bound"] else ""
            _write(panel, place, size, f"{at_least}{size}")
            if (beyond := predicted_beyond(bar)) is not None:
                shown = "" if _PREDICTED in labelled else _PREDICTED
                panel.bar(
                    place,
                    beyond[0],
                    width=0.8,
                    facecolor="none",
                    edgecolor="0.35",
                    linestyle=(0, (2, 1.5)),
                    linewidth=0.6,
                    label=shown,
                )
                labelled.add(_PREDICTED)
                _write(panel, place, beyond[0], f"{beyond[0]}", color="0.35")
        position = float(places[-1]) + 2.0
    panel.set_xticks(ticks, [label for label, _ in groups])
    panel.tick_params(axis="x", length=0)


def _write(panel: Axes, place: float, size: int, text: str, color: str = "black") -> None:
    """A number above a bar."""
    panel.annotate(
        text,
        (place, max(size, 1)),
        xytext=(0, 1.5),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=6,
        color=color,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
    )


def _short(problem: str) -> str:
    """Name of a problem, without the folders of a user's file."""
    return problem.rsplit("/", 1)[-1]
