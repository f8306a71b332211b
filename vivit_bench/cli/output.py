"""How a command hands out its result: printed, or in a file."""

import io
from pathlib import Path
from typing import Any

import typer

from vivit_bench.errors import UsageError
from vivit_bench.report.tables import Table, TableFormat, render
from vivit_bench.store import check_writable, write_output


def check_file(output: Path | None, ending: str, what: str) -> None:
    """Refuse, before anything is computed, a file that could not be written at the end.

    Args:
        output: The user's choice, if any.
        ending: What its name must end in.
        what: Why, for the message.

    Raises:
        UsageError: Another ending, or a place that cannot be written.
    """
    if output is None:
        return
    if output.suffix != ending and not output.is_dir():
        raise UsageError(f"output {output}: the name must end in {ending} ({what})")
    check_writable(output)


def check_table_file(output: Path | None) -> None:
    """`check_file` for a table."""
    check_file(output, ".csv", "it is a table")


def check_tensor_file(output: Path | None) -> None:
    """`check_file` for tensors."""
    check_file(output, ".pt", "torch.load reads it")


def check_figure_file(output: Path | None) -> None:
    """`check_file` for a figure.

    Raises:
        UsageError: No ending of a figure, or a place that cannot be written.
    """
    endings = (".png", ".pdf", ".svg")
    if output is None:
        return
    if output.suffix not in endings and not output.is_dir():
        raise UsageError(f"--plot {output}: the name must end in {', '.join(endings)}")
    check_writable(output)


def say_written(output: Path, quiet: bool) -> None:
    """Tell of a file on stderr."""
    if not quiet:
        typer.echo(f"wrote {output}", err=True)


def hand_out(
    table: Table, style: TableFormat, output: Path | None = None, quiet: bool = False
) -> None:
    """Print a table, or write it as CSV and say so on stderr.

    Raises:
        StorageError: The file cannot be written.
    """
    if output is None:
        typer.echo(render(table, style), nl=False)
    else:
        write_output(output, render(table, TableFormat.CSV))
        say_written(output, quiet)


def save_tensors(values: dict[str, Any], output: Path, quiet: bool = False) -> None:
    """Write tensors for ``torch.load(..., weights_only=True)``, and say so on stderr.

    Raises:
        StorageError: The file cannot be written.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(values, buffer)
    write_output(output, buffer.getvalue())
    say_written(output, quiet)
