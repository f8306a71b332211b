"""Matrix-free eigenvalues and steps against the dense float64 oracle."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from curvature_cases import CASES, Case, case, reference_of
from model_zoo import ZOO
from oracle import dense, relative_error
from torch import Tensor, nn

import vivit_bench.curvature.iterative as iterative
import vivit_bench.curvature.products as products
from vivit_bench.curvature import Approximation, Curvature, Samples, eigenvalues, newton_step
from vivit_bench.curvature.iterative import Pairs, conjugate_gradients, leading_pairs, pairs_above
from vivit_bench.curvature.loss_factor import LossFactor
from vivit_bench.curvature.matrix_free import lanczos_eigenvalues, newton_step_matrix_free
from vivit_bench.curvature.session import Request
from vivit_bench.errors import CertificateError, UsageError, VivitBenchError

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
SLOW, APART = "double backward", "forward mode in a pass of its own"

cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


@pytest.fixture(autouse=True)
def _lanczos_also_on_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iterative, "SMALL", 0)
    monkeypatch.setattr(iterative, "EXTRA", 6)


def request(
    model: nn.Module,
    loss: nn.Module,
    x: Any,
    y: Tensor,
    approximation: Approximation | None = None,
    **more: Any,
) -> Request:
    return Request(model, loss, x, y, approximation or Approximation(), **more)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors]).double()


def spectrum(ggn: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(ggn).flip(0).clamp(min=0)


def step_above(ggn: Tensor, gradient: Tensor, damping: float, cutoff: float) -> Tensor:
    values, vectors = torch.linalg.eigh(ggn)
    keep = values > cutoff
    values, vectors = values[keep], vectors[:, keep]
    return -vectors @ (vectors.t() @ gradient / (values + damping))


def check_eigenpairs(call: Request, k: int, ggn: Tensor, tolerance: float) -> Any:
    found = lanczos_eigenvalues(call, k, vectors=True)
    expected = spectrum(ggn)
    count = min(k, found.info.num_columns, found.info.num_params)
    assert relative_error(found.eigenvalues, expected[:count]) < tolerance
    assert found.vectors is not None
    e = torch.stack([flat(v) for v in found.vectors], 1)
    assert relative_error(e.t() @ e, torch.eye(count)) < 100 * tolerance
    scale = expected[0].item() or 1.0
    assert (ggn @ e - e * found.eigenvalues).abs().max().item() / scale < 10 * tolerance
    assert found.residuals.max() <= found.iterations.tolerance
    assert found.certificate is not None
    assert found.certificate.worst < found.certificate.tolerance
    return found


@pytest.mark.one_in(4)
@cases
@dtypes
def test_leading_eigenpairs_and_loss(case: Case, dtype: torch.dtype) -> None:
    model, loss, x, y = case.build(dtype)
    reference = reference_of(case, dtype)
    for k in (3, 40) if dtype is torch.float64 else (5,):
        found = check_eigenpairs(request(model, loss, x, y), k, reference.ggn(), TOLERANCE[dtype])
        assert found.info.loss == pytest.approx(reference.loss, rel=1e-6)
        assert found.iterations.derivative == "forward mode"


CUT = [(case(name), "full", 2**13) for name in ("cnn-mse", "residual-reused", "tied-weights")]


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("case", "samples", "working_bytes"),
    [*((c, s, 2**22) for c in CASES for s in Samples), *CUT],
    ids=lambda value: getattr(value, "name", None),
)
def test_newton_steps(case: Case, samples: str, working_bytes: int) -> None:
    model, loss, x, y = case.build(torch.float64)
    reference = reference_of(case)
    ggn, gradient = reference.ggn(Samples(samples).size(len(x))), reference.mean_gradient
    approximation = Approximation(samples=samples)
    call = request(model, loss, x, y, approximation, working_bytes=working_bytes)
    damped = ggn + 0.3 * torch.eye(len(ggn), dtype=ggn.dtype)
    step = newton_step_matrix_free(call, damping=0.3, cutoff=None, with_gradient=True)
    assert relative_error(flat(step.step), -torch.linalg.solve(damped, gradient)) < 1e-7
    assert relative_error(flat(step.gradient or []), gradient) < 1e-12
    assert step.iterations is not None
    assert step.iterations.residual <= step.iterations.tolerance
    along = newton_step_matrix_free(call, damping=0.5, cutoff=1e-3)
    assert relative_error(flat(along.step), step_above(ggn, gradient, 0.5, 1e-3)) < 1e-6
    assert len(along.eigenvalues[""]) == (spectrum(ggn) > 1e-3).sum()
    assert along.dampings[""].tolist() == [0.5] * len(along.eigenvalues[""])


@dtypes
@pytest.mark.parametrize("name", ["cnn", "cnn-mse", "many-layers"])
def test_monte_carlo_of_some_samples_and_parameters(name: str, dtype: torch.dtype) -> None:
    """The drawn columns are those that the engine draws."""
    model, loss, x, y = dataclasses.replace(case(name), samples=17).build(dtype)
    approximation = Approximation("mc", "frac", 3, 7)
    for params in (None, ["0.*", "*.bias"]):
        both = {"params": params}
        call = request(model, loss, x, y, approximation, **both)
        engine = newton_step(model, loss, x, y, approximation, damping=0.1, cutoff=1e-3, **both)
        step = newton_step_matrix_free(call, damping=0.1, cutoff=1e-3)
        assert relative_error(flat(step.step), flat(engine.step)) < 10 * TOLERANCE[dtype]
        assert relative_error(step.eigenvalues[""], engine.eigenvalues[""]) < TOLERANCE[dtype]
    exact = Approximation(samples="frac")
    names = [n for n, _ in model.named_parameters() if n.startswith("0.") or n.endswith(".bias")]
    ggn = dense(model, loss, x, y, names).ggn(2)
    check_eigenpairs(request(model, loss, x, y, exact, **both), 3, ggn, TOLERANCE[dtype])


BLOCKS: dict[str, Any] = {"layer": "layer", "dict": {"a": ["0.*", "4.*"], "b": "*"}}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str) -> None:
    model, loss, x, y = case("cnn").build(torch.float64)
    blocks = {"blocks": BLOCKS[name]}
    call = request(model, loss, x, y, **blocks)
    engine = newton_step(model, loss, x, y, damping=0.1, cutoff=1e-3, **blocks)
    step = newton_step_matrix_free(call, damping=0.1, cutoff=1e-3)
    assert relative_error(flat(step.step), flat(engine.step)) < 1e-7
    assert list(step.eigenvalues) == list(engine.eigenvalues)
    whole = newton_step(model, loss, x, y, damping=0.1, cutoff=None, **blocks)
    solved = newton_step_matrix_free(call, damping=0.1, cutoff=None)
    assert relative_error(flat(solved.step), flat(whole.step)) < 1e-6
    expected = eigenvalues(model, loss, x, y, **blocks)
    found = lanczos_eigenvalues(call, 2)
    assert list(found.blocks) == list(expected.blocks)
    for values, right in zip(found.blocks.values(), expected.blocks.values(), strict=True):
        assert relative_error(values, right[:2]) < 1e-9
    assert relative_error(found.eigenvalues, expected.eigenvalues[:2]) < 1e-9
    with pytest.raises(UsageError, match="eigenvectors of blocks"):
        lanczos_eigenvalues(call, 2, vectors=True)


class Transformer(nn.Module):
    """Tokens, attention of both kinds, layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.tokens(x))
        y = y + nn.functional.scaled_dot_product_attention(y, y, y, is_causal=True)
        return self.head(y).movedim(-1, 1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x)[0][:, -1])


