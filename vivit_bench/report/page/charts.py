"""What all charts share: colours, how text and axes look, and how data get to them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import pandas as pd

from vivit_bench.peers import engine_names
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

_SMALLEST = 20
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_POWERS = (
    "datum.value >= 0.001 && datum.value < 1e6 ? format(datum.value, ',~g') : "
    f"{['10' + str(k).translate(_RAISED) for k in range(-_SMALLEST, _SMALLEST + 1)]}"
    f"[round(log(datum.value) / LN10) + {_SMALLEST}]"
)
"""Label of a tick: powers of ten as people write them where zeros could not be counted."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_TEXT = {"labelColor": INK, "titleColor": INK, "labelFont": _FONT, "titleFont": _FONT}
CONFIG: Spec = {
    "background": "transparent",
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {
        **_TEXT,
        **{"labelFontSize": 11, "titleFontSize": 11.5, "titleFontWeight": 500, "titlePadding": 6},
        **{"labelOpacity": 0.8, "labelOverlap": True, "labelSeparation": 4},
        **{"domainColor": INK, "domainOpacity": 0.35, "tickColor": INK, "tickOpacity": 0.35},
        **{"gridColor": INK, "gridOpacity": 0.1, "tickSize": 4},
    },
    "legend": {
        **_TEXT,
        **{"orient": "top", "title": None, "labelFontSize": 11.5, "labelLimit": 220},
        **{"symbolSize": 80, "columnPadding": 14, "offset": 10, "symbolStrokeWidth": 2},
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
    spec: Spec = sized.to_dict(validate=False)  # a test does
    return Chart(
        key, title, {k: v for k, v in spec.items() if k not in ("config", "$schema")}, alt_text
    )


def colours_of(names: Sequence[str]) -> alt.Scale:
    """A colour for each name; an engine has the same on the whole page."""
    return alt.Scale(domain=list(names), range=[PALETTE[i % len(PALETTE)] for i in _places(names)])


def colour(field: str, names: Sequence[str], legend: alt.Legend | None = None) -> alt.Color:
    """`colours_of` for a mark; ``legend``: another than that of all names."""
    return alt.Color(f"{field}:N", scale=colours_of(names), legend=legend or legend_of(names))


def shape(field: str, names: Sequence[str], legend: alt.Legend | None = None) -> alt.Shape:
    """A shape for each name, as `colour`."""
    shapes = [SHAPES[i % len(SHAPES)] for i in _places(names)]
    scale = alt.Scale(domain=list(names), range=shapes)
    return alt.Shape(f"{field}:N", scale=scale, legend=legend or legend_of(names))


def legend_of(
    names: Sequence[str], *, as_lines: bool = False, columns: int | None = None
) -> alt.Legend:
    """A legend of these names that fits a phone; beside long labels in one column."""
    longest = max(map(len, names), default=0)
    columns = columns or (3 if longest < 14 else 2 if longest < 24 else 1)
    if as_lines:
        return alt.Legend(
            values=list(names),
            columns=columns,
            symbolType="stroke",
            symbolOpacity=1,
            symbolSize=200,
        )
    return alt.Legend(values=list(names), columns=columns, symbolOpacity=1)


def log_axis(
    kind: type,
    field: str,
    values: Iterable[float | None],
    title: str | None = None,
    *,
    is_fitted: bool = False,
) -> Any:
    """A logarithmic position with a line at powers of ten, or at 1, 2 and 5 times these.

    Args:
        kind: ``alt.X`` or ``alt.Y``.
        field: What is drawn.
        values: All that must be on the axis; those that have no place there do not count.
        title: Of the axis; None where the chart's says it.
        is_fitted: The axis is as long as what is chosen of the values needs, and not for all.
    """
    low, high = ends_of(values)
    ticks = _ticks(low, high, most=20 if is_fitted else 3)
    reach: dict[str, Any] = {"padding": 14} if is_fitted else {"domain": [low, high]}
    axis = alt.Axis(
        title=title,
        labelExpr=_POWERS if low < 1e-3 or high >= 1e6 else "format(datum.value, ',~g')",
        **({"values": ticks} if len(ticks) > 1 else {"tickCount": 4}),
    )
    return kind(f"{field}:Q", axis=axis, scale=alt.Scale(type="log", nice=False, **reach))


def zero_and_powers(top: int) -> list[int]:
    """Ticks of an axis that is logarithmic but for its zero."""
    return [0, *(10**k for k in range(len(str(max(top, 1)))))]


def names_axis(width: int, *, lines: int = 1) -> alt.Axis:
    """An axis of names.

    Args:
        width: Pixels after which a name is cut.
        lines: On which it stands, parted by ``|``.
    """
    look: dict[str, Any] = {"labelExpr": "split(datum.label, '|')"} if lines > 1 else {}
    return alt.Axis(title=None, labelLimit=width, ticks=False, domain=False, **look)


def ends_of(values: Iterable[float | None]) -> tuple[float, float]:
    """Ends of a logarithmic axis with a margin for what is drawn."""
    shown = [float(v) for v in values if v is not None and math.isfinite(v) and v > 0]
    low, high = (min(shown), max(shown)) if shown else (1.0, 10.0)
    margin = max(1.12, (high / low) ** 0.03)
    return _rounded(low / margin), _rounded(high * margin)


def _places(names: Sequence[str]) -> list[int]:
    known = engine_names()
    return [known.index(name) if name in known else i for i, name in enumerate(names)]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten, with their multiples by 2 and 5 if there are at most so many powers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = 1 if last - first <= most else max(1, math.ceil((last - first) / 7))
    factors = (1,) if last - first > most else (1, 2, 5)
    powers = range(first - first % step, last + 1, step)
    return [t for k in powers for f in factors if low <= (t := float(f"{f}e{k}")) <= high]


def tip(field: str, title: str, shown: str = "") -> alt.Tooltip:
    """A line of a tooltip; ``shown`` is a format of d3 for numbers, text without."""
    if not shown:
        return alt.Tooltip(f"{field}:N", title=title)
    return alt.Tooltip(f"{field}:Q", title=title, format=shown)


def _kind(column: "pd.Series[Any]") -> str:
    if pd.api.types.is_bool_dtype(column):
        return "boolean"
    return "number" if pd.api.types.is_numeric_dtype(column) else "string"
