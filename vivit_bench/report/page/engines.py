"""Engines side by side: ratios of time and memory, and both against N."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from vivit_bench.comparison.scaling import Series
from vivit_bench.comparison.stored import stored_rows
from vivit_bench.measure.budget import MIB
from vivit_bench.report.comparison import describe, stored_table
from vivit_bench.report.page import charts
from vivit_bench.report.page.parts import Chart, Charts, Heading, PageTable, Section, name_of, plain
from vivit_bench.report.page.searches import engines_in_order

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
_RATIOS = {"wall": "time", "peak": "peak memory"}
_COSTS = {"seconds": "seconds (median)", "peak_mib": "peak over idle (MiB)"}


def section(results_dir: Path) -> Section | None:
    """Ratios of every comparison, growth where there are several N, and all figures."""
    rows, damaged = stored_rows(results_dir)
    if not rows and not damaged:
        return None
    found = Section(
        "engines",
        "Engines compared",
        "Time and memory of other engines over the first one's, every run in a fresh process and "
        "in turn. To the right of 1 the first engine is better; lines are the intervals of the median.",
        warnings=list(damaged),
    )
    if not rows:
        return found
    frame = ratio_frame(rows)
    if len(frame):
        found.data["ratios"] = charts.csv_of(frame)
        found.blocks.append(Charts([_ratios(frame, name) for name in _RATIOS]))
    for number, series in enumerate(_series(rows)):
        found.blocks += [
            Heading(f"Against N: {describe(series)}"),
            Charts(_costs(series, number, found)),
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
    lines = [
        {
            "work": _work(row),
            "problem": row["problem"],
            "base": bases[row["run"]],
            **{name: row.get(name) for name in names},
            "peak_mib": row["peak_bytes"] / MIB if row.get("peak_bytes") else None,
        }
        for row in map(plain, rows)
        if row["engine"] != bases[row["run"]] and row.get("wall_ratio") is not None
    ]
    return pd.DataFrame(lines, columns=["work", "problem", "base", *names, "peak_mib"])


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
    color = charts.colour("engine", names, legend=engines)
    ends = ["wall_ratio_low", "wall_ratio_high"] if name == "wall" else []
    values = [1.0, *(v for c in [value, *ends] for v in frame[c].astype(float).dropna())]
    x = charts.log_axis(alt.X, value, [*values, 1.6 * max(values)])  # room for the numbers
    base = alt.Chart(charts.data_of("ratios", frame)).encode(
        y=alt.Y(
            "work:N",
            sort=None,
            axis=charts.names_axis(200, lines=2),
        ),
        yOffset=alt.YOffset("engine:N", sort=engines),
        tooltip=[
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
        x=x, color=color, shape=charts.shape("engine", names, legend=engines)
    )
    if name == "wall":
        layers += base.mark_rule(strokeWidth=2).encode(
            x="wall_ratio_low:Q", x2="wall_ratio_high:Q", color=color
        )
    layers += base.mark_text(align="left", dx=9, dy=-7, fontSize=10.5).encode(
        x=x, text=alt.Text(f"{value}:Q", format=".3~g")
    )
    said = "; ".join(
        f"{row['work']}, {row['engine']}: {row[value]:.3g}"
        for row in frame.to_dict("records")
        if row[value] is not None
    ).replace("|", ", ")
    return charts.finish(
        layers,
        f"ratios_{name}",
        f"{what.capitalize()} over the first engine's",
        f"{what} ratios to the first engine. {said}",
        height=max(80, 40 * frame["work"].nunique() * max(1, len(engines))),
    )


def _series(rows: list[dict[str, Any]]) -> Iterator[Series]:
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


def _costs(series: Series, number: int, section: Section) -> list[Chart]:
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
    section.data[key] = charts.csv_of(frame)
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
