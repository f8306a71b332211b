"""The choices of the noisy-quadratic experiment; light to import."""

from enum import StrEnum


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
