"""Convolutions whose backward pass takes many columns at once without a copy of the input.

PyTorch's batching rule makes up an input, one number expanded to the size that all columns
have together, and the backward pass then copies it, number by number: a tenth to a third of
the time of convolutions with stride or with few channels. The input's values are not needed.
"""

from typing import Any

import torch
from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class _ToInput(torch.autograd.Function):
    """Cotangents [n, O, ...] at a convolution's output -> those at its input [n, *size]."""

    @staticmethod
    def forward(grad: Tensor, weight: Tensor, size: torch.Size, module: Convolution) -> Tensor:
        return _to_input(grad, weight, size, module)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple,
        grad: Tensor,
        weight: Tensor,
        size: torch.Size,
        module: Convolution,
    ) -> Any:
        grad = grad.movedim(in_dims[0], 0)
        return _to_input(grad.flatten(0, 1), weight, size, module).unflatten(0, grad.shape[:2]), 0


def _to_input(grad: Tensor, weight: Tensor, size: torch.Size, module: Convolution) -> Tensor:
    padding = module.padding
    assert not isinstance(padding, str)
    found: Tensor = torch.ops.aten.convolution_backward(
        grad,
        grad.new_empty(len(grad), *size[1:]),  # only its size counts
        weight,
        None,
        module.stride,
        padding,
        module.dilation,
        False,
        [0] * len(module.stride),
        module.groups,
        [True, False, False],
    )[0]
    return found


class _PathOfInput(torch.autograd.Function):
    """Zeros shaped like a convolution's output, through which cotangents reach its input.

    Where a backward pass ends at the convolution, this node is left out.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor, weight: Tensor, module: Convolution) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.module = x.shape, module
        return output.new_zeros(()).expand(output.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _ToInput.apply(grad, *ctx.saved_tensors, ctx.size, ctx.module), None, None, None


def convolution(module: Any, x: Tensor) -> Tensor:
    """A convolution module's output.

    Args:
        module: One of `Convolution`.
        x: [n, channels, ...].
    """
    plain = isinstance(module.padding, str) or module.padding_mode != "zeros"
    if plain or not x.requires_grad or x.ndim != 2 + len(module.stride):
        return type(module).forward(module, x)
    weight: Tensor = module.weight
    output: Tensor = type(module).forward(module, x.detach())
    # Input and parameters have a path each, so that either is computed alone.
    return output.add_(_PathOfInput.apply(x, output.detach(), weight.detach(), module))
