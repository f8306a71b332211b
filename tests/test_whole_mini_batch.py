"""Networks that treat samples differently where two samples do not show it.

Their results are certified on two samples and on V u of all of them, and compared with the oracle.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import dense
from test_curvature_defects import Lambda, check
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from vivit_bench.curvature import eigenvalues, leading_eigenvalues, newton_step
from vivit_bench.errors import UsageError

Case = tuple[nn.Module, Any]


class Gate(torch.autograd.Function):
    """A closed gate has no gradient: None, as PyTorch allows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        ctx.gate = float(gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        return (g * ctx.gate if ctx.gate else None), None


def but(number: int, usual: float, other: float, count: int = 16) -> Tensor:
    values = torch.full((count,), usual)
    values[number] = other
    return values


def by_length() -> Case:
    """Sorted, encoded, put back: rows inside are other samples' where lengths differ."""

    def run(m: Any, b: dict[str, Tensor]) -> Tensor:
        order = b["length"].argsort(descending=True, stable=True)
        h = torch.tanh(m.f(b["x"][order]))
        mask = torch.arange(5)[None] < b["length"][order, None]
        h = (h * mask[..., None]).sum(1) / b["length"][order, None]
        return m.g(h[order.argsort()])

    x = {"x": torch.randn(16, 5, 3), "length": but(13, 5, 3).long()}
    return Lambda(run, f=nn.Linear(3, 4), g=nn.Linear(4, 3)), x


def entities() -> Case:
    """Each entity once, in the order of its number."""

    def run(m: Any, x: Tensor) -> Tensor:
        found, places = x.unique(dim=0, return_inverse=True)
        return m.g(torch.tanh(m.f(found))[places])

    x = torch.randn(16, 3).sort(0).values
    x[[5, 11]] = x[[11, 5]]
    return Lambda(run, f=nn.Linear(3, 4), g=nn.Linear(4, 3)), x


def geometry(**of_nine: int) -> Case:
    """A convolution that is another one for sample 9."""

    def run(m: Any, b: dict[str, Tensor]) -> Tensor:
        out = []
        for x, usual in zip(b["x"], b["usual"].tolist(), strict=True):
            h = F.conv1d(x[None], m.c.weight, m.c.bias, **({} if usual else of_nine))
            out.append(m.g(torch.tanh(h).mean(-1)))
        return torch.cat(out)

    x = {"x": torch.randn(16, 2, 8), "usual": but(9, 1, 0)}
    return Lambda(run, c=nn.Conv1d(2, 16, 3), g=nn.Linear(16, 3)), x


def gated() -> Case:
    def run(m: Any, b: dict[str, Tensor]) -> Tensor:
        rows = zip(b["x"].split(1), b["gate"], strict=True)
        return torch.cat([m.g(m.s(x) + Gate.apply(m.f(x), gate)) for x, gate in rows])

    x = {"x": torch.randn(16, 3), "gate": but(9, 1, 0)}
    return Lambda(run, f=nn.Linear(3, 16), s=nn.Linear(3, 16), g=nn.Linear(16, 3)), x


def early_exit() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return torch.cat([m.g(r).tanh() if r[0, 0] > -9 else r.detach() for r in x.split(1)])

    x = torch.randn(16, 3)
    x[9, 0] = -10
    return Lambda(run, g=nn.Linear(3, 3)), x


def pruned() -> Case:
    """Two samples of disjoint inputs: rows of the masked weight look like samples."""
    layer = nn.Linear(4, 5)
    prune.random_unstructured(layer, "weight", 0.3)
    x = torch.tensor([[1.0, 2, 0, 0], [0, 0, 3, 1]])
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 3)), x


