"""The experiment of B.5: SGD, global dampings and bootstrap damping on a noisy quadratic."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vivit_bench.quadratic.model import Draw, Quadratic
from vivit_bench.quadratic.optimizers import BootstrapNewton, Optimizer, make_optimizers
from vivit_bench.quadratic.routes import Route, make_route
from vivit_bench.quadratic.settings import Settings


@dataclass(frozen=True)
class Repetition:
    """One repetition of every optimiser, JSON-ready."""

    index: int
    losses: dict[str, list[float]]
    """Optimiser's label -> true loss after 0 to ``steps`` steps; ``inf`` once not finite."""
    dampings: list[list[float]]
    """[steps][D] what the bootstrap chose: ``inf`` for no step, NaN along a trivial direction
    or where the run is no longer finite. Empty without the bootstrap."""


def run_repetition(settings: Settings, index: int) -> Repetition:
    """Run one repetition, a pure function of its arguments.

    All optimisers start at the same point and meet the same noise: that of the draw (seed,
    repetition, step). A trajectory depends neither on the other optimisers asked for nor on
    other repetitions.
    """
    quadratic = settings.oracle().quadratic
    route = make_route(settings)
    losses: dict[str, list[float]] = {}
    dampings: list[list[float]] = []
    for optimizer in make_optimizers(settings):
        draws = [Draw(settings.seed, index, step) for step in range(settings.steps)]
        theta = torch.full_like(quadratic.matrix[0], settings.theta_init)
        losses[optimizer.label], chosen = _follow(optimizer, route, quadratic, theta, draws)
        if isinstance(optimizer, BootstrapNewton):
            dampings = chosen
    return Repetition(index, losses, dampings)


def _follow(
    optimizer: Optimizer, route: Route, quadratic: Quadratic, theta: Tensor, draws: list[Draw]
) -> tuple[list[float], list[list[float]]]:
    """Losses (one more than draws) and dampings (a row of D per draw) from the start theta."""
    losses = [quadratic.loss(theta)]
    dampings = []
    for draw in draws:
        if losses[-1] == math.inf:
            losses.append(math.inf)
            dampings.append([math.nan] * len(theta))
            continue
        taken = optimizer.step(route, theta, draw)
        theta = theta + taken.step
        losses.append(quadratic.loss(theta))
        dampings.append(taken.dampings.tolist())
    return losses, dampings
