"""The comparison of two spectra as a table."""

from typing import TYPE_CHECKING

from vivit_bench.spectrum.compare import SpectrumComparison

if TYPE_CHECKING:
    from rich.table import Table

HEADERS = ("quantity", "A", "B", "measure", "value")


def comparison_csv(comparison: SpectrumComparison) -> str:
    """All digits, one row a quantity: quantity, a, b, measure, value."""
    import csv
    import io

    text = io.StringIO()
    rows = comparison.rows()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def comparison_markdown(comparison: SpectrumComparison) -> str:
    """Return a Markdown table with rounded numbers."""
    from tabulate import tabulate

    cells = _cells(comparison)
    return tabulate(cells, HEADERS, tablefmt="github", disable_numparse=True) + "\n"


def comparison_table(comparison: SpectrumComparison) -> "Table":
    """Return a table for the terminal with rounded numbers."""
    from rich.table import Table

    table = Table(*HEADERS)
    for column in (1, 2, 4):
        table.columns[column].justify = "right"
    for row in _cells(comparison):
        table.add_row(*row)
    return table


def _cells(comparison: SpectrumComparison) -> list[list[str]]:
    return [[_cell(value) for value in row.values()] for row in comparison.rows()]


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
