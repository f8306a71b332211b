"""Networks, losses and batches that the engine once answered wrongly or refused for no reason.

Each is compared with the dense float64 oracle in every quantity.
"""

import itertools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from curvature_cases import small_mlp, tuned
from oracle import dense, relative_error, tree_len
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

from vivit_bench.curvature import (
    directional_derivatives,
    eigenvalues,
    eigenvectors,
    explain,
    inverse_product,
    newton_step,
)
from vivit_bench.curvature.options import Approximation
from vivit_bench.curvature.session import Request, plan_request
from vivit_bench.errors import CertificateError, UsageError

TIGHT = 1e-8


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def check(
    model: nn.Module, loss: nn.Module, x: Any, y: Tensor, samples: str = "full", **options: Any
) -> None:
    """Every quantity against the oracle, certified on all samples."""
    reference = dense(model, loss, x, y)
    options = {"samples": samples, "certify": "all", **options}
    count = tree_len(x) if samples == "full" else max(tree_len(x) // 8, 1)
    ggn, gradient = reference.ggn(count), reference.mean_gradient
    values, vectors = torch.linalg.eigh(ggn)
    expected = values.flip(0)

    spectrum = eigenvalues(model, loss, x, y, with_gradient=True, **options)
    found = spectrum.eigenvalues
    assert len(found) == min(spectrum.info.num_columns, spectrum.info.num_params)
    assert relative_error(found, expected[: len(found)]) < TIGHT
    assert expected[len(found) :].abs().sum() <= TIGHT * expected[0]
    assert spectrum.gradient is not None
    assert relative_error(flat(spectrum.gradient), gradient) < TIGHT
    assert spectrum.info.loss == pytest.approx(reference.loss, rel=1e-10)

    cutoff = _gap(expected)
    keep = values > cutoff
    step = newton_step(model, loss, x, y, damping=0.5, cutoff=cutoff, **options)
    e, kept = vectors[:, keep], values[keep]
    wanted = -e @ (e.t() @ gradient / (kept + 0.5))
    assert relative_error(flat(step.step), wanted) < TIGHT
    whole = newton_step(model, loss, x, y, damping=0.5, cutoff=None, **options)
    damped = ggn + 0.5 * torch.eye(len(ggn), dtype=ggn.dtype)
    assert relative_error(flat(whole.step), -torch.linalg.solve(damped, gradient)) < TIGHT

    seen = directional_derivatives(model, loss, x, y, cutoff=cutoff, **options)
    gammas = reference.gradients @ e
    assert relative_error(seen.gammas @ seen.gammas.t(), gammas @ gammas.t()) < TIGHT
    lambdas = reference.curvatures(e, count)
    assert relative_error(seen.lambdas.sum(1), lambdas.sum(1)) < TIGHT

    basis = eigenvectors(model, loss, x, y, cutoff=cutoff, **options)
    formed = torch.stack([flat(v) for chunk in basis.chunks() for v in chunk], 1)
    assert relative_error(ggn @ formed, formed * basis.eigenvalues) < TIGHT
    parameters = [p for p in model.parameters() if p.requires_grad]
    vector = [torch.randn_like(p) for p in parameters]
    (product,) = inverse_product(model, loss, x, y, [vector], damping=0.5, **options)
    assert relative_error(damped @ flat(product), flat(vector)) < TIGHT


def _gap(values: Tensor) -> float:
    """A cutoff in the widest relative gap between the larger eigenvalues, descending."""
    large = values[values > 1e-6 * values[0]]
    if len(large) < 2:
        return float(large[-1]) / 2
    k = int((large[:-1] / large[1:]).argmax())
    return float((large[k] * large[k + 1]).sqrt())


class Lambda(nn.Module):
    """A forward pass over some children and parameters."""

    def __init__(self, forward: Callable[..., Tensor], **members: Any) -> None:
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)
        self._forward = forward

    def forward(self, x: Any) -> Tensor:
        return self._forward(self, x)


class NoBatchingRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        assert grad.shape == x.shape  # raises when columns are mapped
        return grad * x.cos()


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 6, **options), 1, enable_nested_tensor=False
    )


def hooked() -> nn.Module:
    model = small_mlp()
    model[0].register_forward_hook(lambda m, a, out: out * 2)
    model[2].register_forward_pre_hook(lambda m, a: (a[0].sin(),))
    return model


