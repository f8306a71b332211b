"""Results that are tensors: leading eigenvectors, and files for ``torch.load``."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vivit_bench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from vivit_bench.spectrum import Workload


def leading_eigenvectors(work: "Workload", k: int, **options: Any) -> "dict[str, Tensor]":
    """The leading eigenvectors of a workload's GGN, as they are stored.

    Args:
        work: Model and mini-batch.
        k: How many at the most.
        **options: As for `vivit_bench.curvature.eigenvectors`.

    Returns:
        ``eigenvalues`` [K], float64, descending, and for each trainable parameter, by its
        name, [K, *shape], on the CPU.
    """
    import torch

    from vivit_bench.curvature import eigenvectors

    basis = eigenvectors(work.model, work.loss, work.inputs, work.targets, k=k, **options)
    vectors = [vector for chunk in basis.chunks() for vector in chunk]
    trainable = [(name, p) for name, p in work.model.named_parameters() if p.requires_grad]
    stacked = {
        name: torch.stack([vector[i].cpu() for vector in vectors])
        if vectors
        else torch.empty(0, *p.shape, dtype=p.dtype)
        for i, (name, p) in enumerate(trainable)
    }
    return {"eigenvalues": basis.eigenvalues, **stacked}


def check_tensor_file(output: Path) -> None:
    """Refuse, before anything is computed, a path that cannot be written.

    Raises:
        UsageError: It is a folder, or cannot be in its folder.
    """
    if output.is_dir():
        raise UsageError(f"output {output}: this is a folder; name a file in it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror or error}") from error


def save_tensors(values: dict[str, Any], output: Path) -> None:
    """Write tensors for ``torch.load(..., weights_only=True)``, and say so on stderr."""
    import torch

    from vivit_bench.store import write_atomic

    buffer = io.BytesIO()
    torch.save(values, buffer)
    try:
        write_atomic(output, buffer.getvalue())
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror or error}") from error
    typer.echo(f"wrote {output}", err=True)
