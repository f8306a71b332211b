"""What a user's problem must satisfy, each with its own line when it does not.

Which losses and targets there are rules for is the engine's to say; here the problem's name
comes before its words.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vivit_bench.curvature import loss_checks
from vivit_bench.errors import UsageError, describe
from vivit_bench.problems.batch import Batch, Shape, a_type, prefixed, shape_text
from vivit_bench.trees import map_tree


def check_model(name: str, model: Any) -> None:
    """Refuse what is not a float32 torch module with trainable parameters.

    Args:
        name: Of the problem, for messages.
        model: As returned by the user's function.

    Raises:
        UsageError: With the reason.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name}: the model must be a torch module, got a {type(model).__name__}")
    tensors = (*model.named_parameters(), *model.named_buffers())
    if meta := next((key for key, tensor in tensors if tensor.is_meta), None):
        raise UsageError(
            f"{name}: {meta} of the model is on the meta device, without values: build it on the "
            "CPU (torch.set_default_device('cpu'), or model.to_empty(device='cpu') and its weights)"
        )
    trainable = [(key, p) for key, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise UsageError(f"{name}: the model has no trainable parameter")
    for key, parameter in trainable:
        if parameter.is_complex():
            raise UsageError(
                f"{name}: parameter {key} is {parameter.dtype}; keep its real and imaginary part "
                "as two float32 parameters"
            )
        if parameter.dtype != torch.float32:
            raise UsageError(
                f"{name}: parameter {key} is {parameter.dtype}, not float32: return model.float() "
                "(--dtype float64 converts it afterwards)"
            )
    for key, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UsageError(
                f"{name}: layer {key} has no running statistics and so makes samples depend on "
                "each other: set track_running_stats=True"
            )


def check_loss(name: str, loss: Any) -> None:
    """Refuse a loss the engine has no rule for.

    Args:
        name: Of the problem, for messages.
        loss: As returned by the user's function.

    Raises:
        UsageError: With the reason.
    """
    if not isinstance(loss, nn.Module):
        hint = f"; write {loss.__name__}()" if isinstance(loss, type) else ""
        got = f"the class {loss.__name__}" if isinstance(loss, type) else a_type(loss)
        raise UsageError(
            f"{name}: the loss must be a module such as CrossEntropyLoss(), got {got}{hint}"
        )
    with prefixed(name):
        loss_checks.check_loss(loss)


def check_targets(name: str, loss: nn.Module, shape: Shape, targets: Tensor) -> Tensor:
    """Refuse targets that do not fit outputs of one shape.

    Args:
        name: Of the problem, for messages.
        loss: As `check_loss` accepts it.
        shape: Of the output of one sample.
        targets: Of all samples at hand.

    Returns:
        The targets; labels of any integer type as int64.

    Raises:
        UsageError: With the reason.
    """
    with prefixed(name):
        return loss_checks.check_targets(loss, shape, targets)


def check_outputs(name: str, model: nn.Module, loss: nn.Module, batch: Batch) -> Shape:
    """Run model and loss once and refuse what does not fit together.

    Args:
        name: Of the problem, for messages.
        model: In evaluation mode, on any device.
        loss: As `check_loss` accepts it.
        batch: A few samples, on the CPU.

    Returns:
        Shape of the output of one sample; C is its number of elements.

    Raises:
        UsageError: With the reason.
    """
    like = next(model.parameters())

    def fit(tensor: Tensor) -> Tensor:
        return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)

    inputs = map_tree(fit, batch[0])
    samples = len(batch[1])
    try:
        # As the engine runs it: without gradients, transformers take another path.
        with torch.enable_grad():
            outputs = model(inputs)
    except Exception as error:
        raise UsageError(
            f"{name}: the model failed on inputs {shape_text(inputs)}, {describe(error)}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.dim() < 1 or len(outputs) != samples:
        got = list(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise UsageError(
            f"{name}: the model must map inputs {shape_text(inputs)} to one tensor "
            f"[{samples}, ...], got {got}"
        )
    shape = tuple(outputs.shape[1:])
    targets = check_targets(name, loss, shape, batch[1])
    try:
        loss(outputs.detach(), fit(targets))
    except Exception as error:
        raise UsageError(f"{name}: the loss failed, {describe(error)}") from error
    return shape
