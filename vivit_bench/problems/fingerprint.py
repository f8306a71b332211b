"""Hashes of model and data, to tell whether a stored result still holds."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vivit_bench.trees import Tree, leaves

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_LOSS_DEFAULTS = {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.0}


def model_fingerprint(problem: str, model: "Module", loss: "Module") -> str:
    """Hash a model: structure, parameters, buffers, loss, and the user's file if there is one.

    Args:
        problem: DeepOBS name or ``path/to/file.py:function``.
        model: The model.
        loss: Its loss, with its settings and weights.

    Returns:
        12 hex digits.
    """
    digest = hashlib.sha256(f"{model!r}\n{loss!r}\n".encode())
    for name, default in _LOSS_DEFAULTS.items():  # what repr(loss) does not show
        if (value := getattr(loss, name, default)) != default:
            digest.update(f"loss {name} {value}\n".encode())
    _update(digest, [(f"loss {name}", weight) for name, weight in loss.state_dict().items()])
    if ":" in problem:
        digest.update(Path(problem.rsplit(":", 1)[0]).read_bytes())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    digest.update("\n".join(sorted(trainable)).encode())
    _update(digest, model.state_dict().items())
    return digest.hexdigest()[:12]


def batch_fingerprint(inputs: Tree, targets: "Tensor") -> str:
    """Hash a mini-batch: places, types, shapes and content of its tensors, in order.

    Args:
        inputs: [N, ...] tensors.
        targets: [N, ...].

    Returns:
        12 hex digits.
    """
    digest = hashlib.sha256()
    _update(digest, [(f"inputs{place}", leaf) for place, leaf in leaves(inputs)])
    _update(digest, [("targets", targets)])
    return digest.hexdigest()[:12]


def _update(digest: "hashlib._Hash", tensors: Iterable[tuple[str, "Tensor"]]) -> None:
    import torch

    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(content.view(torch.uint8).numpy().tobytes())
