"""This project's engine."""

from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.curvature import Blocks, NewtonStep, Spectrum, eigenvalues, newton_step
from vivit_bench.peers.engine import CUTOFF, DAMPING, Quantity, backpropagate_gradient


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
        inputs: Tensor,
        targets: Tensor,
        **options: Any,
    ) -> dict[str, Tensor]:
        """See `Engine`. The gradient comes with the quantity."""
        if quantity is Quantity.GRADIENT:
            return {"loss": backpropagate_gradient(model, loss, inputs, targets)}
        model.zero_grad(set_to_none=True)
        options = {**options, "with_gradient": True}
        found: Spectrum | NewtonStep
        if quantity is Quantity.EIGENVALUES:
            found = eigenvalues(model, loss, inputs, targets, **options)
            result = {"eigenvalues": found.eigenvalues}
        else:
            blocks = Blocks.LAYER if quantity is Quantity.BLOCK_NEWTON else Blocks.NONE
            options |= {"blocks": blocks, "damping": DAMPING, "cutoff": CUTOFF}
            found = newton_step(model, loss, inputs, targets, **options)
            result = {"step": torch.cat([s.flatten() for s in found.step])}
        assert found.gradient is not None
        trainable = [p for p in model.parameters() if p.requires_grad]
        for parameter, gradient in zip(trainable, found.gradient, strict=True):
            parameter.grad = gradient
        return {"loss": torch.tensor(found.info.loss), **result}
