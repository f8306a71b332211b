"""Tables of results in the five forms of ``--format``, and how they get to disk (no pandas)."""

import csv
import io
import json
import math
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from vivit_bench.store import write_output

Row = Mapping[str, Any]

_GAP = "  "
_NARROWEST = 12
"""Columns of text are folded down to this width; then the table becomes a list."""
_WHOLE = 20
"""A name up to this length is not folded: it is read, and typed, as one word."""


class TableFormat(StrEnum):
    """How a table is printed."""

    TABLE = "table"
    """Rounded, for people, as wide as the terminal."""
    CSV = "csv"
    """All digits, one line a row."""
    JSON = "json"
    """All digits, strict: NaN is null, infinities are "Infinity" and "-Infinity"."""
    MARKDOWN = "markdown"
    LATEX = "latex"


@dataclass(frozen=True)
class Column:
    """One quantity of a table.

    Args:
        name: Key in the rows; what CSV and JSON call it. A unit is part of it.
        title: What people read; None for the name.
        shown: How a value is rounded: a format specification or a function.
        left: Text, which is folded where the terminal is narrow; else right-aligned.
        is_detail: Left out where people read: in CSV and JSON only.
        bound: Key of a flag in the rows: where it is set, people read ``>=`` before the value.
        interval: Keys of two ends in the rows: where they are there, people read them after it.
        mark: Key of a text in the rows that people read after all that, on lines as it has them.
    """

    name: str
    title: str | None = None
    shown: str | Callable[[Any], str] = ""
    left: bool = False
    is_detail: bool = False
    bound: str = ""
    interval: tuple[str, str] | None = None
    mark: str = ""

    @property
    def header(self) -> str:
        """What people read."""
        return self.name if self.title is None else self.title

    def cell(self, value: Any) -> str:
        """A value as people read it; ``-`` for None and NaN."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "-"
        return self.shown(value) if callable(self.shown) else format(value, self.shown)

    def cell_of(self, row: Row) -> str:
        """This column's cell of a row."""
        at_least = ">= " if row.get(self.bound) else ""
        ends = [row.get(name) for name in self.interval or ()]
        known = ends and None not in ends
        spread = f" ({'-'.join(map(self.cell, ends))})" if known else ""
        mark = row.get(self.mark) or ""
        separator = " " if mark and not mark[0].isspace() else ""
        return f"{at_least}{self.cell(row.get(self.name))}{spread}{separator}{mark}"


@dataclass(frozen=True)
class Table:
    """Rows of raw values, and how they are shown."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    """What a row lacks is empty."""
    totals: Row | None = None
    """A last line for people; CSV and JSON leave it out."""
    notes: Sequence[str] = ()
    """Lines below the table, for people."""
    is_record: bool = False
    """Whether it is one row that people read as a list of its values; JSON has one object."""
    title: str = ""
    """A line above the table, for people."""


def render(table: Table, style: TableFormat, width: int | None = None) -> str:
    """A table as text that ends with a newline.

    Args:
        table: What to print.
        style: In which form.
        width: Columns of ``table``; None for those of the terminal (80 where there is none).
    """
    match style:
        case TableFormat.CSV:
            return _csv(table)
        case TableFormat.JSON:
            return json_text(_records(table))
        case TableFormat.LATEX:
            return _latex(table)
        case TableFormat.MARKDOWN:
            lines = [f"### {table.title}", ""] if table.title else []
            lines += _markdown(table) + [line for note in table.notes for line in ("", note)]
        case _:
            columns = width or shutil.get_terminal_size((80, 24)).columns
            lines = [table.title, ""] if table.title else []
            lines += _layout(table, columns)
            lines += [""] if table.notes else []
            # Names and paths are longer than a line before they are cut.
            lines += [
                line
                for note in table.notes
                for line in textwrap.wrap(
                    note, columns, break_long_words=False, break_on_hyphens=False
                )
            ]
    return "\n".join(lines) + "\n"


def format_number(value: float) -> str:
    """Two decimals below 10, one below 100."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def format_seconds(value: float) -> str:
    """Three significant digits, or all before the point; two below 0.1."""
    return f"{value:#.2g}" if value < 0.1 else format_number(value)


def json_text(value: Any) -> str:
    """Strict JSON: NaN as null, infinities as the strings "Infinity" and "-Infinity"."""
    return json.dumps(_strict(value), indent=2, allow_nan=False) + "\n"


def write_in_all_formats(stem: Path, text_of: Callable[[TableFormat], str]) -> list[Path]:
    """Write a table as CSV, Markdown and LaTeX.

    Args:
        stem: Path of the files without their endings.
        text_of: The table in a format.

    Returns:
        The files.

    Raises:
        StorageError: They cannot be written.
    """
    endings = {TableFormat.CSV: "csv", TableFormat.MARKDOWN: "md", TableFormat.LATEX: "tex"}
    paths = []
    for style, ending in endings.items():
        path = stem.with_name(f"{stem.name}.{ending}")
        write_output(path, text_of(style))
        paths.append(path)
    return paths


def _records(table: Table) -> Any:
    names = [column.name for column in table.columns]
    records = [{name: row.get(name) for name in names} for row in table.rows]
    return records[0] if table.is_record else records


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in table.columns])
    for row in table.rows:
        values = [(column, row.get(column.name)) for column in table.columns]
        writer.writerow(
            column.cell(value) if isinstance(value, list | tuple | Mapping) else value
            for column, value in values
        )
    return text.getvalue()


