"""B.4: the network reproduces the sampled slopes and curvatures, and the loss to a constant."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import hessian, jacrev

from vivit_bench.curvature import directional_derivatives
from vivit_bench.errors import UsageError
from vivit_bench.quadratic import labelled_data, linear_network, loss_constant


class Local:
    """A random noisy quadratic around theta_0, with mean curvatures that are distinct."""

    def __init__(self, seed: int, samples: int, dim: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.directions = torch.linalg.qr(self.normal(dim, dim)).Q
        self.theta_0 = 5 * self.normal(dim)
        self.gammas = 10 * self.normal(samples, dim)
        uniform = torch.rand(samples, dim, generator=self.generator, dtype=torch.float64)
        levels = 4.0 ** torch.randperm(dim, generator=self.generator).double()
        self.lambdas = (0.5 + uniform) * levels

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def data(self) -> tuple[Tensor, Tensor]:
        return labelled_data(self.gammas, self.lambdas, self.directions, self.theta_0)

    def by_curvature(self) -> Tensor:
        return self.lambdas.mean(0).argsort(descending=True)

    def assert_recovered(self, gammas: Tensor, lambdas: Tensor, rtol: float = 1e-10) -> None:
        """Equal to the sampled ones but for order and sign of the directions."""
        order = self.by_curvature()
        assert gammas.shape == self.gammas.shape
        signs = (gammas * self.gammas[:, order]).sum(0).sign()
        torch.testing.assert_close(lambdas, self.lambdas[:, order], rtol=rtol, atol=1e-10)
        torch.testing.assert_close(signs * gammas, self.gammas[:, order], rtol=rtol, atol=1e-10)


def dense_directional_derivatives(
    theta: Tensor, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Slopes and curvatures of every sample by explicit derivatives and a D x D eigenproblem."""
    gradients, curvatures = [], []
    for x, y in zip(inputs, targets, strict=True):

        def network(weight: Tensor, x: Tensor = x) -> Tensor:
            return nn.functional.linear(x, weight[None])

        def loss(outputs: Tensor, y: Tensor = y) -> Tensor:
            return nn.functional.mse_loss(outputs, y)

        outputs = network(theta)
        jacobian = jacrev(network)(theta).flatten(0, -2)
        gradients.append(jacobian.T @ jacrev(loss)(outputs).flatten())
        loss_hessian = hessian(loss)(outputs).reshape(len(jacobian), -1)
        curvatures.append(jacobian.T @ loss_hessian @ jacobian)
    ggn = torch.stack(curvatures).mean(0)
    vectors = torch.linalg.eigh(ggn).eigenvectors.flip(1)
    gammas = torch.stack(gradients) @ vectors
    lambdas = torch.einsum("ik,nij,jk->nk", vectors, torch.stack(curvatures), vectors)
    return gammas, lambdas


LOCALS = st.builds(
    Local, seed=st.integers(0, 2**32 - 1), samples=st.integers(1, 6), dim=st.integers(1, 5)
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(LOCALS)
def test_dense_oracle_recovers_the_samples(local: Local) -> None:
    local.assert_recovered(*dense_directional_derivatives(local.theta_0, *local.data()))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(LOCALS)
def test_engine_recovers_the_samples(local: Local) -> None:
    inputs, targets = local.data()
    found = directional_derivatives(linear_network(local.theta_0), nn.MSELoss(), inputs, targets)
    local.assert_recovered(found.gammas, found.lambdas)
    order = local.by_curvature()
    torch.testing.assert_close(found.eigenvalues, local.lambdas.mean(0)[order])


def test_engine_recovers_slopes_of_nearly_flat_samples() -> None:
    """The experiment's Gamma draws reach its floor, 1e-8, with slopes of hundreds."""
    local = Local(seed=0, samples=12, dim=4)
    local.lambdas[::2] = 1e-8
    inputs, targets = local.data()
    found = directional_derivatives(linear_network(local.theta_0), nn.MSELoss(), inputs, targets)
    local.assert_recovered(found.gammas, found.lambdas, rtol=1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(LOCALS)
def test_loss_is_the_mean_quadratic_plus_the_stated_constant(local: Local) -> None:
    inputs, targets = local.data()
    for theta in (local.theta_0, 7 * local.normal(len(local.theta_0))):
        found = nn.MSELoss()(linear_network(theta)(inputs), targets).item()
        along = local.directions.T @ (theta - local.theta_0)
        quadratics = (local.gammas * along + local.lambdas * along**2 / 2).sum(1)
        constant = loss_constant(local.gammas, local.lambdas)
        assert found == pytest.approx(quadratics.mean().item() + constant, rel=1e-10)


def test_shapes_for_one_and_several_dimensions() -> None:
    for dim in (1, 3):
        inputs, targets = Local(seed=0, samples=4, dim=dim).data()
        assert inputs.shape == (4, dim, dim)
        assert targets.shape == (4, dim, 1)


@pytest.mark.parametrize("value", [0.0, -2.0, math.nan])
def test_curvature_without_label_names_sample_and_direction(value: float) -> None:
    local = Local(seed=0, samples=4, dim=3)
    local.lambdas[2, 1] = value
    with pytest.raises(UsageError, match="sample 2 along direction 1") as caught:
        local.data()
    assert "\n" not in str(caught.value)


def test_directions_must_be_orthonormal_and_shapes_fit() -> None:
    local = Local(seed=0, samples=4, dim=3)
    local.directions = 2 * local.directions
    with pytest.raises(UsageError, match="deviate from orthonormal by"):
        local.data()
    local = Local(seed=0, samples=4, dim=3)
    local.theta_0 = local.theta_0[:2]
    with pytest.raises(UsageError, match="must have shapes"):
        local.data()
