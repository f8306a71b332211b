"""Critical batch sizes as bars."""

from collections.abc import Iterator

import altair as alt
import pandas as pd

from vivit_bench.measure.budget import MIB
from vivit_bench.report.critical_batch_marks import predicted_beyond, short_mark_of
from vivit_bench.report.critical_batch_tables import in_paper_order
from vivit_bench.report.page import charts
from vivit_bench.report.page.parts import Chart, Charts, Heading, Section, name_of, plain
from vivit_bench.report.page.searches import Group, Searches, work_of, work_place

_CHARACTER = 0.025
"""Width of one beside a bar, over a chart's on a phone or in two columns."""


def section(searches: Searches) -> Section:
    """A chart per problem of every group."""
    found = Section(
        "sizes",
        "How large a batch fits",
        "Critical batch sizes by what is computed, on a logarithmic axis. Longer is better; "
        "≥ means that something else than memory ended the search; an outline then goes on to the "
        "size in brackets, at which memory is predicted to.",
    )
    for group in searches.groups:
        problems = in_paper_order(group.rows["problem"])
        made = [_bars(group, problem, n, found) for n, problem in enumerate(problems)]
        found.blocks += [Heading(group.title), Charts(made)]
    return found


def _bars(group: Group, problem: str, number: int, section: Section) -> Chart:
    rows = group.rows[group.rows["problem"] == problem]
    frame = pd.DataFrame(_bar_rows(rows))
    key = name_of("sizes", group.number, number, problem)
    section.data[key] = charts.csv_of(frame)
    names = sorted(set(frame["work"]), key=work_place)
    engines = [name for name in group.engines if name in set(frame["engine"])]
    least, most = 0.8, max(10.0, float(frame["end"].max()))
    share = min(int(frame["label"].str.len().max()) * _CHARACTER, 0.5)  # of the numbers
    top = most * (most / least) ** (share / (1 - share))
    start = charts.ends_of([least, top])[0]
    base = alt.Chart(charts.data_of(key, frame)).encode(
        y=alt.Y(
            "work:N",
            sort=names,
            axis=charts.names_axis(150),
        ),
        yOffset=alt.YOffset("engine:N", sort=engines, scale=alt.Scale(domain=engines)),
        x=charts.log_axis(alt.X, "shown", [least, top], "critical batch size N"),
        tooltip=[
            charts.tip("work", "work"),
            charts.tip("engine", "engine"),
            charts.tip("label", "critical N"),
            charts.tip("interval", "predicted (95 %)"),
            charts.tip("peak_mib", "peak (MiB)", ",.1f"),
            charts.tip("seconds", "seconds", ".3g"),
        ],
    )
    drawn = base.mark_bar(cornerRadiusEnd=2).encode(
        x2=alt.datum(start), color=charts.colour("engine", engines)
    )
    outline = (
        base.transform_filter(alt.datum.end > alt.datum.shown)
        .mark_bar(filled=False, strokeDash=[3, 2], strokeWidth=1)
        .encode(x=alt.X("end:Q"), x2=alt.X2("shown:Q"), color=charts.colour("engine", engines))
    )
    text = base.mark_text(align="left", dx=4).encode(x=alt.X("end:Q"), text="label:N")
    said = "; ".join(f"{row.work}, {row.engine}: {row.label}" for row in frame.itertuples())
    return charts.finish(
        drawn + outline + text,
        key,
        problem,
        f"Bars of critical batch sizes of {problem}: {said}",
        height=max(60, 21 * len(engines) * len(names)),
    )


def _bar_rows(rows: pd.DataFrame) -> Iterator[dict[str, object]]:
    for row in map(plain, rows.to_dict("records")):
        size = int(row["critical_batch_size"])
        predicted, low, high = predicted_beyond(row) or (None, None, None)
        mark = short_mark_of(row) if predicted is None else f"({predicted:,})"
        shown = max(size, 0.75)  # a zero has no place on the axis
        yield {
            "work": work_of(row),
            "engine": row["engine"],
            "size": size,
            "shown": shown,
            "label": f"≥ {size:,} {mark}" if mark else f"{size:,}",
            "predicted": predicted,
            "interval": "" if low is None or high is None else f"{low:,} - {high:,}",
            "end": predicted or shown,
            "peak_mib": (row.get("peak_bytes") or float("nan")) / MIB,
            "seconds": row.get("work_seconds"),
        }
