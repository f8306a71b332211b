"""What decides the numbers of the noisy-quadratic experiment; light to import."""

from dataclasses import dataclass
from typing import Any

from vivit_bench.quadratic.options import OptimizerName, RouteName


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
        # Brings torch along, which a command's --help does without.
        from vivit_bench.quadratic.build import check_settings

        check_settings(self)

    def record(self) -> dict[str, Any]:
        """The settings, JSON-ready."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
