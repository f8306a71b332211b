"""The Gram matrix or products: the same numbers by both, which one, why, and in what memory."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from curvature_cases import case
from model_zoo import ZOO
from oracle import dense, relative_error
from torch import Tensor, nn

import vivit_bench.curvature.iterative as iterative
import vivit_bench.curvature.method as method_module
from vivit_bench.curvature import Memory, Method, leading_eigenvalues, newton_step
from vivit_bench.curvature.plan import DoesNotFit
from vivit_bench.errors import UsageError, VivitBenchError

MIB = 2**20
SCARCE = 700_000
"""Bytes that do for products, and not for the Gram matrix."""
BOTH = (Method.GRAM, Method.LANCZOS)
NETWORKS = ("cnn", "cnn-mse", "many-layers", "residual-reused", "tied-weights", "frames")
TRANSFORMERS = ("small-gpt",)

Built = tuple[nn.Module, nn.Module, Any, Tensor]


@pytest.fixture
def lanczos_also_on_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iterative, "SMALL", 0)
    monkeypatch.setattr(iterative, "EXTRA", 6)


def build(name: str) -> Built:
    if name in TRANSFORMERS:
        return next(entry for entry in ZOO if entry.name == name).build()
    return case(name).build(torch.float64)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors]).double()


@pytest.mark.parametrize("name", [*NETWORKS, *TRANSFORMERS])
@pytest.mark.usefixtures("lanczos_also_on_small_matrices")
def test_both_methods_agree_with_the_dense_oracle(name: str) -> None:
    request = build(name)
    reference = dense(*request)
    ggn, gradient = reference.ggn(), reference.mean_gradient
    values, vectors = torch.linalg.eigh(ggn)
    above = values > 1e-3
    along = vectors[:, above]
    damped = ggn + 0.3 * torch.eye(len(ggn), dtype=ggn.dtype)
    whole = -torch.linalg.solve(damped, gradient)
    step = -along @ (along.t() @ gradient / (values[above] + 0.5))
    for method in BOTH:
        found = leading_eigenvalues(*request, k=4, method=method)
        count = min(4, found.info.num_columns)
        assert relative_error(found.eigenvalues, values.flip(0)[:count]) < 1e-9
        assert found.choice is not None
        assert found.choice.method == method
        assert (found.residuals is None) == (method is Method.GRAM)
        newton = newton_step(*request, damping=0.3, cutoff=None, method=method)
        assert relative_error(flat(newton.step), whole) < 1e-7
        assert (newton.iterations is None) == (method is Method.GRAM)
        newton = newton_step(*request, damping=0.5, cutoff=1e-3, method=method, with_gradient=True)
        assert relative_error(flat(newton.step), step) < 1e-6
        assert relative_error(flat(newton.gradient or []), gradient) < 1e-9
        assert len(newton.eigenvalues[""]) == above.sum()


@pytest.mark.parametrize("blocks", ["layer", {"a": ["0.*", "4.*"], "b": "*"}], ids=["layer", "own"])
def test_leading_eigenvalues_of_blocks(blocks: Any) -> None:
    request = build("cnn")
    gram, lanczos = (
        leading_eigenvalues(*request, k=5, method=method, blocks=blocks) for method in BOTH
    )
    assert relative_error(lanczos.eigenvalues, gram.eigenvalues) < 1e-9
    assert gram.blocks.keys() == lanczos.blocks.keys()
    for name, values in gram.blocks.items():
        assert relative_error(lanczos.blocks[name], values) < 1e-9


def wide() -> Built:
    """Whose Gram matrix, 168 x 168, takes several times as much as some vectors of 428 numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 8)).double()
    x = torch.randn(24, 12, dtype=torch.float64)
    return model, nn.CrossEntropyLoss(), x, torch.randint(8, (24,))


def leading(**more: Any) -> Any:
    return leading_eigenvalues(*wide(), k=3, **more)


def step(**more: Any) -> Any:
    return newton_step(*wide(), cutoff=None, damping=0.1, **more)


def directions(**more: Any) -> Any:
    loose = {} if more.get("method") == "gram" else {"tolerance": 1e-4}
    return newton_step(*wide(), cutoff=0.2, damping=0.1, **loose, **more)


