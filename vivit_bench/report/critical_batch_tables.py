"""Table S.1 from stored searches: one table per sub-table and engine."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from vivit_bench.critical_batch.settings import DEFAULT_ENGINE
from vivit_bench.critical_batch.table_s1 import PROBLEMS, SubTable
from vivit_bench.curvature.options import Precision
from vivit_bench.report.critical_batch import Selection, paper_searches
from vivit_bench.report.tables import Column, Table, render, write_in_all_formats

_CURVATURES = ("exact", "mc")
_SAMPLES = ("full", "frac")


def make_table(
    selection: Selection, sub_table: SubTable, engine: str, *, paper: bool = False
) -> Table | None:
    """Arrange a sub-table.

    Args:
        selection: Comparable searches.
        sub_table: Which one.
        engine: Whose numbers.
        paper: Add the published numbers.

    Returns:
        The table, a row per problem and curvature: a size per choice of samples (None where
        there is no search), ``>=`` where memory did not stop it, and memory limit (None where
        they are mixed) and machine below. None if no search belongs to it.
    """
    rows = selection.rows
    rows = rows[
        (rows["quantity"] == sub_table.quantity)
        & (rows["device"] == sub_table.device)
        & (rows["engine"] == engine)
    ]
    if rows.empty:
        return None
    published = paper_searches()
    published = published[published["table"] == sub_table.letter]
    (dtype,) = rows["dtype"].unique()
    lines, footnotes = [], []
    for problem in in_paper_order(rows["problem"]):
        limits = rows.loc[rows["problem"] == problem, "memory_limit_bytes"].unique()
        for curvature in _CURVATURES:
            line: dict[str, Any] = {
                "table": sub_table.letter,
                "engine": engine,
                "dtype": dtype,
                "problem": problem,
                "curvature": curvature,
                "memory_limit_bytes": int(limits[0]) if len(limits) == 1 else None,
            }
            for samples in _SAMPLES:
                found = _find(rows, problem, curvature, samples)
                line[samples] = _size(found)
                line[f"{samples}_paper"] = _size(_find(published, problem, curvature, samples))
                if found is None:
                    continue
                line[f"{samples}_is_lower_bound"] = bool(found["is_lower_bound"])
                line[f"{samples}_stopped_by"] = reason = str(found["stopped_by"])
                if found["is_lower_bound"]:
                    work = f"{problem}, {curvature}, {samples}"
                    footnotes.append(f"{work}: stopped by {reason}, not by memory.")
            lines.append(line)
    precision = "" if dtype == Precision.FLOAT32 else f", {dtype}"
    title = f"{sub_table.title} ({engine}{precision})"
    return Table(
        _columns(paper), lines, notes=[*Selection(rows).conditions, *footnotes], title=title
    )


def as_one(tables: Sequence[Table]) -> Table:
    """The rows of several tables in one, for programs."""
    return replace(tables[0], rows=[row for table in tables for row in table.rows])


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write a table as CSV, Markdown and LaTeX.

    Args:
        table: From `make_table`.
        folder: Where.

    Returns:
        The files, named by sub-table, engine and precision.

    Raises:
        UsageError: They cannot be written.
    """
    letter, *about = (table.rows[0][name] for name in ("table", "engine", "dtype"))
    others = [name for name in about if name not in (DEFAULT_ENGINE, Precision.FLOAT32)]
    stem = folder / "_".join([f"table_s1{letter}", *others])
    return write_in_all_formats(stem, lambda style: render(table, style))


def in_paper_order(problems: Iterable[str]) -> list[str]:
    """Names without repetition: the paper's problems in its order, then the others."""
    names = list(dict.fromkeys(problems))
    return [*(name for name in PROBLEMS if name in names), *sorted(set(names) - set(PROBLEMS))]


def _columns(paper: bool) -> list[Column]:
    columns = [
        *(Column(name, is_detail=True) for name in ("table", "engine", "dtype")),
        *(Column(name, left=True) for name in ("problem", "curvature")),
    ]
    for samples in _SAMPLES:
        columns.append(Column(samples, bound=f"{samples}_is_lower_bound"))
        if paper:
            columns.append(Column(f"{samples}_paper", f"{samples} (paper)"))
    facts = [
        f"{samples}_{fact}" for fact in ("is_lower_bound", "stopped_by") for samples in _SAMPLES
    ]
    return [*columns, *(Column(name, is_detail=True) for name in [*facts, "memory_limit_bytes"])]


def _find(
    rows: pd.DataFrame, problem: str, curvature: str, samples: str
) -> "pd.Series[Any] | None":
    found = rows[
        (rows["problem"] == problem)
        & (rows["curvature"] == curvature)
        & (rows["samples"] == samples)
    ]
    return None if found.empty else found.iloc[-1]


def _size(found: "pd.Series[Any] | None") -> int | None:
    return None if found is None else int(found["critical_batch_size"])
