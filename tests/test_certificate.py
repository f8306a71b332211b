"""The certificate: what it says, and that no rule can be broken without its noticing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from curvature_cases import CASES, tuned
from torch import Tensor, nn

import vivit_bench.curvature.factors as factors
import vivit_bench.curvature.loss_factor as losses
import vivit_bench.curvature.rules as rules
import vivit_bench.curvature.systems as systems
from vivit_bench.curvature import (
    Certificate,
    directional_derivatives,
    eigenvalues,
    eigenvectors,
    inverse_product,
    newton_step,
)
from vivit_bench.curvature.diagonalised import Diagonalised
from vivit_bench.errors import CertificateError, UsageError

Change = Callable[[Any], Any]


def wrap(owner: Any, name: str, change: Change) -> tuple[Any, str, Any]:
    """A fault: the function's result is changed."""
    right = getattr(owner, name)
    return owner, name, lambda *a, **k: change(right(*a, **k))


def arguments(owner: Any, name: str, change: Callable[..., tuple]) -> tuple[Any, str, Any]:
    """A fault: the function gets other positional arguments."""
    right = getattr(owner, name)
    return owner, name, lambda *a, **k: right(*change(*a), **k)


def part(role: str, change: Change) -> Change:
    """Change one role's share of V."""
    return lambda found: {k: change(v) if k == role else v for k, v in found.items()}


def rolled_input(saved: rules.Saved) -> rules.Saved:
    """A rule that reads the wrong pixels."""
    tensors = {name: t.roll(1, -1) for name, t in saved.tensors.items()}
    return rules.Saved(tensors, saved.constants)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1, groups=2),
        nn.BatchNorm2d(2),
        nn.GroupNorm(1, 2),
        nn.PReLU(2),
        nn.ConvTranspose2d(2, 3, 2),
        nn.Flatten(1, 2),
        nn.LayerNorm(6),
        nn.Flatten(),
        nn.Linear(3 * 36, 3),
    )


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.fc = nn.Embedding(5, 3), nn.Linear(3, 3)
        self.pos, self.gain = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(((self.emb(x) + self.pos) * self.gain).tanh()).mean(1)