class Functional(nn.Module):
    """A use outside any layer, and a hook that changes what goes backward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(4, 3)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sin(x @ self.weight.t())
        if y.requires_grad:
            y.register_hook(lambda g: 0.5 * g)
        return self.head(y)


class Resnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.stem(x)))
        y = nn.functional.max_pool2d(torch.relu(y + self.b(self.a(y))), 2)
        return self.head(y.mean((2, 3)))


def _weight_norm() -> nn.Module:
    inner = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    return nn.Sequential(inner, nn.Tanh(), nn.Linear(4, 3))


def _sparse() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(12, 3))


vector = lambda: torch.randn(5, 3)  # noqa: E731
tokens = lambda: torch.randint(7, (5, 4))  # noqa: E731
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str, str]] = {
    "transformer": (Transformer, tokens, "forward mode", "forward mode"),
    "lstm": (
        Recurrent,
        lambda: torch.randn(5, 4, 3),
        "forward mode without oneDNN and cuDNN",
        "forward mode",
    ),
    "hook that scales gradients": (Functional, vector, SLOW, SLOW),
    "resnet": (Resnet, lambda: torch.randn(5, 2, 4, 4), "forward mode", "forward mode"),
    "weight norm, which has no forward mode": (_weight_norm, vector, SLOW, SLOW),
    "sparse gradients": (_sparse, tokens, APART, APART),
}


@pytest.mark.parametrize("name", NETWORKS)
@dtypes
def test_networks_as_they_are(name: str, dtype: torch.dtype) -> None:
    make, inputs, single, double = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make().eval().to(dtype), inputs()
    x = x.to(dtype) if x.is_floating_point() else x
    y = torch.randint(3, (5, 4) if name == "transformer" else (5,))
    loss = nn.CrossEntropyLoss(ignore_index=0, label_smoothing=0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    ggn = dense(model, loss, x, y).ggn()
    found = check_eigenpairs(request(model, loss, x, y), 4, ggn, TOLERANCE[dtype])
    expected = single if dtype is torch.float32 else double
    assert found.iterations.derivative in (expected, double)
    assert (found.certificate.notes != ()) == (found.iterations.derivative != "forward mode")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize(
    "name", ["checkpointed", "packed-lstm", "small-gpt", "siamese", "frozen-lora", "idle-experts"]
)
def test_other_networks(name: str) -> None:
    """Checkpoints, several inputs, packed sequences, frozen parameters, idle parameters."""
    model, loss, x, y = next(entry for entry in ZOO if entry.name == name).build()
    check_eigenpairs(request(model, loss, x, y), 3, dense(model, loss, x, y).ggn(), 1e-9)


LOSSES: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
    "weighted": (nn.CrossEntropyLoss(torch.rand(3)), lambda: torch.randint(3, (5,))),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), lambda: torch.randint(3, (5,))),
    "probabilities": (nn.CrossEntropyLoss(), lambda: torch.rand(5, 3).softmax(1)),
    "squared": (nn.MSELoss(reduction="sum"), lambda: torch.randn(5, 3)),
    "binary": (nn.BCEWithLogitsLoss(pos_weight=torch.rand(3)), lambda: torch.rand(5, 3)),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("curvature", list(Curvature))
def test_losses(name: str, curvature: Curvature) -> None:
    torch.manual_seed(0)
    loss, targets = LOSSES[name]
    y = targets()
    y = y.double() if y.is_floating_point() else y
    model, x = (
        nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)).double(),
        torch.randn(5, 3, dtype=torch.float64),
    )
    loss = loss.double()
    if curvature is Curvature.EXACT:
        check_eigenpairs(request(model, loss, x, y), 4, dense(model, loss, x, y).ggn(), 1e-9)
        return
    approximation = Approximation(curvature, mc_samples=2, seed=3)
    engine = newton_step(model, loss, x, y, approximation, damping=0.1, cutoff=1e-4)
    found = lanczos_eigenvalues(request(model, loss, x, y, approximation), 4)
    assert relative_error(found.eigenvalues, engine.eigenvalues[""][:4]) < 1e-9


@pytest.mark.parametrize("width", [4, 30])
def test_multiple_eigenvalues(width: int) -> None:
    """A linear model with squared error: every eigenvalue is there once for each output."""
    torch.manual_seed(0)
    model, x = nn.Linear(width, 4).double(), torch.randn(9, width, dtype=torch.float64)
    y = torch.randn(9, 4, dtype=torch.float64)
    ggn = dense(model, nn.MSELoss(), x, y).ggn()
    for k in (1, 6, 11):
        check_eigenpairs(request(model, nn.MSELoss(), x, y), k, ggn, 1e-9)
    step = newton_step_matrix_free(request(model, nn.MSELoss(), x, y), cutoff=0.2)
    assert len(step.eigenvalues[""]) == (spectrum(ggn) > 0.2).sum()


def one_of_each(right: Callable[..., Any]) -> Callable[..., Any]:
    """Lanczos iterations without rounding, which see one copy of every eigenvalue."""

    def solver(operator: Any, k: int, **options: Any) -> Any:
        start = options.pop("v0")
        size = len(start)
        matrix = np.stack([operator.matvec(column) for column in np.eye(size)], 1)
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        distinct, where = np.unique(values.round(9), return_inverse=True)
        seen = []
        for number in range(len(distinct)):
            space = vectors[:, where == number]
            projected = space @ (space.T @ start)
            seen.append(projected / np.linalg.norm(projected))
        kept = distinct[-k:]
        return kept, np.stack(seen, 1)[:, -k:]

    return solver


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_copies_that_lanczos_does_not_see_are_found(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.array([5.0] * 4 + [3.0] * 3 + [2.9] * 2 + list(np.linspace(1, 0, 40)))
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((len(values),) * 2))[0]
    multiply = lambda x: basis @ (values * (basis.T @ x))  # noqa: E731
    monkeypatch.setattr(iterative, "eigsh", one_of_each(iterative.eigsh))
    found = leading_pairs(multiply, len(values), k, 1e-8, 0)
    assert found.values == pytest.approx(values[:k], abs=1e-7)
    above = pairs_above(multiply, len(values), 2.95, 9, 1e-8, 1e-12, 0)
    assert above.values == pytest.approx(values[:7], abs=1e-7)
    with pytest.raises(VivitBenchError, match="more than 6 eigenvalues are above"):
        pairs_above(multiply, len(values), 2.95, 6, 1e-8, 1e-12, 0)


@pytest.mark.parametrize("kind", ["one value", "rank one", "zero", "clustered"])
def test_matrices_that_stop_the_iterations_early(kind: str) -> None:
    values = {
        "one value": np.ones(60),
        "rank one": np.eye(1, 60).ravel(),
        "zero": np.zeros(60),
        "clustered": np.concatenate([1 + 1e-10 * np.arange(10), np.zeros(50)]),
    }[kind]
    for k in (1, 5, 12):
        found = leading_pairs(lambda x: values * x, 60, k, 1e-8, 0)
        assert found.values == pytest.approx(np.sort(values)[::-1][:k], abs=1e-7)
        assert found.vectors.T @ found.vectors == pytest.approx(np.eye(k), abs=1e-9)
    above = pairs_above(lambda x: values * x, 60, 0.5, 60, 1e-8, 1e-12, 0)
    assert len(above) == (values > 0.5).sum()


def small(**more: Any) -> Request:
    model, loss, x, y = case("cnn").build(torch.float64)
    return request(model, loss, x, y, **more)


REFUSALS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "products": (
        lambda: lanczos_eigenvalues(small(), 5, max_products=10),
        VivitBenchError,
        "no convergence within max_products = 10",
    ),
    "products of a step": (
        lambda: newton_step_matrix_free(small(), damping=1e-6, cutoff=None, max_products=4),
        VivitBenchError,
        "no convergence within max_products = 4",
    ),
    "directions": (
        lambda: newton_step_matrix_free(small(), cutoff=1e-6, max_directions=3),
        VivitBenchError,
        "more than 3 eigenvalues are above the cutoff 1e-06",
    ),
    "cutoff in rounding": (
        lambda: newton_step_matrix_free(small(), cutoff=0.0), UsageError, "the cutoff 0 is only 0",
    ),
    "k": (lambda: lanczos_eigenvalues(small(), 0), UsageError, "k is 0"),
    "tolerance": (
        lambda: lanczos_eigenvalues(small(), 1, tolerance=0), UsageError, "tolerance is 0",
    ),
    "budget": (
        lambda: lanczos_eigenvalues(small(), 1, max_products=True), UsageError, "max_products",
    ),
    "damping": (
        lambda: newton_step_matrix_free(small(), damping=0, cutoff=None),
        UsageError,
        "above 0 over the whole space",
    ),
    "policy": (
        lambda: newton_step_matrix_free(small(), damping=lambda g, h: h[0]),
        UsageError,
        "damping policy",
    ),
    "cutoff": (lambda: newton_step_matrix_free(small(), cutoff=-1), UsageError, "cutoff is -1"),
    "params": (lambda: lanczos_eigenvalues(small(params="no"), 1), UsageError, "matches no"),
    "blocks": (lambda: lanczos_eigenvalues(small(blocks="no"), 1), UsageError, "blocks is 'no'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_in_one_line(name: str) -> None:
    call, kind, text = REFUSALS[name]
    with pytest.raises(kind, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def bag() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(7, 3), nn.Linear(3, 3)).double()
    return model, nn.CrossEntropyLoss(), torch.randint(7, (5, 4)), torch.randint(3, (5,))


def test_operation_that_cannot_be_differentiated_twice_or_forward() -> None:
    with pytest.raises(UsageError, match=r"no derivative J x: .*_embedding_bag") as caught:
        lanczos_eigenvalues(request(*bag()), 2)
    assert "\n" not in str(caught.value)
    ggn = dense(*bag(), ["1.weight", "1.bias"]).ggn()  # type: ignore[arg-type]
    check_eigenpairs(request(*bag(), params="1.*"), 2, ggn, 1e-9)


class Random(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 0.1 * torch.rand(()))


class Coupled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class CoupledBackward(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(lambda g: g + 0.1 * g.flip(0))
        return y


@pytest.mark.parametrize("kind", [Random, Coupled, CoupledBackward], ids=lambda k: k.__name__)
@pytest.mark.parametrize("certify", [True, "all"])
def test_models_without_samples_of_their_own_are_noticed(kind: Any, certify: Any) -> None:
    torch.manual_seed(0)
    model, x = kind(3, 4).double(), torch.randn(6, 3, dtype=torch.float64)
    call = request(model, nn.CrossEntropyLoss(), x, torch.randint(4, (6,)), certify=certify)
    with pytest.raises(CertificateError):
        lanczos_eigenvalues(call, 2)
    with pytest.raises(CertificateError):
        newton_step_matrix_free(call)


def test_wrong_products_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss Hessian that is not the loss's, and a forward derivative that is off."""
    for factor in LossFactor.__subclasses__():
        if "hessian_product" in vars(factor):
            right = factor.hessian_product
            wrong = lambda *a, right=right: right(*a) * 1.001  # noqa: E731
            with monkeypatch.context() as patch:
                patch.setattr(factor, "hessian_product", wrong)
                name = "cnn" if "Cross" in factor.__name__ else "cnn-mse"
                with pytest.raises(CertificateError, match="loss Hessian"):
                    lanczos_eigenvalues(request(*case(name).build(torch.float64)), 1)
    model, loss, x, y = case("cnn").build(torch.float64)
    expected = spectrum(dense(model, loss, x, y).ggn())
    way = products.WAYS[0]
    off = lambda *a: (lambda o, t: (o, t * torch.linspace(1, 1.01, 4)))(*way.tangent(*a))  # noqa: E731
    monkeypatch.setattr(
        products, "WAYS", (dataclasses.replace(way, tangent=off), *products.WAYS[1:])
    )
    found = lanczos_eigenvalues(request(model, loss, x, y), 3)
    assert relative_error(found.eigenvalues, expected[:3]) < 1e-9
    assert found.certificate is not None
    assert "not the adjoint" in found.certificate.line()