def patched() -> nn.Module:
    model = small_mlp()
    forward = lambda self, x: 3 * F.linear(x, self.weight, self.bias)  # noqa: E731
    model[0].forward = types.MethodType(forward, model[0])
    return model


def mixture() -> nn.Module:
    """Each sample goes to one of two experts, and none to a third."""

    def forward(self: Any, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 3, dtype=x.dtype)
        choice = (x[:, 0] > 0).long()
        for k, expert in enumerate(self.experts):
            rows = choice == k
            if rows.any():
                out = out.index_put((rows.nonzero()[:, 0],), expert(x[rows]))
        return out + self.shared(x)

    experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
    return Lambda(forward, experts=experts, shared=nn.Linear(3, 3))


def pruned() -> nn.Module:
    model = small_mlp()
    prune.l1_unstructured(model[0], "weight", amount=0.4)
    return model


def tied_gpt() -> nn.Module:
    def forward(self: Any, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        h = self.emb(tokens) + self.pos(torch.arange(length))
        mask = torch.triu(torch.full((length, length), float("-inf"), dtype=h.dtype), 1)
        h = self.block(h, mask=mask)
        return F.linear(h, self.emb.weight).transpose(1, 2)

    return Lambda(
        forward,
        emb=nn.Embedding(5, 4),
        pos=nn.Embedding(6, 4),
        block=encoder(batch_first=True, norm_first=True),
    )


def tokens(n: int = 3, length: int = 3, vocabulary: int = 5) -> Tensor:
    return torch.randint(vocabulary, (n, length))


CASES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "one position, not the whole input": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 1, stride=2), nn.Flatten()),
        torch.randn(4, 2, 2, 2),
    ),
    "one position, circular padding": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=4, padding=1, padding_mode="circular"), nn.Flatten()
        ),
        torch.randn(3, 2, 3, 3),
    ),
    "valid padding": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 2, padding="valid"), nn.Tanh(), nn.Flatten()),
        torch.randn(3, 2, 3, 3),
    ),
    "writes into its input": lambda: (
        Lambda(lambda s, x: s.fc(x.clone().mul_(0.5).add_(1.0)), fc=nn.Linear(3, 3)),
        torch.randn(4, 3),
    ),
    "dropout that drops nothing, training": lambda: (
        Lambda(lambda s, x: s.fc(s.drop(x)), fc=nn.Linear(3, 3), drop=nn.Dropout(0.0)),
        torch.randn(4, 3),
    ),
    "weight also used by a function": lambda: (
        Lambda(
            lambda s, x: F.linear(s.emb(x).mean(1), s.emb.weight), emb=nn.Embedding(5, 4)
        ),
        tokens(),
    ),
    "parameter list": lambda: (
        Lambda(
            lambda s, x: x @ s.ws[0] + (x @ s.ws[1]).sin(),
            ws=nn.ParameterList([parameter(3, 3), parameter(3, 3)]),
        ),
        torch.randn(4, 3),
    ),
    "a list as argument": lambda: (
        Lambda(
            lambda s, x: s.join([x.sin(), x.cos()]),
            join=Lambda(lambda s, xs: s.fc(xs[0]) * xs[1], fc=nn.Linear(3, 3)),
        ),
        torch.randn(4, 3),
    ),
    "mask as long as the mini-batch": lambda: (
        Lambda(
            lambda s, x: s.mix(x, torch.tril(torch.ones(4, 4, dtype=x.dtype))),
            mix=TwoArguments(lambda s, x, m: (m @ s.fc(x)).mean(1), fc=nn.Linear(3, 3)),
        ),
        torch.randn(4, 4, 3),
    ),
    "hooks that change values": lambda: (hooked(), torch.randn(4, 3)),
    "patched forward": lambda: (patched(), torch.randn(4, 3)),
    "cdist": lambda: (
        Lambda(
            lambda s, x: s.fc(torch.cdist(x, s.centres)),
            centres=parameter(4, 3),
            fc=nn.Linear(4, 3),
        ),
        torch.randn(4, 3),
    ),
    "functional PReLU": lambda: (
        Lambda(lambda s, x: s.fc(F.prelu(x, s.slope)), slope=parameter(3), fc=nn.Linear(3, 3)),
        torch.randn(4, 3),
    ),
    "old weight norm": lambda: (
        nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 3)),
        torch.randn(4, 3),
    ),
    "pruned": lambda: (pruned(), torch.randn(4, 3)),
    "an expert without samples": lambda: (mixture(), torch.randn(6, 3)),
    "an expert of one sample": lambda: (
        mixture(), torch.randn(4, 3).abs() * torch.tensor([[-1.0], [1.0], [1.0], [1.0]])
    ),
    "attention": lambda: (
        Lambda(
            lambda s, x: s.mha(x, x, value=x)[0].mean(1)[:, :3],
            mha=nn.MultiheadAttention(4, 2, batch_first=True),
        ),
        torch.randn(3, 5, 4),
    ),
    "encoder, batch first": lambda: (
        Lambda(lambda s, x: s.enc(x).mean(1)[:, :3], enc=encoder(batch_first=True)),
        torch.randn(3, 4, 4),
    ),
    "encoder, sequence first": lambda: (
        Lambda(lambda s, x: s.enc(x.transpose(0, 1)).mean(0)[:, :3], enc=encoder()),
        torch.randn(4, 4, 4),
    ),
    "LSTM": lambda: (
        Lambda(lambda s, x: s.rnn(x)[0][:, -1], rnn=nn.LSTM(2, 3, batch_first=True)),
        torch.randn(3, 4, 2),
    ),
    "GRU": lambda: (
        Lambda(lambda s, x: s.rnn(x)[1][0], rnn=nn.GRU(2, 3, batch_first=True)),
        torch.randn(3, 4, 2),
    ),
    "relative positions": lambda: (
        Lambda(
            lambda s, x: s.fc((x + s.table[torch.tensor([0, 1, 1, 2])]).tanh().mean(1)),
            table=parameter(3, 3),
            fc=nn.Linear(3, 3),
        ),
        torch.randn(3, 4, 3),
    ),
    "new weight norm": lambda: (
        nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 3)),
        torch.randn(4, 3),
    ),
    "spectral norm": lambda: (
        nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 3)),
        torch.randn(4, 3),
    ),
    "orthogonal": lambda: (
        nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 3)),
        torch.randn(4, 3),
    ),
    "no batching rule": lambda: (
        Lambda(
            lambda s, x: s.b(NoBatchingRule.apply(s.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 3)
        ),
        torch.randn(4, 3),
    ),
    "positions and class token": lambda: (
        Lambda(
            lambda s, x: s.fc(
                (torch.cat([s.token.expand(len(x), -1, -1), x], 1) * s.gain + s.pos).tanh().mean(1)
            ),
            token=parameter(1, 1, 3),
            gain=parameter(3),
            pos=parameter(5, 3),
            fc=nn.Linear(3, 3),
        ),
        torch.randn(3, 4, 3),
    ),
    "windows in the batch axis": lambda: (
        Lambda(
            lambda s, x: s.fc(s.conv(x.reshape(-1, 2, 2, 2)).tanh().reshape(len(x), -1)),
            conv=nn.Conv2d(2, 2, 2),
            fc=nn.Linear(6, 3),
        ),
        torch.randn(3, 6, 2, 2),
    ),
    "dict inputs": lambda: (
        Lambda(
            lambda s, x: s.fc((s.emb(x["tokens"]) * x["mask"].unsqueeze(2)).sum(1)),
            emb=nn.Embedding(5, 4, padding_idx=0),
            fc=nn.Linear(4, 3),
        ),
        {"tokens": tokens(4, 3), "mask": torch.rand(4, 3)},
    ),
    "tuple inputs": lambda: (
        Lambda(lambda s, x: s.fc(x[0]) + s.fc(x[1]), fc=nn.Linear(3, 3)),
        (torch.randn(4, 3), torch.randn(4, 3)),
    ),
    "parameter that only some samples use": lambda: (
        Lambda(
            lambda s, x: torch.cat(
                [s.a(r[None]) if r[0] > 0 else s.b(r[None]) * s.gain for r in x]
            ),
            a=nn.Linear(3, 3),
            b=nn.Linear(3, 3),
            gain=parameter(1),
        ),
        torch.randn(5, 3),
    ),
}  # fmt: skip


