"""Spectra: their densities by approximation, and eigenvalue by eigenvalue across problems."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from vivit_bench.curvature.options import VARIANTS, Approximation, Precision
from vivit_bench.errors import VivitBenchError
from vivit_bench.report.page import charts
from vivit_bench.report.page.parts import (
    Chart,
    Charts,
    Control,
    Heading,
    PageTable,
    Section,
    name_of,
)
from vivit_bench.report.spectrum import sweep_table
from vivit_bench.report.spectrum_figures import histogram_edges, spectral_density
from vivit_bench.report.tables import Column, Table
from vivit_bench.spectrum.compare import spectral_distance
from vivit_bench.spectrum.record import EXPERIMENT, SpectrumRecord, load_spectrum
from vivit_bench.store import finished_runs

_DRAWN = 160
"""Eigenvalues of a spectrum that are drawn, the leading ones and then ever fewer."""
_PAPER = [Approximation(*variant).label for variant in VARIANTS]
_DISTANCE = Column("distance", "decades from the first", ".3f")
Spectra = list[SpectrumRecord]


def section(results_dir: Path) -> Section | None:
    """A chart and a table per workload, and all spectra together."""
    found = Section(
        "spectra",
        "Spectra of the GGN",
        "All non-trivial eigenvalues of one mini-batch's GGN under the approximations. Distance: "
        "the mean of |log10 a - log10 b| over the eigenvalues above the cutoff.",
    )
    groups = spectra_by_workload(results_dir, found.warnings)
    if not groups:
        return found if found.warnings else None
    found.blocks.append(_together(groups, found))
    for number, (title, records) in enumerate(groups.items()):
        found.blocks.append(Heading(title))
        found.blocks.append(Charts([_densities(title, records, number, found)]))
        found.blocks.append(
            PageTable(
                spectra_table(records), name_of("spectra", number, records[0].settings.problem)
            )
        )
    return found


def spectra_by_workload(results_dir: Path, warnings: list[str]) -> dict[str, Spectra]:
    """Finished spectra that differ in the approximation alone, exact before mc, full before frac.

    Args:
        results_dir: Folder of all results.
        warnings: Is told what is damaged.
    """
    runs, damaged = finished_runs(results_dir, EXPERIMENT)
    warnings += damaged
    groups: dict[str, Spectra] = {}
    for stored in runs:
        try:
            record = load_spectrum(stored)
        except VivitBenchError as error:
            warnings.append(f"left out: {error}")
        else:
            groups.setdefault(_workload(record), []).append(record)
    return {title: sorted(groups[title], key=_place) for title in sorted(groups)}


def spectra_table(records: Spectra) -> Table:
    """The variants of a workload, with their distance from the first where it has a meaning."""
    table = sweep_table(records)
    rows = [
        {**row, "distance": _distance(records[0], record)}
        for row, record in zip(table.rows, records, strict=True)
    ]
    place = [column.name for column in table.columns].index("trace") + 1
    columns = [*table.columns[:place], _DISTANCE, *table.columns[place:]]
    return replace(table, columns=columns, rows=rows, notes=())


def _distance(first: SpectrumRecord, record: SpectrumRecord) -> float | None:
    cutoff = first.settings.cutoff
    if record.num_params != first.num_params or record.settings.cutoff != cutoff:
        return None
    return spectral_distance(first, record, cutoff)


def _workload(record: SpectrumRecord) -> str:
    spec = record.settings.workload
    dtype = "" if spec.dtype is Precision.FLOAT32 else f", {spec.dtype}"
    weights = f", {spec.checkpoint}" if spec.checkpoint else ""
    return (
        f"{spec.problem}, N = {spec.batch_size}, D = {record.num_params:,}, data {spec.data}, "
        f"seed {spec.seed}{dtype}{weights}"
    )


def _place(record: SpectrumRecord) -> tuple[int, str]:
    name = record.settings.variant
    return (_PAPER.index(name) if name in _PAPER else len(_PAPER), name)


def _approximation_colour(names: Sequence[str]) -> alt.Color:
    spare = iter(("#009E73", "#CC79A7", "#F0E442", "#7F7F7F") * (1 + len(names) // 4))
    colours = [charts.APPROXIMATIONS.get(name) or next(spare) for name in names]
    scale = alt.Scale(domain=list(names), range=colours)
    return alt.Color("approximation:N", scale=scale, legend=charts.legend_of(names, as_lines=True))


def _densities(title: str, records: Spectra, number: int, section: Section) -> Chart:
    """Shares of the D eigenvalues in bins of equal widths on the log axis, a line a spectrum."""
    cutoff = min(record.settings.cutoff for record in records)
    edges = histogram_edges([record.eigenvalues for record in records], cutoff)
    parts = []
    for record in records:
        density = spectral_density(record, edges)
        part = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "share": density})
        part.insert(0, "approximation", record.settings.variant)
        part["count"] = np.rint(density * record.num_params).astype(int)
        parts.append(part[part["low"] >= cutoff])  # the bar of everything below has no width
    frame = pd.concat(parts, ignore_index=True)
    key = name_of("density", number)
    section.data[key] = charts.csv_of(frame)
    names = list(dict.fromkeys(frame["approximation"]))
    toggled = alt.selection_point(name="shown", fields=["approximation"], bind="legend")
    top = max(2, int(frame["count"].max()))
    base = alt.Chart(charts.data_of(key, frame)).encode(
        x=charts.log_axis(alt.X, "low", edges[1:], "eigenvalue"),
        color=_approximation_colour(names),
        opacity=alt.condition(toggled, alt.value(1), alt.value(0.12)),
        tooltip=[
            charts.tip("approximation", "approximation"),
            charts.tip("low", "from", ".3g"),
            charts.tip("high", "to", ".3g"),
            charts.tip("count", "eigenvalues", ",d"),
        ],
    )
    y = alt.Y(
        "count:Q",
        axis=alt.Axis(title=None, format=",~g", values=charts.zero_and_powers(top)),
        scale=alt.Scale(type="symlog", constant=1, domain=[0, top * 1.2], nice=False),
    )
    lines = (
        base.mark_line(interpolate="step-after", strokeWidth=1.8).encode(y=y).add_params(toggled)
    )
    points = base.mark_bar(opacity=0, tooltip=True).encode(x2="high:Q", y=y, opacity=alt.value(0))
    said = "; ".join(
        f"{r.settings.variant}: {r.num_above_cutoff:,} above {r.settings.cutoff:g}" for r in records
    )
    return charts.finish(
        lines + points,
        key,
        "Number of eigenvalues in each bin",
        f"Histogram of the spectra of {title}. {said}",
    )


def _together(groups: dict[str, Spectra], section: Section) -> Charts:
    """All spectra, eigenvalue by eigenvalue: of one approximation, or of one problem."""
    frame = pd.concat(
        [_leading(title, record) for title, records in groups.items() for record in records],
        ignore_index=True,
    )
    approximations = sorted(
        set(frame["approximation"]), key=lambda n: (_PAPER.index(n) if n in _PAPER else 9, n)
    )
    titles = list(groups)
    choices = [f"approximation {name}" for name in approximations] + [
        f"problem {t}" for t in titles
    ]
    number = {name: place for place, name in enumerate([*approximations, *titles])}
    # Each spectrum stands in two views: that of its approximation, and that of its workload.
    views = []
    for column, other in (("approximation", "workload"), ("workload", "approximation")):
        view = frame.assign(choice=frame[column].map(number), line=frame[other])
        views.append(view)
    shown = pd.concat(views, ignore_index=True)[["choice", "line", "k", "eigenvalue"]]
    key = "eigenvalues"
    section.data[key] = charts.csv_of(shown, 5)
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


def _leading(title: str, record: SpectrumRecord) -> pd.DataFrame:
    values: Any = record.eigenvalues[record.eigenvalues > record.settings.cutoff]
    count = len(values)
    ranks = np.unique(
        np.round(np.geomspace(1, max(count, 1), min(_DRAWN, max(count, 1)))).astype(int)
    )
    ranks = ranks[ranks <= count]
    return pd.DataFrame(
        {
            "workload": title,
            "approximation": record.settings.variant,
            "k": ranks,
            "eigenvalue": values[ranks - 1] if count else np.empty(0),
        }
    )
