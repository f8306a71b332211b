"""The noisy quadratic: a known loss seen through noisy slopes and curvatures (B.3, B.5)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vivit_bench.errors import UsageError

CURVATURE_FLOOR = 1e-8
"""Smallest curvature a Gamma draw is allowed to have.

At the paper's lowest curvature (mean 1, variance 50) the Gamma's shape is 0.02: half of the
draws are below 4e-14 and some underflow to zero, where the label of B.4 does not exist. The
floor changes a mean by less than itself and keeps the labels' range within float64.
"""


class Draw(NamedTuple):
    """The address of one noisy mini-batch; the same address gives the same noise."""

    seed: int
    repetition: int = 0
    step: int = 0

    def generator(self, stream: int) -> np.random.Generator:
        """Random numbers of one purpose, independent of every other address and stream."""
        return np.random.default_rng([*self, stream])

    def bootstrap_seed(self) -> int:
        """Seed for the resampling of this mini-batch (a stream of its own)."""
        return int(self.generator(stream=2).integers(2**62))


@dataclass(frozen=True, eq=False)
class Quadratic:
    """L(theta) = theta^T G theta, with gradient 2 G theta and Hessian 2 G.

    Raises:
        UsageError: If ``matrix`` (G, [D, D]) is not square and symmetric.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        G = self.matrix
        if G.ndim != 2 or G.shape[0] != G.shape[1] or not torch.allclose(G, G.T):
            raise UsageError(
                f"the quadratic's matrix of shape {tuple(G.shape)} must be square and symmetric"
            )

    @classmethod
    def diagonal(cls, curvatures: Tensor) -> "Quadratic":
        """The quadratic with the given curvatures [D] along the unit vectors: G_ii = half of it."""
        return cls(torch.diag(curvatures.double() / 2))

    @property
    def hessian(self) -> Tensor:
        """[D, D]."""
        return 2 * self.matrix

    def loss(self, theta: Tensor) -> float:
        """L at theta [D]; ``inf`` where it overflows or theta is not finite."""
        value = (theta @ self.matrix @ theta).item()
        return value if np.isfinite(value) else float("inf")

    def gradient(self, theta: Tensor) -> Tensor:
        """[D] at theta [D]."""
        return self.hessian @ theta


@dataclass(frozen=True, eq=False)
class NoisyOracle:
    """Noisy slopes and curvatures of a quadratic along orthonormal directions (B.5).

        gamma_nk  ~ Normal(mean e_k^T grad L(theta), variance ``gradient_variance``)
        lambda_nk ~ Gamma(mean e_k^T Hess L e_k, variance ``curvature_variance``)

    A variance of zero gives the mean itself. The noise depends on the draw's address only, not
    on theta: optimisers that ask for the same draw meet the same noise.

    Raises:
        UsageError: If the directions [D, D] (columns e_k) are not orthonormal, a curvature
            along a direction is not positive, there is no sample, or a variance is negative.
    """

    quadratic: Quadratic
    directions: Tensor
    batch_size: int = 128
    gradient_variance: float = 5000.0
    curvature_variance: float = 50.0

    def __post_init__(self) -> None:
        check_orthonormal(self.directions, self.quadratic.matrix.shape[0])
        if self.batch_size < 1:
            raise UsageError(f"batch size {self.batch_size}: give at least 1 sample")
        for name in ("gradient_variance", "curvature_variance"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UsageError(f"{name.replace('_', ' ')} {value:g} must be finite and >= 0")
        for k, curvature in enumerate(self.curvatures.tolist()):
            if not CURVATURE_FLOOR <= curvature < float("inf"):
                raise UsageError(
                    f"curvature along direction {k} is {curvature:g}: it must be positive "
                    f"(at least {CURVATURE_FLOOR:g}) and finite"
                )

    @property
    def curvatures(self) -> Tensor:
        """True curvatures e_k^T Hess L e_k, [D]."""
        E = self.directions
        return torch.einsum("ik,ij,jk->k", E, self.quadratic.hessian, E)

    def sample(self, theta: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """One mini-batch at theta [D].

        Returns:
            gammas [N, D] and lambdas [N, D] (at least ``CURVATURE_FLOOR``), float64.
        """
        slopes = self.directions.T @ self.quadratic.gradient(theta)
        means = self.curvatures
        shape = (self.batch_size, len(means))
        noise = torch.from_numpy(draw.generator(stream=0).standard_normal(shape))
        gammas = slopes + self.gradient_variance**0.5 * noise
        if self.curvature_variance == 0:
            return gammas, means.expand(shape).clone()
        scale = self.curvature_variance / means
        lambdas = draw.generator(stream=1).gamma(means / scale, scale, shape)
        return gammas, torch.from_numpy(lambdas).clamp_(min=CURVATURE_FLOOR)


def check_orthonormal(directions: Tensor, dim: int) -> None:
    """Raise a UsageError unless ``directions`` [dim, dim] has orthonormal columns."""
    if directions.shape != (dim, dim):
        raise UsageError(
            f"directions of shape {tuple(directions.shape)} must be [{dim}, {dim}], a column each"
        )
    identity = torch.eye(dim, dtype=directions.dtype)
    deviation = (directions.T @ directions - identity).abs().max().item()
    if not deviation < 1e-8:
        raise UsageError(
            f"directions deviate from orthonormal by {deviation:.1e}: orthonormalise the columns, "
            "e.g. with torch.linalg.qr"
        )
