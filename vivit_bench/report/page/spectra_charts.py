"""Charts of spectra: their densities, and their eigenvalues in order."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from vivit_bench.curvature.options import VARIANTS, Approximation
from vivit_bench.report.page import charts
from vivit_bench.report.page.parts import Chart, Charts, Control, name_of
from vivit_bench.report.spectrum_figures import histogram_edges, spectral_density
from vivit_bench.spectrum.record import SpectrumRecord

_DRAWN = 160
"""Eigenvalues of a spectrum that are drawn, the leading ones and then ever fewer."""
PAPER = [Approximation(*variant).label for variant in VARIANTS]
"""The approximations of the paper, in its order."""
Spectra = list[SpectrumRecord]


def _approximation_colour(names: Sequence[str]) -> alt.Color:
    spare = iter(("#009E73", "#CC79A7", "#F0E442", "#7F7F7F") * (1 + len(names) // 4))
    colours = [charts.APPROXIMATIONS.get(name) or next(spare) for name in names]
    scale = alt.Scale(domain=list(names), range=colours)
    return alt.Color("approximation:N", scale=scale, legend=charts.legend_of(names, as_lines=True))


def labels_of(records: Spectra) -> list[str]:
    """A name for each spectrum of a workload, with that of its folder where two are the same."""
    variants = [record.settings.variant for record in records]
    return [
        name
        if variants.count(name) == 1 or record.folder is None
        else f"{name}, {record.folder.name}"
        for name, record in zip(variants, records, strict=True)
    ]


def densities(title: str, records: Spectra, number: int, data: dict[str, str]) -> Chart:
    """Shares of the D eigenvalues in bins of equal widths on the log axis, a line a spectrum."""
    cutoff = min(record.settings.cutoff for record in records)
    edges = histogram_edges([record.eigenvalues for record in records], cutoff)
    parts = []
    names = labels_of(records)
    for place, (name, record) in enumerate(zip(names, records, strict=True)):
        density = spectral_density(record, edges)
        part = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "share": density})
        part.insert(0, "approximation", name)
        part["column"] = f"count_{place}"
        part["count"] = np.rint(density * record.num_params).astype(int)
        parts.append(part[part["low"] >= cutoff])  # the bar of everything below has no width
    frame = pd.concat(parts, ignore_index=True)
    key = name_of("density", number)
    data[key] = charts.csv_of(frame)
    toggled = alt.selection_point(name="shown", fields=["approximation"], bind="legend")
    top = max(2, int(frame["count"].max()))
    base = alt.Chart(charts.data_of(key, frame)).encode(
        x=charts.log_axis(alt.X, "low", edges[1:], "eigenvalue"),
        color=_approximation_colour(names),
        opacity=alt.condition(toggled, alt.value(1), alt.value(0.12)),
    )
    y = alt.Y(
        "count:Q",
        axis=alt.Axis(title=None, format=",d", values=charts.zero_and_powers(top)),
        scale=alt.Scale(type="symlog", constant=1, domain=[0, top * 1.2], nice=False),
    )
    # Dashes tell a fraction of the samples from all where two blues do not.
    dashes = [[4, 2] if "frac" in name else [1, 0] for name in names]
    dash = alt.StrokeDash(
        "approximation:N",
        scale=alt.Scale(domain=names, range=dashes),
        legend=charts.legend_of(names, as_lines=True),
    )
    line = base.mark_line(interpolate="step-after", strokeWidth=1.8)
    lines = line.encode(y=y, strokeDash=dash).add_params(toggled)
    # A bin answers for all spectra, wherever in it one points. Its columns are numbered: a dot or
    # a bracket in a column's name would be read as a path.
    bins = (
        alt.Chart(charts.data_of(key, frame))
        .transform_pivot("column", groupby=["low", "high"], value="count")
        .mark_rect(opacity=0)
        .encode(
            x="low:Q",
            x2="high:Q",
            tooltip=[
                charts.tip("low", "from", ".3g"),
                charts.tip("high", "to", ".3g"),
                *(charts.tip(f"count_{k}", name, ",d") for k, name in enumerate(names)),
            ],
        )
    )
    said = "; ".join(
        f"{r.settings.variant}: {r.num_above_cutoff:,} above {r.settings.cutoff:g}" for r in records
    )
    return charts.finish(
        lines + bins,
        key,
        "Number of eigenvalues in each bin",
        f"Histogram of the spectra of {title}. {said}",
    )


def eigenvalues(groups: dict[str, Spectra], data: dict[str, str]) -> Charts:
    """All spectra, eigenvalue by eigenvalue: of one approximation, or of one problem."""
    frame = pd.concat(
        [
            _leading(title, name, record)
            for title, records in groups.items()
            for name, record in zip(labels_of(records), records, strict=True)
        ],
        ignore_index=True,
    )
    approximations = sorted(
        set(frame["approximation"]), key=lambda n: (PAPER.index(n) if n in PAPER else 9, n)
    )
    titles = list(groups)
    choices = [f"approximation {name}" for name in approximations]
    choices += [f"problem {title}" for title in titles]
    number = {name: place for place, name in enumerate([*approximations, *titles])}
    # Each spectrum stands in two views: that of its approximation, and that of its workload.
    views = []
    for column, other in (("approximation", "workload"), ("workload", "approximation")):
        view = frame.assign(choice=frame[column].map(number), line=frame[other])
        views.append(view)
    shown = pd.concat(views, ignore_index=True)[["choice", "line", "k", "eigenvalue"]]
    key = "eigenvalues"
    data[key] = charts.csv_of(shown, 5)
    if len(titles) == 1:  # then approximations side by side say all there is
        initial = len(approximations)
        choices = choices[initial:]
        chosen = alt.param(name=charts.CHOSEN, value=initial)
    else:
        chosen = alt.param(name=charts.CHOSEN, value=0)
    legend = alt.Legend(columns=1, labelLimit=300, symbolType="stroke", symbolSize=200)
    chart = (
        alt.Chart(charts.data_of(key, shown))
        .transform_filter(f"datum.choice == {charts.CHOSEN}")
        .mark_line(strokeWidth=1.8, point=alt.OverlayMarkDef(size=14, opacity=0.9))
        .encode(
            x=charts.log_axis(alt.X, "k", shown["k"], "rank k"),
            y=charts.log_axis(alt.Y, "eigenvalue", shown["eigenvalue"]),
            color=alt.Color("line:N", sort=None, legend=legend),
            strokeDash=alt.StrokeDash("line:N", sort=None, legend=legend),
            tooltip=[
                charts.tip("line", "spectrum"),
                charts.tip("k", "k", ",d"),
                charts.tip("eigenvalue", "eigenvalue", ".4g"),
            ],
        )
        .add_params(chosen)
    )
    made = charts.finish(
        chart,
        key,
        "Eigenvalues in order, from the largest",
        f"Eigenvalues against their rank, both logarithmic, of {len(titles)} problems under "
        f"{', '.join(approximations)}",
        height=300,
    )
    control = Control("Compare", choices, is_slider=False) if len(choices) > 1 else None
    caption = f"Above the cutoff; of each spectrum at most {_DRAWN} eigenvalues are drawn."
    return Charts([made], "eigenvalues_group", control, caption)


def _leading(title: str, name: str, record: SpectrumRecord) -> pd.DataFrame:
    values: Any = record.eigenvalues[record.eigenvalues > record.settings.cutoff]
    count = len(values)
    ranks = np.unique(
        np.round(np.geomspace(1, max(count, 1), min(_DRAWN, max(count, 1)))).astype(int)
    )
    ranks = ranks[ranks <= count]
    return pd.DataFrame(
        {
            "workload": title,
            "approximation": name,
            "k": ranks,
            "eigenvalue": values[ranks - 1] if count else np.empty(0),
        }
    )