def two_rows() -> Case:
    """A table of two rows is a sum, and each sample has one of them."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.g(torch.tanh(F.embedding(x, m.base + m.delta)))

    tables = {name: nn.Parameter(torch.randn(2, 4)) for name in ("base", "delta")}
    return Lambda(run, **tables, g=nn.Linear(4, 3)), torch.tensor([0, 1])


def rank_zero() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.g(torch.tanh(m.f(x) + F.linear(F.linear(x, m.a), m.b)))

    empty = {"a": nn.Parameter(torch.randn(0, 3)), "b": nn.Parameter(torch.randn(4, 0))}
    return Lambda(run, f=nn.Linear(3, 4), **empty, g=nn.Linear(4, 3)), torch.randn(8, 3)


def padded_encoder() -> Case:
    """Without a graph, PyTorch would leave padded positions out; they are averaged here."""

    def run(m: Any, b: dict[str, Tensor]) -> Tensor:
        pad = torch.arange(4)[None] >= b["length"][:, None]
        return m.g(m.enc(b["x"], src_key_padding_mask=pad).mean(1))

    layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
    x = {"x": torch.randn(16, 4, 4), "length": but(12, 4, 2).long()}
    return Lambda(run, enc=nn.TransformerEncoder(layer, 1), g=nn.Linear(4, 3)), x


def hook_behind_pooling() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.c(x))
        pooled = m.pool(h)
        if h.requires_grad:
            h.register_hook(lambda g: 2 * g)
        return m.g(pooled.flatten(1))

    layers = {"c": nn.Conv2d(1, 2, 3), "pool": nn.MaxPool2d(2), "g": nn.Linear(8, 3)}
    return Lambda(run, **layers), torch.randn(8, 1, 6, 6)


CASES: dict[str, Callable[[], Case]] = {
    "sorted by length": by_length,
    "unique entities": entities,
    "stride of a sample": lambda: geometry(stride=7),
    "dilation of a sample": lambda: geometry(dilation=2, padding=1),
    "gate of a sample": gated,
    "early exit": early_exit,
    "pruned": pruned,
    "table of two rows": two_rows,
    "rank 0": rank_zero,
    "encoder with padding": padded_encoder,
}


def build(make: Callable[[], Case]) -> Case:
    torch.manual_seed(0)
    model, x = make()
    double = lambda t: t.double() if t.is_floating_point() else t  # noqa: E731
    x = {k: double(t) for k, t in x.items()} if isinstance(x, dict) else double(x)
    return model.double().eval(), x


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("samples", ["full", "frac"])
@pytest.mark.filterwarnings("ignore")
def test_networks(name: str, samples: str) -> None:
    model, x = build(CASES[name])
    y = torch.randint(3, (len(model(x)),))
    for seed in range(2):  # draws the two samples
        check(model, nn.CrossEntropyLoss(), x, y, samples, certify=True, seed=seed)


def test_a_hook_runs_where_the_pooling_is_ours() -> None:
    """Gradients are twice what they are: it is no derivative, but it is what autograd gives."""
    model, x = build(hook_behind_pooling)
    y = torch.randint(3, (8,))
    loss = nn.CrossEntropyLoss()
    found = eigenvalues(model, loss, x, y, with_gradient=True)
    expected = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
    assert found.gradient is not None
    for ours, theirs in zip(found.gradient, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10)


def test_float32_of_many_samples() -> None:
    """One sample of 400 in another's place is seen."""
    torch.manual_seed(0)
    model, x = by_length()
    x = {"x": torch.randn(400, 5, 3), "length": but(317, 5, 3, 400).long()}
    y = torch.randint(3, (400,))
    found = eigenvalues(model, nn.CrossEntropyLoss(), x, y)
    assert found.certificate is not None
    assert any("computed by plain autograd" in note for note in found.certificate.notes)
    values = dense(model, nn.CrossEntropyLoss(), x, y).ggn(400)
    expected = torch.linalg.eigvalsh(values).flip(0)
    assert torch.allclose(found.eigenvalues, expected, atol=1e-6 * expected[0])


def test_samples_whose_outputs_have_other_shapes_are_refused() -> None:
    def run(m: Any, b: dict[str, Tensor]) -> Tensor:
        return m.g(b["x"][:, : int(b["length"].max())]).transpose(1, 2)

    model = Lambda(run, g=nn.Linear(3, 3))
    x = {"x": torch.randn(8, 4, 3), "length": but(2, 4, 2, 8).long()}
    with pytest.raises(UsageError, match=r"\[1, 3, 2\] for samples 2 .*pad to a fixed length"):
        eigenvalues(model, nn.CrossEntropyLoss(), x, torch.randint(3, (8, 4)), certify="all")


def test_a_tied_parameter_has_two_names() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    model = Lambda(lambda m, x: m.net["b"](torch.tanh(m.net["a"](x))), net=model)
    x, y, loss = torch.randn(6, 3), torch.randint(3, (6,)), nn.CrossEntropyLoss()
    one, other = (
        leading_eigenvalues(model, loss, x, y, k=2, params=f"net.{name}.weight").eigenvalues
        for name in "ab"
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("model", "loss", "x", "y", "words"),
    [
        (nn.Linear(3, 0), nn.MSELoss(), (4, 3), torch.zeros(4, 0), "without outputs there is no"),
        (
            nn.Linear(3, 3),
            nn.CrossEntropyLoss(nn.Parameter(torch.ones(3))),
            (4, 3),
            torch.zeros(4).long(),
            "requires gradients",
        ),
        (
            nn.Linear(3, 3),
            nn.CrossEntropyLoss(ignore_index=0),
            (4, 3),
            torch.ones(4, 3) / 3,
            "cannot be ignored",
        ),
        (nn.Linear(3, 3), nn.MSELoss, (4, 3), torch.zeros(4, 3), r"write MSELoss\(\)"),
        (nn.LazyBatchNorm1d(), nn.MSELoss(), (4, 3), torch.zeros(4, 3), "is not initialised"),
        (
            nn.Linear(3, 5),
            nn.CrossEntropyLoss(),
            (4, 2, 3),
            torch.zeros(4, 2).long(),
            r"return outputs.movedim\(-1, 1\)",
        ),
    ],
)
def test_what_is_refused(model: nn.Module, loss: Any, x: Any, y: Tensor, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        newton_step(model.eval(), loss, torch.randn(x), y)


def test_buffers_that_are_written_past_their_version_are_restored() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        m.seen.data.add_(len(x))
        return m.g(x)

    model = Lambda(run, g=nn.Linear(3, 3))
    model.register_buffer("seen", torch.zeros(1))
    eigenvalues(model, nn.CrossEntropyLoss(), torch.randn(4, 3), torch.zeros(4).long())
    assert model.seen.item() == 0
