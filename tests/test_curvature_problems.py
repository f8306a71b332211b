"""The engine on DeepOBS's own networks."""

import pytest
import torch

from vivit_bench.curvature import Curvature, eigenvalues, newton_step
from vivit_bench.problems import DataSource, list_problems, load_batch, load_problem
from vivit_bench.problems.quadratic import deepobs_quadratic

NAMES = [info.name for info in list_problems()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.one_in(4)
def test_every_problem_is_certified_and_runs_in_micro_batches(name: str) -> None:
    problem = load_problem(name)
    x, y = load_batch(problem, 2, DataSource.SYNTHETIC)
    result = eigenvalues(
        problem.model, problem.loss, x, y, curvature=Curvature.MC, with_gradient=True
    )
    assert result.eigenvalues.isfinite().all()
    assert result.trace > 0
    assert result.certificate is not None
    assert len(result.certificate.samples) == 2
    assert not result.certificate.notes


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