class TwoArguments(Lambda):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self._forward(self, x, mask)


def build(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, x = CASES[name]()
    double = lambda t: t.double() if t.is_floating_point() else t  # noqa: E731
    if isinstance(x, dict):
        x = {k: double(v) for k, v in x.items()}
    else:
        x = tuple(double(t) for t in x) if isinstance(x, tuple) else double(x)
    model = model.double().eval()
    if "training" in name:
        model.train()
    return model, x


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("samples", ["full", "frac"])
@pytest.mark.parametrize("working_bytes", [2**22, 1])
@pytest.mark.filterwarnings("ignore")
@pytest.mark.one_in(3)
def test_networks(name: str, samples: str, working_bytes: int) -> None:
    model, x = build(name)
    classes = model(x).shape[1]
    y = torch.randint(classes, (tree_len(x),))
    check(model, nn.CrossEntropyLoss(), x, y, samples, working_bytes=working_bytes)


def test_a_language_model_with_padding() -> None:
    torch.manual_seed(0)
    model, x = tied_gpt().double().eval(), tokens(3, 3)
    y = tokens(3, 3)
    y[1, 2:] = -100
    check(model, nn.CrossEntropyLoss(), x, y)
    certificate = eigenvalues(model, nn.CrossEntropyLoss(), x, y, curvature="mc").certificate
    assert certificate is not None
    assert certificate.worst < 1e-12


WEIGHT = torch.tensor([0.5, 2.0, 1.0])
LABELS = torch.tensor([0, 2, 1, 2])
LOSSES: dict[str, tuple[nn.Module, tuple[int, ...], Callable[[tuple[int, ...]], Tensor]]] = {
    f"{name}-{reduction}": (make(reduction), shape, targets)
    for reduction in ("mean", "sum")
    for name, make, shape, targets in (
        ("plain", lambda r: nn.CrossEntropyLoss(reduction=r), (3,), lambda s: LABELS),
        (
            "class weights",
            lambda r: nn.CrossEntropyLoss(WEIGHT, reduction=r),
            (3,),
            lambda s: LABELS,
        ),
        (
            "ignored",
            lambda r: nn.CrossEntropyLoss(ignore_index=2, reduction=r),
            (3,),
            lambda s: LABELS,
        ),
        (
            "smoothed",
            lambda r: nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2, reduction=r),
            (3,),
            lambda s: LABELS,
        ),
        (
            "probabilities",
            lambda r: nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1, reduction=r),
            (3,),
            lambda s: torch.rand(s).softmax(1),
        ),
        (
            "tokens",
            lambda r: nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.1, reduction=r),
            (3, 2),
            lambda s: torch.tensor([[0, 1], [2, 2], [1, 1], [1, 0]]),
        ),
        (
            "pixels",
            lambda r: nn.CrossEntropyLoss(reduction=r),
            (3, 2, 2),
            lambda s: torch.randint(3, (s[0], *s[2:])),
        ),
        (
            "pixel probabilities",
            lambda r: nn.CrossEntropyLoss(reduction=r),
            (3, 2, 2),
            lambda s: torch.rand(s).softmax(1),
        ),
        ("MSE", lambda r: nn.MSELoss(reduction=r), (2, 3), torch.randn),
        ("MSE of scalars", lambda r: nn.MSELoss(reduction=r), (), torch.randn),
        ("BCE", lambda r: nn.BCEWithLogitsLoss(reduction=r), (3,), torch.rand),
        (
            "BCE weights",
            lambda r: nn.BCEWithLogitsLoss(WEIGHT, pos_weight=WEIGHT.flip(0), reduction=r),
            (3,),
            lambda s: torch.rand(s).round(),
        ),
        ("BCE of scalars", lambda r: nn.BCEWithLogitsLoss(reduction=r), (), torch.rand),
    )
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("samples", ["full", "frac"])
def test_losses(name: str, samples: str) -> None:
    loss, shape, targets = LOSSES[name]
    torch.manual_seed(0)
    size = max(int(torch.Size(shape).numel()), 1)
    body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, size))
    model = Lambda(lambda s, x: s.body(x).reshape(len(x), *shape), body=body).double()
    y = targets((4, *shape))
    y = y.double() if y.is_floating_point() else y
    check(model, loss.double(), torch.randn(4, 3).double(), y, samples)


