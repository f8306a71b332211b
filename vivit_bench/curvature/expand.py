"""V of one layer call, explicitly: a registry of rules and one rule for everything else.

A rule maps (call, cotangents) to the layer's share of V for each trainable parameter
of the layer, v_nc = (d z / d theta)^T s_nc (Equation S.22).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from vivit_bench.curvature.capture import LayerCall, own_parameters
from vivit_bench.curvature.kernels import unfold
from vivit_bench.errors import UsageError

Rule = Callable[[LayerCall, Tensor], dict[str, Tensor]]
"""(call, cotangents [c, n, *output]) -> parameter name -> [c, n, numel]."""

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


def _linear(call: LayerCall, s: Tensor) -> dict[str, Tensor]:
    z = call.inputs[0].reshape(s.shape[1], -1, call.inputs[0].shape[-1])
    s = s.reshape(*s.shape[:2], -1, s.shape[-1])
    return {"weight": (s.mT @ z).flatten(2), "bias": s.sum(2)}


def _conv(call: LayerCall, s: Tensor) -> dict[str, Tensor]:
    assert isinstance(call.module, Conv)
    u = unfold(call.inputs[0], call.module)
    s = s.flatten(3)
    n, rows = s.shape[1], s.transpose(0, 1).reshape(s.shape[1], -1, s.shape[-1])
    weight = torch.bmm(rows, u.mT).view(n, s.shape[0], -1)
    return {"weight": weight.transpose(0, 1), "bias": s.sum(3)}


def _batch_norm(call: LayerCall, s: Tensor) -> dict[str, Tensor]:
    module = call.module
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    assert module.running_mean is not None
    assert module.running_var is not None
    shape = (1, -1, *[1] * (s.ndim - 3))
    scale = (module.running_var + module.eps).rsqrt().view(shape)
    normalised = (call.inputs[0] - module.running_mean.view(shape)) * scale
    axes = tuple(range(3, s.ndim))
    weight, bias = s * normalised, s
    return (
        {"weight": weight.sum(axes), "bias": bias.sum(axes)}
        if axes
        else {"weight": weight, "bias": bias}
    )


def _prelu(call: LayerCall, s: Tensor) -> dict[str, Tensor]:
    """By hand, since PyTorch maps PReLU's backward pass wrongly (2.14)."""
    assert isinstance(call.module, nn.PReLU)
    channels = call.module.weight.numel()
    slopes = (s * call.inputs[0].clamp(max=0)).reshape(*s.shape[:2], channels, -1)
    return {"weight": slopes.sum(3)}


def _any_module(call: LayerCall, s: Tensor) -> dict[str, Tensor]:
    """Vector-Jacobian products of the module itself, mapped over samples and columns."""
    module, n = call.module, s.shape[1]
    parameters = {k: p.detach() for k, p in own_parameters(module).items()}
    mapped = tuple(
        0 if isinstance(a, Tensor) and a.ndim and len(a) == n else None for a in call.inputs
    )

    def one_sample(cotangents: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        args = tuple(
            a.unsqueeze(0) if axis == 0 else a for a, axis in zip(inputs, mapped, strict=True)
        )
        pull = vjp(lambda p: functional_call(module, p, args)[0], parameters)[1]
        return vmap(lambda v: pull(v)[0])(cotangents)

    try:
        products = vmap(one_sample, in_dims=(1, *mapped), out_dims=1)(s, *call.inputs)
    except RuntimeError as error:
        raise UsageError(
            f"layer {call.name!r} ({type(module).__name__}) cannot be differentiated per "
            f"sample: {str(error).splitlines()[0]}"
        ) from error
    return {k: v.reshape(*s.shape[:2], parameters[k].numel()) for k, v in products.items()}


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.PReLU: _prelu,
}


def has_rule(module: nn.Module) -> bool:
    """Whether the layer has a rule of its own; all of these use each parameter once a call."""
    return type(module) in _RULES


def is_affine(module: nn.Module) -> bool:
    """Whether the layer is linear or an ungrouped convolution, with a trainable weight."""
    if type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return False
    return getattr(module, "groups", 1) == 1 and "weight" in own_parameters(module)


def expand(call: LayerCall, cotangents: Tensor) -> dict[str, Tensor]:
    """The call's share of V.

    Args:
        call: A layer call on n samples.
        cotangents: [c, n, *output], c columns for each sample.

    Returns:
        Local parameter name -> [c, n, numel], trainable parameters only.
    """
    module = call.module
    rule = _RULES.get(type(module), _any_module)
    if getattr(module, "groups", 1) != 1 or getattr(module, "running_mean", 0) is None:
        rule = _any_module
    products = rule(call, cotangents)
    return {name: products[name] for name in own_parameters(module)}
