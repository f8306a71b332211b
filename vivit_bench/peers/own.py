"""This project's engine."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from vivit_bench.curvature import (
    Approximation,
    Blocks,
    Certificate,
    Memory,
    NewtonStep,
    Spectrum,
    eigenvalues,
    explain,
    newton_step,
)
from vivit_bench.curvature.options import Goal
from vivit_bench.curvature.session import Request, leanest_of
from vivit_bench.peers.engine import CUTOFF, DAMPING, OF_ENGINES, Quantity, backpropagate_gradient
from vivit_bench.trees import Tree


class OwnEngine:
    """`vivit_bench.curvature`."""

    name = "vivit-bench"
    quantities = OF_ENGINES
    planned = quantities - {Quantity.GRADIENT}
    largest_matrix: Mapping[Quantity, int] = MappingProxyType({})

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
        approximation: Approximation,
        memory: int | None = None,
    ) -> dict[str, Tensor]:
        """See `Engine`. The gradient comes with the quantity; nothing is certified."""
        if quantity is Quantity.GRADIENT:
            return {"loss": backpropagate_gradient(model, loss, inputs, targets)}
        model.zero_grad(set_to_none=True)
        bound = None if memory is None else Memory(max(memory, 1), strict=False)
        found = _compute(
            quantity, model, loss, inputs, targets, approximation, certify=False, memory=bound
        )
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
        approximation: Approximation,
    ) -> Certificate | None:
        """The certificate of what `run` computes; None for the gradient alone.

        Raises:
            CertificateError: It failed.
        """
        if quantity is Quantity.GRADIENT:
            return None
        found = _compute(quantity, model, loss, inputs, targets, approximation, certify=True)
        return found.certificate

    def planned_peak(
        self,
        quantity: Quantity,
        model: nn.Module,
        loss: nn.Module,
        inputs: Tree,
        targets: Tensor,
        approximation: Approximation,
    ) -> tuple[int, str]:
        """See `Engine`: what `run` takes by its leanest plan."""
        request = (model, loss, inputs, targets, approximation)
        goal, blocks = _goal(quantity), _blocks(quantity)
        stage = leanest_of(Request(*request, blocks, certify=False, goal=goal))
        return stage.bytes, stage.name

    def planned_costs(
        self,
        quantity: Quantity,
        model: nn.Module,
        loss: nn.Module,
        inputs: Tree,
        targets: Tensor,
        approximation: Approximation,
        memory: int,
    ) -> tuple[int, float]:
        """See `Engine`."""
        explanation = explain(
            *(model, loss, inputs, targets, approximation),
            quantity=_goal(quantity),
            blocks=_blocks(quantity),
            certify=False,
            memory=Memory(memory, strict=False),
        )
        return explanation.peak.bytes, explanation.costs.seconds


def _goal(quantity: Quantity) -> Goal:
    return Goal.EIGENVALUES if quantity is Quantity.EIGENVALUES else Goal.STEP


def _blocks(quantity: Quantity) -> Blocks:
    return Blocks.LAYER if quantity is Quantity.BLOCK_NEWTON else Blocks.NONE


def _compute(
    quantity: Quantity,
    model: nn.Module,
    loss: nn.Module,
    inputs: Tree,
    targets: Tensor,
    approximation: Approximation,
    certify: bool,
    memory: Memory | None = None,
) -> Spectrum | NewtonStep:
    request = (model, loss, inputs, targets, approximation)
    if quantity is Quantity.EIGENVALUES:
        return eigenvalues(*request, certify=certify, with_gradient=True, memory=memory)
    return newton_step(
        *request,
        damping=DAMPING,
        cutoff=CUTOFF,
        blocks=_blocks(quantity),
        certify=certify,
        with_gradient=True,
        memory=memory,
        method="gram",  # what is measured does not depend on the machine's memory
    )
