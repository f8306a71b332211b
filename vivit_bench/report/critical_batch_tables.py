"""Table S.1 from stored searches: one block per sub-table and problem."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from vivit_bench.critical_batch.table_s1 import PROBLEMS, SubTable
from vivit_bench.report.critical_batch import Selection, paper_searches
from vivit_bench.report.tables import TableFormat, write_in_all_formats

_CURVATURES = ("exact", "mc")
_SAMPLES = ("full", "frac")


@dataclass(frozen=True)
class CriticalTable:
    """One sub-table."""

    sub_table: SubTable
    engine: str
    frame: pd.DataFrame
    """Columns problem, curvature, full, frac (sizes, ``Int64``, missing ones NA),
    full_is_lower_bound, frac_is_lower_bound,
    full_stopped_by, frac_stopped_by, memory_limit_bytes (of the row's searches, NA if mixed),
    and full_paper, frac_paper if asked for."""
    conditions: list[str]
    """Memory limit and machine, one line each."""

    @property
    def stem(self) -> str:
        """Name of its files without ending."""
        other = "" if self.engine == "vivit-bench" else f"_{self.engine}"
        return f"table_s1{self.sub_table.letter}{other}"


def make_table(
    selection: Selection, sub_table: SubTable, engine: str, *, paper: bool = False
) -> CriticalTable | None:
    """Arrange a sub-table.

    Args:
        selection: Comparable searches.
        sub_table: Which one.
        engine: Whose numbers.
        paper: Add the published numbers.

    Returns:
        The table; None if no search belongs to it.
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
    lines = []
    for problem in in_paper_order(rows["problem"]):
        for curvature in _CURVATURES:
            line: dict[str, Any] = {"problem": problem, "curvature": curvature}
            for samples in _SAMPLES:
                found = _find(rows, problem, curvature, samples)
                line[samples] = found["critical_batch_size"] if found is not None else pd.NA
                line[f"{samples}_stopped_by"] = found["stopped_by"] if found is not None else ""
                bound = found["is_lower_bound"] if found is not None else pd.NA
                line[f"{samples}_is_lower_bound"] = bound
                if paper:
                    other = _find(published, problem, curvature, samples)
                    size = other["critical_batch_size"] if other is not None else pd.NA
                    line[f"{samples}_paper"] = size
            limits = rows.loc[rows["problem"] == problem, "memory_limit_bytes"].unique()
            line["memory_limit_bytes"] = limits[0] if len(limits) == 1 else pd.NA
            lines.append(line)
    columns = ["problem", "curvature", *_SAMPLES]
    columns += [f"{name}_is_lower_bound" for name in _SAMPLES]
    columns += [f"{name}_stopped_by" for name in _SAMPLES]
    columns.append("memory_limit_bytes")
    columns += [f"{name}_paper" for name in _SAMPLES] if paper else []
    sizes = [name for name in columns if name in _SAMPLES or name.endswith(("_paper", "_bytes"))]
    frame = pd.DataFrame(lines)[columns].astype(dict.fromkeys(sizes, "Int64"))
    return CriticalTable(sub_table, engine, frame, Selection(rows).conditions)


def format_table(table: CriticalTable, style: TableFormat) -> str:
    """A table as text; ``>=`` marks sizes that memory did not stop."""
    match style:
        case TableFormat.CSV:
            return str(table.frame.to_csv(index=False))
        case TableFormat.LATEX:
            return _latex(table)
    tablefmt = "pipe" if style is TableFormat.MARKDOWN else "simple"
    blocks = []
    for problem, block in table.frame.groupby("problem", sort=False):
        body = [
            [row["curvature"], *_cells(row, table.frame.columns)] for _, row in block.iterrows()
        ]
        headers = [str(problem), *_headers(table.frame.columns)]
        blocks.append(
            tabulate(
                body,
                headers,
                tablefmt=tablefmt,
                disable_numparse=True,
                colalign=("left", *["right"] * (len(headers) - 1)),
            )
        )
    title = f"{table.sub_table.title} ({table.engine})"
    heading = f"### {title}" if style is TableFormat.MARKDOWN else title
    return "\n\n".join([heading, "\n".join(table.conditions), *blocks, *_footnotes(table)]) + "\n"


def write_table(table: CriticalTable, folder: Path) -> list[Path]:
    """Write a table as CSV, Markdown and LaTeX.

    Args:
        table: The table.
        folder: Where.

    Returns:
        The files.

    Raises:
        UsageError: They cannot be written.
    """
    return write_in_all_formats(folder / table.stem, lambda style: format_table(table, style))


def in_paper_order(problems: Iterable[str]) -> list[str]:
    """Names without repetition: the paper's problems in its order, then the others."""
    names = list(dict.fromkeys(problems))
    return [*(name for name in PROBLEMS if name in names), *sorted(set(names) - set(PROBLEMS))]


def size_label(size: Any, stopped_by: str, at_least: str = ">= ") -> str:
    """A critical batch size as text; marked where the true one may be larger."""
    if pd.isna(size):
        return "-"
    return f"{'' if stopped_by == 'memory' else at_least}{int(size)}"


def _find(
    rows: pd.DataFrame, problem: str, curvature: str, samples: str
) -> "pd.Series[Any] | None":
    found = rows[
        (rows["problem"] == problem)
        & (rows["curvature"] == curvature)
        & (rows["samples"] == samples)
    ]
    return None if found.empty else found.iloc[-1]


def _headers(columns: "pd.Index[str]") -> list[str]:
    headers = []
    for samples in _SAMPLES:
        headers.append(samples)
        if f"{samples}_paper" in columns:
            headers.append(f"{samples} (paper)")
    return headers


def _cells(row: "pd.Series[Any]", columns: "pd.Index[str]", at_least: str = ">= ") -> list[str]:
    cells = []
    for samples in _SAMPLES:
        cells.append(size_label(row[samples], str(row[f"{samples}_stopped_by"]), at_least))
        if f"{samples}_paper" in columns:
            cells.append(size_label(row[f"{samples}_paper"], "memory"))
    return cells


def _footnotes(table: CriticalTable) -> list[str]:
    notes = [
        f"{row['problem']}, {row['curvature']}, {samples}: stopped by {reason}, not by memory."
        for _, row in table.frame.iterrows()
        for samples in _SAMPLES
        if (reason := row[f"{samples}_stopped_by"]) not in ("memory", "")
    ]
    return ["\n".join(notes)] if notes else []


def _latex(table: CriticalTable) -> str:
    columns = table.frame.columns
    headers = _headers(columns)
    lines = [
        f"% {table.sub_table.title} ({table.engine})",
        *(f"% {condition}" for condition in table.conditions),
        rf"\begin{{tabular}}{{ll{'r' * len(headers)}}}",
        r"\toprule",
        " & ".join(["problem", "curvature", *headers]) + r" \\",
    ]
    for problem, block in table.frame.groupby("problem", sort=False):
        lines.append(r"\midrule")
        name = rf"\texttt{{{_escape(str(problem))}}}"
        for _, row in block.iterrows():
            cells = _cells(row, columns, at_least=r"$\geq$ ")
            lines.append(" & ".join([name, str(row["curvature"]), *cells]) + r" \\")
            name = ""
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [f"% {note}" for notes in _footnotes(table) for note in notes.splitlines()]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    for character in "\\_&%#$":
        text = text.replace(
            character, r"\textbackslash{}" if character == "\\" else f"\\{character}"
        )
    return text
