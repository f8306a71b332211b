"""The engine on DeepOBS's own networks."""

import pytest
import torch

from vivit_bench.curvature import Curvature, eigenvalues, newton_step
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.problems import DataSource, list_problems, load_batch, load_problem
from vivit_bench.problems.quadratic import deepobs_quadratic

NAMES = [info.name for info in list_problems()]


@pytest.mark.parametrize("name", NAMES)
def test_every_problem_runs_and_one_backward_pass_gives_v(name: str) -> None:
    """V a / sqrt(N) must be the gradient: it ties columns, coordinates and scaling together."""
    problem = load_problem(name)
    x, y = load_batch(problem, 2, DataSource.SYNTHETIC)
    with torch.no_grad():
        batch = MiniBatch(problem.model, problem.loss, x, y)
        gradient = batch.gradient()
        outputs = problem.model(x)
        a = batch.factor_of_loss.coordinates(outputs, y)
        assert a is not None
        (found,) = batch.backward((a.flatten() / len(x) ** 0.5).unsqueeze(1))
    g = torch.cat([gradient[p].flatten() for p in batch.parameters])
    v = torch.cat([found[p].flatten() for p in batch.parameters])
    assert (g - v).abs().max() < 1e-4 * g.abs().max()
    result = eigenvalues(problem.model, problem.loss, x, y, curvature=Curvature.MC)
    assert result.eigenvalues.isfinite().all()
    assert result.trace > 0


def test_wide_residual_network_takes_a_newton_step() -> None:
    problem = load_problem("svhn_wrn164")
    x, y = load_batch(problem, 2, DataSource.SYNTHETIC)
    step = newton_step(problem.model, problem.loss, x, y, blocks="layer").step
    assert all(s.isfinite().all() for s in step)


def test_spectrum_of_deepobs_quadratic_is_its_hessian_s() -> None:
    hessian = torch.as_tensor(deepobs_quadratic()[0].Hessian)
    problem = load_problem("quadratic_deep")
    result = eigenvalues(problem.model, problem.loss, *load_batch(problem, 2, DataSource.SYNTHETIC))
    expected = torch.linalg.eigvalsh(hessian.double()).flip(0)
    assert (result.eigenvalues - expected).abs().max() < 1e-4 * expected[0]
