"""Max pooling and ReLU modules whose backward pass takes many columns at once.

PyTorch maps the backward pass of max pooling over columns by a loop, and that of ReLU
after copying cotangents and mask; here each is one call for all columns, and one for both
where pooling follows a ReLU. Its max pooling of CPU tensors is several times faster with the
channels last, conversions included.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.curvature.batched_convolution import convolution

MaxPool = nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d
Pads = tuple[int, ...]
"""Zeros before and after each axis, from the last axis on."""
_MADE_OF = "_vivit_bench_made_of"
_POOLS: dict[type[nn.Module], tuple[int, Callable[..., Any], torch.memory_format]] = {
    nn.MaxPool1d: (1, nn.functional.max_pool1d_with_indices, torch.contiguous_format),
    nn.MaxPool2d: (2, nn.functional.max_pool2d_with_indices, torch.channels_last),
    nn.MaxPool3d: (3, nn.functional.max_pool3d_with_indices, torch.channels_last_3d),
}
"""Module type -> spatial axes, function and its fastest memory format."""


class _Scatter(torch.autograd.Function):
    """Send gradients [..., *pooled], where they count, to the positions of the maxima."""

    @staticmethod
    def forward(grad: Tensor, indices: Tensor, counts: Tensor | None, size: torch.Size) -> Tensor:
        return _scatter(grad, indices, counts, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple,
        grad: Tensor,
        indices: Tensor,
        counts: Tensor | None,
        size: torch.Size,
    ) -> Any:
        grad = grad.movedim(in_dims[0], 0)
        return _scatter(grad, indices, counts, torch.Size((len(grad), *size))), 0


def _scatter(grad: Tensor, indices: Tensor, counts: Tensor | None, size: torch.Size) -> Tensor:
    if counts is not None:
        grad = grad * counts
    spatial = indices.ndim - 2
    source = grad.flatten(-spatial)
    out = grad.new_zeros(*size[:-spatial], size[-spatial:].numel())
    out.scatter_add_(-1, indices.flatten(-spatial).expand(source.shape), source)
    return out.view(size)


class _MaxPool(torch.autograd.Function):
    """Max pooling of a source, or of the ``x`` that a ReLU and padding made of it."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, x: Tensor | None, pads: Pads, module: MaxPool) -> Tensor:
        out, indices = _pool(module, source if x is None else x)
        ctx.size = source.shape
        if x is not None:
            # A maximum above 0 is the source's own, inside the padding.
            counts = out > 0
            indices = _without_padding(indices, x.shape, source.shape, pads).mul_(counts)
            ctx.save_for_backward(indices, counts)
        else:
            ctx.save_for_backward(indices)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        indices, *counts = ctx.saved_tensors
        found = _Scatter.apply(grad, indices, counts[0] if counts else None, ctx.size)
        return found, None, None, None


def _pool(module: MaxPool, x: Tensor) -> tuple[Tensor, Tensor]:
    settings = (module.kernel_size, module.stride, module.padding, module.dilation)
    _, function, memory_format = _POOLS[type(module)]
    if x.device.type == "cpu":
        x = x.contiguous(memory_format=memory_format)
    out, indices = function(x, *settings, module.ceil_mode)
    del x  # the copy
    return out.contiguous(), indices.contiguous()


def _without_padding(indices: Tensor, padded: torch.Size, size: torch.Size, pads: Pads) -> Tensor:
    """Flat positions in a padded image as those in the image itself, in their own memory."""
    rows, step = indices, 1
    for axis, before in zip(range(len(size) - 1, 1, -1), pads[::2], strict=False):
        if axis > 2:  # beyond the first axis there is nothing to divide
            rows = rows // padded[axis]
            indices.sub_(rows, alpha=step * (padded[axis] - size[axis]))
        indices.sub_(step * before)
        step *= size[axis]
    return indices


def _max_pool(module: Any, x: Tensor) -> Tensor:
    spatial = _POOLS[type(module)][0]
    if x.ndim != 2 + spatial:
        return type(module).forward(module, x)
    made = _made_of(x)
    if made is None or len(made.pads) > 2 * spatial:
        return _MaxPool.apply(x, None, (), module)
    return _MaxPool.apply(made.source, x.detach(), made.pads, module)


@dataclass(frozen=True)
class _Rectified:
    """What a ReLU's output, or that with zeros around it, was made of.

    Max pooling behind a ReLU needs no gradient at every one of the ReLU's positions: only those
    of the maxima count, of which there are several times fewer.
    """

    source: Tensor
    pads: Pads
    versions: tuple[int, int]
    """Of the source and of the result: neither may have been written to since."""


def _made_of(x: Tensor) -> _Rectified | None:
    found = getattr(x, _MADE_OF, None)
    if found is None or x._backward_hooks or found.versions != (found.source._version, x._version):
        return None
    return found


def _mark(x: Tensor, source: Tensor, pads: Pads) -> Tensor:
    setattr(x, _MADE_OF, _Rectified(source, pads, (source._version, x._version)))
    return x


def _zero_pad(module: Any, x: Tensor) -> Tensor:
    out: Tensor = type(module).forward(module, x)
    made = _made_of(x)
    if made and not made.pads and min(module.padding) >= 0:
        _mark(out, made.source, tuple(module.padding))
    return out


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x > 0)
        return x.relu()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


def _relu(module: nn.ReLU, x: Tensor) -> Tensor:
    if module.inplace:
        return type(module).forward(module, x)
    out = _ReLU.apply(x)
    return _mark(out, x, ()) if out.requires_grad else out


_FORWARDS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), convolution),
    nn.ReLU: _relu,
    **dict.fromkeys(_POOLS, _max_pool),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), _zero_pad),
}


@contextmanager
def batched_backward(model: nn.Module) -> Iterator[None]:
    """Inside, max pooling and ReLU modules of ``model`` have the backward passes above."""
    modules: list[Any] = [
        m
        for m in model.modules()
        if type(m) in _FORWARDS
        and not getattr(m, "return_indices", False)
        and "forward" not in vars(m)
    ]
    try:
        for module in modules:
            module.forward = partial(_FORWARDS[type(module)], module)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)
