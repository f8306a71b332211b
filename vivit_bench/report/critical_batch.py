"""Stored critical batch sizes, chosen so that the numbers side by side are comparable."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from vivit_bench.arguments import format_size
from vivit_bench.critical_batch.records import EXPERIMENT, search_rows
from vivit_bench.errors import UsageError
from vivit_bench.report.tables import Column, Table
from vivit_bench.store import nothing_found

_PAPER = Path(__file__).with_name("paper_table_s1.csv")
_CELL = ["problem", "quantity", "curvature", "samples", "mc_samples", "device", "engine"]
_MACHINE = ["host", "cpu", "cores", "ram_bytes"]
_TEXT = [
    *("problem", "quantity", "curvature", "samples", "device", "engine", "stopped_by"),
    *("code", "host", "cpu", "gpu", "ended_at"),
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
        """Memory limit and machine of the rows, one line each."""
        columns = ["device", "memory_limit_bytes", *_MACHINE, "gpu"]
        lines = []
        for _, row in self.rows[columns].drop_duplicates().iterrows():
            hardware = row["gpu"] if row["device"] == "cuda" else f"{row['cores']} x {row['cpu']}"
            limit = format_size(int(row["memory_limit_bytes"]))
            lines.append(f"{row['device']}: memory limit {limit} on {hardware} ({row['host']})")
        return lines


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
    mix: bool = False,
) -> Selection:
    """Choose searches that may stand in one table: the newest, and those like it.

    Args:
        rows: From `load_searches`.
        engines: Names; the gradient is taken from any.
        problems: Names; all if empty.
        memory_limit: Bytes; the newest search's if None.
        mc_samples: M of the Monte-Carlo searches.
        mix: Take all memory limits and machines, the newest search of each cell.

    Returns:
        The selection, by kind of device.

    Raises:
        UsageError: Nothing is left.
    """
    # The gradient is the same in all engines.
    chosen = rows[rows["engine"].isin(engines) | (rows["quantity"] == "gradient")]
    chosen = chosen[(chosen["curvature"] != "mc") | (chosen["mc_samples"] == mc_samples)]
    if problems:
        chosen = chosen[chosen["problem"].isin(problems)]
    if memory_limit is not None:
        chosen = chosen[chosen["memory_limit_bytes"] == memory_limit]
    if chosen.empty:
        limits = ", ".join(_sizes(rows["memory_limit_bytes"]))
        raise UsageError(
            f"no such search is stored; there are problems {_names(rows['problem'])}, engines "
            f"{_names(rows['engine'])}, memory limits {limits}"
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


def searches_table(rows: pd.DataFrame) -> Table:
    """All searches, for people without the machine and the libraries."""
    shown = {
        "problem": Column("problem", left=True),
        "quantity": Column("quantity", left=True),
        "curvature": Column("curvature", left=True),
        "samples": Column("samples", left=True),
        "engine": Column("engine", left=True),
        "memory_limit_bytes": Column("memory_limit_bytes", "limit", format_size),
        "critical_batch_size": Column("critical_batch_size", "critical N"),
        "stopped_by": Column("stopped_by", "stopped by", left=True),
    }
    rest = [Column(name, is_detail=True) for name in rows.columns if name not in shown]
    records = [
        {str(name): None if value == "" or pd.isna(value) else value for name, value in row.items()}
        for row in rows.to_dict("records")
    ]
    return Table([*shown.values(), *rest], records)


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
