"""A mini-batch: inputs of any shape and one tensor of targets; and foreign text in a message."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vivit_bench.errors import UsageError
from vivit_bench.trees import Tree, leaves, map_tree, num_samples


def a_type(value: object) -> str:
    """What a value is: ``a dict``, ``3 values`` of a tuple or list."""
    if isinstance(value, tuple | list):
        return f"{len(value)} value{'s' if len(value) != 1 else ''}"
    return f"a {type(value).__name__}"


@contextmanager
def prefixed(what: str) -> Iterator[None]:
    """Put ``what``, the problem's name or more, before the message of a `UsageError`."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error


Batch: TypeAlias = tuple[Tree, Tensor]
"""Inputs and targets; the first axis of every tensor is the sample."""

Shape: TypeAlias = tuple[int, ...]

TreeShape: TypeAlias = Shape | dict[str, Shape]
"""Of a lone tensor; or of each tensor of a tree by its place, such as ``['mask']``."""

_TO_FLOAT32 = (torch.float64, torch.float16, torch.bfloat16)


def sample_shape(inputs: Tree) -> TreeShape:
    """Shapes of one sample's inputs."""
    shapes = {place: tuple(leaf.shape[1:]) for place, leaf in leaves(inputs)}
    return shapes[""] if isinstance(inputs, Tensor) else shapes


def shape_text(inputs: Tree) -> str:
    """Shapes with the sample axis, for messages: ``[2, 3]``, ``['mask'] [2, 7], ...``."""
    return ", ".join(f"{place} {list(leaf.shape)}".lstrip() for place, leaf in leaves(inputs))


def check_batch(what: str, batch: Any, expected: int | None = None) -> Batch:
    """Refuse what is no pair of inputs and targets with the same number of samples.

    Floating-point tensors of another precision (float64, float16, bfloat16) become float32, the
    precision of the model; integers and booleans stay as they are.

    Args:
        what: Where it comes from, for messages.
        batch: Inputs (a tensor, or a dict, list or tuple of tensors) and one tensor of targets.
        expected: Number of samples that were asked for; None: any but none.

    Returns:
        The pair, on the CPU and without gradients.

    Raises:
        UsageError: With the reason.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise UsageError(f"{what}: data must be a pair (inputs, targets), got {a_type(batch)}")
    inputs, targets = batch
    if not isinstance(targets, Tensor):
        raise UsageError(f"{what}: targets must be one tensor, got {a_type(targets)}")
    with prefixed(what):
        for place, leaf in leaves(inputs):
            _check_dtype(f"inputs{place}", leaf)
        _check_dtype("targets", targets)
        inputs, targets = map_tree(_plain, inputs), _plain(targets)
        samples = num_samples(inputs)
    if targets.dim() < 1 or len(targets) != samples:
        raise UsageError(
            f"{what}: inputs {shape_text(inputs)} and targets {list(targets.shape)} must have "
            "as many samples along their first axis"
        )
    if samples == 0 or (expected is not None and samples != expected):
        raise UsageError(f"{what}: got {samples} samples instead of {expected or 'at least 1'}")
    return inputs, targets


def _check_dtype(name: str, tensor: Tensor) -> None:
    if tensor.is_nested or tensor.layout is not torch.strided:
        raise UsageError(f"{name} are a nested or sparse tensor; give a dense, padded one")
    if tensor.is_meta:
        raise UsageError(f"{name} are on the meta device, without values; make them on the CPU")
    known = not tensor.is_floating_point() or tensor.dtype in (torch.float32, *_TO_FLOAT32)
    if tensor.is_complex() or not known:
        raise UsageError(f"{name} are {tensor.dtype}; give real numbers in float32, or integers")


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.dtype in _TO_FLOAT32 else tensor
