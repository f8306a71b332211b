"""What a page consists of: sections of tables, charts and lines of text."""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vivit_bench.report.tables import Column, Table, TableFormat, render, shown_cells

Spec = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """A cell: what people read, and by what it is sorted."""

    text: str
    sort: str
    is_text: bool


@dataclass(frozen=True)
class PageTable:
    """A table with a download of all its digits."""

    table: Table
    name: str
    """Of the downloaded file, without its ending."""
    title: str = ""
    groups: Sequence[tuple[str, int]] = ()
    """Headings over several columns, each with their number, that of all shown columns in all."""

    kind = "table"

    @property
    def headers(self) -> list[Column]:
        """The columns that people see."""
        return shown_cells(self.table)[0]

    @property
    def lines(self) -> list[list[Shown]]:
        """The cells that people see, a list a row."""
        columns, cells = shown_cells(self.table)
        if self.table.is_record:
            return [[Shown(cell, cell, True) for cell in line] for line in cells]
        return [
            [
                Shown(cell, _sort_key(row.get(column.name)), column.left)
                for cell, column in zip(line, columns, strict=True)
            ]
            for line, row in zip(cells, self.table.rows, strict=False)
        ]

    @property
    def csv(self) -> str:
        """All columns with all digits, as ``--format csv`` prints them."""
        return render(self.table, TableFormat.CSV)

    @property
    def download(self) -> str:
        """`csv` as the target of a link."""
        return f"data:text/csv;base64,{base64.b64encode(self.csv.encode()).decode()}"


@dataclass(frozen=True)
class Chart:
    """An interactive chart."""

    key: str
    """Unlike all others of the page; a name in HTML."""
    title: str
    spec: Spec
    """Vega-Lite, with data by name."""
    alt: str
    """What it shows, for those who do not see it."""


@dataclass(frozen=True)
class Control:
    """A slider or a list that chooses what several charts show, by their parameter ``chosen``."""

    label: str
    choices: Sequence[str]
    """What each value 0, 1, ... stands for."""
    is_slider: bool


@dataclass(frozen=True)
class Charts:
    """Charts beside each other."""

    charts: Sequence[Chart]
    key: str = ""
    """Of the group; needed by a control."""
    control: Control | None = None
    caption: str = ""
    is_small: bool = False
    """Whether more than two fit beside each other."""

    kind = "charts"


@dataclass(frozen=True)
class Heading:
    """The start of a part of a section."""

    title: str
    text: str = ""

    kind = "heading"


Block = PageTable | Charts | Heading


@dataclass
class Section:
    """A part of the page with its place in the contents."""

    key: str
    title: str
    lead: str
    blocks: list[Block] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    """Name -> CSV that the charts draw."""
    warnings: list[str] = field(default_factory=list)
    """What was left out because it is damaged, not finished or not comparable."""


def name_of(*parts: object) -> str:
    """A name that is one in HTML, Vega and file systems.

    Texts that differ in other characters alone have the same: a number beside them tells them
    apart.
    """
    return re.sub(r"[^A-Za-z0-9]+", "_", "_".join(map(str, parts))).strip("_")


def plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of pandas with None for what is empty."""
    return {str(name): None if _is_empty(value) else value for name, value in row.items()}


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _sort_key(value: Any) -> str:
    if _is_empty(value):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return str(value)
