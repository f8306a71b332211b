"""Peak memory and seconds of the trials against N."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from vivit_bench.arguments import format_size
from vivit_bench.measure import Outcome
from vivit_bench.measure.budget import MIB
from vivit_bench.report.critical_batch_curves import (
    Curve,
    curves_of,
    growth_stem,
    unrecorded_seconds,
)
from vivit_bench.report.page import charts
from vivit_bench.report.page.parts import Chart, Charts, Heading, Section, name_of
from vivit_bench.report.page.searches import Searches, engines_in_order

_PANELS = {
    "peak_mib": "peak memory (MiB)",
    "seconds": "seconds of the work",
}
_WHOLE = "run to its end"
_FITS = "datum.outcome == 'fits'"


def section(searches: Searches, results_dir: Path) -> Section | None:
    """Two charts per problem, quantity and approximation, the engines in both.

    Raises:
        VivitBenchError: A search is gone or damaged.
    """
    found = Section(
        "growth",
        "Growth of memory and time with N",
        "Every trial of the searches: filled where it fits, hollow where it does not or did not "
        "end (then its peak is at least this). Dashed lines were expected beforehand, the dotted "
        "one is the memory limit, vertical ones are critical batch sizes.",
    )
    for group in searches.groups:
        blocks = [
            _charts(curves, group.number, found)
            for curves in curves_of(group.rows, results_dir)
            if any(curve.run for curve in curves)
        ]
        if blocks:
            found.blocks += [Heading(group.title), *blocks]
    return found if found.blocks else None


def trial_frame(curves: Sequence[Curve]) -> pd.DataFrame:
    """A row per trial that did some of its work."""
    rows = [
        {
            "engine": curve.row["engine"],
            "n": trial.n,
            "outcome": trial.outcome.value,
            "peak_mib": trial.peak_bytes / MIB if trial.peak_bytes else None,
            "seconds": _seconds(trial),
            "whole": curve.is_whole(trial),
            "message": trial.message[:120],
        }
        for curve in curves
        for trial in curve.run
    ]
    numbers = {"peak_mib": float, "seconds": float}
    return pd.DataFrame(rows).astype(numbers)


def _seconds(trial: Any) -> float | None:
    if trial.work_seconds is None and trial.outcome is Outcome.TIMEOUT:
        return float(trial.timeout_seconds)
    return None if trial.work_seconds is None else float(trial.work_seconds)


def _charts(curves: list[Curve], number: int, section: Section) -> Charts:
    key = name_of("growth", number, growth_stem(curves).removeprefix("critical_batch_growth_"))
    trials = trial_frame(curves)
    section.data[key] = charts.csv_of(trials)
    expected = _expected(curves)
    section.data[f"{key}_expected"] = charts.csv_of(expected)
    criticals = pd.DataFrame(
        [
            {"engine": c.row["engine"], "n": int(c.row["critical_batch_size"])}
            for c in curves
            if c.row["critical_batch_size"]
        ],
        columns=["engine", "n"],
    )
    section.data[f"{key}_critical"] = charts.csv_of(criticals)
    row = curves[0].row
    work = ", ".join(str(row[n]) for n in ("quantity", "curvature", "samples") if row[n])
    frames = {"": trials, "_expected": expected, "_critical": criticals}
    made = [
        _panel(curves, frames, key, quantity, f"{row['problem']}: {work}")
        for quantity in _PANELS
        if trials[quantity].notna().any()
    ]
    missing = unrecorded_seconds(curves)
    return Charts(made, caption=f"{missing[0].upper()}{missing[1:]}." if missing else "")


def _expected(curves: Sequence[Curve]) -> pd.DataFrame:
    """What was expected, over the N that were run."""
    parts = []
    for curve in curves:
        sizes = [trial.n for trial in curve.run]
        low, high = min(sizes, default=1), 1.15 * max(sizes, default=1)
        known = {
            "peak_mib": [(n, need / MIB) for n, need in curve.planned],
            "seconds": curve.expected,
        }
        for quantity, points in known.items():
            parts += [
                {"engine": curve.row["engine"], "n": n, "quantity": quantity, "value": float(value)}
                for n, value in points
                if low <= n <= high and value > 0
            ]
    return pd.DataFrame(parts, columns=["engine", "n", "quantity", "value"]).astype(
        {"n": float, "value": float}
    )


def _panel(
    curves: Sequence[Curve], frames: dict[str, pd.DataFrame], key: str, quantity: str, title: str
) -> Chart:
    engines = engines_in_order([curve.row["engine"] for curve in curves])
    trials = frames[""]
    color = charts.colour("engine", engines)
    limit = int(curves[0].row["memory_limit_bytes"])
    expected_here = frames["_expected"].query("quantity == @quantity")
    is_memory = quantity == "peak_mib"
    heights = [*trials[quantity], *expected_here["value"], *([limit / MIB] if is_memory else [])]
    sizes = [*trials["n"], *frames["_critical"]["n"]]
    x = charts.log_axis(alt.X, "n", sizes, "mini-batch size N")
    y = charts.log_axis(alt.Y, quantity, heights)
    base = alt.Chart(charts.data_of(key, trials)).transform_filter(
        f"isValid(datum.{quantity}) && datum.{quantity} > 0"
    )
    lines = (
        base.transform_filter("datum.whole")
        .mark_line(opacity=0.45, strokeWidth=1.2)
        .encode(x=x, y=y, color=color)
    )
    points = base.mark_point(size=55, strokeWidth=1.6, opacity=1).encode(
        x=x,
        y=y,
        color=color,
        fill=alt.Fill(
            "engine:N", scale=charts.colours_of(engines), legend=charts.legend_of(engines)
        ),
        fillOpacity=alt.condition(_FITS, alt.value(1), alt.value(0)),
        shape=charts.shape("engine", engines),
        tooltip=[
            charts.tip("engine", "engine"),
            charts.tip("n", "N", ",d"),
            charts.tip("outcome", "outcome"),
            charts.tip("peak_mib", "peak (MiB)", ",.1f"),
            charts.tip("seconds", "seconds", ".3g"),
            charts.tip("whole", _WHOLE),
            charts.tip("message", "message"),
        ],
    )
    expected = (
        alt.Chart(charts.data_of(f"{key}_expected", frames["_expected"]))
        .transform_filter(f"datum.quantity == '{quantity}'")
        .mark_line(strokeDash=[5, 4], strokeWidth=1.2, opacity=0.8)
        .encode(x="n:Q", y="value:Q", color=color)
    )
    critical = (
        alt.Chart(charts.data_of(f"{key}_critical", frames["_critical"]))
        .mark_rule(strokeWidth=1, opacity=0.7)
        .encode(
            x="n:Q",
            color=color,
            tooltip=[charts.tip("engine", "engine"), charts.tip("n", "critical N", ",d")],
        )
    )
    layers = [critical, expected, lines, points]
    if is_memory:
        layers.insert(
            0,
            alt.Chart(charts.data_of(key, trials))
            .mark_rule(strokeDash=[2, 3], opacity=0.7)
            .encode(y=alt.datum(limit / MIB)),
        )
    said = "; ".join(
        f"{engine}: {_said(part, quantity)}"
        for engine, part in trials.groupby("engine", sort=False)
    )
    what = _PANELS[quantity]
    alt_text = f"{what} of {title} against N under {format_size(limit)}. {said}"
    return charts.finish(alt.layer(*layers), f"{key}_{quantity}", f"{title}: {what}", alt_text)


def _said(part: pd.DataFrame, quantity: str) -> str:
    known = part[part[quantity].notna()].sort_values("n")
    if known.empty:
        return "not known"
    low, high = known.iloc[0], known.iloc[-1]
    return f"from {low[quantity]:.3g} at N = {low['n']} to {high[quantity]:.3g} at N = {high['n']}"
