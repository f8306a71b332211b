"""Tables of searches and predictions, and the paper's numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from vivit_bench.arguments import format_duration, format_size
from vivit_bench.critical_batch import Cell, FinishedSearch, Prediction, StoppedBy
from vivit_bench.critical_batch.guide import is_whole
from vivit_bench.critical_batch.settings import DEFAULT_TRIAL_TIMEOUT
from vivit_bench.curvature.options import Precision
from vivit_bench.measure.budget import BUDGET_MEANING, format_peak
from vivit_bench.report.critical_batch_marks import explanations, mark_of
from vivit_bench.report.tables import Column, Table, format_seconds

_PAPER = Path(__file__).with_name("paper_table_s1.csv")
PAPER_MACHINES = {
    "cpu": "Intel Core i7-8700K, 32 GB (31.3 GiB usable)",
    "cuda": "GeForce RTX 2080 Ti, 11 GB",
}
"""Where the paper's numbers come from, by kind of device."""


_SEARCH = (
    Column("problem", left=True),
    Column("work", left=True),
    *(Column(name, is_detail=True) for name in ("quantity", "curvature", "samples", "mc_samples")),
    Column("engine", left=True),
    Column("device", left=True),
    Column("data", left=True),
    *(Column(name, is_detail=True) for name in ("seed", "checkpoint", "dtype")),
    Column("threads"),
    Column("critical_batch_size", "critical batch size", bound="is_lower_bound"),
    Column("is_lower_bound", is_detail=True),
    Column("stopped_by", "stopped by", left=True),
    Column("reason", "", left=True),
    Column("memory_limit_bytes", "memory limit", format_size),
    Column("peak_bytes", "peak", format_peak),
    Column("idle_bytes", "idle process", format_size),
    Column("trials"),
    Column("from_records", "of them from records"),
    Column("work_seconds", "seconds at this size", format_seconds),
    Column("elapsed_seconds", "seconds of trials", ".0f"),
    Column("certificate_error", "largest check error", ".1e"),
    Column("folder", "stored", left=True),
)
_SEARCHES = (
    Column("problem", left=True),
    Column("work", left=True),
    Column("engine", left=True),
    Column("memory_limit_bytes", "limit", format_size),
    Column("critical_batch_size", "critical N", bound="is_lower_bound", mark="mark"),
)
_PREDICTIONS = (
    Column("problem", left=True),
    Column("work", left=True),
    *(Column(name, is_detail=True) for name in ("quantity", "curvature", "samples", "mc_samples")),
    Column("engine", left=True),
    Column("memory_bytes", "memory", format_size),
    Column("critical_batch_size", "critical N (95 %)", interval=("low", "high")),
    Column("low", is_detail=True),
    Column("high", is_detail=True),
    Column("limited_by", "memory is full at", left=True),
    Column("step_seconds", "time", format_duration),
    Column("search_seconds", "of a search", format_duration),
    *(Column(name, is_detail=True) for name in ("device", "data", "seed", "dtype", "threads")),
)


def search_table(finished: FinishedSearch) -> Table:
    """What is worth knowing of one search."""
    reasons = {
        StoppedBy.MEMORY: "one sample more does not fit",
        StoppedBy.MAX_BATCH: "the largest N allowed fits; see --max-batch",
        StoppedBy.TIMEOUT: f"{finished.result.message}; see --timeout",
    }
    result = finished.result
    if not result.critical_batch_size:
        reasons[StoppedBy.MEMORY] = _need_of_one_sample(finished)
    errors = [t.certificate_error for t in result.trials if t.certificate_error is not None]
    row = {
        **_finished_row(finished),
        "reason": reasons.get(result.stopped_by, result.message),
        "from_records": finished.from_records,
        "certificate_error": max(errors, default=None),
        "folder": str(finished.folder),
    }
    meaning = _meaning_of_memory(finished.cell)
    return Table(_SEARCH, [row], notes=[f"The memory limit is for the {meaning}."], is_record=True)


