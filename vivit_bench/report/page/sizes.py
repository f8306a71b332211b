"""Critical batch sizes as bars, and what was predicted of them."""

from collections.abc import Iterator

import altair as alt
import pandas as pd

from vivit_bench.arguments import format_size
from vivit_bench.measure.budget import MIB
from vivit_bench.report.critical_batch_marks import mark_of, predicted_size
from vivit_bench.report.critical_batch_tables import in_paper_order
from vivit_bench.report.page import charts
from vivit_bench.report.page.parts import Chart, Charts, Heading, PageTable, Section, name_of, plain
from vivit_bench.report.page.searches import Group, Searches
from vivit_bench.report.tables import Column, Table, format_seconds

_WORK = ("gradient", "step", "eigenvalues", "block-newton", "full-newton")
_ORDER = ("", "exact, full", "exact, frac", "mc, full", "mc, frac")

_PREDICTIONS = (
    Column("problem", left=True),
    Column("work", left=True),
    Column("engine", left=True),
    Column("memory_limit_bytes", "limit", format_size),
    Column("critical_batch_size", "measured", ",", bound="is_lower_bound", mark="mark"),
    Column(
        "predicted_critical_batch_size",
        "predicted (95 %)",
        ",",
        interval=("predicted_low", "predicted_high"),
    ),
    Column("error", "error", "+.1%"),
    Column("inside", "inside", lambda value: "yes" if value else "no", left=True),
    Column("work_seconds", "seconds", format_seconds),
    Column("predicted_step_seconds", "predicted", format_seconds),
    *(
        Column(name, is_detail=True)
        for name in ("predicted_low", "predicted_high", "is_lower_bound", "stopped_by", "run")
    ),
)


def bars(searches: Searches) -> Section:
    """A chart per problem of every group."""
    found = Section(
        "sizes",
        "How large a batch fits",
        "Critical batch sizes by what is computed, on a logarithmic axis. Longer is better; "
        "≥ means that something else than memory ended the search.",
    )
    for group in searches.groups:
        made = [_bars(group, problem, found) for problem in in_paper_order(group.rows["problem"])]
        found.blocks += [Heading(group.title), Charts(made)]
    return found


def predictions(searches: Searches) -> Section | None:
    """Sizes that were predicted before the first large trial, beside those that were found."""
    table = prediction_table(searches.rows)
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


def prediction_table(rows: pd.DataFrame) -> Table:
    """Searches with a prediction, a row each; error and ``inside`` where memory ended them."""
    lines = []
    for row in map(plain, rows.to_dict("records")):
        size, low, high = predicted_size(row)
        if size is None:
            continue
        truth = None if row["is_lower_bound"] else row["critical_batch_size"]
        inside = None if truth is None or low is None or high is None else low <= truth <= high
        line = row | {
            "work": _work(row),
            "predicted_critical_batch_size": size,
            "predicted_low": low,
            "predicted_high": high,
            "error": size / truth - 1 if truth else None,
            "inside": inside,
            "mark": mark_of(row).partition(";")[0].strip("\n").rstrip(")") + ")"
            if mark_of(row)
            else "",
        }
        lines.append(line)
    judged = [line["inside"] for line in lines if line["inside"] is not None]
    notes = [f"{sum(judged)} of {len(judged)} sizes lie inside their interval."] if judged else []
    return Table(_PREDICTIONS, lines, notes=notes)


