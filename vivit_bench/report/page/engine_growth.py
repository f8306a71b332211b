"""What engines cost against N."""

from collections.abc import Iterator
from typing import Any

import altair as alt
import pandas as pd

from vivit_bench.comparison.scaling import Series
from vivit_bench.measure.budget import MIB
from vivit_bench.report.comparison import describe
from vivit_bench.report.page import charts
from vivit_bench.report.page.parts import Chart, name_of, plain

_SAME = (
    "problem",
    "quantity",
    "curvature",
    "samples",
    "mc_samples",
    "data",
    "seed",
    "dtype",
    "device",
    "threads",
    "checkpoint",
)
_SEVERAL = 3
"""N from which costs are drawn against N."""
_COSTS = {"seconds": "seconds (median)", "peak_mib": "peak over idle (MiB)"}


def series_of(rows: list[dict[str, Any]]) -> Iterator[Series]:
    """Comparisons that differ in N alone, of at least `_SEVERAL` N."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(
            tuple(str(row.get(name)) for name in (*_SAME, "host", "code")), []
        ).append(row)
    for part in groups.values():
        ordered = sorted(part, key=lambda row: row["batch_size"])
        if len({row["batch_size"] for row in ordered}) >= _SEVERAL:
            yield Series(ordered)


def cost_charts(series: Series, number: int, data: dict[str, str]) -> list[Chart]:
    """Seconds and peaks against N.

    Args:
        series: With at least one row.
        number: Of the series on the page.
        data: Gets what the charts draw.
    """
    lines = [
        {
            "engine": row["engine"],
            "n": row["batch_size"],
            "seconds": row.get("wall_seconds"),
            "low": row.get("wall_low_seconds"),
            "high": row.get("wall_high_seconds"),
            "peak_mib": row["peak_bytes"] / MIB if row.get("peak_bytes") else None,
        }
        for row in map(plain, series.rows)
    ]
    kinds = dict.fromkeys(("seconds", "low", "high", "peak_mib"), float)
    frame = pd.DataFrame(lines).astype(kinds)
    key = name_of("series", number)
    data[key] = charts.csv_of(frame)
    engines = series.engines
    made = []
    for name, title in _COSTS.items():
        heights = [*frame[name], *(frame["high"] if name == "seconds" else ())]
        law = "time" if name == "seconds" else "peak"
        said = [f"{e}: N^{found.exponent:.2f}" for e in engines if (found := series.law(e, law))]
        base = (
            alt.Chart(charts.data_of(key, frame))
            .transform_filter(f"datum.{name} > 0")
            .encode(
                x=charts.log_axis(alt.X, "n", frame["n"], "mini-batch size N"),
                color=charts.colour("engine", engines),
                tooltip=[
                    charts.tip("engine", "engine"),
                    charts.tip("n", "N", ",d"),
                    charts.tip("seconds", "seconds", ".3g"),
                    charts.tip("low", "from", ".3g"),
                    charts.tip("high", "to", ".3g"),
                    charts.tip("peak_mib", "peak (MiB)", ",.1f"),
                ],
            )
        )
        y = charts.log_axis(alt.Y, name, heights)
        layers: Any = base.mark_line(opacity=0.5).encode(y=y) + base.mark_point(
            filled=True, size=55, opacity=1
        ).encode(y=y, shape=charts.shape("engine", engines))
        if name == "seconds":
            layers += base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q")
        text = f"{title} against N: {describe(series)}. {'; '.join(said)}"
        laws = f" ({', '.join(said)})" if said else ""
        heading = f"{title[0].upper()}{title[1:]}{laws}"
        made.append(charts.finish(layers, f"{key}_{name}", heading, text))
    return made
