"""Stored searches, chosen so that the numbers side by side are comparable."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from vivit_bench.arguments import format_size
from vivit_bench.critical_batch.records import EXPERIMENT, search_rows
from vivit_bench.curvature.options import Precision
from vivit_bench.errors import UsageError
from vivit_bench.store import nothing_found

_CELL = ["problem", "quantity", "curvature", "samples", "mc_samples", "device", "engine"]
_MACHINE = ["host", "cpu", "cores", "ram_bytes"]
_INPUTS = {
    "data": "data",
    "seed": "seed",
    "checkpoint": "checkpoint",
    "checkpoint_file": "contents of the checkpoint",
    "problem_file": "contents of the problem's file",
}
"""What a problem's searches have in common, and what people call it."""
_OTHERS = {**_INPUTS, "threads": "threads", "memory_limit_bytes": "memory limit", "host": "machine"}
_TEXT = [
    *("problem", "quantity", "curvature", "samples", "device", "engine", "stopped_by", "message"),
    *("dtype", "code", "host", "cpu", "gpu", "ended_at"),
    *("checkpoint", "checkpoint_file", "problem_file"),
]
_PREDICTED = (
    *("critical_batch_size", "low", "high", "step_seconds", "limited_by"),
    "search_seconds",
)
_LATER = ("message", "work_seconds", "confirmed", "jobs")
"""Facts that older searches lack."""


@dataclass(frozen=True)
class Selection:
    """Comparable searches.

    They have one memory limit and one machine per kind of device, and each problem's have the same
    data, seed and weights.
    """

    rows: pd.DataFrame
    """At most one search a cell, the newest. ``device`` is ``cpu`` or ``cuda``."""
    notes: list[str] = field(default_factory=list)
    """What was left out, for the user."""

    @property
    def conditions(self) -> list[str]:
        """Memory limit, machine and threads of the rows, a line each; then data and dates."""
        columns = ["device", "memory_limit_bytes", *_MACHINE, "gpu"]
        lines = []
        for _, part in self.rows.groupby(columns, sort=False, dropna=False):
            row = part.iloc[0]
            hardware = row["gpu"] if row["device"] == "cuda" else f"{row['cores']} x {row['cpu']}"
            limit = format_size(int(row["memory_limit_bytes"]))
            lines.append(
                f"{row['device']}: memory limit {limit} on {hardware} ({row['host']}), "
                f"{way_of_running(part)}"
            )
        return [*lines, circumstances(self.rows)]


def words_of_options(rows: pd.DataFrame) -> list[str]:
    """Label draws and precision of some searches where they are not the usual ones, for titles."""
    draws, dtypes = _options(rows)
    return [*(f"M = {m}" for m in draws), *dtypes]


def suffixes_of_options(rows: pd.DataFrame) -> list[str]:
    """The same for names of files."""
    draws, dtypes = _options(rows)
    return [*(f"m{m}" for m in draws), *dtypes]


def _options(rows: pd.DataFrame) -> tuple[list[int], list[str]]:
    draws = sorted({int(m) for m in rows["mc_samples"]} - {1})
    return draws, sorted(set(rows["dtype"]) - {Precision.FLOAT32.value})


def circumstances(rows: pd.DataFrame) -> str:
    """Data, seeds, checkpoints and dates of some searches, on one line."""
    named = {name: ", ".join(map(str, sorted(set(rows[name])))) for name in ("data", "seed")}
    weights = sorted(set(rows["checkpoint"]) - {""})
    trained = f", checkpoint {', '.join(weights)}" if weights else ""
    days = sorted({str(time)[:10] for time in rows["ended_at"]})
    when = " to ".join(dict.fromkeys([days[0], days[-1]]))
    return f"data {named['data']}, seed {named['seed']}{trained}, {when}"


def way_of_running(rows: pd.DataFrame) -> str:
    """What their seconds depend on: threads of a trial, and searches that ran at a time."""
    threads, jobs = (sorted({int(value) for value in rows[name]}) for name in ("threads", "jobs"))
    with_threads = f"{' or '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"
    at_a_time = "one search" if jobs == [1] else f"{' or '.join(map(str, jobs))} searches"
    return f"{with_threads}, {at_a_time} at a time"


