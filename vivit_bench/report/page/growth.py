"""Peak memory and seconds of the trials against N."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from vivit_bench.arguments import format_size
from vivit_bench.measure import Outcome
from vivit_bench.measure.budget import MIB
from vivit_bench.report.critical_batch_curves import Curve, curves_of, unrecorded_seconds
from vivit_bench.report.page import charts
from vivit_bench.report.page.parts import Chart, Charts, Control, Heading, Section, name_of
from vivit_bench.report.page.searches import Group, Searches, engines_in_order, place_of, work_of

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
        curves = [each for each in curves_of(group.rows, results_dir) if any(c.run for c in each)]
        if curves:
            curves.sort(key=lambda each: place_of(each[0].row))
            found.blocks += [Heading(group.title), _charts(curves, group, found.data)]
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


def _charts(curves: Sequence[list[Curve]], group: Group, data: dict[str, str]) -> Charts:
    """Peaks and seconds; which problem, quantity and approximation they are of can be chosen."""
    key = name_of("growth", group.number)
    frames = {
        "": _of_all(curves, trial_frame),
        "_expected": _of_all(curves, _expected),
        "_critical": _of_all(curves, _critical),
    }
    data |= {f"{key}{ending}": charts.csv_of(frame) for ending, frame in frames.items()}
    limit = int(group.rows["memory_limit_bytes"].iloc[0])
    titles = [f"{each[0].row['problem']}: {work_of(each[0].row)}" for each in curves]
    made = [
        _panel(frames, key, quantity, limit, titles)
        for quantity in _PANELS
        if frames[""][quantity].notna().any()
    ]
    missing = unrecorded_seconds([curve for each in curves for curve in each])
    caption = f"{missing[0].upper()}{missing[1:]}." if missing else ""
    return Charts(made, f"{key}_group", Control("Trials of", titles, is_slider=False), caption)


def _of_all(
    curves: Sequence[list[Curve]], frame_of: Callable[[Sequence[Curve]], pd.DataFrame]
) -> pd.DataFrame:
    parts = [frame_of(each).assign(choice=place) for place, each in enumerate(curves)]
    return pd.concat(parts, ignore_index=True)


def _critical(curves: Sequence[Curve]) -> pd.DataFrame:
    rows = [
        {"engine": curve.row["engine"], "n": int(curve.row["critical_batch_size"])}
        for curve in curves
        if curve.row["critical_batch_size"]
    ]
    return pd.DataFrame(rows, columns=["engine", "n"]).astype({"n": float})


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
    frames: dict[str, pd.DataFrame], key: str, quantity: str, limit: int, titles: Sequence[str]
) -> Chart:
    trials, expected, critical = frames.values()
    engines = engines_in_order(trials["engine"])
    is_memory, what = quantity == "peak_mib", _PANELS[quantity]
    of_quantity = expected[expected["quantity"] == quantity]
    color = charts.colour("engine", engines)
    heights = [*trials[quantity], *of_quantity["value"], *([limit / MIB] if is_memory else [])]
    sizes = [*trials["n"], *critical["n"]]
    x = charts.log_axis(alt.X, "n", sizes, "mini-batch size N", is_fitted=True)
    y = charts.log_axis(alt.Y, quantity, heights, is_fitted=True)
    here = f"datum.choice == {charts.CHOSEN}"
    base = alt.Chart(charts.data_of(key, trials)).transform_filter(
        f"{here} && isValid(datum.{quantity}) && datum.{quantity} > 0"
    )
    lines = (
        base.transform_filter("datum.whole")
        .mark_line(opacity=0.45, strokeWidth=1.2)
        .encode(x=x, y=y, color=color)
    )
    legend = charts.legend_of(engines)
    points = base.mark_point(size=55, strokeWidth=1.6, opacity=1).encode(
        x=x,
        y=y,
        color=color,
        fill=alt.Fill("engine:N", scale=charts.colours_of(engines), legend=legend),
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
    dashed = (
        alt.Chart(charts.data_of(f"{key}_expected", expected))
        .transform_filter(f"{here} && datum.quantity == '{quantity}'")
        .mark_line(strokeDash=[5, 4], strokeWidth=1.2, opacity=0.8)
        .encode(x="n:Q", y="value:Q", color=color)
    )
    found = (
        alt.Chart(charts.data_of(f"{key}_critical", critical))
        .transform_filter(here)
        .mark_rule(strokeWidth=1, opacity=0.7)
        .encode(
            x="n:Q",
            color=color,
            tooltip=[charts.tip("engine", "engine"), charts.tip("n", "critical N", ",d")],
        )
    )
    layers = [found, *([dashed] if len(of_quantity) else []), lines, points]
    if is_memory:
        rule = alt.Chart(alt.Data(values=[{}])).mark_rule(strokeDash=[2, 3], opacity=0.7)
        layers.insert(0, rule.encode(y=alt.datum(limit / MIB)))
    chart = alt.layer(*layers).add_params(alt.param(name=charts.CHOSEN, value=0))
    said = "; ".join(
        f"{titles[int(str(place))]}, {engine}: {_said(part, quantity)}"
        for (place, engine), part in trials.groupby(["choice", "engine"], sort=False)
    )
    text = f"{what} against N under {format_size(limit)}, both logarithmic. {said}"
    return charts.finish(chart, f"{key}_{quantity}", what[0].upper() + what[1:], text)


def _said(part: pd.DataFrame, quantity: str) -> str:
    known = part[part[quantity].notna()].sort_values("n")
    if known.empty:
        return "not known"
    low, high = known.iloc[0], known.iloc[-1]
    return f"from {low[quantity]:.3g} at N = {low['n']} to {high[quantity]:.3g} at N = {high['n']}"
