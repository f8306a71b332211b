"""This project's engine."""

from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.curvature import (
    Blocks,
    Certificate,
    NewtonStep,
    Spectrum,
    eigenvalues,
    newton_step,
)
from vivit_bench.peers.engine import CUTOFF, DAMPING, Quantity, backpropagate_gradient
from vivit_bench.trees import Tree


class OwnEngine:
    """`vivit_bench.curvature`."""

    name = "vivit-bench"
    quantities = frozenset(Quantity)

    def prepare(self, model: nn.Module, loss: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Nothing to convert."""
        return model, loss

    def run(
        self,
        quantity: Quantity,
        model: nn.Module,
        loss: nn.Module,
        inputs: Tree,
        targets: Tensor,
        **options: Any,
    ) -> dict[str, Tensor]:
        """See `Engine`. The gradient comes with the quantity; nothing is certified."""
        if quantity is Quantity.GRADIENT:
            return {"loss": backpropagate_gradient(model, loss, inputs, targets)}
        model.zero_grad(set_to_none=True)
        found = _compute(quantity, model, loss, inputs, targets, certify=False, **options)
        if isinstance(found, Spectrum):
            result = {"eigenvalues": found.eigenvalues}
        else:
            result = {"step": torch.cat([s.flatten() for s in found.step])}
        assert found.gradient is not None
        trainable = [p for p in model.parameters() if p.requires_grad]
        for parameter, gradient in zip(trainable, found.gradient, strict=True):
            parameter.grad = gradient
        return {"loss": torch.tensor(found.info.loss), **result}

    def certify(
        self,
        quantity: Quantity,
        model: nn.Module,
        loss: nn.Module,
        inputs: Tree,
        targets: Tensor,
        **options: Any,
    ) -> Certificate | None:
        """The certificate of what `run` computes; None for the gradient alone.

        Raises:
            CertificateError: It failed.
        """
        if quantity is Quantity.GRADIENT:
            return None
        found = _compute(quantity, model, loss, inputs, targets, certify=True, **options)
        return found.certificate


def _compute(
    quantity: Quantity,
    model: nn.Module,
    loss: nn.Module,
    inputs: Tree,
    targets: Tensor,
    **options: Any,
) -> Spectrum | NewtonStep:
    options["with_gradient"] = True
    if quantity is Quantity.EIGENVALUES:
        return eigenvalues(model, loss, inputs, targets, **options)
    blocks = Blocks.LAYER if quantity is Quantity.BLOCK_NEWTON else Blocks.NONE
    options |= {"blocks": blocks, "damping": DAMPING, "cutoff": CUTOFF}
    return newton_step(model, loss, inputs, targets, **options)
