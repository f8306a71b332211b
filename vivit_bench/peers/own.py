"""This project's engine."""

from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.curvature import Blocks, eigenvalues, newton_step
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
        """See `Engine`."""
        value = backpropagate_gradient(model, loss, inputs, targets)
        if quantity is Quantity.GRADIENT:
            return {"loss": value}
        if quantity is Quantity.EIGENVALUES:
            spectrum = eigenvalues(model, loss, inputs, targets, **options)
            return {"loss": value, "eigenvalues": spectrum.eigenvalues}
        blocks = Blocks.LAYER if quantity is Quantity.BLOCK_NEWTON else Blocks.NONE
        result = newton_step(
            model, loss, inputs, targets, blocks=blocks, damping=DAMPING, cutoff=CUTOFF, **options
        )
        return {"loss": value, "step": torch.cat([s.flatten() for s in result.step])}
