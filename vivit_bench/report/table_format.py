"""The forms a table is printed in (no pandas)."""

from enum import StrEnum


class TableFormat(StrEnum):
    """How a table is printed."""

    TERMINAL = "terminal"
    CSV = "csv"
    MARKDOWN = "markdown"
    LATEX = "latex"
