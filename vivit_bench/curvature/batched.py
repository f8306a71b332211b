"""Max pooling and ReLU modules whose backward pass takes many columns at once.

PyTorch maps the backward pass of max pooling over columns by a loop, and that of ReLU
after copying cotangents and mask; here each is one call for all columns. Its max pooling
of CPU tensors is several times faster with the channels last, conversions included.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MaxPool = nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d
_POOLS: dict[type[nn.Module], tuple[int, Callable[..., Any], torch.memory_format]] = {
    nn.MaxPool1d: (1, nn.functional.max_pool1d_with_indices, torch.contiguous_format),
    nn.MaxPool2d: (2, nn.functional.max_pool2d_with_indices, torch.channels_last),
    nn.MaxPool3d: (3, nn.functional.max_pool3d_with_indices, torch.channels_last_3d),
}
"""Module type -> spatial axes, function and its fastest memory format."""


class _Scatter(torch.autograd.Function):
    """Send gradients [..., *pooled] to the positions of the maxima, [..., *size]."""

    @staticmethod
    def forward(grad: Tensor, indices: Tensor, size: torch.Size) -> Tensor:
        return _scatter(grad, indices, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad: Tensor, indices: Tensor, size: torch.Size) -> Any:
        grad = grad.movedim(in_dims[0], 0)
        return _scatter(grad, indices, torch.Size((len(grad), *size))), 0


def _scatter(grad: Tensor, indices: Tensor, size: torch.Size) -> Tensor:
    spatial = indices.ndim - 2
    source = grad.flatten(-spatial)
    out = grad.new_zeros(*size[:-spatial], size[-spatial:].numel())
    out.scatter_add_(-1, indices.flatten(-spatial).expand(source.shape), source)
    return out.view(size)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: MaxPool) -> Tensor:
        out, indices = _pool(module, x)
        ctx.save_for_backward(indices)
        ctx.size = x.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(grad, ctx.saved_tensors[0], ctx.size), None


def _pool(module: MaxPool, x: Tensor) -> tuple[Tensor, Tensor]:
    settings = (module.kernel_size, module.stride, module.padding, module.dilation)
    _, function, memory_format = _POOLS[type(module)]
    x = x.contiguous(memory_format=memory_format)
    out, indices = function(x, *settings, module.ceil_mode)
    del x  # the copy
    return out.contiguous(), indices.contiguous()


def _max_pool(module: Any, x: Tensor) -> Tensor:
    if x.ndim != 2 + _POOLS[type(module)][0]:
        return type(module).forward(module, x)
    return _MaxPool.apply(x, module)


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x > 0)
        return x.relu()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


def _relu(module: nn.ReLU, x: Tensor) -> Tensor:
    return type(module).forward(module, x) if module.inplace else _ReLU.apply(x)


_FORWARDS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.ReLU: _relu,
    **dict.fromkeys(_POOLS, _max_pool),
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
