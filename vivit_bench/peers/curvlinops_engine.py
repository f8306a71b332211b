"""Leading eigenvalues by Lanczos iterations on ``curvlinops``' GGN operator."""

import numpy as np
import torch
from curvlinops import GGNLinearOperator
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from vivit_bench.curvature.options import Approximation, Curvature
from vivit_bench.errors import UsageError
from vivit_bench.peers.engine import PlainEngine, Quantity, backpropagate_gradient
from vivit_bench.trees import Tree, select

LEADING = 10


class CurvlinopsEngine(PlainEngine):
    """The 10 leading eigenvalues of the exact GGN; nothing else."""

    name = "curvlinops"
    quantities = frozenset({Quantity.GRADIENT, Quantity.EIGENVALUES})

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
        """See `Engine`; ``eigenvalues`` are the 10 leading ones."""
        if quantity not in self.quantities:
            raise UsageError(f"engine 'curvlinops' cannot compute {quantity.value}")
        if quantity is Quantity.EIGENVALUES and approximation.curvature is not Curvature.EXACT:
            raise UsageError("engine 'curvlinops' computes exact curvature only")
        value = backpropagate_gradient(model, loss, inputs, targets)
        if quantity is Quantity.GRADIENT:
            return {"loss": value}
        count = approximation.num_samples(len(targets))
        parameters = [p for p in model.parameters() if p.requires_grad]
        operator = GGNLinearOperator(
            model,
            loss,
            parameters,
            [(select(inputs, slice(count)), targets[:count])],
            check_deterministic=False,
        )
        start = np.random.default_rng(approximation.seed).standard_normal(operator.shape[0])
        leading = min(LEADING, operator.shape[0] - 1)
        values = eigsh(
            operator.to_scipy(),
            k=leading,
            which="LA",
            v0=start.astype(np.float32 if parameters[0].dtype == torch.float32 else np.float64),
            return_eigenvectors=False,
        )
        return {"loss": value, "eigenvalues": torch.from_numpy(np.sort(values)[::-1].copy())}