@pytest.mark.parametrize("name", LOSSES)
def test_monte_carlo_columns_have_the_hessian_as_their_mean(name: str) -> None:
    """Also for many terms a sample, whose draws are summed into one column."""
    from vivit_bench.curvature.loss_factor import loss_factor

    loss, shape, targets = LOSSES[name]
    torch.manual_seed(0)
    outputs = torch.randn(4, *shape).double()
    y = targets((4, *shape))
    approximation = Approximation("mc", mc_samples=60_000)  # type: ignore[arg-type]
    factor = loss_factor(loss.double(), torch.Size(shape), y, approximation)
    noise = factor.noise()
    drawn = factor.columns(outputs, slice(0, 4), noise).reshape(4, 60_000, -1)
    exact = factor.columns(outputs, slice(0, 4), None)
    exact = exact.reshape(4, exact.shape[1], -1)
    assert relative_error(drawn.mT @ drawn, exact.mT @ exact) < 0.05


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4).double(), torch.randn(3, 3).double()
    y = torch.tensor([0, 1, 3])
    found = eigenvalues(model, nn.CrossEntropyLoss(), x, y.to(dtype)).eigenvalues
    assert torch.equal(found, eigenvalues(model, nn.CrossEntropyLoss(), x, y).eigenvalues)