def large() -> nn.Module:
    """Layers with more parameters than columns, so that factors are not explicit."""
    return nn.Sequential(
        nn.Conv2d(2, 30, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(30, 4, 5),
        nn.Flatten(),
        nn.Linear(4, 40),
        nn.Tanh(),
        nn.Linear(40, 3),
    )


def batch(kind: str) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    y = torch.tensor([0, 2, 1, 1])
    if kind == "tokens":
        return Tokens().double(), nn.CrossEntropyLoss(), torch.randint(5, (4, 4)), y
    model = {"cnn": cnn, "large": large}[kind]().double()
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    model(x)  # running statistics
    return model.eval(), nn.CrossEntropyLoss(), x, y


# Not a permutation or a sign, which leave the Gram matrix as it is.
skew = lambda v: v * torch.linspace(0.9, 1.1, v.shape[-1]).to(v)  # noqa: E731
twice = lambda v: 2 * v  # noqa: E731
none = torch.zeros_like

RULE_FAULTS: dict[str, tuple[str, tuple[Any, str, Any]]] = {
    "linear, weight": ("tokens", wrap(rules._Linear, "expand", part("weight", skew))),
    "linear, no bias": ("tokens", wrap(rules._Linear, "expand", part("bias", none))),
    "convolution, input": ("cnn", wrap(rules._Convolution, "read", rolled_input)),
    "convolution, no bias": ("cnn", wrap(rules._Convolution, "expand", part("bias", none))),
    "transposed convolution": (
        "cnn", wrap(rules._TransposedConvolution, "expand", part("weight", skew)),
    ),
    "batch norm, no mean": (
        "cnn",
        wrap(
            rules._BatchNorm,
            "read",
            lambda s: rules.Saved(s.tensors, {**s.constants, "mean": 0 * s.constants["mean"]}),
        ),
    ),
    "layer norm": ("cnn", wrap(rules._LayerNorm, "expand", part("weight", twice))),
    "group norm": ("cnn", wrap(rules._GroupNorm, "expand", part("bias", skew))),
    "PReLU": ("cnn", wrap(rules._PReLU, "expand", part("weight", skew))),
    "embedding": ("tokens", wrap(rules._Embedding, "expand", part("weight", skew))),
    "sum": ("tokens", wrap(rules._BroadcastSum, "expand", part("term 1", twice))),
    "product": ("tokens", wrap(rules._BroadcastProduct, "expand", part("factor 1", twice))),
}  # fmt: skip


@pytest.mark.parametrize("name", RULE_FAULTS)
@pytest.mark.parametrize("certify", [True, "all"])
def test_a_broken_rule_is_noticed_and_replaced(
    name: str, certify: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By plain autograd: the numbers are right, and a note names the layer."""
    kind, fault = RULE_FAULTS[name]
    request = batch(kind)
    expected = eigenvalues(*request).eigenvalues
    monkeypatch.setattr(*fault)
    wrong = eigenvalues(*request, certify=False).eigenvalues
    assert not torch.allclose(wrong, expected, rtol=1e-6)
    found = eigenvalues(*request, certify=certify)
    torch.testing.assert_close(found.eigenvalues, expected)
    assert found.certificate is not None
    assert "computed by plain autograd" in found.certificate.line()


@pytest.mark.parametrize("weight", [1e-9, 1e9], ids=["pairs", "chunks"])
@pytest.mark.parametrize("fault", ["patches", "cotangents", "no bias", "input"])
def test_a_broken_contraction_is_noticed(
    weight: float, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = batch("large")
    expected = eigenvalues(*request).eigenvalues
    monkeypatch.setattr(*tuned(pairs_weight=weight))
    torch.testing.assert_close(eigenvalues(*request).eigenvalues, expected)
    affine = factors.AffineFactor
    if fault == "patches":
        monkeypatch.setattr(
            *wrap(affine, "_unfolded", lambda u: u.roll(1, 2) if u.shape[2] > 1 else skew(u.mT).mT)
        )
    elif fault == "no bias":
        monkeypatch.setattr(affine, "_has_bias", property(lambda self: False))
    else:
        right = affine.put
        number = {"cotangents": 4, "input": 3}[fault]

        def put(self: Any, *a: Any) -> None:
            a = list(a)  # type: ignore[assignment]
            if number == 4:
                a[4] = a[4].roll(1, 0)  # type: ignore[index]
            else:
                tensors = {k: t.roll(1, 0) for k, t in a[3].tensors.items()}
                a[3] = rules.Saved(tensors, a[3].constants)  # type: ignore[index]
            right(self, *a)

        monkeypatch.setattr(affine, "put", put)
    wrong = eigenvalues(*request, certify=False).eigenvalues
    assert not torch.allclose(wrong, expected, rtol=1e-6)
    found = eigenvalues(*request)
    torch.testing.assert_close(found.eigenvalues, expected)
    assert found.certificate is not None
    assert found.certificate.notes


def step(*request: Any, **options: Any) -> Any:
    return newton_step(*request, with_gradient=True, **options)


def products(model: nn.Module, *request: Any, **options: Any) -> Any:
    vector = [torch.randn_like(p) for p in model.parameters()]
    return inverse_product(model, *request, [vector], damping=0.1, **options)


def vectors(*request: Any, **options: Any) -> Any:
    return list(eigenvectors(*request, k=3, **options).chunks())


FRAC: dict[str, Any] = {"samples": "frac"}
MC: dict[str, Any] = {"curvature": "mc", "mc_samples": 2}
affine, explicit = factors.AffineFactor, factors.ExplicitFactor
doubled_solution = lambda f: torch.cat([2 * f[:2], f[2:]])  # noqa: E731
scaled = lambda d: {p: 1.5 * x for p, x in d.items()}  # noqa: E731
FAULTS: dict[str, tuple[Callable[..., Any], dict[str, Any], tuple[Any, str, Any]]] = {
    "exact columns": (eigenvalues, {}, wrap(losses, "_cross_entropy_root", twice)),
    "residual": (step, FRAC, wrap(losses, "_deviation", torch.neg)),
    "residual of the gradient's share": (step, {}, wrap(losses, "_deviation", twice)),
    "coordinates": (step, {}, wrap(losses._CrossEntropy, "coordinates", twice)),
    "coordinates, per sample": (
        directional_derivatives, {}, wrap(losses._CrossEntropy, "coordinates", twice),
    ),
    "Hessian of the loss": (eigenvalues, MC, wrap(losses._CrossEntropy, "hessian_product", twice)),
    "loss": (eigenvalues, {}, wrap(losses._CrossEntropy, "value", twice)),
    "V^T g, affine": (step, FRAC, wrap(affine, "dot", twice)),
    "V w, affine": (step, {"blocks": "layer"}, wrap(affine, "combine", scaled)),
    "V w by passes": (step, {}, wrap(systems, "pull", lambda ds: [scaled(d) for d in ds])),
    "per-sample V^T g": (
        directional_derivatives, FRAC,
        arguments(factors.Factor, "add_cross", lambda s, o, out: (s, s, out[:, : s.rows])),
    ),
    "step's coefficients": (step, {}, wrap(Diagonalised, "functions", doubled_solution)),
    "step's scales": (step, {}, wrap(systems.GramSystem, "scales", twice)),
    "eigenvectors' scales": (vectors, {}, wrap(systems.GramSystem, "scales", twice)),
    "eigenvectors' passes": (
        vectors, {}, wrap(systems, "pull", lambda ds: [scaled(d) for d in ds]),
    ),
    "eigenvalues": (eigenvalues, {}, wrap(torch.linalg, "eigvalsh", lambda v: v * 1.001)),
    "curvatures": (directional_derivatives, {}, wrap(systems.GramSystem, "curvatures", twice)),
    "slopes along directions": (
        directional_derivatives, {}, wrap(systems.GramSystem, "scales", lambda v: 5 * v),
    ),
    "damped solution": (products, {}, wrap(torch, "cholesky_solve", twice)),
    "inverse's projection": (products, {}, wrap(affine, "dot", twice)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_step_of_a_computation_is_an_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be replaced by anything, so nothing is returned."""
    quantity, options, fault = FAULTS[name]
    request = batch("large")
    quantity(*request, **options)
    monkeypatch.setattr(*fault)
    with pytest.raises(CertificateError) as caught:
        quantity(*request, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["scales", "curvatures", "_lift", "matrix"])
def test_faults_in_parameter_space(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the D x D matrix is the smaller one."""
    torch.manual_seed(0)
    x, y = torch.randn(9, 2, dtype=torch.float64), torch.randint(3, (9,))
    request = (nn.Linear(2, 3).double(), nn.CrossEntropyLoss(), x, y)
    system = systems.ParameterSystem
    faults = {
        "scales": wrap(system, "scales", twice),
        "curvatures": wrap(system, "curvatures", twice),
        "_lift": wrap(system, "_lift", lambda ds: [scaled(d) for d in ds]),
        "matrix": wrap(torch.linalg, "eigh", lambda r: r),
    }
    if name == "matrix":
        right = systems.add_lower
        monkeypatch.setattr(systems, "add_lower", lambda g, v: right(g, 1.1 * v))
    else:
        monkeypatch.setattr(*faults[name])
    quantity = directional_derivatives if name == "curvatures" else newton_step
    with pytest.raises(CertificateError):
        quantity(*request)


def test_what_a_certificate_says() -> None:
    request = batch("cnn")
    found = eigenvalues(*request, with_gradient=True).certificate
    assert isinstance(found, Certificate)
    assert (len(found.samples), found.num_samples) == (2, 4)
    assert set(found.errors) == {
        "outputs", "company", "layers", "curvature", "gradient", "trace", "squares",
        "loss gradient", "loss Hessian", "loss",
    }  # fmt: skip
    assert found.worst < 1e-13
    assert found.tolerance == 1e-9
    assert "2 of 4 samples" in found.line()
    everything = eigenvalues(*request, certify="all").certificate
    assert everything is not None
    assert everything.samples == (0, 1, 2, 3)
    assert eigenvalues(*request, certify=False).certificate is None
    other = eigenvalues(*request, seed=5).certificate
    assert other is not None
    assert other.samples != found.samples
    with pytest.raises(UsageError, match="certify is 'some'"):
        eigenvalues(*request, certify="some")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.one_in(3)
def test_right_results_are_far_within_the_tolerance(case: Any, dtype: torch.dtype) -> None:
    request = case.build(dtype)
    for options in ({}, {"curvature": "mc"}, {"samples": "frac"}):
        for quantity in (eigenvalues, newton_step, directional_derivatives):
            found = quantity(*request, certify="all", **options).certificate  # type: ignore[operator]
            assert found is not None
            assert not found.notes
            assert found.worst < found.tolerance / 10


class Moody(nn.Module):
    """Changes after some calls, as a network with a state does."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.fc, self.calls, self.seen = nn.Linear(3, 3), calls, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.fc(x) * (1.0 if self.seen < self.calls else 1.1)


@pytest.mark.parametrize("calls", [2, 4, 5, 6])
def test_a_model_that_changes_on_the_way(calls: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(CertificateError):
        eigenvalues(Moody(calls), nn.CrossEntropyLoss(), x, y)


def test_nothing_is_left_behind_by_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, x, y = batch("cnn")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    monkeypatch.setattr(*wrap(losses._CrossEntropy, "value", twice))
    with pytest.raises(CertificateError):
        newton_step(model, loss, x, y)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert all("forward" not in vars(m) for m in model.modules())
    assert torch.is_grad_enabled()
