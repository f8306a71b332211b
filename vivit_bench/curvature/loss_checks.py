"""Which losses have a factorisation (``loss_factor.py``), and which targets fit them."""

import torch
from torch import Tensor, nn

from vivit_bench.errors import UsageError

_LOSSES = (nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss)


def check_loss(loss: nn.Module) -> None:
    """Refuse a loss whose Hessian is not one of those above.

    A subclass that changes the computation is another loss, whatever ``isinstance`` says.

    Raises:
        UsageError: In one line.
    """
    if isinstance(loss, type):
        raise UsageError(f"loss is the class {loss.__name__}; write {loss.__name__}()")
    name = type(loss).__name__
    kind = next((k for k in _LOSSES if isinstance(loss, k)), None)
    if kind is None:
        raise UsageError(
            f"loss {name} is not supported; use CrossEntropyLoss, MSELoss or BCEWithLogitsLoss"
        )
    methods = ("__call__", "_call_impl")
    own = type(loss).forward is kind.forward and all(
        getattr(type(loss), name) is getattr(nn.Module, name) for name in methods
    )
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if not own or "forward" in vars(loss) or any(getattr(loss, name) for name in hooks):
        raise UsageError(
            f"loss {name} changes what {kind.__name__} computes, so its Hessian is unknown; "
            f"use {kind.__name__} itself"
        )
    if loss.reduction not in ("mean", "sum"):
        raise UsageError(f"loss reduction is {loss.reduction!r}; use 'mean' or 'sum'")
    for attribute in ("weight", "pos_weight"):
        weight = getattr(loss, attribute, None)
        if weight is None:
            continue
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            raise UsageError(
                f"{attribute} of {name} is no floating-point tensor; convert it with .float()"
            )
        if weight.requires_grad:
            raise UsageError(
                f"{attribute} of {name} requires gradients, which are no part of the GGN; give "
                f"{attribute}.detach()"
            )
        if not bool((weight >= 0).all() and weight.isfinite().all()):
            raise UsageError(
                f"{attribute} of {name} holds {weight.min().item():g}; weights must be finite "
                "and not negative, or the GGN has no square root"
            )
    smoothing = getattr(loss, "label_smoothing", 0.0)
    if not 0 <= smoothing <= 1:
        raise UsageError(f"label_smoothing of {name} is {smoothing}; it must lie in 0..1")
    ignored = getattr(loss, "ignore_index", -100)
    if isinstance(ignored, bool) or not isinstance(ignored, int):
        raise UsageError(f"ignore_index of {name} is {ignored!r}; it must be a whole number")


def check_targets(loss: nn.Module, output_shape: tuple[int, ...], targets: Tensor) -> Tensor:
    """Refuse targets that do not fit.

    Args:
        loss: As :func:`check_loss` accepts it.
        output_shape: Of one sample's output.
        targets: [N, ...].

    Returns:
        The targets; integer labels as int64.

    Raises:
        UsageError: In one line.
    """
    shape, name = tuple(output_shape), type(loss).__name__
    if isinstance(loss, nn.CrossEntropyLoss):
        return _check_classes(loss, shape, targets)
    if not targets.is_floating_point():
        raise UsageError(
            f"{name} needs floating-point targets, got {targets.dtype}; "
            "convert them with targets.float()"
        )
    if tuple(targets.shape[1:]) != shape:
        raise UsageError(
            f"targets of shape {list(targets.shape)} do not match outputs of shape "
            f"[{', '.join(map(str, ('N', *shape)))}]; {name} needs equal shapes"
        )
    if isinstance(loss, nn.BCEWithLogitsLoss):
        low, high = targets.min().item(), targets.max().item()
        if low < 0 or high > 1:
            raise UsageError(
                f"targets lie in {low:g}..{high:g}; BCEWithLogitsLoss needs probabilities in 0..1"
            )
    return targets


def _check_classes(loss: nn.CrossEntropyLoss, shape: tuple[int, ...], targets: Tensor) -> Tensor:
    if not shape:
        raise UsageError(
            "CrossEntropyLoss needs outputs of shape [N, C, ...], the model returns [N]; "
            "use BCEWithLogitsLoss for a single logit"
        )
    classes, positions = shape[0], shape[1:]
    if classes < 2:
        raise UsageError(f"CrossEntropyLoss needs at least C = 2 outputs, the model has {classes}")
    if loss.weight is not None and loss.weight.shape != (classes,):
        raise UsageError(
            f"weight of CrossEntropyLoss has shape {list(loss.weight.shape)}; "
            f"the model has C = {classes} classes"
        )
    if targets.is_floating_point() and tuple(targets.shape[1:]) == shape:
        if loss.ignore_index >= 0:
            raise UsageError(
                f"ignore_index of CrossEntropyLoss is {loss.ignore_index}, and targets that are "
                "probabilities cannot be ignored; leave it out, or give labels"
            )
        sums = targets.double().sum(1)
        if targets.min() < 0 or (sums - 1).abs().max() > 1e-4:
            raise UsageError(
                f"targets are no probabilities: their smallest is {targets.min().item():g} and "
                f"they sum to {sums.min().item():g}..{sums.max().item():g} over the classes"
            )
        return targets
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise UsageError(
            f"CrossEntropyLoss needs integer class labels or probabilities of the outputs' shape, "
            f"got {targets.dtype} of shape {list(targets.shape)}; convert labels with "
            "targets.long()"
        )
    if tuple(targets.shape[1:]) != positions:
        last = tuple(targets.shape[1:]) == shape[:-1]
        remedy = "; if the classes are its last axis, return outputs.movedim(-1, 1)" * last
        raise UsageError(
            f"targets have shape {list(targets.shape)}; CrossEntropyLoss needs labels of shape "
            f"[{', '.join(map(str, ('N', *positions)))}] for outputs [N, "
            f"{', '.join(map(str, shape))}]{remedy}"
        )
    labels = targets.long()
    counted = labels[labels != loss.ignore_index]
    if counted.numel():
        low, high = int(counted.min()), int(counted.max())
        if low < 0 or high >= classes:
            raise UsageError(
                f"labels lie in {low}..{high}, the model has C = {classes} outputs; "
                f"labels must lie in 0..{classes - 1}"
            )
    return labels
