"""DeepOBS's quadratic as a network under MSE: same losses, gradients and curvature."""

import copy

import torch

from vivit_bench.problems import DataSource, load_batch, load_dataset, load_problem
from vivit_bench.problems.quadratic import deepobs_quadratic


def test_losses_and_gradients_are_deepobs_own():
    problem = load_problem("quadratic_deep")
    net, points = deepobs_quadratic()
    # In float64: sums over 1000 samples in another order differ by about 1e-5 in float32.
    problem.model.double()
    net = copy.deepcopy(net).double()
    net.Hessian = net.Hessian.double()
    for split in ("train", "test"):
        x = points[split].double()
        inputs, targets = load_dataset("quadratic_deep", DataSource.DEEPOBS, split=split)
        inputs, targets = inputs.double(), targets.double()
        assert inputs.shape == (1000, 100, 100)
        ours, theirs = problem.loss(problem.model(inputs), targets), net(x).mean()
        torch.testing.assert_close(ours, theirs)
        gradient = torch.autograd.grad(ours, problem.model.theta.weight)[0].flatten()
        expected = torch.autograd.grad(theirs, net.theta)[0]
        assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()


def test_ggn_is_deepobs_hessian():
    problem = load_problem("quadratic_deep")
    hessian = deepobs_quadratic()[0].Hessian
    inputs, _ = load_batch(problem, 2, DataSource.SYNTHETIC, seed=1)
    jacobian = torch.func.jacrev(
        lambda theta: torch.func.functional_call(problem.model, {"theta.weight": theta}, inputs)
    )(problem.model.theta.weight.detach())[:, :, 0]
    ggn = 2 / 100 * torch.einsum("nci,ncj->ij", jacobian, jacobian) / 2
    torch.testing.assert_close(ggn, hessian, rtol=1e-4, atol=1e-4)


def test_every_set_up_has_the_same_hessian():
    first = deepobs_quadratic()[0].Hessian
    deepobs_quadratic.cache_clear()
    assert torch.equal(deepobs_quadratic()[0].Hessian, first)
    # As from DeepOBS's own interval: ten large eigenvalues.
    values = torch.linalg.eigvalsh(first)
    assert ((values > 30) & (values < 60)).sum() == 10
    assert ((values > 0) & (values < 1)).sum() == 90


def test_inputs_share_their_memory():
    problem = load_problem("quadratic_deep")
    inputs, targets = load_batch(problem, 5000, DataSource.SYNTHETIC)
    assert inputs.shape == (5000, 100, 100)
    assert inputs.untyped_storage().nbytes() == 100 * 100 * 4
    assert targets.shape == (5000, 100)