def shown_cells(table: Table) -> tuple[list[Column], list[list[str]]]:
    """Columns and cells as people read them: a record is a list of quantities."""
    shown = [column for column in table.columns if not column.is_detail]
    if table.is_record:
        (row,) = table.rows
        columns = [Column("quantity", "", left=True), Column("value", "", left=True)]
        return columns, [[c.header, c.cell_of(row)] for c in shown]
    cells = [[column.cell_of(row) for column in shown] for row in table.rows]
    if (totals := table.totals) is not None:
        cells.append([c.cell_of(totals) if c.name in totals else "" for c in shown])
    return shown, cells


def _markdown(table: Table) -> list[str]:
    columns, cells = shown_cells(table)
    lines = [[column.header for column in columns], *cells]
    text = ["| " + " | ".join(_escape(cell, "|") for cell in line) + " |" for line in lines]
    rule = "|" + "|".join(":--" if column.left else "--:" for column in columns) + "|"
    return [text[0], rule, *text[1:]]


def _latex(table: Table) -> str:
    columns, cells = shown_cells(table)
    header = [] if table.is_record else [[column.header for column in columns]]
    body = [" & ".join(_tex(cell) for cell in line) for line in header + cells]
    rules = [r"\midrule"] if header else []
    lines = [
        *([f"% {table.title}"] if table.title else []),
        rf"\begin{{tabular}}{{{''.join('l' if column.left else 'r' for column in columns)}}}",
        r"\toprule",
        *(rf"{line} \\" for line in body[: len(header)]),
        *rules,
        *(rf"{line} \\" for line in body[len(header) :]),
        r"\bottomrule",
        r"\end{tabular}",
        *(f"% {line}" for note in table.notes for line in note.splitlines()),
    ]
    return "\n".join(lines) + "\n"


_LATEX = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}


def _tex(text: str) -> str:
    return _escape(text, "\\_&%#$^{}~").replace(">=", r"$\geq$")


def _escape(text: str, special: str) -> str:
    line = " ".join(text.split())
    return "".join(_LATEX.get(c, f"\\{c}") if c in special else c for c in line)


def _layout(table: Table, width: int) -> list[str]:
    """Lines of at most ``width`` columns, unless a single number is wider."""
    columns, cells = shown_cells(table)
    if table.is_record:
        return _list(cells, width)
    headers = [column.header for column in columns]
    broken = ["\n".join(header.split()) for header in headers]
    for first in (headers, broken):
        widths = _widths(first, cells)
        if _total(widths) <= width:
            return _grid(table, columns, first, cells, widths)
    if _fold(columns, cells, widths, width):
        return _grid(table, columns, broken, cells, widths)
    lists = [_list(list(zip(headers, line, strict=True)), width) for line in cells]
    return [line for number, lines in enumerate(lists) for line in ([""] * bool(number) + lines)]


def _widths(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    rows = [headers, *cells]
    return [
        max(len(line) for cell in column for line in cell.split("\n"))
        for column in zip(*rows, strict=True)
    ]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _fold(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], widths: list[int], width: int
) -> bool:
    """Narrow the widest columns of text until the table fits; whether that is possible."""
    narrowest = {
        number: max(_NARROWEST, *(_longest_name(row[number]) for row in cells))
        for number, column in enumerate(columns)
        if column.left and cells
    }
    while (excess := _total(widths) - width) > 0:
        text = [number for number, least in narrowest.items() if widths[number] > least]
        widest = max(text, key=lambda number: widths[number], default=None)
        if widest is None:
            return False
        others = [widths[number] for number in text if number != widest]
        least = max([narrowest[widest], *others])
        step = max(1, min(excess, widths[widest] - least))
        widths[widest] -= step
    return True


def _longest_name(cell: str) -> int:
    return max((len(word) for word in cell.split() if len(word) <= _WHOLE), default=0)


def _grid(
    table: Table,
    columns: Sequence[Column],
    headers: Sequence[str],
    cells: Sequence[Sequence[str]],
    widths: Sequence[int],
) -> list[str]:
    def lines(row: Sequence[str], *, is_header: bool = False) -> list[str]:
        folded = [_wrap(cell, size) for cell, size in zip(row, widths, strict=True)]
        height = max(map(len, folded))
        fill = [[""] * (height - len(cell)) for cell in folded]
        pairs = zip(folded, fill, strict=True)
        folded = [empty + cell if is_header else cell + empty for cell, empty in pairs]
        return [
            _GAP.join(
                cell[number].ljust(size) if column.left else cell[number].rjust(size)
                for cell, size, column in zip(folded, widths, columns, strict=True)
            ).rstrip()
            for number in range(height)
        ]

    rule = _GAP.join("-" * size for size in widths)
    body = [lines(row) for row in cells]
    if table.totals is not None:
        body.insert(-1, [rule])
    return [*lines(headers, is_header=True), rule, *(line for row in body for line in row)]


def _list(pairs: Sequence[Sequence[str]], width: int) -> list[str]:
    """One quantity a line, long values folded."""
    indent = max((len(name) for name, _ in pairs), default=0) + len(_GAP)
    lines = []
    for name, value in pairs:
        first, *rest = _wrap(value, max(width - indent, _NARROWEST))
        lines.append(f"{name:<{indent}}{first}")
        lines += [" " * indent + line for line in rest]
    return lines


def _wrap(text: str, width: int) -> list[str]:
    lines = [
        folded
        for line in text.split("\n")
        for folded in textwrap.wrap(line, width, break_on_hyphens=False) or [""]
    ]
    return lines or [""]
