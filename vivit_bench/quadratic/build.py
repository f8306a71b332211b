"""From settings to the objects that run: oracle, route, optimisers."""

import math

import torch

from vivit_bench.curvature.damping import BootstrapDamping, ConstantDamping, log_grid
from vivit_bench.errors import UsageError
from vivit_bench.quadratic.model import NoisyOracle, Quadratic
from vivit_bench.quadratic.optimizers import BootstrapNewton, ConstantNewton, Optimizer, Sgd
from vivit_bench.quadratic.options import OptimizerName, RouteName
from vivit_bench.quadratic.routes import NetworkRoute, Route, SamplerRoute
from vivit_bench.quadratic.settings import Settings


def make_oracle(settings: Settings) -> NoisyOracle:
    """The noisy quadratic, seen along the unit vectors."""
    if not settings.curvatures:
        raise UsageError("no curvature given: list one per direction, e.g. 1,2,3")
    curvatures = torch.tensor(settings.curvatures, dtype=torch.float64)
    return NoisyOracle(
        Quadratic.diagonal(curvatures),
        torch.eye(len(curvatures), dtype=torch.float64),
        settings.batch_size,
        settings.gradient_variance,
        settings.curvature_variance,
    )


def make_route(settings: Settings) -> Route:
    """The route to the oracle's mini-batches."""
    oracle = make_oracle(settings)
    return SamplerRoute(oracle) if settings.route is RouteName.SAMPLER else NetworkRoute(oracle)


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


def check_settings(settings: Settings) -> None:
    """Raise a UsageError that names the first value that makes no sense, before anything runs."""
    for name in ("repeats", "steps"):
        if getattr(settings, name) < 1:
            raise UsageError(f"{name} {getattr(settings, name)}: give at least 1")
    if settings.seed < 0:
        raise UsageError(f"seed {settings.seed}: give an integer >= 0")
    if not 0 < settings.learning_rate < math.inf:
        raise UsageError(f"learning rate {settings.learning_rate:g} must be positive and finite")
    if not 0 < abs(settings.theta_init) < math.inf:
        raise UsageError(
            f"theta init {settings.theta_init:g} must be finite and not the minimum, 0"
        )
    if not settings.optimizers:
        raise UsageError(f"no optimizer given: choose from {', '.join(OptimizerName)}")
    if OptimizerName.CONSTANT in settings.optimizers and not settings.dampings:
        raise UsageError("no global damping given: list some, e.g. 0.1,1,10")
    for name, values in (("optimizer", settings.optimizers), ("damping", settings.dampings)):
        if len(set(values)) < len(values):
            raise UsageError(f"{name}s {','.join(map(str, values))}: give each only once")
    for damping in settings.dampings:
        ConstantDamping(damping)
    _check_bootstrap(settings)
    make_oracle(settings)


def _check_bootstrap(settings: Settings) -> None:
    grid = log_grid(settings.grid_low, settings.grid_high, settings.grid_points)
    BootstrapDamping(grid, settings.resamples, settings.percentile)
    if OptimizerName.BOOTSTRAP in settings.optimizers and settings.batch_size < 2:
        raise UsageError(
            f"bootstrap damping cannot resample N = {settings.batch_size} sample(s): give a batch "
            "size of at least 2, or leave out optimizer bootstrap"
        )
