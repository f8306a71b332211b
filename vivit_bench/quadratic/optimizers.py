"""The optimisers that B.5 compares; each drives any route to a noisy quadratic."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vivit_bench.curvature.damping import BootstrapDamping, ConstantDamping, log_grid
from vivit_bench.quadratic.model import Draw
from vivit_bench.quadratic.routes import DampedStep, Route
from vivit_bench.quadratic.settings import OptimizerName, Settings


class Optimizer(Protocol):
    """A rule for one step from theta [D]."""

    @property
    def label(self) -> str:
        """Its name in results."""

    def step(self, route: Route, theta: Tensor, draw: Draw) -> DampedStep:
        """The step on the mini-batch of one draw."""


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent."""

    learning_rate: float

    @property
    def label(self) -> str:
        """See ``Optimizer``."""
        return str(OptimizerName.SGD)

    def step(self, route: Route, theta: Tensor, draw: Draw) -> DampedStep:
        """See ``Optimizer``; no direction has a damping."""
        step = -self.learning_rate * route.gradient(theta, draw)
        return DampedStep(step, torch.full_like(theta, torch.nan))


@dataclass(frozen=True)
class ConstantNewton:
    """Newton steps with one global damping."""

    damping: float

    @property
    def label(self) -> str:
        """See ``Optimizer``."""
        return f"damping {self.damping:.12g}"

    def step(self, route: Route, theta: Tensor, draw: Draw) -> DampedStep:
        """See ``Optimizer``."""
        return route.newton_step(theta, draw, ConstantDamping(self.damping))


@dataclass(frozen=True)
class BootstrapNewton:
    """Newton steps with bootstrap damping along every direction, resampled anew each step."""

    grid: tuple[float, ...]
    resamples: int
    percentile: float

    @property
    def label(self) -> str:
        """See ``Optimizer``."""
        return str(OptimizerName.BOOTSTRAP)

    def step(self, route: Route, theta: Tensor, draw: Draw) -> DampedStep:
        """See ``Optimizer``."""
        seed = draw.bootstrap_seed()
        policy = BootstrapDamping(self.grid, self.resamples, self.percentile, seed)
        return route.newton_step(theta, draw, policy)


def make_optimizers(settings: Settings) -> list[Optimizer]:
    """The optimisers to compare, in the order of the results."""
    built: list[Optimizer] = []
    for name in settings.optimizers:
        if name is OptimizerName.SGD:
            built.append(Sgd(settings.learning_rate))
        elif name is OptimizerName.CONSTANT:
            built += [ConstantNewton(value) for value in settings.dampings]
        else:
            grid = log_grid(settings.grid_low, settings.grid_high, settings.grid_points)
            built.append(BootstrapNewton(grid, settings.resamples, settings.percentile))
    return built