def _bars(group: Group, problem: str, section: Section) -> Chart:
    rows = group.rows[group.rows["problem"] == problem]
    frame = pd.DataFrame(_bar_rows(rows))
    key = name_of("sizes", group.number, problem)
    section.data[key] = charts.csv_of(frame)
    names = work_order(frame)
    engines = [name for name in group.engines if name in set(frame["engine"])]
    top = max(10.0, float(frame["size"].max())) * 4  # room for the numbers
    start = charts.ends_of([0.8, top])[0]
    base = alt.Chart(charts.data_of(key, frame)).encode(
        y=alt.Y(
            "work:N",
            sort=names,
            axis=charts.names_axis(150),
        ),
        yOffset=alt.YOffset("engine:N", sort=engines, scale=alt.Scale(domain=engines)),
        x=charts.log_axis(alt.X, "shown", [0.8, top], "critical batch size N"),
        tooltip=[
            charts.tip("work", "work"),
            charts.tip("engine", "engine"),
            charts.tip("label", "critical N"),
            charts.tip("peak_mib", "peak (MiB)", ",.1f"),
            charts.tip("seconds", "seconds", ".3g"),
        ],
    )
    drawn = base.mark_bar(cornerRadiusEnd=2).encode(
        x2=alt.datum(start), color=charts.colour("engine", engines)
    )
    text = base.mark_text(align="left", dx=4).encode(text="label:N")
    said = "; ".join(f"{row.work}, {row.engine}: {row.label}" for row in frame.itertuples())
    return charts.finish(
        drawn + text,
        key,
        problem,
        f"Bars of critical batch sizes of {problem}: {said}",
        height=max(60, 21 * len(engines) * len(names)),
    )


def _bar_rows(rows: pd.DataFrame) -> Iterator[dict[str, object]]:
    for row in map(plain, rows.to_dict("records")):
        size = int(row["critical_batch_size"])
        word = mark_of(row).partition(";")[0].strip("\n()")
        yield {
            "work": _work(row),
            "engine": row["engine"],
            "size": size,
            "shown": max(size, 0.75),  # a zero has no place on the axis
            "label": f"≥ {size:,} ({word})" if word else f"{size:,}",
            "peak_mib": (row.get("peak_bytes") or float("nan")) / MIB,
            "seconds": row.get("work_seconds"),
        }


def work_order(frame: pd.DataFrame) -> list[str]:
    """Kinds of work as the axis has them, the paper's approximations in its order."""

    def place(work: str) -> tuple[int, int]:
        quantity, _, approximation = work.partition(", ")
        plain_name = approximation.partition(" (M")[0]
        known = approximation if approximation in _ORDER else plain_name
        return _WORK.index(quantity), _ORDER.index(known) if known in _ORDER else len(_ORDER)

    return sorted(set(frame["work"]), key=place)


def _work(row: dict[str, object]) -> str:
    draws = f" (M = {row['mc_samples']})" if row["mc_samples"] != 1 else ""
    curvature = f"{row['curvature']}{draws}" if row["curvature"] else None
    return ", ".join(str(part) for part in (row["quantity"], curvature, row["samples"]) if part)


def _against_truth(known: pd.DataFrame, section: Section) -> Chart:
    """Measured sizes and the predicted intervals, each over the measured size."""
    measured = known["critical_batch_size"].astype(float)
    frame = pd.DataFrame(
        {
            "search": [
                f"{r.problem}, {format_size(int(r.memory_limit_bytes))}|{r.work}"
                for r in known.itertuples()
            ],
            "problem": known["problem"],
            "engine": known["engine"],
            "measured": measured,
            "predicted": known["predicted_critical_batch_size"].astype(float),
            "low": known["predicted_low"].astype(float),
            "high": known["predicted_high"].astype(float),
        }
    )
    for name in ("predicted", "low", "high"):
        frame[f"{name}_over"] = frame[name] / measured.where(measured > 0)
    key = "predictions"
    section.data[key] = charts.csv_of(frame)
    engines = sorted(set(frame["engine"]), key=lambda name: (name != "vivit-bench", name))
    base = alt.Chart(charts.data_of(key, frame)).encode(
        y=alt.Y(
            "search:N",
            sort=None,
            axis=charts.names_axis(200, lines=2),
        ),
        color=charts.colour("engine", engines),
        tooltip=[
            charts.tip("problem", "problem"),
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
        f"{r.search}: measured {r.measured:,.0f}, predicted {r.predicted:,.0f}"
        for r in frame.itertuples()
    )
    return charts.finish(
        truth + spread + point,
        key,
        "Predicted size over the measured one, with its interval",
        f"Predictions against measurements. {said}",
        height=max(60, 38 * len(frame)),
    )
