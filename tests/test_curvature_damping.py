"""Damping policies: the bootstrap against a plain loop, its bound, its limits, its memory."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vivit_bench.curvature.damping import (
    BootstrapDamping,
    ConstantDamping,
    damping_policy,
    log_grid,
)
from vivit_bench.errors import UsageError

INF = float("inf")


def noisy(seed: int, samples: int, directions: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    gammas = torch.randn(directions, **options) + torch.randn(samples, directions, **options)
    lambdas = torch.randn(samples, directions, **options).square() * 5
    return gammas, lambdas


def loop_reference(
    policy: BootstrapDamping, gammas: Tensor, lambdas: Tensor
) -> tuple[list[list[float]], list[float]]:
    """The policy as the paper words it, one number at a time."""
    samples, directions = gammas.shape
    generator = torch.Generator().manual_seed(policy.seed)
    indices = torch.randint(samples, (policy.resamples, samples), generator=generator).tolist()
    g, h = gammas.tolist(), lambdas.tolist()
    bounds, chosen = [], []
    for k in range(directions):
        gamma_mean = sum(row[k] for row in g) / samples
        lambda_mean = sum(row[k] for row in h) / samples
        bounds.append([])
        best, damping = -1.0, INF
        for delta in policy.grid:
            tau = -gamma_mean / (lambda_mean + delta)
            reductions = []
            for drawn in indices:
                slope = sum(g[n][k] for n in drawn) / samples
                curvature = sum(h[n][k] for n in drawn) / samples
                reductions.append(-tau * slope - tau**2 * curvature / 2)
            bounds[-1].append(float(np.percentile(reductions, policy.percentile)))
            if bounds[-1][-1] >= 0 and bounds[-1][-1] > best:
                best, damping = bounds[-1][-1], delta
        chosen.append(damping)
    return bounds, chosen


@pytest.mark.parametrize("seed", range(6))
def test_bootstrap_equals_a_plain_loop(seed: int) -> None:
    gammas, lambdas = noisy(seed, samples=7, directions=8)
    policy = BootstrapDamping(log_grid(1e-3, 1e3, 9), resamples=23, percentile=12.0, seed=seed)
    bounds, chosen = loop_reference(policy, gammas, lambdas)
    torch.testing.assert_close(
        policy.lower_bounds(gammas, lambdas), torch.tensor(bounds, dtype=torch.float64)
    )
    assert policy(gammas, lambdas).tolist() == chosen


def test_the_reference_cases_hold_trusted_and_untrusted_directions() -> None:
    """Otherwise the comparison above would say little."""
    chosen = torch.cat(
        [
            BootstrapDamping(log_grid(1e-3, 1e3, 9), 23, 12.0, seed)(*noisy(seed, 7, 8))
            for seed in range(6)
        ]
    )
    assert 5 <= chosen.isinf().sum() <= len(chosen) - 10
    assert len(chosen.unique()) > 3


def test_lower_bound_against_a_direct_simulation() -> None:
    """5% of independent resamples, drawn by other means, fall below the bound."""
    gammas, lambdas = noisy(seed=3, samples=40, directions=3)
    policy = BootstrapDamping((0.5, 20.0), resamples=20_000, seed=1)
    bounds = policy.lower_bounds(gammas, lambdas).numpy()
    g, h = gammas.numpy(), lambdas.numpy()
    rng = np.random.default_rng(7)
    drawn = rng.integers(40, size=(20_000, 40))
    for k in range(3):
        for j, delta in enumerate(policy.grid):
            tau = -g[:, k].mean() / (h[:, k].mean() + delta)
            reduction = -tau * g[drawn, k].mean(1) - tau**2 * h[drawn, k].mean(1) / 2
            assert np.mean(reduction < bounds[k, j]) == pytest.approx(0.05, abs=0.006)


def test_slope_and_curvature_share_the_drawn_samples() -> None:
    """With gamma_n = 4 lambda_n and no damping tau = -4 and R = 8 mean(lambda*)."""
    lambdas = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
    gammas = 4.0 * lambdas
    bound = BootstrapDamping((1e-12,), resamples=500, percentile=0).lower_bounds(gammas, lambdas)
    # The lowest resample holds only the first sample: mean(lambda*) = 1.
    # Indices drawn apart would reach far below.
    assert bound.item() == pytest.approx(8.0)


@pytest.mark.parametrize("curvature", [1e-3, 1.0, 20.0, 1e4, 1e7])
def test_noiseless_direction_gets_the_smallest_damping(curvature: float) -> None:
    gammas = torch.full((16, 1), -3.0, dtype=torch.float64)
    lambdas = torch.full((16, 1), curvature, dtype=torch.float64)
    assert BootstrapDamping()(gammas, lambdas).item() == log_grid()[0]


@pytest.mark.parametrize("mean", [0.0, 1e-3, -1e-3])
def test_direction_without_signal_gets_infinite_damping(mean: float) -> None:
    noise = torch.randn(64, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gammas = torch.cat([noise, -noise]) + mean
    lambdas = torch.ones_like(gammas)
    assert BootstrapDamping()(gammas, lambdas).tolist() == [INF] * 5


def test_zero_slope_is_not_trusted() -> None:
    zeros = torch.zeros(4, 2, dtype=torch.float64)
    assert BootstrapDamping()(zeros, zeros + 1).tolist() == [INF, INF]


def test_damping_grows_with_the_curvature_noise() -> None:
    """Slopes without noise: only the curvature's uncertainty calls for damping."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.0, 0.1, 0.5, 0.9], dtype=torch.float64)
    signs = torch.randint(2, (128, 1), generator=generator) * 2.0 - 1
    lambdas = 10 * (1 + spread * signs)
    chosen = BootstrapDamping()(torch.full_like(lambdas, 5.0), lambdas)
    assert chosen.isfinite().all()
    assert (chosen.diff() > 0).all()


