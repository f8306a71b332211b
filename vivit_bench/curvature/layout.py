"""Where the samples are in a network's tensors, found out on two of them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vivit_bench.curvature.capture import GraphChanged, Reading, Use
from vivit_bench.curvature.rules import Rule, Saved

AGREE = {torch.float32: 1e-3, torch.float64: 1e-7}
"""Relative deviation within which two ways of computing agree, for the choice of a route."""


@dataclass(frozen=True)
class Layout:
    """Where the samples are in a tensor of several."""

    axis: int
    rows: int
    """Of one sample along the axis."""
    minor: bool
    """The samples vary fastest, [rows, n] instead of [n, rows]."""

    def of_one(self, shape: torch.Size) -> torch.Size:
        """Shape of one sample's part of a tensor."""
        return torch.Size((*shape[: self.axis], self.rows, *shape[self.axis + 1 :]))

    def split(self, tensor: Tensor, n: int, lead: int = 0) -> Tensor:
        """[*lead, ...] -> [n, *lead, *shape of one sample's].

        Raises:
            GraphChanged: The tensor is not that of n samples.
        """
        axis = lead + self.axis
        if tensor.ndim <= axis or tensor.shape[axis] != n * self.rows:
            raise GraphChanged
        if self.minor:
            return tensor.unflatten(axis, (self.rows, n)).movedim(axis + 1, 0)
        return tensor.unflatten(axis, (n, self.rows)).movedim(axis, 0)


@dataclass(frozen=True)
class Layouts:
    """Where the samples are in one use's tensors."""

    cotangent: Layout
    saved: dict[str, Layout | None]
    """None: the tensor is the same for all samples."""


def find_layouts(use: Use, saved: Saved, cotangent: Tensor, alone: Reading) -> Layouts | None:
    """Where two samples are in a use's tensors; None if that is uncertain.

    Args:
        use: In a forward pass of two samples.
        saved: What its node keeps.
        cotangent: [columns, ...] at its output, see ``_try_pair``.
        alone: The first sample's forward pass.
    """
    fitting = []
    arriving = [n for n, column in enumerate(cotangent) if column.any()]
    summed = use.rule.summed(use.roles)
    for layout in _candidates(cotangent.shape[1:]):
        if any(_has_axis(shape, layout.axis + 1 - cotangent.ndim) for shape in summed):
            continue  # a parameter's own entries are no samples
        rows = layout.split(cotangent, 2, lead=1)
        own = all(bool(rows[n, n].any()) for n in arriving)
        others = any(bool(rows[1 - n, n].any()) for n in arriving)
        aligned = _align(use.rule, layout, cotangent.ndim - 1, saved)
        if own and not others and aligned is not None:
            fitting.append(Layouts(layout, aligned))
    if (
        len(fitting) > 1 or use.rule.without_samples
    ):  # few rows are reached, as behind a class token: look at the inputs
        fitting = [f for f in fitting if _is_alone(use, cotangent.shape[1:], saved, f, alone)]
    return fitting[0] if len(fitting) == 1 else None


def _has_axis(shape: torch.Size, axis: int) -> bool:
    """Whether there is more than one entry along an axis, counted from the end."""
    return len(shape) >= -axis and shape[axis] != 1


def _candidates(shape: torch.Size) -> Iterator[Layout]:
    """All layouts of two samples that a shape allows."""
    for axis, size in enumerate(shape):
        if size and size % 2 == 0:
            yield Layout(axis, size // 2, False)
            if size > 2:
                yield Layout(axis, size // 2, True)


def _align(rule: Rule, layout: Layout, ndim: int, saved: Saved) -> dict[str, Layout | None] | None:
    """Layouts of the saved tensors of a node whose output has ``layout`` and ``ndim`` axes.

    Returns:
        Name -> layout, None where a tensor is the same for all samples; or None if the
        tensors do not fit.
    """
    if rule.without_samples:
        return dict.fromkeys(saved.tensors)
    found: dict[str, Layout | None] = {}
    for name, tensor in saved.tensors.items():
        axis = layout.axis + (tensor.ndim - ndim if rule.broadcasts else 0)
        if rule.broadcasts and (axis < 0 or tensor.shape[axis] == 1):
            found[name] = None
        elif axis < tensor.ndim and tensor.shape[axis] == 2 * layout.rows:
            found[name] = Layout(axis, layout.rows, layout.minor)
        else:
            return None
    return found


def _is_alone(use: Use, shape: torch.Size, saved: Saved, layouts: Layouts, alone: Reading) -> bool:
    """Whether the first sample's part of a use's tensors is what it is without the second."""
    parameters = {role.parameter for role in use.roles.values()}
    for other in alone.uses:
        same = other.rule.label == use.rule.label
        same = same and other.output_shape == layouts.cotangent.of_one(shape)
        if same and parameters & {role.parameter for role in other.roles.values()}:
            kept = other.saved().tensors
            firsts = {
                name: tensor if layout is None else layout.split(tensor, 2)[0]
                for (name, layout), tensor in zip(
                    layouts.saved.items(), saved.tensors.values(), strict=True
                )
            }
            if all(agree(first, kept.get(n)) for n, first in firsts.items()):
                return True
    return False


def agree(found: Tensor | None, expected: Tensor | None) -> bool:
    """Whether two ways of computing a tensor gave the same, up to ``AGREE``."""
    if found is None or expected is None or found.shape != expected.shape:
        return False
    if not found.is_floating_point():
        return torch.equal(found, expected)
    return deviation(found, expected) <= AGREE[found.dtype]


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest deviation over the largest expected entry."""
    if found.shape != expected.shape:
        return math.inf
    scale = expected.abs().max().item() if expected.numel() else 0.0
    error = (found - expected).abs().max().item() if expected.numel() else 0.0
    if math.isnan(error):
        return math.inf
    return error / scale if scale else error
