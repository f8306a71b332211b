"""Max pooling whose backward pass takes many columns at once.

PyTorch has no batching rule for the backward pass of max pooling and loops over the
columns; the scatter below is one call for all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        out, indices = _pool(module, x)
        ctx.save_for_backward(indices)
        ctx.size = x.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(grad, ctx.saved_tensors[0], ctx.size), None  # type: ignore[no-untyped-call]


def _pool(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    functions = {
        nn.MaxPool1d: nn.functional.max_pool1d_with_indices,
        nn.MaxPool2d: nn.functional.max_pool2d_with_indices,
        nn.MaxPool3d: nn.functional.max_pool3d_with_indices,
    }
    return functions[type(module)](
        x, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
    )


@contextmanager
def batched_max_pooling(model: nn.Module) -> Iterator[None]:
    """Inside, max-pooling modules of ``model`` run with the batched backward pass."""
    pools = [
        m
        for m in model.modules()
        if type(m) in (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
        and not m.return_indices
        and "forward" not in m.__dict__
    ]
    try:
        for module in pools:
            module.forward = lambda x, m=module: (  # type: ignore[method-assign]
                _MaxPool.apply(x, m) if x.ndim == 2 + _spatial(m) else type(m).forward(m, x)
            )
        yield
    finally:
        for module in pools:
            module.__dict__.pop("forward", None)


def _spatial(module: nn.Module) -> int:
    return {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}[type(module)]