def test_direction_does_not_depend_on_order_sign_or_company() -> None:
    gammas, lambdas = noisy(seed=11, samples=32, directions=12)
    policy = BootstrapDamping(seed=5)
    chosen = policy(gammas, lambdas)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(policy(-gammas[:, order], lambdas[:, order]), chosen[order])
    assert torch.equal(policy(gammas[:, 4:5], lambdas[:, 4:5]), chosen[4:5])


def test_a_call_depends_on_the_seed_alone() -> None:
    gammas, lambdas = noisy(seed=2, samples=32, directions=20)
    policy = BootstrapDamping(seed=5)
    assert torch.equal(policy(gammas, lambdas), policy(gammas, lambdas))
    assert not torch.equal(policy(gammas, lambdas), BootstrapDamping(seed=6)(gammas, lambdas))


class _LargestBuffer(TorchDispatchMode):
    """Notes the bytes of the largest tensor any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("working_bytes", [400, 2**15, 2**18])
def test_memory_is_bounded_and_does_not_change_the_answer(working_bytes: int) -> None:
    gammas, lambdas = noisy(seed=4, samples=8, directions=300)
    grid = log_grid(1e-4, 1e2, 40)
    whole = BootstrapDamping(grid, resamples=50)
    assert 300 * 40 * 50 * 8 > 16 * 2**18  # what one piece would take
    small = BootstrapDamping(grid, resamples=50, working_bytes=working_bytes)
    with _LargestBuffer() as seen:
        chosen = small(gammas, lambdas)
    counts, answer, inputs = 50 * 8 * 8, 300 * 8, gammas.nbytes
    assert seen.largest <= max(working_bytes, counts, answer, inputs)
    assert torch.equal(chosen, whole(gammas, lambdas))


@pytest.mark.parametrize("directions", [0, 1])
def test_few_directions(directions: int) -> None:
    gammas, lambdas = noisy(seed=4, samples=8, directions=directions)
    assert BootstrapDamping()(gammas, lambdas).shape == (directions,)
    assert BootstrapDamping().lower_bounds(gammas, lambdas).shape == (directions, 200)


@pytest.mark.parametrize("policy", [ConstantDamping(0.5), BootstrapDamping()])
def test_answer_has_the_dtype_of_the_slopes(policy: ConstantDamping | BootstrapDamping) -> None:
    gammas, lambdas = (values.float() for values in noisy(seed=0, samples=8, directions=3))
    assert policy(gammas, lambdas).dtype == torch.float32


def test_constant_damping_and_its_text() -> None:
    gammas, lambdas = noisy(seed=0, samples=8, directions=3)
    assert damping_policy("0.25")(gammas, lambdas[:1]).tolist() == [0.25] * 3
    assert damping_policy(" Bootstrap ", seed=3) == BootstrapDamping(seed=3)


def test_paper_grid_is_log_equidistant() -> None:
    grid = log_grid()
    assert len(grid) == 200
    assert (grid[0], grid[-1]) == (pytest.approx(1e-4), pytest.approx(1e2))
    assert np.allclose(np.diff(np.log(grid)), 6 * math.log(10) / 199)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BootstrapDamping(()), "grid is empty"),
        (lambda: BootstrapDamping((1.0, -1.0)), "holds -1"),
        (lambda: BootstrapDamping(resamples=0), "0 bootstrap resamples"),
        (lambda: BootstrapDamping(percentile=101), "percentile 101"),
        (lambda: log_grid(points=0), "0 points is empty"),
        (lambda: log_grid(0.0, 1.0), "must be positive"),
        (lambda: log_grid(10.0, 1.0), "from 10 to 1"),
        (lambda: ConstantDamping(-1.0), "damping -1 must be"),
        (lambda: ConstantDamping(math.nan), "damping nan must be"),
        (lambda: damping_policy("bootsrap"), "'bootsrap' is neither"),
    ],
)
def test_bad_policies_are_refused_in_one_line(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_bad_samples_are_refused_in_one_line() -> None:
    gammas, lambdas = noisy(seed=0, samples=8, directions=3)
    negative = lambdas.clone()
    negative[4, 2] = -0.5
    undefined = gammas.clone()
    undefined[1, 1] = math.nan
    cases = [
        (gammas[:1], lambdas[:1], r"N = 1 sample"),
        (gammas, lambdas[:2], "same samples, not 8 and 2"),
        (gammas, lambdas[:, :2], r"shape \(8, 3\)"),
        (gammas, negative, "sample 4 along direction 2 is -0.5"),
        (undefined, lambdas, "slope that is not finite"),
    ]
    for slopes, curvatures, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            BootstrapDamping()(slopes, curvatures)
        assert "\n" not in str(caught.value)
