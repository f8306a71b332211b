"""Per-sample slopes and curvatures along the GGN eigenvectors (Equation 8)."""

from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.results import DirectionalDerivatives
from vivit_bench.curvature.systems import gram_systems


@torch.no_grad()
def directional_derivatives(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    cutoff: float = 1e-4,
    **options: Any,
) -> DirectionalDerivatives:
    """gamma_nk = e_k^T grad l_n and lambda_nk = e_k^T J_n^T H_n J_n e_k for all directions.

    With exact curvature on the whole mini-batch both come from the Gram matrix alone.

    Args:
        model: See :func:`~vivit_bench.curvature.eigenvalues`.
        loss: As there.
        inputs: As there.
        targets: As there.
        cutoff: Directions have eigenvalues above it.
        **options: As there.

    Returns:
        Directions by descending eigenvalue. Signs of the gammas are those of the
        eigenvectors, which are arbitrary.

    Raises:
        UsageError: If the request cannot be computed.
    """
    batch = MiniBatch(model, loss, inputs, targets, **options)
    (block,) = gram_systems(batch, cutoff)
    system = block.system
    return DirectionalDerivatives(
        info=batch.info(batch.mean_loss()),
        eigenvalues=system.eigenvalues.flip(0).cpu(),
        gammas=system.gammas().flip(1).cpu(),
        lambdas=system.lambdas().flip(1).cpu(),
        gradient=batch.requested_gradient(),
    )


def signal_to_noise(values: Tensor) -> Tensor:
    """mean(x)^2 / var(x) over samples with the biased variance (appendix B.2).

    Args:
        values: [N, K] gammas or lambdas.

    Returns:
        [K] float64; ``inf`` where the variance is zero (N = 1, equal samples), ``nan``
        where the mean is zero as well.
    """
    mean = values.double().mean(0)
    return mean.square() / values.double().var(0, correction=0)