def load_searches(results_dir: Path) -> tuple[pd.DataFrame, list[str]]:
    """All finished searches.

    Args:
        results_dir: Folder of all results.

    Returns:
        A row per search, see `search_rows`, with empty text for missing text, the kind of device,
        ``jobs`` (1 where nothing is said of it) and columns ``predicted_...``; and a line on each
        that is damaged.

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
    for row in found:
        predicted = row.pop("predicted", None) or {}
        row.update({f"predicted_{name}": predicted.get(name) for name in _PREDICTED})
        row.update({name: None for name in _LATER if name not in row})
    rows = pd.DataFrame(found)
    rows[_TEXT] = rows[_TEXT].astype(object).fillna("")
    rows["mc_samples"] = rows["mc_samples"].fillna(1).astype(int)
    rows["jobs"] = rows["jobs"].astype("Int64").fillna(1).astype(int)
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
        mix: Take all memory limits, machines, data, seeds and weights, the newest search of each
            cell.

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
    if mix:
        notes += _mixed(chosen)
    else:
        parts = [_like_the_newest(group, notes) for _, group in chosen.groupby("device")]
        parts = [
            _of_the_same_inputs(group, notes)
            for _, group in pd.concat(parts).groupby(["device", "problem"])
        ]
        chosen = pd.concat(parts)
    chosen = _newest_of_each_cell(chosen, notes)
    for column, what in (("code", "versions of the code"), ("threads", "numbers of threads")):
        if (count := chosen[column].nunique()) > 1:
            notes.append(f"the searches were made by {count} {what}")
    return Selection(chosen, notes)


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


def _of_the_same_inputs(group: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """A problem's rows with the data, seed and weights of the last one."""
    newest, names = group.iloc[-1], list(_INPUTS)
    same = (group[names] == newest[names]).all(axis=1)
    if not same.all():
        notes.append(
            f"{newest['device']}: left out {_count(int((~same).sum()))} of {newest['problem']} "
            f"with {_differences(group[~same], newest, _INPUTS)}; the newest has "
            f"{_differences(newest.to_frame().T, group[~same].iloc[-1], _INPUTS)}; cells that it "
            "lacks are taken in with --mix, and critical-batch list shows all"
        )
    return group[same]


def _newest_of_each_cell(chosen: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Its rows without those of which there is a newer one, and a note on what these differ in."""
    is_older = chosen.duplicated(_CELL, keep="last")
    kept = chosen[~is_older].reset_index(drop=True)
    if is_older.any():
        newest = chosen[is_older][_CELL].merge(kept, on=_CELL, how="left")
        older = chosen[is_older].reset_index(drop=True)
        differing = [what for name, what in _OTHERS.items() if (older[name] != newest[name]).any()]
        notes.append(
            f"left out {_count(len(older))} of which there are newer ones"
            + (f" (they differ in {', '.join(differing)})" if differing else "")
            + "; critical-batch list shows all"
        )
    return kept


def _mixed(chosen: pd.DataFrame) -> list[str]:
    """What is mixed, as the user asked."""
    mixed = []
    if len(chosen[["memory_limit_bytes", *_MACHINE]].drop_duplicates()) > 1:
        mixed.append("memory limits or machines")
    per_problem = chosen[["problem", *_INPUTS]].drop_duplicates()
    if per_problem["problem"].duplicated().any():
        mixed.append("data, seeds or weights")
    return [f"{' and '.join(mixed)} are mixed, as asked: compare with care"] if mixed else []


def _differences(rows: pd.DataFrame, other: "pd.Series[Any]", names: dict[str, str]) -> str:
    """What some rows have that another has not: ``data own, seed 1``."""
    parts = []
    for name, what in names.items():
        values = sorted({str(value) or "none" for value in rows[name] if value != other[name]})
        if values:
            parts.append(f"{what} {' or '.join(values)}")
    return ", ".join(parts)


def _count(number: int) -> str:
    return f"{number} search{'es' if number != 1 else ''}"


def _sizes(limits: "pd.Series[int]") -> list[str]:
    return [format_size(int(limit)) for limit in sorted(set(limits))]


def _names(values: "pd.Series[str]") -> str:
    return ", ".join(sorted(set(values)))
