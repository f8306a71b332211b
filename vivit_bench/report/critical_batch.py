"""Stored critical batch sizes, chosen so that the numbers side by side are comparable."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from vivit_bench.arguments import format_size
from vivit_bench.critical_batch import Cell, FinishedSearch, Prediction, StoppedBy
from vivit_bench.critical_batch.records import EXPERIMENT, search_rows
from vivit_bench.curvature.options import Precision
from vivit_bench.errors import UsageError
from vivit_bench.measure.budget import BUDGET_MEANING, format_peak
from vivit_bench.report.tables import Column, Table
from vivit_bench.store import nothing_found

_PAPER = Path(__file__).with_name("paper_table_s1.csv")
_CELL = ["problem", "quantity", "curvature", "samples", "mc_samples", "device", "engine"]
_MACHINE = ["host", "cpu", "cores", "ram_bytes"]
_BOUND = ">=: something else than memory stopped the search; --format csv says what."
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
    Column("peak_bytes", "peak over idle", format_peak),
    Column("idle_bytes", "idle process", format_size),
    Column("trials"),
    Column("from_records", "of them from records"),
    Column("elapsed_seconds", "seconds of trials", ".0f"),
    Column("certificate_error", "largest check error", ".1e"),
    Column("folder", "stored", left=True),
)
_SEARCHES = (
    Column("problem", left=True),
    Column("work", left=True),
    Column("engine", left=True),
    Column("memory_limit_bytes", "limit", format_size),
    Column("critical_batch_size", "critical N", bound="is_lower_bound"),
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
    Column("step_seconds", "seconds", ".3g"),
    Column("search_seconds", "of a search", ".3g"),
    *(Column(name, is_detail=True) for name in ("device", "data", "seed", "dtype", "threads")),
)
_TEXT = [
    *("problem", "quantity", "curvature", "samples", "device", "engine", "stopped_by"),
    *("dtype", "code", "host", "cpu", "gpu", "ended_at"),
]


@dataclass(frozen=True)
class Selection:
    """Comparable searches: one memory limit and one machine per kind of device."""

    rows: pd.DataFrame
    """At most one search a cell, the newest. ``device`` is ``cpu`` or ``cuda``."""
    notes: list[str] = field(default_factory=list)
    """What was left out, for the user."""

    @property
    def conditions(self) -> list[str]:
        """Memory limit and machine of the rows, one line each; then data, seeds and dates."""
        columns = ["device", "memory_limit_bytes", *_MACHINE, "gpu"]
        lines = []
        for _, row in self.rows[columns].drop_duplicates().iterrows():
            hardware = row["gpu"] if row["device"] == "cuda" else f"{row['cores']} x {row['cpu']}"
            limit = format_size(int(row["memory_limit_bytes"]))
            lines.append(f"{row['device']}: memory limit {limit} on {hardware} ({row['host']})")
        return [*lines, circumstances(self.rows)]


def circumstances(rows: pd.DataFrame) -> str:
    """Data, seeds and dates of some searches, on one line."""
    named = {name: ", ".join(map(str, sorted(set(rows[name])))) for name in ("data", "seed")}
    days = sorted({str(time)[:10] for time in rows["ended_at"]})
    when = " to ".join(dict.fromkeys([days[0], days[-1]]))
    return f"data {named['data']}, seed {named['seed']}, {when}"


def load_searches(results_dir: Path) -> tuple[pd.DataFrame, list[str]]:
    """All finished searches.

    Args:
        results_dir: Folder of all results.

    Returns:
        A row per search, see `search_rows`, with empty text for missing text and the kind of
        device; and a line on each that is damaged.

    Raises:
        UsageError: There is none; DamagedRunError if one is damaged.
    """
    found, notes = search_rows(results_dir)
    if not found:
        raise nothing_found(
            f"no finished searches in {results_dir / EXPERIMENT}",
            notes,
            "make some with: vivit-bench critical-batch sweep",
        )
    rows = pd.DataFrame(found)
    rows[_TEXT] = rows[_TEXT].astype(object).fillna("")
    rows["mc_samples"] = rows["mc_samples"].fillna(1).astype(int)
    rows["device"] = rows["device"].str.partition(":")[0]
    return rows, notes


def select_searches(
    rows: pd.DataFrame,
    *,
    engines: Sequence[str],
    problems: Sequence[str] = (),
    memory_limit: int | None = None,
    mc_samples: int = 1,
    dtype: Precision = Precision.FLOAT32,
    mix: bool = False,
) -> Selection:
    """Choose searches that may stand in one table: the newest, and those like it.

    Args:
        rows: From `load_searches`.
        engines: Names; the gradient is taken from any.
        problems: Names; all if empty.
        memory_limit: Bytes; the newest search's if None.
        mc_samples: M of the Monte-Carlo searches.
        dtype: Their precision.
        mix: Take all memory limits and machines, the newest search of each cell.

    Returns:
        The selection, by kind of device.

    Raises:
        UsageError: Nothing is left.
    """
    # The gradient is the same in all engines.
    chosen = rows[rows["engine"].isin(engines) | (rows["quantity"] == "gradient")]
    chosen = chosen[(chosen["curvature"] != "mc") | (chosen["mc_samples"] == mc_samples)]
    chosen = chosen[chosen["dtype"] == dtype.value]
    if problems:
        chosen = chosen[chosen["problem"].isin(problems)]
    if memory_limit is not None:
        chosen = chosen[chosen["memory_limit_bytes"] == memory_limit]
    if chosen.empty:
        limits = ", ".join(_sizes(rows["memory_limit_bytes"]))
        raise UsageError(
            f"no such search is stored; there are problems {_names(rows['problem'])}, engines "
            f"{_names(rows['engine'])}, memory limits {limits}, precisions {_names(rows['dtype'])}"
        )
    chosen = chosen.sort_values("ended_at", kind="stable")
    notes: list[str] = []
    if not mix:
        parts = [_like_the_newest(group, notes) for _, group in chosen.groupby("device")]
        chosen = pd.concat(parts)
    elif len(chosen[["memory_limit_bytes", *_MACHINE]].drop_duplicates()) > 1:
        notes.append("memory limits or machines are mixed, as asked: compare with care")
    chosen = chosen.drop_duplicates(_CELL, keep="last").reset_index(drop=True)
    for column, what in (("code", "versions of the code"), ("threads", "numbers of threads")):
        if (count := chosen[column].nunique()) > 1:
            notes.append(f"the searches were made by {count} {what}")
    return Selection(chosen, notes)


def search_table(finished: FinishedSearch) -> Table:
    """What is worth knowing of one search."""
    reasons = {
        StoppedBy.MEMORY: "one sample more does not fit",
        StoppedBy.MAX_BATCH: "the largest N allowed fits; see --max-batch",
        StoppedBy.TIMEOUT: f"{finished.result.message}; see --timeout",
    }
    result = finished.result
    errors = [t.certificate_error for t in result.trials if t.certificate_error is not None]
    row = {
        **_finished_row(finished),
        "reason": reasons.get(result.stopped_by, result.message),
        "from_records": finished.from_records,
        "certificate_error": max(errors, default=None),
        "folder": str(finished.folder),
    }
    on_cpu = finished.cell.device == "cpu"
    meaning = BUDGET_MEANING if on_cpu else "allocated device memory over model and data"
    if finished.cell.is_step:
        meaning = "whole process, without pages of files" if on_cpu else "device memory of the step"
    return Table(_SEARCH, [row], notes=[f"The memory limit is for the {meaning}."], is_record=True)


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
        row["work"] = _work(row)
        rows.append(row)
    notes = [f"Predicted from small trials, not run; memory: {BUDGET_MEANING}."]
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
    bounds = any(row["is_lower_bound"] for row in rows)
    notes = [_BOUND] if bounds else []
    return Table([*_SEARCHES, *details], [{**row, "work": _work(row)} for row in rows], notes=notes)


def _finished_row(finished: FinishedSearch) -> dict[str, Any]:
    row = {
        **finished.cell.record(),
        "memory_limit_bytes": finished.memory_limit.limit_bytes,
        **finished.facts,
    }
    return {**row, "work": _work(row)}


def _work(row: Mapping[str, Any]) -> str:
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


def _like_the_newest(group: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Rows under the memory limit and on the machine of the last one."""
    newest = group.iloc[-1]
    same_limit = group["memory_limit_bytes"] == newest["memory_limit_bytes"]
    same_machine = (group[_MACHINE] == newest[_MACHINE]).all(axis=1)
    if not same_limit.all():
        others = ", ".join(_sizes(group.loc[~same_limit, "memory_limit_bytes"]))
        notes.append(
            f"{newest['device']}: left out {int((~same_limit).sum())} searches with the memory "
            f"limits {others}; choose with --memory-limit, or --mix"
        )
    if not same_machine.all():
        others = ", ".join(sorted(set(group.loc[~same_machine, "host"])))
        notes.append(
            f"{newest['device']}: left out {int((~same_machine).sum())} searches of other "
            f"machines ({others}); take them in with --mix"
        )
    return group[same_limit & same_machine]


def _sizes(limits: "pd.Series[int]") -> list[str]:
    return [format_size(int(limit)) for limit in sorted(set(limits))]


def _names(values: "pd.Series[str]") -> str:
    return ", ".join(sorted(set(values)))