def _need_of_one_sample(finished: FinishedSearch) -> str:
    limit = finished.memory_limit.limit_bytes
    trial = next(t for t in finished.result.trials if t.n == 1)
    if (trial.peak_bytes or 0) <= limit:
        return f"one sample does not fit: {trial.message}"
    least = "" if is_whole(trial, limit) else "at least "
    return f"one sample takes {least}{format_peak(trial.peak_bytes)}, above the limit"


def _meaning_of_memory(cell: Cell) -> str:
    on_cpu = cell.device == "cpu"
    if cell.is_step:
        return "whole process, without pages of files" if on_cpu else "device memory of the step"
    return BUDGET_MEANING if on_cpu else "allocated device memory over model and data"


def predictions_table(
    found: Sequence[tuple[Cell, Prediction]], available_bytes: int | None
) -> Table:
    """Predicted critical batch sizes, a row each.

    Args:
        found: Cells and what was predicted.
        available_bytes: Of this machine, where larger memories are assumed to hold the same.
    """
    rows: list[dict[str, Any]] = []
    for cell, prediction in found:
        row: dict[str, Any] = {**cell.record(), **asdict(prediction)}
        row["work"] = work_of_row(row)
        rows.append(row)
    meanings = dict.fromkeys(_meaning_of_memory(cell) for cell, _ in found)
    notes = [f"Predicted from small trials, not run; memory: {', '.join(meanings)}."]
    if any((told.step_seconds or 0) > DEFAULT_TRIAL_TIMEOUT for _, told in found):
        notes.append(
            f"A trial of more than {format_duration(DEFAULT_TRIAL_TIMEOUT)} needs search --timeout "
            "SECONDS; --curvature mc, --samples frac or less memory take less."
        )
    most = max(prediction.memory_bytes for _, prediction in found)
    if available_bytes is not None and most > available_bytes:
        notes.append(
            f"More than the {format_size(available_bytes)} available here is taken to hold the "
            "same tensors; what a GPU's allocator and libraries take beside was not measured."
        )
    return Table(_PREDICTIONS, rows, notes=notes)


def sweep_table(finished: Sequence[FinishedSearch]) -> Table:
    """The searches of a sweep, a row each."""
    rows = [_finished_row(search) | {"folder": str(search.folder)} for search in finished]
    return _table_of(rows)


def searches_table(rows: pd.DataFrame) -> Table:
    """All searches, for people without the machine and the libraries."""
    return _table_of(
        [
            {str(name): None if v == "" or pd.isna(v) else v for name, v in row.items()}
            for row in rows.to_dict("records")
        ]
    )


def _table_of(rows: Sequence[dict[str, Any]]) -> Table:
    shown = {column.name for column in _SEARCHES}
    names = dict.fromkeys(name for row in rows for name in row if name not in shown)
    details = [Column(name, is_detail=True) for name in names]
    lines = [{**row, "work": work_of_row(row), "mark": mark_of(row)} for row in rows]
    return Table([*_SEARCHES, *details], lines, notes=explanations(rows))


def _finished_row(finished: FinishedSearch) -> dict[str, Any]:
    row = {
        **finished.cell.record(),
        "memory_limit_bytes": finished.memory_limit.limit_bytes,
        **finished.facts,
    }
    return {**row, "work": work_of_row(row)}


def work_of_row(row: Mapping[str, Any]) -> str:
    """What was computed and how, as the label of a cell says it."""
    draws = row["mc_samples"]
    device, dtype = row["device"], row["dtype"]
    parts = [
        row["quantity"],
        f"mc (M = {draws})" if row["curvature"] == "mc" and draws != 1 else row["curvature"],
        row["samples"],
        dtype if dtype != Precision.FLOAT32 else None,
        device if device != "cpu" else None,
    ]
    return ", ".join(part for part in parts if part)


def paper_searches() -> pd.DataFrame:
    """Published numbers: table, quantity, device, problem, curvature, samples and the size."""
    return pd.read_csv(_PAPER, comment="#")
