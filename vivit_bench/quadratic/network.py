"""The noisy quadratic as labelled data for a linear network (appendix B.4).

Sample n with slopes g_nd and curvatures l_nd along orthonormal e_d around theta_0 becomes

    X_n = sqrt(D/2) [sqrt(l_n1) e_1^T; ...; sqrt(l_nD) e_D^T]                        (D x D)
    y_n = sqrt(D/2) [sqrt(l_nd) e_d^T theta_0 - g_nd / sqrt(l_nd)]_d=1..D            (D)

A linear layer without bias, weight theta (1 x D), sees the rows of X_n (the row axis is a free
axis), and PyTorch's mean squared error averages over samples and rows. Its loss is the mean
over n of the quadratics sum_d g_nd c_d + 1/2 l_nd c_d^2, with c_d = e_d^T (theta - theta_0),
plus a constant; so slopes and curvatures at theta_0 are the given ones.
"""

import math

import torch
from torch import Tensor, nn

from vivit_bench.errors import UsageError
from vivit_bench.quadratic.model import check_orthonormal


def labelled_data(
    gammas: Tensor, lambdas: Tensor, directions: Tensor, theta_0: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs and targets whose mean squared error has the given slopes and curvatures.

    Args:
        gammas: [N, D] slopes g_nd at theta_0, from any source.
        lambdas: [N, D] curvatures l_nd > 0.
        directions: [D, D], orthonormal columns e_d.
        theta_0: [D] expansion point.

    Returns:
        Inputs [N, D, D] and targets [N, D, 1] in the dtype of ``gammas``.

    Raises:
        UsageError: If shapes do not fit, the directions are not orthonormal, or a curvature
            is not positive (its label would be undefined); names sample and direction.
    """
    if gammas.ndim != 2 or gammas.shape != lambdas.shape or theta_0.shape != gammas.shape[1:]:
        raise UsageError(
            f"slopes {tuple(gammas.shape)}, curvatures {tuple(lambdas.shape)} and theta_0 "
            f"{tuple(theta_0.shape)} must have shapes [N, D], [N, D] and [D]"
        )
    dim = gammas.shape[1]
    check_orthonormal(directions, dim)
    if not (lambdas > 0).all():
        sample, direction = (~(lambdas > 0)).nonzero()[0].tolist()
        raise UsageError(
            f"curvature of sample {sample} along direction {direction} is "
            f"{lambdas[sample, direction].item():g}: its label is undefined, every curvature "
            "must be positive"
        )
    root = lambdas.sqrt()
    scale = math.sqrt(dim / 2)
    inputs = scale * root[:, :, None] * directions.T
    targets = scale * (root * (directions.T @ theta_0) - gammas / root)
    return inputs, targets[:, :, None]


def linear_network(theta: Tensor) -> nn.Linear:
    """The linear layer without bias that holds theta [D] as its weight [1, D]."""
    dim = len(theta)
    network = nn.Linear(dim, 1, bias=False, dtype=theta.dtype)
    with torch.no_grad():
        network.weight.copy_(theta[None])
    return network.eval()


def loss_constant(gammas: Tensor, lambdas: Tensor) -> float:
    """What the network's loss has above the mean quadratic: mean_n sum_d g_nd^2 / (2 l_nd)."""
    return (gammas**2 / (2 * lambdas)).sum(1).mean().item()
