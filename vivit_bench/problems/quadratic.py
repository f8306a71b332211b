"""DeepOBS's ``quadratic_deep`` as a network under mean squared error.

DeepOBS's module returns the loss itself, l_n = 1/2 (theta - x_n)^T Q (theta - x_n), and
so has no output a GGN could be taken at. With any square root Q = A^T A and C = 100
outputs, the linear model f(theta) = sqrt(C/2) A theta with targets sqrt(C/2) A x_n has
the same losses under PyTorch's mean MSE, (1/C) ||f - y_n||^2 = l_n, hence the same
gradients, and its GGN is the Hessian Q (the formulation of appendix B.4).
"""

import functools
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vivit_bench.problems.deepobs_torch import deepobs_module

_NOISE = 0.6  # standard deviation of x in deepobs/pytorch/datasets/quadratic.py
_ROTATION_SEED = 42


@functools.cache
def deepobs_quadratic() -> tuple[Any, dict[str, Tensor]]:
    """DeepOBS's own network (parameter theta, matrix ``Hessian``) and its data sets.

    Returns:
        The network, and for "train" and "test" the 1,000 data points [1000, 100].
    """
    module = deepobs_module("testproblems.quadratic_deep")
    # The rotation is drawn from a global generator: without this, every set-up but the
    # first in a process has another Hessian.
    module.rng = np.random.RandomState(_ROTATION_SEED)
    problem = module.quadratic_deep(batch_size=128)
    problem._device = torch.device("cpu")
    problem.set_up()
    loaders = {"train": problem.data._train_dataloader, "test": problem.data._test_dataloader}
    return problem.net, {split: x.dataset.tensors[0] for split, x in loaders.items()}


def build_network() -> nn.Module:
    """The linear network f(theta) = X theta, [n, 100, 100] -> [n, 100], D = 100.

    Its only parameter ``theta.weight`` [1, 100] starts at DeepOBS's theta.
    """
    theta = deepobs_quadratic()[0].theta.detach()
    linear = nn.Linear(theta.numel(), 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(theta)
    return nn.Sequential(OrderedDict(theta=linear, flatten=nn.Flatten()))


def from_points(points: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets that stand for DeepOBS's data points.

    Args:
        points: x [n, 100], float32.

    Returns:
        sqrt(C/2) A, repeated [n, 100, 100] without using memory n times, and
        sqrt(C/2) A x_n [n, 100].
    """
    root = _scaled_root()
    return root.expand(len(points), -1, -1), points @ root.T


def draw_points(n: int, generator: torch.Generator) -> Tensor:
    """New data points x [n, 100] from the distribution DeepOBS draws its own from."""
    dim = _scaled_root().shape[1]
    return torch.randn(n, dim, generator=generator).mul_(_NOISE)


@functools.cache
def _scaled_root() -> Tensor:
    values, vectors = torch.linalg.eigh(deepobs_quadratic()[0].Hessian.double())
    scale = len(values) / 2
    return ((scale * values).sqrt().unsqueeze(1) * vectors.T).float()
