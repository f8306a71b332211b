"""Max pooling whose backward pass takes many columns at once.

PyTorch has no batching rule for the backward pass of max pooling and loops over the
columns; the scatter below is one call for all of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MaxPool = nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d
_POOLS: dict[type[nn.Module], tuple[int, Callable[..., Any]]] = {
    nn.MaxPool1d: (1, nn.functional.max_pool1d_with_indices),
    nn.MaxPool2d: (2, nn.functional.max_pool2d_with_indices),
    nn.MaxPool3d: (3, nn.functional.max_pool3d_with_indices),
}
"""Module type -> spatial axes and function."""


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
    out, indices = _POOLS[type(module)][1](x, *settings, module.ceil_mode)
    return out, indices


@contextmanager
def batched_max_pooling(model: nn.Module) -> Iterator[None]:
    """Inside, max-pooling modules of ``model`` run with the batched backward pass."""
    pools: list[Any] = [
        m
        for m in model.modules()
        if type(m) in _POOLS
        and not getattr(m, "return_indices", False)
        and "forward" not in vars(m)
    ]

    def forward(module: Any, x: Tensor) -> Tensor:
        if x.ndim != 2 + _POOLS[type(module)][0]:
            return type(module).forward(module, x)
        return _MaxPool.apply(x, module)

    try:
        for module in pools:
            module.forward = partial(forward, module)
        yield
    finally:
        for module in pools:
            vars(module).pop("forward", None)