@pytest.mark.parametrize("compute", [leading, step, directions])
def test_auto_takes_what_fits(compute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = compute(memory=512 * MIB)
    assert found.choice.line() == "method gram: it fits into the 512MiB of memory given"
    assert found.iterations is None
    found = compute(memory=SCARCE)
    assert found.choice.method == "lanczos"
    assert "the Gram matrix and its solver take" in found.choice.reason
    assert found.choice.reason.endswith("KiB, more than the 684KiB of memory given")
    assert found.iterations.residual <= found.iterations.tolerance
    for free, method in ((2**40, "gram"), (SCARCE, "lanczos")):
        monkeypatch.setattr(method_module, "available_memory", lambda free=free: free)
        found = compute()
        assert found.choice.method == method
        assert "available now (no --engine-memory is given)" in found.choice.reason


def test_what_is_asked_for_does_not_depend_on_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(method_module, "available_memory", lambda: 1)
    for method in BOTH:
        assert step(method=method).choice.line() == f"method {method}: as asked for"
    assert step(memory=Memory(1, strict=False)).choice.method == "gram"
    policy = directions_with_policy()
    assert policy.choice.line() == "method gram: a damping policy needs it"


def directions_with_policy(**more: Any) -> Any:
    policy = lambda gammas, lambdas: 0.1 + lambdas.mean(0)  # noqa: E731
    return newton_step(*build("cnn"), damping=policy, cutoff=1e-3, **more)


@pytest.mark.parametrize("compute", [leading, step, directions])
@pytest.mark.parametrize("method", list(Method))
def test_a_refusal_names_the_least_that_would_do(
    compute: Callable[..., Any], method: Method
) -> None:
    with pytest.raises(DoesNotFit) as refused:
        compute(method=method, memory=1000)
    least = -(-refused.value.least // 1024)
    assert f"{least}KiB" in str(refused.value)
    assert "\n" not in str(refused.value)
    if compute is not directions or method is Method.GRAM:  # of which one alone would fit
        assert compute(method=method, memory=refused.value.least).choice is not None


def test_directions_are_as_many_as_the_memory_has_room_for() -> None:
    everything = directions(method="lanczos")
    count = len(everything.eigenvalues[""])
    assert count > 5
    with pytest.raises(VivitBenchError, match=r"more than \d+ eigenvalues are above.*and memory"):
        directions(method="lanczos", memory=220_000)
    bounded = directions(method="lanczos", memory=SCARCE)
    assert relative_error(flat(bounded.step), flat(everything.step)) < 1e-3
    with pytest.raises(DoesNotFit):
        directions(method="lanczos", memory=SCARCE, max_directions=400)


REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    "unknown": (lambda: step(method="magic"), "method is 'magic'; use 'auto' or 'gram' or"),
    "policy": (
        lambda: directions_with_policy(method="lanczos"),
        r"damping policy needs .* \(--method gram\)",
    ),
    "tolerance": (
        lambda: leading(method="gram", tolerance=1e-3),
        "tolerance is 0.001: it is for iterations.*leave it out",
    ),
    "products": (lambda: step(method="gram", max_products=3), "max_products is 3"),
    "of a policy": (lambda: directions_with_policy(max_directions=3), "max_directions is 3"),
    "whole space": (lambda: step(max_directions=3), "max_directions is 3: a step over the whole"),
    "no tolerance": (lambda: leading(tolerance=1), "tolerance is 1; it must lie between 0 and 1"),
    "no number": (lambda: step(max_products=0), "max_products is 0"),
    "k": (lambda: leading_eigenvalues(*wide(), k=0), "k is 0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_in_one_line(name: str) -> None:
    call, text = REFUSALS[name]
    with pytest.raises(UsageError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_limits_reach_the_iterations() -> None:
    with pytest.raises(VivitBenchError, match="max_products = 2 "):
        step(method="lanczos", max_products=2)
    loose = step(method="lanczos", tolerance=0.5)
    assert loose.iterations.tolerance == 0.5
    assert loose.iterations.products < step(method="lanczos").iterations.products
    assert replace(loose.iterations, seconds=0.0).line().startswith("conjugate gradients")
