"""Tables of one mini-batch's curvature: directions, and how each layer is computed."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import humanize

from vivit_bench.report.tables import Column, Table

if TYPE_CHECKING:
    from torch import Tensor

    from vivit_bench.curvature import Explanation
    from vivit_bench.curvature.costs import Cost

_NUMBER = ".6g"

STEP_COLUMNS = (
    Column("loss", shown=_NUMBER),
    Column("loss_after_step", "loss after the step", _NUMBER),
    Column("step_norm", "norm of the step", _NUMBER),
    Column("num_directions", "directions", ","),
)
DIRECTION_COLUMNS = (
    Column("direction"),
    Column("eigenvalue", shown=".4e"),
    Column("gamma", shown=".3e"),
    Column("alignment", shown=".3g"),
    Column("snr_gamma", shown=".3g"),
    Column("snr_lambda", shown=".3g"),
)
"""Of `vivit_bench.noise.direction_table`."""


def step_table(**row: Any) -> Table:
    """What a Newton step does: the values of ``STEP_COLUMNS``."""
    return Table(STEP_COLUMNS, [row], is_record=True)


def directions_table(rows: Iterable[Any]) -> Table:
    """Slopes, curvatures and signal-to-noise ratios, a row a direction."""
    return Table(DIRECTION_COLUMNS, list(rows))


def eigenvalues_table(eigenvalues: "Tensor", residuals: "Tensor | None" = None) -> Table:
    """Leading eigenvalues [k], descending, and how good they are where that is known, [k]."""
    rows = [
        {"direction": number, "eigenvalue": value}
        for number, value in enumerate(eigenvalues.tolist(), 1)
    ]
    if residuals is None:
        return Table(DIRECTION_COLUMNS[:2], rows)
    columns = (*DIRECTION_COLUMNS[:2], Column("residual", shown=".1e"))
    pairs = zip(rows, residuals.tolist(), strict=True)
    return Table(columns, [row | {"residual": value} for row, value in pairs])


def explanation_table(explanation: "Explanation") -> Table:
    """A row for each part of a computation, the last for all of it; reasons are below."""
    columns = (
        Column("kind", is_detail=True),
        Column("name", "layer or step", left=True),
        Column("type", left=True, is_detail=True),
        Column("tier", left=True),
        Column("num_params", "D", ","),
        Column("contraction", left=True),
        Column("passes", is_detail=True),
        Column("flops", "GFLOP", lambda flops: f"{flops / 1e9:.2f}"),
        Column("seconds", shown=".2g"),
        Column("kept_bytes", "kept", _size),
        Column("peak_bytes", "memory", _size),
        Column("peak_at", is_detail=True),
        Column("working_bytes", is_detail=True),
        Column("in_place", is_detail=True),
        Column("reason", is_detail=True),
        Column("advice", is_detail=True),
    )
    costs = explanation.costs
    held = {stage.name: 0 for stage in explanation.stages}
    for stage in explanation.stages:
        held[stage.name] = max(held[stage.name], stage.bytes)

    def row(kind: str, name: str, cost: "Cost", **more: Any) -> dict[str, Any]:
        known = {"flops": cost.flops, "seconds": cost.seconds, "peak_bytes": held.get(cost.name)}
        return {"kind": kind, "name": name, **known, **more}

    layers = [
        row(
            "layer",
            unit.name,
            cost,
            type=unit.layer_type,
            tier=unit.tier.value,
            num_params=unit.num_params,
            contraction=unit.contraction.value,
            passes=passes,
            kept_bytes=kept,
            reason=unit.reason,
            advice=unit.advice or None,
        )
        for unit, cost, kept, passes in zip(
            explanation.units,
            costs.contractions,
            explanation.kept_bytes,
            explanation.parts,
            strict=True,
        )
    ]
    everything = {
        "kind": "all",
        "name": "all",
        "passes": len(explanation.passes),
        "flops": costs.flops,
        "seconds": costs.seconds,
        "peak_bytes": explanation.peak.bytes,
        "peak_at": explanation.peak.name,
        "working_bytes": explanation.working_bytes,
        "in_place": ", ".join(explanation.in_place) or None,
    }
    for name in ("num_params", "kept_bytes"):
        everything[name] = sum(each[name] for each in layers)
    rows = [
        *(row("pass", cost.name, cost) for cost in costs.passes),
        *layers,
        *(row("solver", cost.name, cost) for cost in costs.solvers),
        row("gradient", costs.gradient.name, costs.gradient),
        everything,
    ]
    several = "one sample at a time" if explanation.one_sample_at_a_time else "in micro-batches"
    advice = dict.fromkeys(unit.advice for unit in explanation.units if unit.advice)
    notes = [
        *(f"{unit.name} ({unit.layer_type}): {unit.reason}" for unit in explanation.units),
        f"samples run {several} of about {_size(explanation.working_bytes)}",
        *_plan_lines(explanation),
        costs.assumption,
        *(f"- {line}" for line in [*explanation.notes, *advice]),
    ]
    return Table(columns, rows, notes=notes)


def _size(size: int) -> str:
    return humanize.naturalsize(size, binary=True)


def _plan_lines(explanation: "Explanation") -> Iterator[str]:
    """Passes, solver and memory, for people."""
    if len(explanation.passes) > 1:
        for number, pieces in enumerate(explanation.passes, 1):
            yield f"pass {number} of {len(explanation.passes)}: {', '.join(pieces)}"
    if explanation.in_place:
        yield f"solved by the CPU in the matrix's own memory: {', '.join(explanation.in_place)}"
    peak = explanation.peak
    yield f"most memory over what the process holds before: {_size(peak.bytes)}, at '{peak.name}'"
