"""Hashes of model and data, to tell whether a stored result still holds."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


def model_fingerprint(problem: str, model: "Module", loss: "Module") -> str:
    """Hash a model: structure, parameters, buffers, loss, and the user's file if there is one.

    Args:
        problem: DeepOBS name or ``path/to/file.py:function``.
        model: The model.
        loss: Its loss.

    Returns:
        12 hex digits.
    """
    digest = hashlib.sha256(f"{model!r}\n{loss!r}\n".encode())
    if ":" in problem:
        digest.update(Path(problem.rsplit(":", 1)[0]).read_bytes())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    digest.update("\n".join(sorted(trainable)).encode())
    _update(digest, model.state_dict().items())
    return digest.hexdigest()[:12]


def batch_fingerprint(inputs: "Tensor", targets: "Tensor") -> str:
    """Hash a mini-batch (12 hex digits)."""
    digest = hashlib.sha256()
    _update(digest, [("inputs", inputs), ("targets", targets)])
    return digest.hexdigest()[:12]


def _update(digest: "hashlib._Hash", tensors: Iterable[tuple[str, "Tensor"]]) -> None:
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
