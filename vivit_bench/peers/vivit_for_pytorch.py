"""The authors' package, ``vivit-for-pytorch`` 1.0.0, on a PyTorch it was not written for.

It calls ``Tensor.symeig``, which PyTorch 2 removed; the adaptor supplies that method
through ``torch.linalg`` while the package runs, and changes nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from backpack import backpack
from backpack.core.derivatives.convnd import weight_jac_t_save_memory
from torch import Tensor, nn
from vivit import DirectionalDampedNewtonComputation, EigvalshComputation

from vivit_bench.curvature.options import Approximation, Curvature
from vivit_bench.errors import UsageError
from vivit_bench.peers.backpack_engine import (
    curvature_samples,
    extend_for_backpack,
    layer_groups,
)
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


@contextmanager
def supplied_symeig() -> Iterator[None]:
    """Inside, tensors have the ``symeig`` that PyTorch 2 removed."""

    def symeig(self: Tensor, eigenvectors: bool = False, upper: bool = True) -> tuple:
        triangle = "U" if upper else "L"
        if eigenvectors:
            return tuple(torch.linalg.eigh(self, UPLO=triangle))
        return torch.linalg.eigvalsh(self, UPLO=triangle), self.new_empty(0)

    # Present in PyTorch 2 as a method that raises.
    previous = Tensor.__dict__.get("symeig")
    Tensor.symeig = symeig  # type: ignore[method-assign]
    try:
        yield
    finally:
        if previous is None:
            del Tensor.symeig
        else:
            Tensor.symeig = previous  # type: ignore[method-assign]


class VivitForPytorch(PlainEngine):
    """Eigenvalues by ``EigvalshComputation``, steps by ``DirectionalDampedNewtonComputation``."""

    name = "vivit-for-pytorch"
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
        if quantity is not Quantity.EIGENVALUES and approximation.mc_samples != 1:
            raise UsageError(
                f"vivit-for-pytorch computes Newton steps with 1 Monte-Carlo sample only, "
                f"not {approximation.mc_samples}; use --mc-samples 1"
            )
        torch.manual_seed(approximation.seed)
        subset = curvature_samples(approximation, len(targets))
        exact = approximation.curvature is Curvature.EXACT
        draws = 0 if exact else approximation.mc_samples
        groups = [
            {
                "params": parameters,
                "criterion": lambda values: (values > CUTOFF).nonzero().flatten().tolist(),
                "damping": lambda values, *_: torch.full_like(values, DAMPING),
            }
            for parameters in layer_groups(model, quantity)
        ]
        if quantity is Quantity.EIGENVALUES:
            computation = EigvalshComputation(subsampling=subset, mc_samples=draws)
            extensions = [computation.get_extension()]
        else:
            computation = DirectionalDampedNewtonComputation(
                subsampling_ggn=subset, mc_samples_ggn=draws
            )
            extensions = computation.get_extensions()
        hook = computation.get_extension_hook(groups)
        with (
            supplied_symeig(),
            backpack(*extensions, extension_hook=hook),
            weight_jac_t_save_memory(True),  # as in the authors' measurements
        ):
            value = backpropagate_gradient(model, loss, inputs, targets)
        results = [computation.get_result(group) for group in groups]
        if quantity is Quantity.EIGENVALUES:
            return {"loss": value, "eigenvalues": results[0].flip(0)}
        step = torch.cat([t.flatten() for result in results for t in result])
        return {"loss": value, "step": step}
