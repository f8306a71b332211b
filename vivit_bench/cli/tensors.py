"""Results that are tensors, in files for ``torch.load``."""

import io
from pathlib import Path
from typing import Any

import typer

from vivit_bench.errors import UsageError
from vivit_bench.store import check_writable


def check_tensor_file(output: Path) -> None:
    """Refuse, before anything is computed, a name that is not a tensor file's.

    Raises:
        UsageError: It does not end in .pt, or cannot be written.
    """
    if output.suffix != ".pt":
        raise UsageError(f"output {output}: the name must end in .pt (torch.load reads it)")
    check_writable(output)


def save_tensors(values: dict[str, Any], output: Path) -> None:
    """Write tensors for ``torch.load(..., weights_only=True)``, and say so on stderr."""
    import torch

    from vivit_bench.report.files import write_report

    buffer = io.BytesIO()
    torch.save(values, buffer)
    write_report(output, buffer.getvalue())
    typer.echo(f"wrote {output}", err=True)
