"""What decides the numbers of the noisy-quadratic experiment; light to import."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from vivit_bench.errors import UsageError

if TYPE_CHECKING:
    from vivit_bench.quadratic.model import NoisyOracle


class OptimizerName(StrEnum):
    """What is compared."""

    SGD = "sgd"
    """Stochastic gradient descent."""
    CONSTANT = "constant"
    """Newton steps with a global damping; one optimiser for each damping."""
    BOOTSTRAP = "bootstrap"
    """Newton steps with bootstrap damping along every direction."""


class RouteName(StrEnum):
    """Where slopes and curvatures come from."""

    SAMPLER = "sampler"
    """Straight from the noise model."""
    NETWORK = "network"
    """Through the linear network of B.4 and the curvature engine."""


@dataclass(frozen=True)
class Settings:
    """The experiment; the defaults are the paper's (B.5).

    Raises:
        UsageError: If a value makes no sense; names the value and what to give instead.
    """

    repeats: int = 100
    steps: int = 20
    optimizers: tuple[OptimizerName, ...] = tuple(OptimizerName)
    dampings: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
    """Global dampings, one second-order optimiser each."""
    grid_low: float = 1e-4
    grid_high: float = 1e2
    grid_points: int = 200
    """Of the log-equidistant grid the bootstrap chooses from."""
    resamples: int = 100
    percentile: float = 5.0
    learning_rate: float = 1e-3
    """Of SGD."""
    curvatures: tuple[float, ...] = tuple(float(i) for i in range(1, 21))
    """True curvature along each of the D unit vectors, twice G's diagonal."""
    theta_init: float = 100.0
    """Every coordinate of the start."""
    batch_size: int = 128
    gradient_variance: float = 5000.0
    curvature_variance: float = 50.0
    seed: int = 0
    route: RouteName = RouteName.SAMPLER

    def __post_init__(self) -> None:
        _check(self)

    def oracle(self) -> "NoisyOracle":
        """The noisy quadratic, seen along the unit vectors."""
        # Brings torch along, which a command's --help does without.
        import torch

        from vivit_bench.quadratic.model import NoisyOracle, Quadratic

        if not self.curvatures:
            raise UsageError("no curvature given: list one per direction, e.g. 1,2,3")
        curvatures = torch.tensor(self.curvatures, dtype=torch.float64)
        return NoisyOracle(
            Quadratic.diagonal(curvatures),
            torch.eye(len(curvatures), dtype=torch.float64),
            self.batch_size,
            self.gradient_variance,
            self.curvature_variance,
        )

    def record(self) -> dict[str, Any]:
        """The settings, JSON-ready."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}


def _check(settings: Settings) -> None:
    """Raise a UsageError that names the first value that makes no sense, before anything runs."""
    from vivit_bench.curvature.damping import ConstantDamping

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
    settings.oracle()


def _check_bootstrap(settings: Settings) -> None:
    from vivit_bench.curvature.damping import BootstrapDamping, log_grid

    grid = log_grid(settings.grid_low, settings.grid_high, settings.grid_points)
    BootstrapDamping(grid, settings.resamples, settings.percentile)
    if OptimizerName.BOOTSTRAP in settings.optimizers and settings.batch_size < 2:
        raise UsageError(
            f"bootstrap damping cannot resample N = {settings.batch_size} sample(s): give a batch "
            "size of at least 2, or leave out optimizer bootstrap"
        )
