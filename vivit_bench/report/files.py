"""How every table and figure gets to disk."""

from collections.abc import Callable
from pathlib import Path

from vivit_bench.errors import UsageError
from vivit_bench.report.table_format import TableFormat
from vivit_bench.store import write_atomic

_ENDINGS = {TableFormat.CSV: "csv", TableFormat.MARKDOWN: "md", TableFormat.LATEX: "tex"}


def write_report(path: Path, content: str | bytes) -> None:
    """Write a table or figure where the user wants it.

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        write_atomic(path, content)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def write_in_all_formats(stem: Path, text_of: Callable[[TableFormat], str]) -> list[Path]:
    """Write a table as CSV, Markdown and LaTeX.

    Args:
        stem: Path of the files without their endings.
        text_of: The table in a format.

    Returns:
        The files.

    Raises:
        UsageError: They cannot be written.
    """
    paths = []
    for style, ending in _ENDINGS.items():
        path = stem.with_name(f"{stem.name}.{ending}")
        write_report(path, text_of(style))
        paths.append(path)
    return paths
