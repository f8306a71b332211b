"""Groups of stored searches that may stand beside each other: one machine, limit and precision."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vivit_bench.arguments import format_size
from vivit_bench.critical_batch.table_s1 import PROBLEMS
from vivit_bench.curvature.options import Precision
from vivit_bench.peers import engine_names
from vivit_bench.report.critical_batch_selection import Selection, load_searches, select_searches

_GROUP = ["device", "host", "cpu", "cores", "ram_bytes", "gpu", "dtype", "memory_limit_bytes"]

_WORK = ("gradient", "step", "eigenvalues", "block-newton", "full-newton")
_ORDER = ("", "exact, full", "exact, frac", "mc, full", "mc, frac")


@dataclass(frozen=True)
class Group:
    """Comparable searches."""

    title: str
    """What they have in common."""
    selection: Selection
    number: int

    @property
    def rows(self) -> pd.DataFrame:
        """Of the selection."""
        return self.selection.rows

    @property
    def engines(self) -> list[str]:
        """Names, vivit-bench's first."""
        return engines_in_order(self.rows["engine"])


@dataclass(frozen=True)
class Searches:
    """All finished searches of a folder."""

    rows: pd.DataFrame
    groups: list[Group]
    damaged: list[str]


def load_groups(results_dir: Path) -> Searches:
    """All searches, and those of them that are comparable, the largest group first.

    Raises:
        UsageError: There is none; DamagedRunError if one is damaged.
    """
    rows, damaged = load_searches(results_dir)
    found = sorted(_selections(rows), key=lambda each: -len(each[1].rows))
    groups = [Group(title, selection, n) for n, (title, selection) in enumerate(found)]
    return Searches(rows, groups, damaged)


def engines_in_order(names: "pd.Series[str] | list[str]") -> list[str]:
    """Names without repetition, vivit-bench's first, then its peers as they are registered."""
    known = engine_names()
    return sorted(
        set(names), key=lambda name: (known.index(name) if name in known else len(known), name)
    )


def work_of(row: Mapping[str, Any]) -> str:
    """What was computed and how, as the axes have it."""
    draws = f" (M = {row['mc_samples']})" if row["mc_samples"] != 1 else ""
    curvature = f"{row['curvature']}{draws}" if row["curvature"] else None
    return ", ".join(str(part) for part in (row["quantity"], curvature, row["samples"]) if part)


def work_place(work: str) -> tuple[int, int]:
    """Where a kind of work stands among others, the paper's approximations in its order."""
    quantity, _, approximation = work.partition(", ")
    kind = re.sub(r" \(M = \d+\)", "", approximation)
    place = _ORDER.index(kind) if kind in _ORDER else len(_ORDER)
    return (_WORK.index(quantity) if quantity in _WORK else len(_WORK), place)


def place_of(row: Mapping[str, Any]) -> tuple[int, str, tuple[int, int]]:
    """Where a search stands among others: the paper's problems and approximations first."""
    known = row["problem"] in PROBLEMS
    problem = PROBLEMS.index(row["problem"]) if known else len(PROBLEMS)
    return problem, str(row["problem"]), work_place(work_of(row))


def _selections(rows: pd.DataFrame) -> Iterator[tuple[str, Selection]]:
    for _, part in rows.groupby(_GROUP, sort=False, dropna=False):
        drawn = part.loc[part["curvature"] == "mc", "mc_samples"]
        for draws in sorted(set(drawn)) or [1]:
            first = part.iloc[0]
            selection = select_searches(
                part,
                engines=sorted(set(part["engine"])),
                mc_samples=int(draws),
                dtype=Precision(first["dtype"]),
            )
            yield _title(first, int(draws)), selection


def _title(row: "pd.Series[Any]", draws: int) -> str:
    hardware = row["gpu"] if row["device"] == "cuda" else f"{row['cores']} x {row['cpu']}"
    limit = format_size(int(row["memory_limit_bytes"]))
    precision = "" if row["dtype"] == Precision.FLOAT32 else f", {row['dtype']}"
    monte_carlo = "" if draws == 1 else f", mc with M = {draws}"
    return f"{limit} on {hardware} ({row['host']}){precision}{monte_carlo}"
