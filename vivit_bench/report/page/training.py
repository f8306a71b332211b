"""Charts of a monitored training."""

import altair as alt
import pandas as pd

from vivit_bench.noise.records import NoiseRun
from vivit_bench.report.noise import run_title
from vivit_bench.report.page import charts
from vivit_bench.report.page.parts import Chart, name_of


def training_charts(run: NoiseRun, number: int, data: dict[str, str]) -> list[Chart]:
    """Loss, accuracy and K over the training.

    Args:
        run: The run.
        number: Of the run on the page.
        data: Gets what the charts draw.
    """
    key = name_of("training", number)
    curves = run.curves
    data[key] = charts.csv_of(curves)
    title = run_title(run)
    made = [_curve(curves, key, "loss", title)]
    if curves["train_accuracy"].notna().any():
        made.append(_curve(curves, key, "accuracy", title))
    counts = run.checkpoints[["step", "epoch", "num_directions"]]
    last = int(counts["step"].max())
    data[f"{key}_counts"] = charts.csv_of(counts)
    chart = (
        alt.Chart(charts.data_of(f"{key}_counts", counts))
        .mark_line(point=alt.OverlayMarkDef(size=40, color=charts.INK), color=charts.INK)
        .encode(
            x=alt.X(
                "step:Q",
                axis=alt.Axis(title="step", format=",d", values=charts.zero_and_powers(last)),
                scale=alt.Scale(type="symlog"),
            ),
            y=alt.Y("num_directions:Q", axis=alt.Axis(title=None, tickCount=5)),
            tooltip=[
                charts.tip("step", "step", ",d"),
                charts.tip("epoch", "epoch", ".3g"),
                charts.tip("num_directions", "K", ",d"),
            ],
        )
    )
    text = f"Number of directions K at the checkpoints of {title}"
    return [
        *made,
        charts.finish(chart, f"{key}_counts", "Directions K above the cutoff", text, height=170),
    ]


def _curve(curves: pd.DataFrame, key: str, name: str, run_name: str) -> Chart:
    parts = ["train", "test"]
    legend = charts.legend_of(parts, as_lines=True)
    last = curves.iloc[-1]
    shown = "%" if name == "accuracy" else ".3g"
    y = alt.Y(
        "value:Q",
        axis=alt.Axis(title=None, tickCount=5, format=shown if shown == "%" else "~g"),
        scale=alt.Scale(zero=False),
    )
    chart = (
        alt.Chart(charts.data_of(key, curves))
        .transform_fold([f"{part}_{name}" for part in parts], as_=["name", "value"])
        .transform_calculate(part="split(datum.name, '_')[0]")
        .mark_line(point=alt.OverlayMarkDef(size=28))
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(title="epoch", tickCount=6)),
            y=y,
            color=alt.Color("part:N", scale=charts.colours_of(parts), legend=legend),
            strokeDash=alt.StrokeDash(
                "part:N", scale=alt.Scale(domain=parts, range=[[1, 0], [5, 3]]), legend=legend
            ),
            tooltip=[
                charts.tip("part", "data"),
                charts.tip("epoch", "epoch", ".3g"),
                charts.tip("step", "step", ",d"),
                charts.tip("value", name, ".1%" if shown == "%" else shown),
            ],
        )
    )
    text = (
        f"{name} of {run_name} over the epochs, at the end {last[f'train_{name}']:.3g} (train) and "
        f"{last[f'test_{name}']:.3g} (test)"
    )
    return charts.finish(chart, f"{key}_{name}", name.capitalize(), text, height=170)
