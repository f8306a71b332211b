"""What is refused before any computation, each with one clear line."""

from torch import Tensor, nn

from vivit_bench.errors import UsageError

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def check_request(model: nn.Module, inputs: Tensor, targets: Tensor) -> list[nn.Parameter]:
    """Check model and data.

    Returns:
        The trainable parameters in the order of ``model.parameters()``.

    Raises:
        UsageError: With the value, the reason and the remedy.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise UsageError("the model has no parameter with requires_grad=True")
    first = next(iter(named.values()))
    for name, parameter in named.items():
        if (parameter.dtype, parameter.device) != (first.dtype, first.device):
            raise UsageError(
                f"parameter {name!r} is {parameter.dtype} on {parameter.device}, others are "
                f"{first.dtype} on {first.device}; move the model to one dtype and device"
            )
        if not parameter.isfinite().all():
            raise UsageError(f"parameter {name!r} contains NaN or infinity")
    if str(first.dtype) not in ("torch.float32", "torch.float64"):
        raise UsageError(f"parameters are {first.dtype}; use model.float() or model.double()")
    for name, module in model.named_modules():
        if module.training and isinstance(module, (*_DROPOUTS, _BATCH_NORMS)):
            raise UsageError(
                f"module {name!r} ({type(module).__name__}) is in training mode, where samples "
                "are random or coupled; call model.eval() first"
            )
        if isinstance(module, _BATCH_NORMS) and module.running_mean is None:
            raise UsageError(
                f"module {name!r} ({type(module).__name__}) has no running statistics and "
                "couples the samples; use track_running_stats=True"
            )
    _check_data(inputs, targets, first)
    return list(named.values())


def _check_data(inputs: Tensor, targets: Tensor, first: nn.Parameter) -> None:
    if inputs.ndim == 0 or len(inputs) == 0:
        raise UsageError("the mini-batch is empty; pass at least one sample")
    if len(inputs) != len(targets):
        raise UsageError(f"{len(inputs)} inputs but {len(targets)} targets")
    if inputs.is_floating_point() and inputs.dtype != first.dtype:
        raise UsageError(
            f"inputs are {inputs.dtype}, parameters {first.dtype}; "
            f"convert with inputs.to({first.dtype})"
        )
    for name, tensor in (("inputs", inputs), ("targets", targets)):
        if tensor.device != first.device:
            raise UsageError(f"{name} are on {tensor.device}, the model is on {first.device}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UsageError(f"{name} contain NaN or infinity")