GEOMETRIES = [
    (dims, size, kernel, stride, padding, dilation, groups, mode)
    for dims, size, kernel, stride, padding, dilation, groups, mode in itertools.product(
        (1, 2, 3),
        (1, 3, 4),
        (1, 2, 3),
        (1, 2, 4),
        (0, 1, "same"),
        (1, 2),
        (1, 2),
        ("zeros", "reflect", "circular"),
    )
    if (padding != "same" or stride == 1)
    and (padding != 1 or mode == "zeros" or size > 1)
    and (padding == "same" or size + 2 * padding >= dilation * (kernel - 1) + 1)
    and (padding != "same" or mode == "zeros" or size > dilation * (kernel - 1))
    and not (padding == 0 and mode != "zeros")
]


@pytest.mark.parametrize("part", range(8))
@pytest.mark.one_in(4)
def test_convolutions_of_every_geometry(part: int) -> None:
    """The whole grid, each by every contraction that it can take."""
    for number, geometry in enumerate(GEOMETRIES):
        if number % 8 == part and (number // 8) % 3 == 0:
            _check_convolution(*geometry)


def _check_convolution(
    dims: int,
    size: int,
    kernel: int,
    stride: int,
    padding: int | str,
    dilation: int,
    groups: int,
    mode: str,
) -> None:
    make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    torch.manual_seed(0)
    conv = make(2, 2, kernel, stride, padding, dilation, groups, padding_mode=mode)  # type: ignore[arg-type]
    x = torch.randn(2, 2, *[size] * dims).double()
    body = nn.Sequential(conv, nn.Flatten()).double()
    features = body(x).shape[1]
    # A fixed head keeps the number of outputs small and the layer above parameters.
    head = torch.randn(features, 3).double()
    model = Lambda(lambda s, x: s.body(x) @ head, body=body)
    y = torch.randint(3, (2,))
    reference = torch.linalg.eigvalsh(dense(model, nn.CrossEntropyLoss(), x, y).ggn()).flip(0)
    for weight in (1e-9, 1.0, 1e9):  # sample pairs, the cheaper, chunks
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*tuned(pairs_weight=weight))
            found = eigenvalues(model, nn.CrossEntropyLoss(), x, y, certify="all")
        error = relative_error(found.eigenvalues, reference[: len(found.eigenvalues)])
        assert error < TIGHT, (dims, size, kernel, stride, padding, dilation, groups, mode)


