"""Two ways from a noisy mini-batch to an optimiser's step, which agree to rounding.

``sampler`` uses the sampled slopes and curvatures along the known directions. ``network`` hides
them in labelled data (B.4) and lets autograd and the curvature engine find them again. The
engine's directions come ordered by curvature and with signs of their own; a step in parameter
space depends on neither.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vivit_bench.curvature import newton_step
from vivit_bench.curvature.damping import DampingPolicy
from vivit_bench.quadratic.model import Draw, NoisyOracle
from vivit_bench.quadratic.network import labelled_data, linear_network
from vivit_bench.quadratic.settings import RouteName, Settings

CUTOFF = 1e-4
"""Directions of smaller mean curvature are trivial: no step along them."""


@dataclass(frozen=True)
class DampedStep:
    """A Newton step and the dampings behind it."""

    step: Tensor
    """[D] in parameter space."""
    dampings: Tensor
    """[D] along the oracle's directions; NaN where the mean curvature is below the cutoff."""


class Route(Protocol):
    """Steps of optimisers from the noisy mini-batch of one draw at theta [D]."""

    def gradient(self, theta: Tensor, draw: Draw) -> Tensor:
        """Mini-batch gradient [D]."""

    def newton_step(self, theta: Tensor, draw: Draw, policy: DampingPolicy) -> DampedStep:
        """- sum_k gamma_k / (lambda_k + delta_k) e_k over the non-trivial directions (Eq. 9)."""


@dataclass(frozen=True)
class SamplerRoute:
    """Straight from the sampled slopes and curvatures."""

    oracle: NoisyOracle

    def gradient(self, theta: Tensor, draw: Draw) -> Tensor:
        """See ``Route``."""
        gammas, _ = self.oracle.sample(theta, draw)
        return self.oracle.directions @ gammas.mean(0)

    def newton_step(self, theta: Tensor, draw: Draw, policy: DampingPolicy) -> DampedStep:
        """See ``Route``."""
        gammas, lambdas = self.oracle.sample(theta, draw)
        kept = lambdas.mean(0) > CUTOFF
        gammas, lambdas = gammas[:, kept], lambdas[:, kept]
        delta = policy(gammas, lambdas)
        step = -(gammas.mean(0) / (lambdas.mean(0) + delta))
        dampings = torch.full_like(theta, torch.nan)
        dampings[kept] = delta
        return DampedStep(self.oracle.directions[:, kept] @ step, dampings)


@dataclass(frozen=True)
class NetworkRoute:
    """Through the linear network of B.4, autograd and the curvature engine.

    V has N D columns, 2,560 at the paper's settings, for D = 20 parameters: the engine solves the
    D x D matrix.
    """

    oracle: NoisyOracle

    def gradient(self, theta: Tensor, draw: Draw) -> Tensor:
        """See ``Route``."""
        model, inputs, targets, _ = self._problem(theta, draw)
        loss = nn.MSELoss()(model(inputs), targets)
        (gradient,) = torch.autograd.grad(loss, [model.weight])
        return gradient[0]

    def newton_step(self, theta: Tensor, draw: Draw, policy: DampingPolicy) -> DampedStep:
        """See ``Route``."""
        model, inputs, targets, lambdas = self._problem(theta, draw)
        result = newton_step(model, nn.MSELoss(), inputs, targets, damping=policy, cutoff=CUTOFF)
        # The mini-batch GGN is sum_d mean(l_d) e_d e_d^T: mean curvatures, by which the engine
        # orders its directions, identify them.
        chosen = result.dampings[""]
        dampings = torch.full_like(theta, torch.nan)
        dampings[lambdas.mean(0).argsort(descending=True)[: len(chosen)]] = chosen
        return DampedStep(result.step[0][0], dampings)

    def _problem(self, theta: Tensor, draw: Draw) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
        gammas, lambdas = self.oracle.sample(theta, draw)
        inputs, targets = labelled_data(gammas, lambdas, self.oracle.directions, theta)
        return linear_network(theta), inputs, targets, lambdas


def make_route(settings: Settings) -> Route:
    """The route to the oracle's mini-batches."""
    oracle = settings.oracle()
    return SamplerRoute(oracle) if settings.route is RouteName.SAMPLER else NetworkRoute(oracle)
