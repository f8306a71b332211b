"""What all charts share: colours, how text and axes look, and how data get to them."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from vivit_bench.report.page.parts import Chart, Spec

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, as in the other figures: told apart with every kind of colour vision."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
"""Beside the colours, for print without them."""
APPROXIMATIONS = {
    "exact, full": "#0072B2",
    "exact, frac": "#56B4E9",
    "mc, full": "#D55E00",
    "mc, frac": "#E69F00",
}
"""Colours of the paper's four approximations."""
INK = "currentColor"
"""The colour of the page's text, light or dark."""
HEIGHT = 260
CHOSEN = "chosen"
"""Parameter that a page's `Control` sets."""
POINTED = "pointed"
"""Parameter with the direction that is pointed at in any chart of a group."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_TEXT = {"labelColor": INK, "titleColor": INK, "labelFont": _FONT, "titleFont": _FONT}
CONFIG: Spec = {
    "background": "transparent",
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {
        **_TEXT,
        **{"labelFontSize": 11, "titleFontSize": 11.5, "titleFontWeight": 500, "titlePadding": 8},
        **{"labelOpacity": 0.8, "labelOverlap": True, "labelSeparation": 4},
        **{"domainColor": INK, "domainOpacity": 0.35, "tickColor": INK, "tickOpacity": 0.35},
        **{"gridColor": INK, "gridOpacity": 0.1, "tickSize": 4},
    },
    # Above its axis a title needs no turned head, and no room beside the chart.
    "axisY": {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleX": 0},
    "axisYQuantitative": {"titleY": -8},
    "legend": {
        **_TEXT,
        **{"orient": "top", "title": None, "labelFontSize": 11.5, "labelLimit": 220},
        **{"symbolSize": 70, "columnPadding": 12, "offset": 14, "symbolStrokeWidth": 2},
    },
    "text": {"color": INK, "font": _FONT, "fontSize": 11},
    "rule": {"color": INK},
    "range": {"category": list(PALETTE), "symbol": list(SHAPES)},
}
"""For every chart of a page."""


def data_of(name: str, frame: pd.DataFrame) -> alt.NamedData:
    """Data that the page has under a name, see `csv_of`, with the kinds of their columns."""
    parse = {str(column): _kind(frame[column]) for column in frame}
    return alt.NamedData(name=name, format=alt.DataFormat({"type": "csv", "parse": parse}))


def csv_of(frame: pd.DataFrame, digits: int = 6) -> str:
    """Data as the page has them; infinities have no place on an axis and are left empty."""
    finite = frame.replace([float("inf"), float("-inf")], float("nan"))
    return finite.to_csv(index=False, float_format=f"%.{digits}g", lineterminator="\n")


def finish(
    chart: Any, key: str, title: str, alt_text: str, *, height: int | None = HEIGHT
) -> Chart:
    """A chart that is as wide as its place.

    Args:
        chart: Of Altair; one view, or layers.
        key: Of the chart.
        title: Above it.
        alt_text: What it shows.
        height: Pixels; None if the chart has its own.
    """
    sized = chart.properties(
        width="container",
        description=alt_text,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    )
    if height is not None:
        sized = sized.properties(height=height)
    spec: Spec = sized.to_dict()
    return Chart(
        key, title, {k: v for k, v in spec.items() if k not in ("config", "$schema")}, alt_text
    )


def colours_of(names: Sequence[str]) -> alt.Scale:
    """A colour for each name, the same wherever the names come in this order."""
    count = len(names)
    return alt.Scale(domain=list(names), range=[PALETTE[i % len(PALETTE)] for i in range(count)])


def colour(field: str, names: Sequence[str], legend: Sequence[str] | None = None) -> alt.Color:
    """`colours_of` for a mark; ``legend``: the names in it, if not all."""
    shown = legend_of(names if legend is None else legend)
    return alt.Color(f"{field}:N", scale=colours_of(names), legend=shown)


def shape(field: str, names: Sequence[str], legend: Sequence[str] | None = None) -> alt.Shape:
    """A shape for each name, as `colour`."""
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
    scale = alt.Scale(domain=list(names), range=shapes)
    shown = legend_of(names if legend is None else legend)
    return alt.Shape(f"{field}:N", scale=scale, legend=shown)


def legend_of(names: Sequence[str]) -> alt.Legend | None:
    """A legend that fits a phone; none for a single name."""
    if len(names) < 2:
        return None
    longest = max(map(len, names))
    return alt.Legend(columns=3 if longest < 12 else 2 if longest < 24 else 1)


def log_axis(field: str, kind: type, title: str, **scale: Any) -> Any:
    """A logarithmic position, its numbers as people write them."""
    axis = alt.Axis(title=title, format="~g", tickCount=6)
    return kind(f"{field}:Q", axis=axis, scale=alt.Scale(type="log", nice=False, **scale))


def tip(field: str, title: str, shown: str = "") -> alt.Tooltip:
    """A line of a tooltip; ``shown`` is a format of d3 for numbers, text without."""
    if not shown:
        return alt.Tooltip(f"{field}:N", title=title)
    return alt.Tooltip(f"{field}:Q", title=title, format=shown)


def _kind(column: "pd.Series[Any]") -> str:
    if pd.api.types.is_bool_dtype(column):
        return "boolean"
    return "number" if pd.api.types.is_numeric_dtype(column) else "string"
