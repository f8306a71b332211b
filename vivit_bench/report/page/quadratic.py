"""Figure 3: losses on the noisy quadratic, and the dampings that the bootstrap chose."""

from pathlib import Path

import altair as alt
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex

from vivit_bench.errors import VivitBenchError
from vivit_bench.quadratic.records import EXPERIMENT, Results, load_results
from vivit_bench.quadratic.settings import OptimizerName
from vivit_bench.report.page import charts
from vivit_bench.report.page.parts import Chart, Charts, Heading, PageTable, Section, name_of
from vivit_bench.report.quadratic import curve_table, ranking
from vivit_bench.store import finished_runs

_BOOTSTRAP = "#D55E00"


def section(results_dir: Path) -> Section | None:
    """Figure 3, dampings and final losses of every finished run."""
    found = Section(
        "quadratic",
        "Damping on a noisy quadratic (Figure 3)",
        "Newton steps with a damping per direction, chosen by the bootstrap, against global "
        "dampings and SGD. Lines are medians over the repetitions, bands their quartiles; a name "
        "in the legend, chosen, stands out.",
    )
    runs, damaged = finished_runs(results_dir, EXPERIMENT)
    found.warnings += damaged
    for number, stored in enumerate(runs):
        try:
            results = load_results(stored)
        except VivitBenchError as error:
            found.warnings.append(f"left out: {error}")
            continue
        name = name_of("quadratic", number, stored.folder.name)
        made = [_losses(results, number, found)]
        if len(results.dampings):
            made.append(_dampings(results, number, found))
        found.blocks += [
            Heading(_title(results)),
            Charts(made),
            PageTable(ranking(results), name, "Final losses"),
        ]
    return found if found.blocks or found.warnings else None


def _title(results: Results) -> str:
    settings = results.settings
    return (
        f"D = {len(settings['curvatures'])}, N = {settings['batch_size']}, "
        f"{settings['repeats']} repetitions, {settings['route']}, seed {settings['seed']}"
        f"{results.started_on and f' ({results.started_on})'}"
    )


def _look(labels: list[str]) -> tuple[alt.Scale, alt.Scale]:
    """Colours and dashes: dampings in the order of their size, the bootstrap before them all."""
    constants = [label for label in labels if label not in set(OptimizerName)]
    colours, dashes = [], []
    for label in labels:
        if label == OptimizerName.BOOTSTRAP:
            colours.append(_BOOTSTRAP)
            dashes.append([1, 0])
        elif label == OptimizerName.SGD:
            colours.append("#8A8A8A")
            dashes.append([6, 4])
        else:
            place = constants.index(label)
            # The ends of the map vanish on a dark or a light page.
            share = 0.25 + 0.5 * place / max(1, len(constants) - 1)
            colours.append(to_hex(colormaps["viridis"](share)))
            dashes.append([5, 2, 1, 2] if place % 2 else [1, 0])
    return alt.Scale(domain=labels, range=colours), alt.Scale(domain=labels, range=dashes)


def _losses(results: Results, number: int, section: Section) -> Chart:
    frame = curve_table(results)
    key = name_of("figure_3", number)
    section.data[key] = charts.csv_of(frame)
    labels = list(dict.fromkeys(frame["optimizer"]))
    colours, dashes = _look(labels)
    legend = charts.legend_of(labels, as_lines=True)
    picked = alt.selection_point(name="shown", fields=["optimizer"], bind="legend")
    heights = [*frame["lower_quartile"], *frame["upper_quartile"]]
    y = charts.log_axis(alt.Y, "median", heights)
    base = (
        alt.Chart(charts.data_of(key, frame))
        .transform_filter("datum.median > 0")
        .encode(
            x=alt.X("step:Q", axis=alt.Axis(title="step", tickMinStep=1)),
            color=alt.Color("optimizer:N", scale=colours, legend=legend),
            tooltip=[
                charts.tip("optimizer", "optimizer"),
                charts.tip("step", "step", "d"),
                charts.tip("median", "median loss", ",.4g"),
                charts.tip("lower_quartile", "lower quartile", ",.4g"),
                charts.tip("upper_quartile", "upper quartile", ",.4g"),
            ],
        )
    )
    band = base.mark_area().encode(
        y=charts.log_axis(alt.Y, "lower_quartile", heights),
        y2="upper_quartile:Q",
        opacity=alt.condition(picked, alt.value(0.13), alt.value(0.02)),
    )
    lines = base.mark_line(point=alt.OverlayMarkDef(size=22)).encode(
        y=y,
        strokeDash=alt.StrokeDash("optimizer:N", scale=dashes, legend=legend),
        strokeWidth=alt.condition(
            f"datum.optimizer == '{OptimizerName.BOOTSTRAP}'", alt.value(3), alt.value(1.5)
        ),
        opacity=alt.condition(picked, alt.value(1), alt.value(0.15)),
    )
    ends = frame[frame["step"] == frame["step"].max()]
    said = "; ".join(f"{row.optimizer}: {row.median:.3g}" for row in ends.itertuples())
    return charts.finish(
        band + lines.add_params(picked),
        key,
        "Loss against the step",
        f"Figure 3, median losses on the noisy quadratic. At the end: {said}",
        height=320,
    )


def _dampings(results: Results, number: int, section: Section) -> Chart:
    """Finite dampings by the direction's true curvature, early and late steps apart."""
    last = results.settings["steps"]
    parts = []
    for first, final in ((1, 1), (2, min(3, last)), (4, last)):
        if first > final:
            continue
        chosen = results.dampings[results.dampings["step"].between(first, final)]
        finite = chosen[chosen["damping"] < float("inf")].groupby("curvature")["damping"]
        share = (chosen["damping"] == float("inf")).groupby(chosen["curvature"]).mean()
        part = pd.DataFrame(
            {
                name: finite.quantile(q)
                for name, q in (("median", 0.5), ("low", 0.25), ("high", 0.75))
            }
        )
        part = part.join(share.rename("infinite"), how="outer").reset_index()
        part.insert(0, "steps", f"step {first}" if first == final else f"steps {first}-{final}")
        parts.append(part)
    frame = pd.concat(parts, ignore_index=True)
    key = name_of("dampings", number)
    section.data[key] = charts.csv_of(frame)
    names = list(dict.fromkeys(frame["steps"]))
    heights = [*frame["low"], *frame["high"]]
    base = (
        alt.Chart(charts.data_of(key, frame))
        .transform_filter("datum.median > 0")
        .encode(
            x=alt.X(
                "curvature:Q", axis=alt.Axis(title="curvature along the direction", tickCount=6)
            ),
            color=charts.colour("steps", names),
            tooltip=[
                charts.tip("steps", "steps"),
                charts.tip("curvature", "curvature", ".3g"),
                charts.tip("median", "median damping", ".3g"),
                charts.tip("low", "lower quartile", ".3g"),
                charts.tip("high", "upper quartile", ".3g"),
                charts.tip("infinite", "infinite (no step)", ".0%"),
            ],
        )
    )
    band = base.mark_rule(opacity=0.35, strokeWidth=4).encode(
        y=charts.log_axis(alt.Y, "low", heights), y2="high:Q"
    )
    lines = base.mark_line(point=alt.OverlayMarkDef(size=30)).encode(
        y=charts.log_axis(alt.Y, "median", heights)
    )
    return charts.finish(
        band + lines,
        key,
        "Dampings that the bootstrap chose",
        "Median of the finite dampings, with quartiles, against the direction's curvature",
        height=320,
    )
