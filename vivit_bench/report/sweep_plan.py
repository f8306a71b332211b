"""What a sweep would do, as a table."""

from dataclasses import replace
from typing import Any

from vivit_bench.arguments import format_duration, format_size
from vivit_bench.critical_batch.sweep_plan import (
    PlannedSearch,
    Stored,
    SweepPlan,
    expected_seconds,
)
from vivit_bench.report.tables import Column, Table

_COLUMNS = (
    Column("number", "#"),
    Column("problem", left=True),
    Column("work", left=True),
    *(Column(name, is_detail=True) for name in ("quantity", "curvature", "samples", "mc_samples")),
    Column("engine", left=True, is_detail=True),
    *(Column(name, is_detail=True) for name in ("device", "data", "seed", "dtype", "threads")),
    Column("memory_limit_bytes", is_detail=True),
    Column("stored", left=True),
    *(Column(name, is_detail=True) for name in ("state", "trials")),
    Column("critical_batch_size", "critical N", bound="is_lower_bound"),
    Column("is_lower_bound", is_detail=True),
    Column("predicted", "predicted (95 %)", interval=("low", "high")),
    *(Column(name, is_detail=True) for name in ("low", "high", "limited_by", "step_seconds")),
    Column("search_seconds", is_detail=True),
    Column("expected_seconds", "expected", format_duration),
    Column("reason", is_detail=True),
)


def plan_table(plan: SweepPlan) -> Table:
    """The plan of a sweep, a row each search in the order in which they begin."""
    rows = [_row(number, planned) for number, planned in enumerate(plan.searches, start=1)]
    engines = {planned.job.cell.engine for planned in plan.searches}
    columns = [
        replace(column, is_detail=len(engines) < 2) if column.name == "engine" else column
        for column in _COLUMNS
    ]
    return Table(columns, rows, notes=[*_limits(plan), *_notes(plan)])


def _row(number: int, planned: PlannedSearch) -> dict[str, Any]:
    row: dict[str, Any] = {
        **planned.job.cell.record(),
        "number": number,
        "work": planned.job.cell.variant,
        "memory_limit_bytes": planned.job.memory_limit.limit_bytes,
        "stored": planned.stored.value,
        "state": planned.stored.value,
        "trials": planned.trials,
        "expected_seconds": planned.expected_seconds,
        "reason": planned.reason,
    }
    if planned.failed is not None:
        row |= {"stored": "failed", "state": "failed", "expected_seconds": None}
    elif planned.stored is Stored.INTERRUPTED:
        word = "begun" if planned.job.begun else row["stored"]
        row["stored"] = f"{word}, {planned.trials} trial{'s' * (planned.trials != 1)}"
    if planned.stored is Stored.FINISHED:
        row |= {name: planned.facts[name] for name in ("critical_batch_size", "is_lower_bound")}
        row["expected_seconds"] = None
    elif (found := planned.prediction) is not None:
        row |= {"predicted": found.critical_batch_size, "low": found.low, "high": found.high}
        row |= {name: getattr(found, name) for name in ("limited_by", "step_seconds")}
        row["search_seconds"] = found.search_seconds
    return row


def _limits(plan: SweepPlan) -> list[str]:
    limits = {each.job.cell.device: each.job.memory_limit.limit_bytes for each in plan.searches}
    return [f"Memory limit on {device}: {format_size(size)}." for device, size in limits.items()]


def _notes(plan: SweepPlan) -> list[str]:
    to_run = plan.to_run
    if not to_run:
        return [*_reasons(plan), "Nothing is to be run."]
    seconds, unknown = expected_seconds([each.expected_seconds for each in to_run], plan.at_once)
    together = "" if plan.at_once == 1 else f", {plan.at_once} at a time"
    expected = f"expected time {format_duration(seconds)}"
    if unknown == len(to_run):
        expected = "expected time not known"
    elif unknown:
        expected += f" and that of {unknown} searches that is not known"
    notes = [f"To run: {len(to_run)} of {len(plan.searches)} searches{together}; {expected}."]
    if plan.at_once > 1:
        notes.append("Times are expected of searches that run alone, and are longer beside others.")
    for number, planned in enumerate(plan.searches, start=1):
        if (longer := planned.longer_timeout) is not None:
            assert planned.prediction is not None
            step = format_duration(planned.prediction.step_seconds)
            notes.append(
                f"# {number}: its large trials are expected to take {step}, over --timeout "
                f"{planned.job.trial_timeout:g} s: --timeout {longer:.0f}"
            )
    return [*notes, *_reasons(plan)]


def _reasons(plan: SweepPlan) -> list[str]:
    return [
        f"# {number}: {'' if planned.stored is Stored.REFUSED else 'not predicted: '}"
        f"{planned.reason}"
        for number, planned in enumerate(plan.searches, start=1)
        if planned.reason
    ]