def test_residuals_that_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def skewed(*_: Any) -> Pairs:
        return Pairs(np.ones(1), np.eye(294, 1), 1.0)

    monkeypatch.setattr("vivit_bench.curvature.matrix_free.leading_pairs", skewed)
    with pytest.raises(CertificateError, match="residual of eigenvalue 1"):
        lanczos_eigenvalues(small(), 1)


def test_conjugate_gradients_say_when_rounding_is_in_the_way() -> None:
    matrix = torch.diag(torch.linspace(0, 1, 30, dtype=torch.float64)) * 1e12
    noise = torch.Generator().manual_seed(0)

    def multiply(x: Tensor) -> Tensor:
        rough = torch.randn(30, generator=noise, dtype=torch.float64)
        return matrix @ x * (1 + 1e-3 * rough)

    right = torch.ones(30, dtype=torch.float64)
    with pytest.raises(VivitBenchError, match="stays at"):
        conjugate_gradients(multiply, right, 1.0, 1e-10)
    assert not conjugate_gradients(multiply, 0 * right, 1.0, 1e-10).solution.any()


def test_the_same_call_gives_the_same_numbers() -> None:
    first, second = (lanczos_eigenvalues(small(), 5) for _ in range(2))
    assert torch.equal(first.eigenvalues, second.eigenvalues)
    assert first.iterations.products == second.iterations.products
    cut = lanczos_eigenvalues(small(working_bytes=1, certify=False), 5)
    assert relative_error(cut.eigenvalues, first.eigenvalues) < 1e-12
    assert cut.certificate is None
