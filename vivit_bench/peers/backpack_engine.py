"""Plain BackPACK: V expanded and kept for every parameter, as experiment code does it."""

from collections.abc import Sequence

import torch
from backpack import backpack, extend
from backpack.core.derivatives.convnd import weight_jac_t_save_memory
from backpack.extensions import SqrtGGNExact, SqrtGGNMC
from torch import Tensor, nn

from vivit_bench.curvature.options import Approximation, Curvature
from vivit_bench.errors import UsageError
from vivit_bench.peers.engine import (
    CUTOFF,
    DAMPING,
    LAPACKS_LARGEST,
    OF_ENGINES,
    PlainEngine,
    Quantity,
    backpropagate_gradient,
)
from vivit_bench.trees import Tree


def extend_for_backpack(model: nn.Module, loss: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Extend model and loss; networks that are no nested Sequentials are converted.

    Raises:
        UsageError: If BackPACK cannot convert the network.
    """
    plain = all(type(m) is nn.Sequential or not list(m.children()) for m in _containers(model))
    try:
        return extend(model, use_converter=not plain), extend(loss)
    except Exception as error:  # torch.fx raises many types
        raise UsageError(
            f"BackPACK cannot convert {type(model).__name__}: {str(error).splitlines()[0]}"
        ) from error


def _containers(model: nn.Module) -> list[nn.Module]:
    """All modules, with a subclass of Sequential that keeps its forward pass as Sequential."""
    return [
        m
        for m in model.modules()
        if not (isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward)
    ]


def layer_groups(model: nn.Module, quantity: Quantity) -> list[list[nn.Parameter]]:
    """Parameter groups of the GGN's blocks: all, or each layer's own."""
    if quantity is not Quantity.BLOCK_NEWTON:
        return [[p for p in model.parameters() if p.requires_grad]]
    own = [[p for p in m.parameters(recurse=False) if p.requires_grad] for m in model.modules()]
    return [group for group in own if group]


def curvature_samples(approximation: Approximation, batch_size: int) -> list[int] | None:
    """BackPACK's ``subsampling``: indices of the samples that carry the curvature."""
    count = approximation.num_samples(batch_size)
    return None if count == batch_size else list(range(count))


class BackpackEngine(PlainEngine):
    """V from ``SqrtGGNExact`` / ``SqrtGGNMC``."""

    name = "backpack"
    quantities = OF_ENGINES
    largest_matrix = LAPACKS_LARGEST

    def prepare(self, model: nn.Module, loss: nn.Module) -> tuple[nn.Module, nn.Module]:
        """See `Engine`."""
        return extend_for_backpack(model, loss)

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
        """See `Engine`."""
        if quantity is Quantity.GRADIENT:
            return {"loss": backpropagate_gradient(model, loss, inputs, targets)}
        torch.manual_seed(approximation.seed)
        subset = curvature_samples(approximation, len(targets))
        extension = (
            SqrtGGNExact(subsampling=subset)
            if approximation.curvature is Curvature.EXACT
            else SqrtGGNMC(mc_samples=approximation.mc_samples, subsampling=subset)
        )
        with backpack(extension), weight_jac_t_save_memory(True):
            value = backpropagate_gradient(model, loss, inputs, targets)
        # BackPACK scales by the whole mini-batch.
        scale = len(targets) / approximation.num_samples(len(targets))
        field = extension.savefield
        try:
            with torch.no_grad():
                groups = layer_groups(model, quantity)
                return {"loss": value, **_solve(quantity, groups, field, scale)}
        finally:
            for parameter in model.parameters():
                if hasattr(parameter, field):
                    delattr(parameter, field)


def _solve(
    quantity: Quantity, groups: Sequence[Sequence[nn.Parameter]], field: str, scale: float
) -> dict[str, Tensor]:
    steps = {}
    for group in groups:
        factors = [getattr(p, field).flatten(0, 1).flatten(1) for p in group]
        gram = sum(v @ v.t() for v in factors) * scale
        assert isinstance(gram, Tensor)
        if quantity is Quantity.EIGENVALUES:
            return {"eigenvalues": torch.linalg.eigvalsh(gram).flip(0)}
        values, vectors = torch.linalg.eigh(gram)
        keep = values > CUTOFF
        values, vectors = values[keep], vectors[:, keep]
        slope = sum(
            v @ p.grad.flatten() for v, p in zip(factors, group, strict=True) if p.grad is not None
        )
        weights = vectors @ (vectors.t() @ slope / (values * (values + DAMPING))) * -scale
        for p, v in zip(group, factors, strict=True):
            steps[p] = weights @ v
    order = [p for group in groups for p in group]
    return {"step": torch.cat([steps[p] for p in order])}
