"""The experiment of B.5: routes agree, comparisons are fair, known cases come out as they must."""

import math

import numpy as np
import pytest
import torch

from vivit_bench.quadratic import Draw, OptimizerName, Quadratic, RouteName, Settings
from vivit_bench.quadratic.experiment import Repetition, run_repetition
from vivit_bench.quadratic.model import NoisyOracle
from vivit_bench.quadratic.optimizers import BootstrapNewton, ConstantNewton, Optimizer, Sgd
from vivit_bench.quadratic.routes import NetworkRoute, SamplerRoute, make_route

SMALL = Settings(
    repeats=2,
    steps=6,
    dampings=(1e-2, 1.0, 1e2),
    curvatures=(1.0, 5.0, 20.0, 60.0),
    batch_size=12,
    resamples=30,
    grid_points=40,
)


def with_changes(**changes: object) -> Settings:
    return Settings(**{**vars(SMALL), **changes})


def assert_same(a: Repetition, b: Repetition, rtol: float) -> None:
    assert a.losses.keys() == b.losses.keys()
    for label in a.losses:
        np.testing.assert_allclose(a.losses[label], b.losses[label], rtol=rtol, err_msg=label)
    np.testing.assert_allclose(a.dampings, b.dampings, rtol=1e-12)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_routes_give_the_same_trajectories(index: int) -> None:
    """Losses of every optimiser, and the bootstrap's choices by direction, to rounding."""
    network = with_changes(route=RouteName.NETWORK)
    assert_same(run_repetition(SMALL, index), run_repetition(network, index), rtol=1e-8)


@pytest.mark.parametrize(
    "optimizer",
    [Sgd(1e-3), ConstantNewton(0.5), BootstrapNewton((0.1, 1.0, 10.0), 50, 5.0)],
    ids=lambda optimizer: optimizer.label,
)
def test_routes_give_the_same_step_in_a_rotated_basis(optimizer: Optimizer) -> None:
    generator = torch.Generator().manual_seed(0)
    E = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    matrix = E @ torch.diag(torch.tensor([1.0, 9.0, 3.0, 27.0], dtype=torch.float64)) @ E.T
    oracle = NoisyOracle(Quadratic((matrix + matrix.T) / 2), E, 10, 30.0, 2.0)
    theta = torch.tensor([3.0, -2.0, 8.0, 1.0], dtype=torch.float64)
    for step in range(3):
        expected = optimizer.step(SamplerRoute(oracle), theta, Draw(0, 0, step))
        found = optimizer.step(NetworkRoute(oracle), theta, Draw(0, 0, step))
        torch.testing.assert_close(found.step, expected.step, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.dampings, expected.dampings, equal_nan=True)
        theta = theta + expected.step


@pytest.mark.parametrize("route", list(RouteName))
def test_trivial_directions_get_no_step(route: RouteName) -> None:
    settings = with_changes(curvatures=(1e-5, 2.0), curvature_variance=0, route=route)
    start = torch.full((2,), 100.0, dtype=torch.float64)
    taken = ConstantNewton(1.0).step(make_route(settings), start, Draw(0))
    assert taken.step[0].item() == pytest.approx(0.0, abs=1e-9)
    assert taken.step[1].item() < -1
    assert taken.dampings.isnan().tolist() == [True, False]


def test_repetition_does_not_depend_on_the_other_optimizers() -> None:
    whole = run_repetition(SMALL, 1)
    assert list(whole.losses) == ["sgd", "damping 0.01", "damping 1", "damping 100", "bootstrap"]
    alone = run_repetition(with_changes(optimizers=(OptimizerName.BOOTSTRAP,), repeats=5), 1)
    assert alone.losses == {"bootstrap": whole.losses["bootstrap"]}
    assert alone.dampings == whole.dampings
    constant = with_changes(optimizers=(OptimizerName.CONSTANT,), dampings=(1.0,))
    assert run_repetition(constant, 1).losses == {"damping 1": whole.losses["damping 1"]}
    assert run_repetition(constant, 1).dampings == []


def test_repetitions_and_seeds_differ_but_start_equal() -> None:
    runs = [run_repetition(SMALL, 0), run_repetition(SMALL, 1)]
    runs.append(run_repetition(with_changes(seed=1), 0))
    start = SMALL.oracle().quadratic.loss(torch.full((4,), 100.0, dtype=torch.float64))
    for label in runs[0].losses:
        assert {run.losses[label][0] for run in runs} == {start}
        assert len({run.losses[label][-1] for run in runs}) == 3


def test_without_noise_every_optimizer_follows_its_closed_form() -> None:
    """(1 - lr l)^t for SGD and (d / (l + d))^t for Newton, per direction."""
    settings = with_changes(gradient_variance=0, curvature_variance=0)
    found = run_repetition(settings, 0).losses
    curvatures, steps = np.array(settings.curvatures), np.arange(settings.steps + 1)

    def losses(factors: np.ndarray) -> np.ndarray:
        return (curvatures / 2 * 100.0**2 * factors ** (2 * steps[:, None])).sum(1)

    np.testing.assert_allclose(found["sgd"], losses(1 - settings.learning_rate * curvatures))
    for damping in settings.dampings:
        expected = losses(damping / (curvatures + damping))
        np.testing.assert_allclose(found[f"damping {damping:g}"], expected, rtol=1e-6, atol=1e-18)
    smallest = losses(settings.grid_low / (curvatures + settings.grid_low))
    np.testing.assert_allclose(found["bootstrap"][:2], smallest[:2], rtol=1e-6)


def test_a_run_that_overflows_ends_in_infinite_loss() -> None:
    settings = with_changes(learning_rate=1e60, optimizers=(OptimizerName.SGD,))
    losses = run_repetition(settings, 0).losses["sgd"]
    assert len(losses) == settings.steps + 1
    assert math.isfinite(losses[1])
    assert losses[-1] == math.inf


def test_bootstrap_ends_lower_than_every_global_damping() -> None:
    """Figure 3's message, on a small version of the paper's experiment."""
    settings = Settings(repeats=8, optimizers=(OptimizerName.CONSTANT, OptimizerName.BOOTSTRAP))
    runs = [run_repetition(settings, index) for index in range(settings.repeats)]
    median = {label: np.median([run.losses[label][-1] for run in runs]) for label in runs[0].losses}
    assert min(median, key=median.__getitem__) == "bootstrap"
    infinite = np.isinf([run.dampings for run in runs])
    assert infinite[:, 0].mean() < 0.01 < 0.5 < infinite[:, 10:].mean() < 0.95
