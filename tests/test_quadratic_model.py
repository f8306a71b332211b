"""The noisy oracle: its moments, the paper's signal-to-noise ratios, its seeds."""

import pytest
import torch
from torch import Tensor

from vivit_bench.errors import UsageError
from vivit_bench.quadratic import Draw, NoisyOracle, Quadratic, Settings
from vivit_bench.quadratic.model import CURVATURE_FLOOR

PAPER = Settings().oracle()
START = torch.full((20,), 100.0, dtype=torch.float64)


def sampled_snr(samples: Tensor) -> Tensor:
    """B.2, with the biased variance."""
    return samples.mean(0) ** 2 / samples.var(0, correction=0)


def test_paper_quadratic() -> None:
    assert PAPER.quadratic.loss(START) == pytest.approx(sum(i / 2 * 1e4 for i in range(1, 21)))
    assert PAPER.quadratic.gradient(START).tolist() == [100.0 * i for i in range(1, 21)]
    assert PAPER.curvatures.tolist() == list(range(1, 21))


def test_loss_derivatives_agree_with_autograd() -> None:
    matrix = torch.tensor([[2.0, 0.5], [0.5, 3.0]], dtype=torch.float64)
    quadratic = Quadratic(matrix)
    theta = torch.tensor([1.0, -2.0], dtype=torch.float64)
    gradient = torch.func.grad(lambda t: t @ matrix @ t)(theta)
    torch.testing.assert_close(quadratic.gradient(theta), gradient)
    torch.testing.assert_close(
        quadratic.hessian, torch.func.hessian(lambda t: t @ matrix @ t)(theta)
    )


GRADIENT_SNR = (PAPER.quadratic.gradient(START) ** 2 / 5000.0).double()
CURVATURE_SNR = PAPER.curvatures**2 / 50.0
"""Squared means over the stated variances (B.5), along every direction."""


def test_stated_snr_limits_hold_and_are_attained() -> None:
    assert GRADIENT_SNR.min().item() == pytest.approx(2.0)
    assert CURVATURE_SNR.min().item() == pytest.approx(0.02)


def test_sampler_reproduces_the_stated_snrs() -> None:
    """Measured as in B.2 on many samples; the weakest direction sits at the limits, 2 and 0.02."""
    many = Settings(batch_size=200_000).oracle()
    gammas, lambdas = many.sample(START, Draw(seed=0))
    torch.testing.assert_close(sampled_snr(gammas), GRADIENT_SNR, rtol=0.03, atol=0)
    # The Gamma of shape 0.02 has a kurtosis of 300: its SNR is known to several percent only.
    torch.testing.assert_close(sampled_snr(lambdas), CURVATURE_SNR, rtol=0.15, atol=0)
    assert sampled_snr(gammas).min() > 2 * 0.97
    assert sampled_snr(lambdas).min() > 0.02 * 0.85
    assert sampled_snr(gammas).argmin() == sampled_snr(lambdas).argmin() == 0


def test_moments_along_rotated_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    E = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    matrix = torch.tensor([[4.0, 1.0, 0.0], [1.0, 5.0, 0.5], [0.0, 0.5, 6.0]], dtype=torch.float64)
    oracle = NoisyOracle(Quadratic(matrix), E, 100_000, 9.0, 4.0)
    theta = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    gammas, lambdas = oracle.sample(theta, Draw(seed=1))
    torch.testing.assert_close(gammas.mean(0), E.T @ (2 * matrix @ theta), rtol=0, atol=0.05)
    torch.testing.assert_close(lambdas.mean(0), (E.T @ (2 * matrix) @ E).diag(), rtol=0, atol=0.05)
    torch.testing.assert_close(gammas.var(0), torch.full_like(theta, 9.0), rtol=0.03, atol=0)
    torch.testing.assert_close(lambdas.var(0), torch.full_like(theta, 4.0), rtol=0.05, atol=0)


def test_curvatures_are_positive_with_a_floor() -> None:
    _, lambdas = PAPER.sample(START, Draw(seed=0))
    assert lambdas.min().item() == CURVATURE_FLOOR
    assert (lambdas[:, 0] == CURVATURE_FLOOR).sum() > 30
    assert (lambdas[:, 5:] > CURVATURE_FLOOR).all()


def test_no_variance_gives_the_means() -> None:
    oracle = Settings(gradient_variance=0, curvature_variance=0, batch_size=3).oracle()
    gammas, lambdas = oracle.sample(START, Draw(seed=0))
    assert torch.equal(gammas, oracle.quadratic.gradient(START).expand(3, 20))
    assert torch.equal(lambdas, oracle.curvatures.expand(3, 20))


def test_draws_are_seeded_and_their_noise_does_not_depend_on_theta() -> None:
    first = PAPER.sample(START, Draw(0, 1, 2))
    again = PAPER.sample(START, Draw(0, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    elsewhere = PAPER.sample(2 * START, Draw(0, 1, 2))
    torch.testing.assert_close(
        elsewhere[0] - first[0], PAPER.quadratic.gradient(START).expand(128, 20)
    )
    assert torch.equal(elsewhere[1], first[1])
    others = [Draw(1, 1, 2), Draw(0, 2, 2), Draw(0, 1, 3), Draw(0, 2, 1)]
    assert not any(torch.equal(PAPER.sample(START, draw)[0], first[0]) for draw in others)
    assert len({draw.bootstrap_seed() for draw in [*others, Draw(0, 1, 2)]}) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curvatures": (1.0, -2.0)}, "curvature along direction 1 is -2"),
        ({"curvatures": (0.0,)}, "curvature along direction 0 is 0"),
        ({"curvatures": ()}, "no curvature given"),
        ({"gradient_variance": -1.0}, "gradient variance -1"),
        ({"curvature_variance": float("nan")}, "curvature variance nan"),
        ({"batch_size": 1}, "cannot resample N = 1"),
        ({"batch_size": 0}, "N = 0"),
        ({"grid_points": 0}, "0 points is empty"),
        ({"grid_low": -1.0}, "must be positive"),
        ({"dampings": ()}, "no global damping"),
        ({"dampings": (1.0, 1.0)}, "only once"),
        ({"dampings": (-1.0,)}, "damping -1"),
        ({"optimizers": ()}, "choose from sgd, constant, bootstrap"),
        ({"repeats": 0}, "repeats 0"),
        ({"steps": 0}, "steps 0"),
        ({"seed": -1}, "seed -1"),
        ({"resamples": 0}, "0 bootstrap resamples"),
        ({"percentile": -1.0}, "percentile -1"),
        ({"learning_rate": 0.0}, "learning rate 0"),
        ({"theta_init": 0.0}, "theta init 0"),
    ],
)
def test_bad_settings_are_refused_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Settings(**change)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_bad_oracles_are_refused() -> None:
    identity = torch.eye(2, dtype=torch.float64)
    with pytest.raises(UsageError, match="square and symmetric"):
        Quadratic(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(UsageError, match=r"shape \(2, 2\) must be \[3, 3\]"):
        NoisyOracle(Quadratic.diagonal(torch.ones(3)), identity)
    with pytest.raises(UsageError, match="deviate from orthonormal"):
        NoisyOracle(Quadratic.diagonal(torch.ones(2)), identity + 0.1)
    with pytest.raises(UsageError, match="batch size 0"):
        NoisyOracle(Quadratic.diagonal(torch.ones(2)), identity, batch_size=0)