class Focal(nn.CrossEntropyLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return 2 * super().forward(input, target)


def smoothed(amount: float) -> nn.Module:
    loss = nn.CrossEntropyLoss()
    loss.label_smoothing = amount
    return loss


class Stored(nn.Module):
    """Reads the whole mini-batch from an attribute."""

    def __init__(self, batch: Tensor) -> None:
        super().__init__()
        self.fc, self.batch = nn.Linear(3, 3), batch

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.batch[: len(x)].sum()


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
REFUSED: dict[str, tuple[Callable[[], nn.Module], nn.Module, type[Exception], str]] = {
    "focal loss": (lambda: nn.Linear(3, 3), Focal(), UsageError, "changes what CrossEntropyLoss"),
    "negative weights": (
        lambda: nn.Linear(3, 3), nn.CrossEntropyLoss(-WEIGHT), UsageError, "not negative",
    ),
    "nothing counts": (
        lambda: nn.Linear(3, 3), nn.CrossEntropyLoss(torch.zeros(3)), UsageError, "weight is zero",
    ),
    "coupled": (
        lambda: Lambda(lambda s, x: s.fc(x - x.mean(0)), fc=nn.Linear(3, 3)),
        nn.CrossEntropyLoss(), CertificateError, "couples its samples",
    ),
    "random": (
        lambda: Lambda(lambda s, x: s.fc(F.dropout(x)), fc=nn.Linear(3, 3)),
        nn.CrossEntropyLoss(), CertificateError, "is random",
    ),
    "batch from an attribute": (
        lambda: Stored(X), nn.CrossEntropyLoss(), CertificateError, "couples its samples",
    ),
    "gradients scaled by frequency": (
        lambda: Lambda(
            lambda s, x: s.fc(s.emb((x > 0).long()).sum(1)),
            emb=nn.Embedding(2, 4, scale_grad_by_freq=True),
            fc=nn.Linear(4, 3),
        ),
        nn.CrossEntropyLoss(), CertificateError, "in the backward pass",
    ),
    "coupled backward pass": (
        lambda: Lambda(
            lambda s, x: (lambda h: s.b(h + h.mean(0) - h.mean(0).detach()))(s.a(x)),
            a=nn.Linear(3, 3),
            b=nn.Linear(3, 3),
        ),
        nn.CrossEntropyLoss(), CertificateError, "in the backward pass",
    ),
    "integer weights": (
        lambda: nn.Linear(3, 3), nn.CrossEntropyLoss(WEIGHT.long()), UsageError, "floating-point",
    ),
    "smoothing above one": (
        lambda: nn.Linear(3, 3), smoothed(2.0), UsageError, "label_smoothing of CrossEntropyLoss",
    ),
    "NaN derivative": (
        lambda: Lambda(lambda s, x: s.a(x) + (0 * s.a(x)).abs().sqrt(), a=nn.Linear(3, 3)),
        nn.CrossEntropyLoss(), Exception, "not finite|overflows or is NaN|backward pass",
    ),
    "complex parameters": (
        lambda: Lambda(
            lambda s, x: (x * s.c).abs() @ torch.ones(3, 3), c=nn.Parameter(torch.ones(3) * 1j)
        ),
        nn.CrossEntropyLoss(), UsageError, "use model.float",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    make, loss, kind, line = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(kind, match=line) as caught:
        eigenvalues(make(), loss, X, LABELS)
    assert "\n" not in str(caught.value)


def test_sparse_gradients_are_counted() -> None:
    torch.manual_seed(0)
    model = Lambda(
        lambda s, x: s.fc(s.emb(x).sum(1)), emb=nn.Embedding(5, 4, sparse=True), fc=nn.Linear(4, 3)
    ).double()
    x = tokens(4, 3)
    found = eigenvalues(model, nn.CrossEntropyLoss(), x, LABELS, with_gradient=True)
    dense_model = Lambda(model._forward, emb=nn.Embedding(5, 4), fc=model.fc).double()
    dense_model.load_state_dict(model.state_dict())
    expected = dense(dense_model, nn.CrossEntropyLoss(), x, LABELS)
    values = torch.linalg.eigvalsh(expected.ggn()).flip(0)
    assert relative_error(found.eigenvalues, values[: len(found.eigenvalues)]) < TIGHT
    assert found.gradient is not None
    assert relative_error(flat(found.gradient), expected.mean_gradient) < TIGHT


@pytest.mark.filterwarnings("ignore")
def test_compiled_models_and_inference_mode() -> None:
    torch.manual_seed(0)
    model = small_mlp()
    expected = eigenvalues(model, nn.CrossEntropyLoss(), X, LABELS).eigenvalues
    compiled = torch.compile(model, backend="eager")
    found = eigenvalues(compiled, nn.CrossEntropyLoss(), X, LABELS).eigenvalues
    torch.testing.assert_close(found, expected)
    with torch.inference_mode():
        inside = eigenvalues(model, nn.CrossEntropyLoss(), X.clone(), LABELS).eigenvalues
    torch.testing.assert_close(inside, expected)


def test_chosen_parameters_and_blocks() -> None:
    torch.manual_seed(0)
    model = small_mlp().double()
    x = X.double()
    reference = dense(model, nn.CrossEntropyLoss(), x, LABELS, ["2.weight", "2.bias"])
    values = torch.linalg.eigvalsh(reference.ggn()).flip(0)
    head = eigenvalues(model, nn.CrossEntropyLoss(), x, LABELS, params="2.*", with_gradient=True)
    assert relative_error(head.eigenvalues, values[: len(head.eigenvalues)]) < TIGHT
    assert head.info.num_params == 15
    assert head.gradient is not None
    assert [g.shape for g in head.gradient] == [model[2].weight.shape, model[2].bias.shape]

    blocks = {"weights": "*.weight", "biases": ["*.bias"]}
    whole = dense(model, nn.CrossEntropyLoss(), x, LABELS)
    mask = whole.block_mask([["0.weight", "2.weight"], ["0.bias", "2.bias"]])
    expected = torch.linalg.eigvalsh(whole.ggn() * mask).flip(0)
    found = eigenvalues(model, nn.CrossEntropyLoss(), x, LABELS, blocks=blocks, certify="all")
    assert list(found.blocks) == ["weights", "biases"]
    size = len(found.eigenvalues)
    assert relative_error(found.eigenvalues, expected[:size]) < TIGHT
    for wrong, line in (({"a": "0.*"}, "in no block"), ({"a": "x"}, "matches no parameter")):
        with pytest.raises(UsageError, match=line):
            eigenvalues(model, nn.CrossEntropyLoss(), x, LABELS, blocks=wrong)
    with pytest.raises(UsageError, match="matches no trainable"):
        eigenvalues(model, nn.CrossEntropyLoss(), x, LABELS, params="layer4.*")


def test_a_misspelt_keyword_names_the_function() -> None:
    with pytest.raises(TypeError, match=r"eigenvalues\(\) got an unexpected keyword argument"):
        eigenvalues(nn.Linear(3, 3), nn.CrossEntropyLoss(), X, LABELS, sample="frac")  # type: ignore[call-arg]


@pytest.mark.parametrize("cutoff", [-1.0, float("nan")])
def test_cutoffs_that_make_no_sense(cutoff: float) -> None:
    for quantity in (newton_step, directional_derivatives, eigenvectors):
        with pytest.raises(UsageError, match="cutoff is"):
            quantity(nn.Linear(3, 3), nn.CrossEntropyLoss(), X, LABELS, cutoff=cutoff)
    with pytest.raises(UsageError, match="curvature is 'foo'"):
        eigenvalues(nn.Linear(3, 3), nn.CrossEntropyLoss(), X, LABELS, curvature="foo")


def test_tiers() -> None:
    """Fast rules where the graph allows them, plain autograd only where nothing else is left."""
    torch.manual_seed(0)
    for name, tiers in (
        ("windows in the batch axis", {"fast"}),
        ("positions and class token", {"fast", "small"}),
        ("hooks that change values", {"fast"}),
        ("cdist", {"fast", "plain"}),
        ("new weight norm", {"fast", "plain"}),
    ):
        model, x = build(name)
        y = torch.zeros(tree_len(x), dtype=torch.long)
        found = explain(model, nn.CrossEntropyLoss(), x, y, curvature="mc")
        assert {unit.tier.value for unit in found.units} == tiers, name
        assert found.one_sample_at_a_time == ("plain" in tiers), name
    assert any("Cdist" in note for note in explain(*_cdist()).notes)


def _cdist() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    model, x = build("cdist")
    return model, nn.CrossEntropyLoss(), x, torch.zeros(len(x), dtype=torch.long)


def test_parametrised_layers_keep_their_name() -> None:
    model, x = build("new weight norm")
    y = torch.zeros(len(x), dtype=torch.long)
    blocks = eigenvalues(model, nn.CrossEntropyLoss(), x, y, blocks="layer").blocks
    assert list(blocks) == ["0", "2"]
    assert parametrize.is_parametrized(model[0])  # type: ignore[index]


@pytest.mark.parametrize(
    "options",
    [
        {"mc_samples": "2"}, {"curvature": "mc", "mc_samples": 1.5}, {"seed": 1.5}, {"seed": -1},
        {"seed": 2**64}, {"blocks": {"a": 1}}, {"blocks": "rows"}, {"blocks": 3}, {"params": []},
        {"params": 1}, {"params": [1]}, {"working_bytes": 0}, {"working_bytes": 1.5},
        {"certify": "some"}, {"damping": "a"}, {"damping": None}, {"damping": -1.0},
        {"damping": lambda g, c: 1.0}, {"damping": lambda g, c: c}, {"damping": lambda g: g},
        {"damping": lambda g, c: -c.mean(0)}, {"cutoff": "a"}, {"cutoff": True},
        {"damping": 0.0, "cutoff": None},
    ],
)  # fmt: skip
def test_values_that_make_no_sense(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    with pytest.raises(UsageError) as caught:
        newton_step(nn.Linear(3, 3), nn.CrossEntropyLoss(), X, LABELS, **options)
    assert "\n" not in str(caught.value)


def test_policies_cannot_change_what_they_are_given() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    expected = newton_step(model, nn.CrossEntropyLoss(), X, LABELS, damping=0.5).step

    def policy(gammas: Tensor, lambdas: Tensor) -> Tensor:
        gammas.zero_()
        return torch.full_like(lambdas.zero_()[0], 0.5)

    found = newton_step(model, nn.CrossEntropyLoss(), X, LABELS, damping=policy).step
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("blocks", ["none", "layer"])
@pytest.mark.parametrize("make", [nn.MSELoss, nn.CrossEntropyLoss])
def test_small_damping_costs_no_digits(
    dtype: torch.dtype, blocks: str, make: Callable[[], nn.Module]
) -> None:
    """The gradient lies in the range of V, where no difference of large vectors is needed."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 3)).to(dtype)
    loss, x = make(), torch.randn(6, 4).to(dtype)
    y = torch.randn(6, 3).to(dtype) if isinstance(loss, nn.MSELoss) else torch.randint(3, (6,))
    reference = dense(model, loss, x, y)
    names = [["0.weight", "0.bias"], ["2.weight", "2.bias"]]
    ggn = reference.ggn() * (1 if blocks == "none" else reference.block_mask(names))
    values, vectors = torch.linalg.eigh(ggn)
    keep = values > 1e-10 * values[-1]  # the gradient has no part in the others
    e, kept = vectors[:, keep], values[keep]
    for damping in (1e-2, 1e-5, 1e-8):
        step = newton_step(model, loss, x, y, damping=damping, cutoff=None, blocks=blocks)
        expected = -e @ ((e.t() @ reference.mean_gradient) / (kept + damping))
        bound = 1e-7 if dtype is torch.float64 else 2e-2
        assert relative_error(flat(step.step), expected) < bound
    # Products with any vector are not given where their digits are lost.
    gradient = eigenvalues(model, loss, x, y, with_gradient=True).gradient
    assert gradient is not None
    if dtype is torch.float32:
        with pytest.raises(CertificateError, match="use a larger damping, float64"):
            inverse_product(model, loss, x, y, [gradient], damping=1e-8, blocks=blocks)


def test_directions_above_rounding_only() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(40, 4)
    y = torch.randint(3, (40,))
    rank = int(torch.linalg.matrix_rank(dense(model, nn.CrossEntropyLoss(), x, y).ggn()))
    seen = directional_derivatives(model, nn.CrossEntropyLoss(), x, y, cutoff=0.0)
    assert len(seen.eigenvalues) <= rank
    assert seen.eigenvalues[-1] > 1e-7 * seen.eigenvalues[0]


def test_no_trace_in_inputs_and_renormalised_embeddings() -> None:
    torch.manual_seed(0)
    emb = nn.Embedding(6, 4, max_norm=0.5)
    model = Lambda(lambda s, x: s.fc(s.emb(x).sum(1)), emb=emb, fc=nn.Linear(4, 3))
    before = emb.weight.detach().clone()
    eigenvalues(model, nn.CrossEntropyLoss(), tokens(4, 3), LABELS)
    assert torch.equal(before, emb.weight)
    writes = Lambda(lambda s, x: s.fc(x.mul_(0.5)), fc=nn.Linear(3, 3))
    x = X.clone()
    newton_step(writes, nn.CrossEntropyLoss(), x, LABELS)
    assert torch.equal(x, X)


def test_sparse_inputs_are_refused() -> None:
    with pytest.raises(UsageError, match="pass dense ones"):
        eigenvalues(nn.Linear(3, 3), nn.CrossEntropyLoss(), X.to_sparse(), LABELS)


def test_columns_of_an_ordinary_network_run_together() -> None:
    loss, x = nn.CrossEntropyLoss(), torch.randn(4, 3)
    _, plan = plan_request(Request(small_mlp(), loss, x, LABELS, Approximation()))
    assert plan.route.batched_columns
    assert plan.route.layouts is not None
    assert plan.route.notes == ()
