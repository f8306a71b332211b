"""What a user's problem must satisfy, each with its own line when it does not."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vivit_bench.errors import UsageError
from vivit_bench.problems.messages import describe
from vivit_bench.problems.problem import Batch


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
    trainable = [(key, p) for key, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise UsageError(f"{name}: the model has no trainable parameter")
    for key, parameter in trainable:
        if parameter.dtype != torch.float32:
            raise UsageError(
                f"{name}: parameter {key} is {parameter.dtype}, not float32: return model.float()"
            )
    for key, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UsageError(
                f"{name}: layer {key} has no running statistics and so makes samples depend on "
                "each other: set track_running_stats=True"
            )


def check_loss(name: str, loss: Any) -> None:
    """Refuse any loss whose Hessian is not that of mean cross-entropy or mean MSE.

    Args:
        name: Of the problem, for messages.
        loss: As returned by the user's function.

    Raises:
        UsageError: With the reason.
    """
    if type(loss) not in (nn.CrossEntropyLoss, nn.MSELoss):
        got = loss.__name__ if isinstance(loss, type) else type(loss).__name__
        raise UsageError(f"{name}: the loss must be CrossEntropyLoss() or MSELoss(), got {got}")
    if loss.reduction != "mean":
        raise UsageError(f"{name}: the loss must have reduction 'mean', got '{loss.reduction}'")
    if isinstance(loss, nn.CrossEntropyLoss) and (loss.weight is not None or loss.label_smoothing):
        raise UsageError(f"{name}: the loss must not have class weights or label smoothing")


def check_batch(what: str, batch: Any, expected: int | None = None) -> Batch:
    """Refuse what is not a pair of tensors with as many inputs as targets.

    Args:
        what: Where it comes from, for messages.
        batch: Inputs and targets.
        expected: Number of samples that were asked for; None: any but none.

    Returns:
        The pair, on the CPU and without gradients.

    Raises:
        UsageError: With the reason.
    """
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not pair or not all(isinstance(part, Tensor) for part in batch):
        raise UsageError(f"{what}: data must be a pair of tensors (inputs, targets)")
    inputs, targets = (part.detach().cpu() for part in batch)
    if inputs.dim() < 2 or targets.dim() < 1 or len(inputs) != len(targets):
        raise UsageError(
            f"{what}: inputs {list(inputs.shape)} and targets {list(targets.shape)} must have "
            "as many samples along their first axis, and inputs at least one more axis"
        )
    if inputs.dtype != torch.float32:
        raise UsageError(f"{what}: inputs are {inputs.dtype}, not float32: use inputs.float()")
    if len(inputs) == 0 or (expected is not None and len(inputs) != expected):
        raise UsageError(f"{what}: got {len(inputs)} samples instead of {expected or 'at least 1'}")
    return inputs, targets


def check_targets(what: str, loss: nn.Module, targets: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse targets that do not fit outputs of one shape.

    Args:
        what: Where they come from, for messages.
        loss: ``CrossEntropyLoss`` or ``MSELoss``.
        targets: Of all samples at hand.
        shape: Of the output of one sample.

    Raises:
        UsageError: With the reason.
    """
    if isinstance(loss, nn.MSELoss):
        if tuple(targets.shape[1:]) != shape or targets.dtype != torch.float32:
            raise UsageError(
                f"{what}: MSELoss needs float32 targets {_axes(shape)} like the outputs, "
                f"got {targets.dtype} {_axes(targets.shape[1:])}"
            )
        return
    if targets.dim() != 1 or targets.dtype != torch.int64:
        raise UsageError(
            f"{what}: CrossEntropyLoss needs int64 class indices [n], "
            f"got {targets.dtype} {_axes(targets.shape[1:])}"
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= shape[0]:
        raise UsageError(
            f"{what}: class indices run from {low} to {high}, the model has {shape[0]} outputs"
        )


def check_outputs(
    name: str, model: nn.Module, loss: nn.Module, inputs: Tensor, targets: Tensor
) -> tuple[int, ...]:
    """Run model and loss once and refuse what does not fit together.

    Args:
        name: Of the problem, for messages.
        model: In evaluation mode.
        loss: ``CrossEntropyLoss`` or ``MSELoss``.
        inputs: A few samples [n, ...].
        targets: Theirs.

    Returns:
        Shape of the outputs of one sample; C is its number of elements.

    Raises:
        UsageError: With the reason.
    """
    try:
        with torch.no_grad():
            outputs = model(inputs)
    except Exception as error:
        raise UsageError(
            f"{name}: the model failed on inputs {list(inputs.shape)}, {describe(error)}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.dim() < 2 or len(outputs) != len(inputs):
        got = list(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise UsageError(
            f"{name}: the model must map inputs {list(inputs.shape)} to one tensor "
            f"[{len(inputs)}, C], got {got}"
        )
    if isinstance(loss, nn.CrossEntropyLoss) and outputs.dim() != 2:
        raise UsageError(
            f"{name}: CrossEntropyLoss needs outputs [n, C], got {list(outputs.shape)}"
        )
    check_targets(name, loss, targets, tuple(outputs.shape[1:]))
    try:
        loss(outputs, targets)
    except Exception as error:
        raise UsageError(f"{name}: the loss failed, {describe(error)}") from error
    return tuple(outputs.shape[1:])


def _axes(shape: tuple[int, ...]) -> str:
    return str(["n", *shape]).replace("'", "")
