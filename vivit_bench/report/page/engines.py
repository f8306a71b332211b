"""Engines side by side: ratios of time and memory, and both against N."""

from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from vivit_bench.comparison.stored import stored_rows
from vivit_bench.measure.budget import MIB
from vivit_bench.report.comparison import describe, stored_table
from vivit_bench.report.page import charts
from vivit_bench.report.page.engine_growth import cost_charts, series_of
from vivit_bench.report.page.labels import height_of, on_one_line, told_apart
from vivit_bench.report.page.parts import Chart, Charts, Heading, PageTable, Section, plain
from vivit_bench.report.page.searches import engines_in_order

_RATIOS = {"wall": "time", "peak": "peak memory"}


def section(results_dir: Path) -> Section | None:
    """Ratios of every comparison, growth where there are several N, and all figures."""
    rows, damaged = stored_rows(results_dir)
    if not rows and not damaged:
        return None
    found = Section(
        "engines",
        "Engines compared",
        "Time and memory of other engines over the first one's, every run in a fresh process and "
        "in turn. To the right of 1 the first engine is better; lines are the medians' intervals.",
        warnings=list(damaged),
    )
    if not rows:
        return found
    frame = ratio_frame(rows)
    if len(frame):
        found.data["ratios"] = charts.csv_of(frame)
        found.blocks.append(Charts([_ratios(frame, name) for name in _RATIOS]))
    for number, series in enumerate(series_of(rows)):
        found.blocks += [
            Heading(f"Against N: {describe(series)}"),
            Charts(cost_charts(series, number, found.data)),
        ]
    found.blocks.append(PageTable(stored_table(rows), "engines", "All comparisons"))
    return found


def ratio_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A row per engine that is compared with another."""
    names = (
        "engine",
        "wall_ratio",
        "wall_ratio_low",
        "wall_ratio_high",
        "peak_ratio",
        "wall_seconds",
    )
    bases = {row["run"]: row["engine"] for row in reversed(rows)}
    compared = [
        row
        for row in ({**plain(row), "base": bases[row["run"]]} for row in rows)
        if row["engine"] != row["base"] and row.get("wall_ratio") is not None
    ]
    labels = told_apart(compared, [_work(row) for row in compared])
    lines = [
        {
            "work": work,
            "told": on_one_line(work),
            "problem": row["problem"],
            "base": row["base"],
            **{name: row.get(name) for name in names},
            "peak_mib": row["peak_bytes"] / MIB if row.get("peak_bytes") else None,
        }
        for row, work in zip(compared, labels, strict=True)
    ]
    columns = ["work", "told", "problem", "base", *names, "peak_mib"]
    return _placed(pd.DataFrame(lines, columns=columns))


def _placed(frame: pd.DataFrame) -> pd.DataFrame:
    """With a column ``place``: how many engines below the middle of its work's row one is drawn."""
    ordered = engines_in_order(frame["engine"])
    beside = frame["engine"].map(ordered.index).groupby(frame["work"])
    return frame.assign(place=beside.rank() - (beside.transform("size") + 1) / 2)


def _work(row: dict[str, Any]) -> str:
    """What was compared, on two lines."""
    device = row.get("device") or "cpu"
    named = [row["problem"].rsplit("/", 1)[-1], f"N = {row['batch_size']}"]
    named += [] if device == "cpu" else [device]
    draws = f" (M = {row['mc_samples']})" if row["mc_samples"] != 1 else ""
    work = [row["quantity"], f"{row['curvature'] or ''}{draws}", row["samples"]]
    return "|".join(", ".join(str(part) for part in line if part) for line in (named, work))


def _ratios(frame: pd.DataFrame, name: str) -> Chart:
    value, what = f"{name}_ratio", _RATIOS[name]
    engines = engines_in_order(frame["engine"])
    # The base has the first colour wherever engines are drawn.
    bases = engines_in_order(frame["base"])
    names = [*bases, *(engine for engine in engines if engine not in bases)]
    legend = charts.legend_of(engines, columns=1)
    color = charts.colour("engine", names, legend)
    ends = ["wall_ratio_low", "wall_ratio_high"] if name == "wall" else []
    values = [1.0, *(v for c in [value, *ends] for v in frame[c].astype(float).dropna())]
    most = frame["work"].value_counts().max()
    x = charts.log_axis(alt.X, value, [*values, 1.6 * max(values)])  # room for the numbers
    base = alt.Chart(charts.data_of("ratios", frame)).encode(
        y=alt.Y(
            "work:N",
            sort=None,
            axis=charts.names_axis(200, lines=2),
        ),
        yOffset=alt.YOffset("place:Q", scale=alt.Scale(domain=[-most / 2, most / 2])),
        tooltip=[
            charts.tip("told", "work"),
            charts.tip("problem", "problem"),
            charts.tip("engine", "engine"),
            charts.tip("base", "over"),
            charts.tip("wall_ratio", "time ratio", ".3g"),
            charts.tip("wall_ratio_low", "from", ".3g"),
            charts.tip("wall_ratio_high", "to", ".3g"),
            charts.tip("peak_ratio", "memory ratio", ".3g"),
            charts.tip("wall_seconds", "seconds", ".3g"),
            charts.tip("peak_mib", "peak (MiB)", ",.1f"),
        ],
    )
    one = (
        alt.Chart(charts.data_of("ratios", frame))
        .mark_rule(strokeDash=[4, 3], opacity=0.5)
        .encode(x=alt.datum(1.0))
    )
    layers: Any = one + base.mark_point(filled=True, size=80, opacity=1).encode(
        x=x, color=color, shape=charts.shape("engine", names, legend)
    )
    if name == "wall":
        layers += base.mark_rule(strokeWidth=2).encode(
            x="wall_ratio_low:Q", x2="wall_ratio_high:Q", color=color
        )
    layers += base.mark_text(align="left", dx=9, dy=-7, fontSize=10.5).encode(
        x=x, text=alt.Text(f"{value}:Q", format=".3~g")
    )
    said = "; ".join(
        f"{row['told']}, {row['engine']}: {row[value]:.3g}"
        for row in frame.to_dict("records")
        if row[value] is not None
    )
    return charts.finish(
        layers,
        f"ratios_{name}",
        f"{what.capitalize()} over the first engine's",
        f"{what} ratios to the first engine. {said}",
        height=max(80, frame["work"].nunique() * max(17 * most, height_of(frame["work"]))),
    )
