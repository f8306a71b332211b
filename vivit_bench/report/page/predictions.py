"""What was predicted of critical batch sizes, beside what was found."""

from dataclasses import replace
from pathlib import Path

import altair as alt
import pandas as pd

from vivit_bench.arguments import format_size
from vivit_bench.report.critical_batch_accuracy import accuracy_table
from vivit_bench.report.page import charts
from vivit_bench.report.page.labels import height_of, on_one_line, told_apart
from vivit_bench.report.page.parts import Chart, Charts, PageTable, Section, plain
from vivit_bench.report.page.searches import Searches, engines_in_order, place_of


def section(searches: Searches, results_dir: Path) -> Section | None:
    """Sizes that were predicted before the first large trial, beside those that were found."""
    table = accuracy_table(searches.rows, results_dir)
    table = replace(table, rows=sorted(table.rows, key=place_of))
    if not table.rows:
        return None
    found = Section(
        "predictions",
        "Predictions against truth",
        "Before its first large trial a search is predicted from small ones, with an interval "
        "that is to hold the result with 95 % probability. Truth is known where memory ended it.",
    )
    frame = pd.DataFrame(table.rows)
    known = frame[~frame["is_lower_bound"].astype(bool)]
    if len(known):
        found.blocks.append(Charts([_against_truth(known, found)]))
    found.blocks.append(PageTable(table, "predictions"))
    return found


def _against_truth(known: pd.DataFrame, section: Section) -> Chart:
    """Measured sizes and the predicted intervals, each over the measured size."""
    measured = known["critical_batch_size"].astype(float)
    rows = [plain(row) for row in known.to_dict("records")]
    labels = told_apart(
        rows,
        [f"{r['problem']}, {format_size(r['memory_limit_bytes'])}|{r['work']}" for r in rows],
    )
    frame = pd.DataFrame(
        {
            "search": labels,
            "told": list(map(on_one_line, labels)),
            "problem": known["problem"],
            "engine": known["engine"],
            "measured": measured,
            "predicted": known["predicted"].astype(float),
            "low": known["low"].astype(float),
            "high": known["high"].astype(float),
        }
    )
    for name in ("predicted", "low", "high"):
        frame[f"{name}_over"] = frame[name] / measured.where(measured > 0)
    key = "predictions"
    section.data[key] = charts.csv_of(frame)
    engines = engines_in_order(frame["engine"])
    base = alt.Chart(charts.data_of(key, frame)).encode(
        y=alt.Y(
            "search:N",
            sort=None,
            axis=charts.names_axis(200, lines=2),
        ),
        yOffset=alt.YOffset("engine:N", sort=engines),
        color=charts.colour("engine", engines),
        tooltip=[
            charts.tip("told", "search"),
            charts.tip("engine", "engine"),
            charts.tip("measured", "measured", ",d"),
            charts.tip("predicted", "predicted", ",d"),
            charts.tip("low", "from", ",d"),
            charts.tip("high", "to", ",d"),
        ],
    )
    axis = alt.X(
        "low_over:Q",
        axis=alt.Axis(title="predicted over measured", format="~g", tickCount=6),
        scale=alt.Scale(zero=False, nice=True),
    )
    truth = (
        alt.Chart(charts.data_of(key, frame))
        .mark_rule(strokeDash=[4, 3], opacity=0.6)
        .encode(x=alt.datum(1.0))
    )
    spread = base.mark_rule(strokeWidth=2).encode(x=axis, x2="high_over:Q")
    point = base.mark_point(filled=True, size=70, opacity=1).encode(
        x="predicted_over:Q", shape=charts.shape("engine", engines)
    )
    said = "; ".join(
        f"{r.told}, {r.engine}: measured {r.measured:,.0f}, predicted {r.predicted:,.0f}"
        for r in frame.itertuples()
    )
    return charts.finish(
        truth + spread + point,
        key,
        "Predicted size over the measured one, with its interval",
        f"Predictions against measurements. {said}",
        height=max(60, height_of(labels) * frame["search"].nunique()),
    )
