"""Table S.1 from stored searches: one table per sub-table and engine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from vivit_bench.critical_batch import StoppedBy
from vivit_bench.critical_batch.settings import DEFAULT_ENGINE
from vivit_bench.critical_batch.table_s1 import PROBLEMS, SubTable
from vivit_bench.report.critical_batch import PAPER_MACHINES, paper_searches
from vivit_bench.report.critical_batch_marks import explanations, mark_of, predicted_size
from vivit_bench.report.critical_batch_selection import (
    Selection,
    suffixes_of_options,
    words_of_options,
)
from vivit_bench.report.tables import Column, Table, format_seconds, render, write_in_all_formats

GRADIENT = "gradient"
"""The ``curvature`` of the row that is not one of an approximation."""
_CURVATURES = ("exact", "mc")
_SAMPLES = ("full", "frac")
_FACTS = (
    *("is_lower_bound", "stopped_by", "seconds_on_one_cpu"),
    *("predicted", "predicted_low", "predicted_high"),
)
"""Of a size, for programs."""
_SECONDS = (
    "seconds: of the work at that size. What makes its memory repeat slows it down; "
    "compare-engines measures speed."
)

_ONE_CPU = "All threads share one CPU, where peaks near the limit are read."
_CELL_NAME = ("problem", "quantity", "curvature", "samples")

Line = dict[str, Any]


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
        The table: of each problem a row per curvature and one of the gradient alone (in the columns
        of the whole mini-batch), with a size and the seconds of its work per choice of samples
        (None where there is no search), ``>=`` and the reason where memory did not end it; memory
        limit, threads and searches at a time (None where they are mixed). Machines and marks are
        explained below. None if no search belongs to it.
    """
    rows = selection.rows[selection.rows["device"] == sub_table.device]
    gradients = rows[rows["quantity"] == GRADIENT]
    rows = rows[(rows["quantity"] == sub_table.quantity) & (rows["engine"] == engine)]
    if rows.empty:
        return None
    published = paper_searches()
    published = published[published["table"] == sub_table.letter]
    (dtype,) = rows["dtype"].unique()
    about = {"table": sub_table.letter, "engine": engine, "dtype": dtype}
    about["mc_samples"] = int(rows["mc_samples"].max())  # exact curvature has one
    lines: list[Line] = []
    shown: list[pd.Series[Any]] = []
    for problem in in_paper_order(rows["problem"]):
        of_problem = rows[rows["problem"] == problem]
        gradient = _gradient_beside(gradients, of_problem, engine)
        used = of_problem if gradient is None else pd.concat([of_problem, gradient.to_frame().T])
        about |= {"problem": problem, **_in_common(used)}
        for curvature in _CURVATURES:
            line: Line = {**about, "curvature": curvature}
            for samples in _SAMPLES:
                line[f"{samples}_paper"] = _size(_find(published, problem, curvature, samples))
                if (found := _find(of_problem, problem, curvature, samples)) is not None:
                    line |= _cell(found, samples)
                    shown.append(found)
            lines.append(line)
        line = {**about, "curvature": GRADIENT}
        if gradient is not None:
            line |= _cell(gradient, "full")
            shown.append(gradient)
        lines.append(line)
    notes = [
        *Selection(pd.DataFrame(shown)).conditions,
        *_remarks(lines, shown),
        *(_paper_remarks(sub_table) if paper else ()),
    ]
    return Table(
        _columns(paper),
        lines,
        notes=notes,
        title=f"{sub_table.title} ({', '.join([engine, *words_of_options(rows)])})",
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
        The files, named by sub-table, engine, label draws and precision.

    Raises:
        UsageError: They cannot be written.
    """
    row = table.rows[0]
    engine = [row["engine"]] if row["engine"] != DEFAULT_ENGINE else []
    others = suffixes_of_options(pd.DataFrame(table.rows))
    stem = folder / "_".join([f"table_s1{row['table']}", *engine, *others])
    return write_in_all_formats(stem, lambda style: render(table, style))


def in_paper_order(problems: Iterable[str]) -> list[str]:
    """Names without repetition: the paper's problems in its order, then the others."""
    names = list(dict.fromkeys(problems))
    return [*(name for name in PROBLEMS if name in names), *sorted(set(names) - set(PROBLEMS))]


def _columns(paper: bool) -> list[Column]:
    columns = [
        *(Column(name, is_detail=True) for name in ("table", "engine", "dtype", "mc_samples")),
        *(Column(name, left=True) for name in ("problem", "curvature")),
    ]
    for samples in _SAMPLES:
        bound, mark = f"{samples}_is_lower_bound", f"{samples}_mark"
        columns.append(Column(samples, shown=",", bound=bound, mark=mark))
        if paper:
            columns.append(Column(f"{samples}_paper", f"{samples} (paper)", ","))
        seconds = f"{samples}_seconds"
        columns.append(
            Column(seconds, f"{samples} seconds", format_seconds, mark=f"{seconds}_mark")
        )
    facts = [f"{samples}_{fact}" for fact in _FACTS for samples in _SAMPLES]
    facts += ["memory_limit_bytes", "threads", "jobs"]
    return [*columns, *(Column(name, is_detail=True) for name in facts)]


def _cell(found: "pd.Series[Any]", samples: str) -> Line:
    """What a row has of a search, under the names of its choice of samples."""
    row: Mapping[str, Any] = {str(name): value for name, value in found.items()}
    size, low, high = predicted_size(row)
    has_seconds = pd.notna(row["work_seconds"])
    values = {
        "is_lower_bound": bool(row["is_lower_bound"]),
        "stopped_by": str(row["stopped_by"]),
        "mark": mark_of(row),
        "seconds": float(row["work_seconds"]) if has_seconds else None,
        "seconds_on_one_cpu": _on_one_cpu(row) if has_seconds else None,
        "predicted": size,
        "predicted_low": low,
        "predicted_high": high,
    }
    return {samples: _size(found), **{f"{samples}_{name}": v for name, v in values.items()}}


def _on_one_cpu(row: Mapping[str, Any]) -> bool:
    """Whether the seconds are of all threads on one CPU, where peaks near the limit are read."""
    confirmed = pd.notna(row["confirmed"]) and bool(row["confirmed"])
    return bool(row["device"] == "cpu" and (row["threads"] == 1 or confirmed))


def _in_common(rows: pd.DataFrame) -> Line:
    """What a problem's searches were run with; None where they differ."""
    names = ("memory_limit_bytes", "threads", "jobs")
    values = {name: set(rows[name]) for name in names}
    return {name: int(min(found)) if len(found) == 1 else None for name, found in values.items()}


def _gradient_beside(
    gradients: pd.DataFrame, rows: pd.DataFrame, engine: str
) -> "pd.Series[Any] | None":
    """The gradient's search under the limit of a problem's; of the same engine if it has one."""
    found = gradients[
        (gradients["problem"] == rows["problem"].iloc[0])
        & gradients["memory_limit_bytes"].isin(rows["memory_limit_bytes"])
    ]
    of_engine = found[found["engine"] == engine]
    found = found if of_engine.empty else of_engine
    return None if found.empty else found.iloc[-1]


def _remarks(lines: Sequence[Line], shown: "Sequence[pd.Series[Any]]") -> list[str]:
    """What the numbers mean; sets the marks of seconds where they are of several kinds."""
    rows = [{str(name): value for name, value in row.items()} for row in shown]
    notes = explanations(rows)
    notes += [
        f"{', '.join(str(row[name]) for name in _CELL_NAME if row[name])}: {row['message']}"
        for row in rows
        if row["stopped_by"] == StoppedBy.LIMIT and row["message"]
    ]
    if any(row["quantity"] == GRADIENT for row in rows):
        notes.append("gradient: searched alone, of the whole mini-batch.")
    timed = [
        (line, samples)
        for line in lines
        for samples in _SAMPLES
        if line.get(f"{samples}_seconds") is not None
    ]
    if not timed:
        return notes
    one_cpu = [line[f"{samples}_seconds_on_one_cpu"] for line, samples in timed]
    if all(one_cpu):
        return [*notes, f"{_SECONDS} {_ONE_CPU}"]
    if any(one_cpu):
        for (line, samples), marked in zip(timed, one_cpu, strict=True):
            line[f"{samples}_seconds_mark"] = "\n(1 CPU)" if marked else ""
        notes.append(f"(1 CPU): {_ONE_CPU}")
    return [*notes, _SECONDS]


def _paper_remarks(sub_table: SubTable) -> list[str]:
    return [
        f"paper: {PAPER_MACHINES[sub_table.device]}; N searched from 1 to 32,768. Machine and "
        "memory limit are others than here."
    ]


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
