"""Damping policies for Newton steps along GGN eigenvectors (Equation 9, appendix B.3).

A policy looks at the slopes and curvatures of every sample along every direction and
answers with one damping per direction; an infinite damping means no step along it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vivit_bench.errors import UsageError

DampingPolicy = Callable[[Tensor, Tensor], Tensor]
"""(gammas [N, K], lambdas [N_curv, K]) -> damping [K], >= 0, ``inf`` for no step."""


def log_grid(low: float = 1e-4, high: float = 1e2, points: int = 200) -> tuple[float, ...]:
    """Log-equidistant dampings, ascending, both ends included; the default is the paper's.

    Raises:
        UsageError: If there would be no point, or an end is not positive and finite.
    """
    if points < 1:
        raise UsageError(f"damping grid of {points} points is empty: give at least 1 point")
    if not (0 < low < math.inf and 0 < high < math.inf):
        raise UsageError(f"damping grid from {low:g} to {high:g}: both ends must be positive")
    if low > high or (points == 1 and low != high):
        raise UsageError(
            f"damping grid from {low:g} to {high:g} with {points} point(s): the first end must be "
            "the smaller one (and equal to the second for a single point)"
        )
    return tuple(
        torch.logspace(math.log10(low), math.log10(high), points, dtype=torch.float64).tolist()
    )


def damping_policy(text: str, seed: int = 0) -> DampingPolicy:
    """The policy a command-line value stands for: ``bootstrap`` or a number.

    Args:
        text: ``"bootstrap"`` (the paper's grid, resamples and percentile) or a constant.
        seed: Seed of the bootstrap's resampling.

    Raises:
        UsageError: If ``text`` is neither.
    """
    if text.strip().lower() == "bootstrap":
        return BootstrapDamping(seed=seed)
    try:
        value = float(text)
    except ValueError:
        raise UsageError(
            f"damping {text!r} is neither a number nor a policy: give e.g. 1.0, or bootstrap"
        ) from None
    return ConstantDamping(value)


@dataclass(frozen=True)
class ConstantDamping:
    """The same damping along every direction.

    Raises:
        UsageError: If ``value`` is negative or not finite.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.value < math.inf:
            raise UsageError(f"damping {self.value:g} must be a finite number >= 0, e.g. 1.0")

    def __call__(self, gammas: Tensor, lambdas: Tensor) -> Tensor:
        """Damping [K], dtype and device of ``gammas`` [N, K]."""
        return torch.full_like(gammas[0], self.value)


@dataclass(frozen=True)
class BootstrapDamping:
    """Per-direction damping with the best confident loss reduction (appendix B.3).

    With the mini-batch means gamma_k, lambda_k the step is tau_k = -gamma_k / (lambda_k + d).
    Each resample b draws N samples with replacement, the same ones for slope and curvature,
    and promises the reduction

        R_kb(d) = -tau_k mean(gamma*_kb) - 1/2 tau_k^2 mean(lambda*_kb).

    The percentile of R_kb over b is a confident lower bound; the grid point that maximises it
    is the damping. Where no bound is non-negative, or the mean slope is exactly zero (nothing
    to gain at any damping), the direction is not trusted and its damping is infinite. Bounds
    equal to rounding count as ties, which go to the smaller damping.

    A call is a pure function of its arguments and ``seed``, and a direction's damping does not
    depend on the other directions: all share the resampled indices. Memory beyond the
    arguments: the counts (8 ``resamples`` N bytes) and a few buffers of ``working_bytes``,
    whatever the numbers of directions and grid points.

    Raises:
        UsageError: If the grid is empty or has a point that is not positive and finite, if
            there is no resample, or if the percentile is outside [0, 100].
    """

    grid: Sequence[float] = field(default_factory=log_grid)
    resamples: int = 100
    percentile: float = 5.0
    seed: int = 0
    working_bytes: int = 32 * 2**20

    def __post_init__(self) -> None:
        if len(self.grid) == 0:
            raise UsageError("damping grid is empty: give at least one damping")
        for value in self.grid:
            if not 0 < value < math.inf:
                raise UsageError(f"damping grid holds {value:g}: every damping must be positive")
        if self.resamples < 1:
            raise UsageError(f"{self.resamples} bootstrap resamples: give at least 1")
        if not 0 <= self.percentile <= 100:
            raise UsageError(f"percentile {self.percentile:g} is not within 0 to 100")
        object.__setattr__(self, "grid", tuple(sorted(float(value) for value in self.grid)))

    def __call__(self, gammas: Tensor, lambdas: Tensor) -> Tensor:
        """Choose the dampings.

        Args:
            gammas: [N, K] slopes gamma_nk of every sample along every direction.
            lambdas: [N, K] curvatures lambda_nk >= 0 of the same samples.

        Returns:
            [K] dampings, dtype and device of ``gammas``; ``inf`` where not trusted.

        Raises:
            UsageError: If N < 2, the samples of slope and curvature differ in number, a value
                is not finite, or a curvature is negative.
        """
        _check_samples(gammas, lambdas)
        grid = torch.tensor(self.grid, dtype=torch.float64, device=gammas.device)
        dampings = [gammas.new_empty(0, dtype=torch.float64)]
        for slopes, bounds in self._bounds(gammas, lambdas):
            best = bounds.max(dim=1, keepdim=True).values
            rounding = 64 * torch.finfo(bounds.dtype).eps * best.abs()
            # argmax of equal values is the first one, and the grid ascends.
            index = (bounds >= best - rounding).int().argmax(dim=1)
            trusted = (best[:, 0] >= 0) & (slopes != 0)
            dampings.append(torch.where(trusted, grid[index], math.inf))
        return torch.cat(dampings).to(gammas.dtype)

    def lower_bounds(self, gammas: Tensor, lambdas: Tensor) -> Tensor:
        """Confident lower bounds of the reduction, [K, grid] in float64 (see the class)."""
        _check_samples(gammas, lambdas)
        none = gammas.new_empty((0, len(self.grid)), dtype=torch.float64)
        return torch.cat([none, *(bounds for _, bounds in self._bounds(gammas, lambdas))])

    def resample_counts(self, num_samples: int) -> Tensor:
        """How often each resample drew each sample: [resamples, N], float64, rows sum to N."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.resamples, num_samples)
        indices = torch.randint(num_samples, shape, generator=generator)
        counts = torch.zeros(shape, dtype=torch.float64)
        return counts.scatter_add_(1, indices, torch.ones((), dtype=torch.float64).expand(shape))

    def _bounds(self, gammas: Tensor, lambdas: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Mean slopes [k] and lower bounds [k, grid] of successive groups of k directions."""
        num_samples, num_directions = gammas.shape
        weights = self.resample_counts(num_samples).to(gammas.device) / num_samples
        rows = max(1, self.working_bytes // (8 * self.resamples))
        grid = torch.tensor(self.grid, dtype=torch.float64, device=gammas.device)
        # A group takes whole grids if one fits, else one direction and a part of the grid.
        group, part = max(1, rows // len(grid)), min(rows, len(grid))
        for start in range(0, num_directions, group):
            slopes = gammas[:, start : start + group].double()
            curvatures = lambdas[:, start : start + group].double()
            resampled = torch.stack([(weights @ slopes).T, (weights @ curvatures).T], dim=1)
            slope, curvature = slopes.mean(0), curvatures.mean(0)
            tau = -slope[:, None] / (curvature[:, None] + grid)
            coefficients = torch.stack([-tau, -0.5 * tau**2], dim=2)
            parts = [
                torch.quantile(piece @ resampled, self.percentile / 100, dim=2)
                for piece in coefficients.split(part, dim=1)
            ]
            yield slope, torch.cat(parts, dim=1)


def _check_samples(gammas: Tensor, lambdas: Tensor) -> None:
    if gammas.ndim != 2 or lambdas.ndim != 2 or gammas.shape[1] != lambdas.shape[1]:
        raise UsageError(
            f"slopes of shape {tuple(gammas.shape)} and curvatures of shape "
            f"{tuple(lambdas.shape)}: both must be [samples, directions]"
        )
    if gammas.shape[0] != lambdas.shape[0]:
        raise UsageError(
            f"bootstrap damping needs slope and curvature of the same samples, not "
            f"{gammas.shape[0]} and {lambdas.shape[0]}: use full curvature samples, or a constant "
            "damping"
        )
    if gammas.shape[0] < 2:
        raise UsageError(
            f"bootstrap damping cannot resample N = {gammas.shape[0]} sample(s): use a mini-batch "
            "of at least 2, or a constant damping"
        )
    for name, values in (("slope", gammas), ("curvature", lambdas)):
        if not values.isfinite().all():
            raise UsageError(
                f"bootstrap damping met a {name} that is not finite: lower the step size"
            )
    if (lambdas < 0).any():
        sample, direction = (lambdas < 0).nonzero()[0].tolist()
        raise UsageError(
            f"curvature of sample {sample} along direction {direction} is "
            f"{lambdas[sample, direction].item():g}: curvatures must be non-negative"
        )
