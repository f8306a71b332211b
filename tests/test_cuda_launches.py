"""The CUDA path on a pretended GPU: right numbers, no mixed devices, few launches and waits."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from curvature_cases import CASES, Case, case
from meta_probe import (
    MixedDevicesError,
    Probe,
    Report,
    probe_workload,
    without_values_in_the_sweep,
)
from torch import Tensor, nn

from vivit_bench.curvature import (
    Approximation,
    BootstrapDamping,
    directional_derivatives,
    eigenvalues,
    inverse_product,
    leading_eigenvalues,
    newton_step,
)
from vivit_bench.curvature.route import Route
from vivit_bench.curvature.session import Request, plan_request

MOST_LAUNCHES = 6000
"""Of the eigenvalues of 3c3d at N = 1024."""

Engine = Callable[..., list[Tensor]]


def _eigenvalues(*request: Any, **options: Any) -> list[Tensor]:
    return [eigenvalues(*request, **options).eigenvalues]


def _step(*request: Any, **options: Any) -> list[Tensor]:
    return newton_step(*request, method="gram", **options).step


def _layer_step(*request: Any, **options: Any) -> list[Tensor]:
    return _step(*request, blocks="layer", **options)


def _derivatives(*request: Any, **options: Any) -> list[Tensor]:
    found = directional_derivatives(*request, with_gradient=True, **options)
    assert found.gradient is not None
    return [found.gammas.abs(), found.lambdas, *found.gradient]


QUANTITIES: list[Engine] = [_eigenvalues, _step, _layer_step, _derivatives]


def on_device(probe: Probe, request: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> tuple:
    """A request as a user with a GPU would make it."""
    model, loss, inputs, targets = request
    return probe.put_module(model), probe.put_module(loss), probe.put(inputs), probe.put(targets)


def assert_same_on_device(engine: Engine, case: Case, **options: Any) -> None:
    request = case.build(torch.float64)
    with Probe() as probe:
        found = [probe.read(t) for t in engine(*on_device(probe, request), **options)]
    for ours, theirs in zip(found, engine(*request, **options), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * theirs.abs().max().item())
    assert probe.report.num_launches


# The probe itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, cpu: x + cpu,
        lambda x, cpu: x @ cpu,
        lambda x, cpu: torch.stack([x[0, 0], cpu[0, 0]]),  # numbers mix elementwise only
        lambda x, cpu: cpu + x[0, 0],
        lambda x, cpu: x.add_(cpu),
        lambda x, cpu: cpu[x.long()],
        lambda x, cpu: torch.cat([cpu, x]),
    ],
)
def test_what_cuda_refuses_is_refused(mix: Callable[[Tensor, Tensor], object]) -> None:
    with Probe() as probe, pytest.raises(MixedDevicesError, match="on cpu"):
        mix(probe.put(torch.eye(2)), torch.eye(2))


def test_what_cuda_takes_is_taken() -> None:
    with Probe() as probe:
        x, number = probe.put(torch.eye(2)), torch.tensor(2.0)
        found = x * number + 1
        found[torch.tensor([1])] = number
        assert probe.read(found).tolist() == [[3, 1], [2, 2]]


def test_operations_are_counted_backward_too() -> None:
    with Probe() as probe:
        x = probe.put(torch.ones(3, 4)).requires_grad_()
        y = (x.t()[:2].exp() @ torch.ones(3, 2, device="cuda")).sum()
        (gradient,) = torch.autograd.grad(y, x)
        expected = torch.tensor([2 * torch.e, 2 * torch.e, 0, 0]).expand(3, 4)
        torch.testing.assert_close(probe.read(gradient), expected)
    found = {name.partition("::")[2]: count for (_, name), count in probe.report.launches.items()}
    forward = {"exp": 1, "ones": 1, "mm": 2, "sum": 1}  # the other mm is backward
    backward = {"ones_like": 1, "mul.Tensor": 1, "slice_backward": 1}
    assert found == forward | backward
    assert probe.report.num_waits == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.linalg.eigvalsh(x),
        lambda x: x[[1, 0]],
        lambda x: torch.zeros(2, 2).copy_(x),
        lambda x: torch.zeros(2).to("cuda"),
        lambda x: torch.tensor([1, 2], device="cuda"),
    ],
)
def test_synchronisations_are_counted(ask: Callable[[Tensor], object]) -> None:
    with Probe() as probe:
        ask(probe.put(torch.eye(2)))
    assert probe.report.num_waits == 1


def test_without_values_every_number_is_zero() -> None:
    with Probe() as probe:
        x = probe.put(torch.ones(2))
        probe.forget_values()
        assert x.sum().item() == 0
        assert x.isfinite().all()
        assert not x.isnan().any()
        assert x.cpu().tolist() == [0, 0]


# The engine on it ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_eigenvalues_are_those_of_the_cpu(case: Case) -> None:
    assert_same_on_device(_eigenvalues, case)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("options", [{}, {"curvature": "mc", "seed": 3}], ids=["exact", "mc"])
@pytest.mark.parametrize("name", ["residual-reused", "cnn-mse", "unlikely-last"])
@pytest.mark.parametrize("engine", QUANTITIES)
def test_quantities_are_those_of_the_cpu(engine: Engine, name: str, options: Any) -> None:
    assert_same_on_device(engine, case(name), **options)


def _inverse(model: nn.Module, *rest: Any) -> list[Tensor]:
    parameters = [p.detach() for p in model.parameters()]
    return inverse_product(model, *rest, [parameters], damping=0.1)[0]


OTHERS: dict[str, Engine] = {
    "inverse": _inverse,
    "whole space": lambda *request: _step(*request, damping=0.1, cutoff=None),
    "bootstrap": lambda *request: _step(*request, damping=BootstrapDamping()),
    "all samples checked": lambda *request: _eigenvalues(*request, certify="all"),
    "dropped columns": lambda *request: _derivatives(*request, drop_trace=1e-3),
    "matrix-free": lambda *request: [
        leading_eigenvalues(*request, k=2, method="lanczos").eigenvalues
    ],
    "matrix-free step": lambda *request: newton_step(*request, method="lanczos").step,
}


@pytest.mark.parametrize("engine", OTHERS.values(), ids=OTHERS)
def test_other_calls_are_those_of_the_cpu(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vivit_bench.curvature.kept.LEAST_SHARE", 0.0)
    assert_same_on_device(engine, case("conv1d"))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("problem", ["cifar10_3c3d", "fmnist_2c2d", "cifar100_allcnnc"])
def test_networks_of_deepobs_run_on_the_device(problem: str) -> None:
    for options in ({"curvature": "mc"}, {"curvature": "exact", "blocks": "layer"}):
        assert probe_workload(problem, 3, **options).num_launches


def _route(request: tuple) -> Route:
    _, plan = plan_request(Request(*request, Approximation()))
    return plan.route


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_passes_are_cut_as_on_the_cpu(case: Case) -> None:
    request = case.build(torch.float64)
    with Probe() as probe:
        ours = _route(on_device(probe, request))
    theirs = _route(request)
    assert ours.layouts == theirs.layouts
    assert (len(ours.plain), ours.batched_columns, ours.min_samples) == (
        len(theirs.plain), theirs.batched_columns, theirs.min_samples
    )  # fmt: skip


# Launches and synchronisations ---------------------------------------------------------------


def _probed(engine: Engine, case: Case, **options: Any) -> Report:
    probe = Probe()
    with probe, without_values_in_the_sweep(probe):
        engine(*on_device(probe, case.build(torch.float32)), **options)
    return probe.report


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("engine", "curvature"), [*((engine, "exact") for engine in QUANTITIES), (_eigenvalues, "mc")]
)
def test_micro_batches_do_not_wait(engine: Engine, curvature: str) -> None:
    many = replace(case("conv1d"), samples=24)
    one, several = (
        _probed(engine, many, curvature=curvature, working_bytes=size) for size in (2**26, 2**10)
    )
    assert several.num_launches > 1.5 * one.num_launches, "there is one micro-batch"
    grown = several.waits - one.waits
    assert not grown, "\n".join(
        f"{line}: {reason}, {n} more" for (line, reason), n in grown.items()
    )


@cache
def _launches_of_3c3d(batch_size: int) -> Report:
    return probe_workload("cifar10_3c3d", batch_size, most=2 * MOST_LAUNCHES)


def test_eigenvalues_of_3c3d_take_few_launches() -> None:
    found = _launches_of_3c3d(1024)
    assert found.num_launches <= MOST_LAUNCHES, "\n" + found.table()


def test_launches_grow_no_faster_than_the_mini_batch() -> None:
    counts = [_launches_of_3c3d(n).num_launches for n in (256, 512, 1024)]
    assert all(b <= 2 * a for a, b in pairwise(counts)), counts
