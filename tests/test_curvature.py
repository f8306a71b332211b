"""Every quantity of the engine against the dense float64 oracle, over one table of cases."""

import pytest
import torch
from curvature_cases import CASES, Case, case, reference_of, tuned
from oracle import dense, relative_error
from torch import Tensor, nn

from vivit_bench.curvature import (
    Blocks,
    Curvature,
    Samples,
    directional_derivatives,
    eigenvalues,
    eigenvectors,
    explain,
    has_zero_variance,
    inverse_product,
    newton_step,
    signal_to_noise,
)
from vivit_bench.curvature.loss_factor import LossFactor, _Diagonal

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
DTYPES = list(TOLERANCE)
CUTOFF = 1e-4

cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors]).double()


def layer_blocks(model: nn.Module, *request: object) -> list[list[str]]:
    """Parameter names of each layer, as the engine has them."""
    names = {p: n for n, p in model.named_parameters()}
    layers: dict[str, list[str]] = {}
    for unit in explain(model, *request).units:  # type: ignore[arg-type]
        layers.setdefault(unit.name, []).extend(names[p] for p in unit.parameters)
    return list(layers.values())


def newton_reference(g: Tensor, gradient: Tensor, damping: float, cutoff: float) -> Tensor:
    values, vectors = torch.linalg.eigh(g)
    keep = values > cutoff
    values, vectors = values[keep], vectors[:, keep]
    return -vectors @ (vectors.t() @ gradient / (values + damping))


@cases
@dtypes
def test_eigenvalues_trace_and_loss(case: Case, dtype: torch.dtype) -> None:
    model, loss, x, y = case.build(dtype)
    reference = reference_of(case, dtype)
    expected = torch.linalg.eigvalsh(reference.ggn()).flip(0)
    result = eigenvalues(model, loss, x, y)
    count = len(result.eigenvalues)
    assert count == min(result.info.num_columns, result.info.num_params)
    assert relative_error(result.eigenvalues, expected[:count]) < TOLERANCE[dtype]
    # The D - M others are zeros of the GGN too.
    assert expected[count:].abs().max() < 1e-10 * expected[0] if count < len(expected) else True
    assert result.trace == pytest.approx(reference.ggn().trace().item(), rel=TOLERANCE[dtype])
    assert result.trace == pytest.approx(result.eigenvalues.sum().item(), rel=TOLERANCE[dtype])
    assert result.info.loss == pytest.approx(loss(model(x), y).item(), rel=1e-5)


@cases
@dtypes
@pytest.mark.parametrize("curvature", list(Curvature))
@pytest.mark.parametrize("samples", list(Samples))
@pytest.mark.one_in(5)
def test_the_gradient_comes_along(
    case: Case, dtype: torch.dtype, curvature: Curvature, samples: Samples
) -> None:
    """However the passes share it, it is the whole mini-batch's gradient; ``.grad`` is not set."""
    model, loss, x, y = case.build(dtype)
    options = {"curvature": curvature, "samples": samples, "with_gradient": True}
    expected = reference_of(case, dtype).mean_gradient
    for cut in (2**20, 1):  # one micro-batch, and one for every sample
        found = eigenvalues(model, loss, x, y, working_bytes=cut, **options).gradient
        assert found is not None
        assert relative_error(flat(found), expected) < TOLERANCE[dtype]
    for others in (
        newton_step(model, loss, x, y, **options),
        # A policy needs every sample's slopes, which take passes of their own.
        newton_step(model, loss, x, y, damping=lambda _, curvatures: curvatures.mean(0), **options),
        newton_step(model, loss, x, y, blocks=Blocks.LAYER, **options),
        directional_derivatives(model, loss, x, y, **options),
    ):
        assert others.gradient is not None
        assert relative_error(flat(others.gradient), expected) < TOLERANCE[dtype]
    assert newton_step(model, loss, x, y).gradient is None
    assert all(p.grad is None for p in model.parameters())


@cases
def test_layer_blocks_are_the_diagonal_blocks(case: Case) -> None:
    model, loss, x, y = case.build(torch.float64)
    reference = reference_of(case)
    ggn = reference.ggn() * reference.block_mask(layer_blocks(model, loss, x, y))
    expected = torch.linalg.eigvalsh(ggn).flip(0)
    result = eigenvalues(model, loss, x, y, blocks=Blocks.LAYER)
    together = torch.cat(list(result.blocks.values())).sort(descending=True).values
    assert torch.equal(together, result.eigenvalues)
    leading = min(len(expected), len(together))
    assert relative_error(together[:leading], expected[:leading]) < 1e-8


@cases
@dtypes
@pytest.mark.parametrize("samples", list(Samples))
@pytest.mark.parametrize("working_bytes", [2**22, 1], ids=["whole", "cut"])
@pytest.mark.one_in(5)
def test_directional_derivatives(
    case: Case, dtype: torch.dtype, samples: Samples, working_bytes: int
) -> None:
    """Sums over invariant groups: G's eigenvectors have arbitrary signs and rotations."""
    model, loss, x, y = case.build(dtype)
    reference = reference_of(case, dtype)
    count = samples.size(len(x))
    values, vectors = torch.linalg.eigh(reference.ggn(count))
    keep = values > CUTOFF
    values, vectors = values[keep].flip(0), vectors[:, keep].flip(1)
    result = directional_derivatives(
        model, loss, x, y, samples=samples, cutoff=CUTOFF, working_bytes=working_bytes
    )
    assert len(result.eigenvalues) == len(values)
    assert relative_error(result.eigenvalues, values) < TOLERANCE[dtype]
    if not len(values):  # one saturated sample has no curvature above the cutoff
        return
    # Directions whose eigenvalues are apart from the others are defined up to sign.
    gaps = (values[:, None] - values[None, :]).abs().fill_diagonal_(torch.inf).min(1).values
    single = gaps > 1e-2 * values[0]
    gammas = reference.gradients @ vectors
    lambdas = reference.curvatures(vectors, count)
    if single.any():
        found = result.gammas[:, single].abs()
        assert relative_error(found, gammas[:, single].abs()) < TOLERANCE[dtype]
        assert relative_error(result.lambdas[:, single], lambdas[:, single]) < TOLERANCE[dtype]
    # Inner products of the projected gradients do not depend on the basis.
    if dtype is torch.float64:
        assert relative_error(result.gammas @ result.gammas.t(), gammas @ gammas.t()) < 1e-8
    assert relative_error(result.lambdas.mean(0), result.eigenvalues) < TOLERANCE[dtype]


@cases
def test_routes_to_the_slopes_agree(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed form from the Gram matrix, and the gradients as one more factor of V."""
    model, loss, x, y = case.build(torch.float64)
    closed = directional_derivatives(model, loss, x, y)
    for factor in LossFactor.__subclasses__() + _Diagonal.__subclasses__():
        monkeypatch.setattr(factor, "coordinates", lambda *_: None)
    column = directional_derivatives(model, loss, x, y)
    assert relative_error(column.gammas.abs(), closed.gammas.abs()) < 1e-8


@cases
@dtypes
@pytest.mark.parametrize("blocks", list(Blocks))
@pytest.mark.parametrize("samples", list(Samples))
@pytest.mark.parametrize("working_bytes", [2**22, 1], ids=["whole", "cut"])
@pytest.mark.one_in(5)
def test_newton_step(
    case: Case, dtype: torch.dtype, blocks: Blocks, samples: Samples, working_bytes: int
) -> None:
    model, loss, x, y = case.build(dtype)
    reference = reference_of(case, dtype)
    ggn = reference.ggn(samples.size(len(x)))
    if blocks is Blocks.LAYER:
        ggn *= reference.block_mask(layer_blocks(model, loss, x, y))
    expected = newton_reference(ggn, reference.mean_gradient, 0.5, CUTOFF)
    result = newton_step(
        model,
        loss,
        x,
        y,
        damping=0.5,
        cutoff=CUTOFF,
        blocks=blocks,
        samples=samples,
        working_bytes=working_bytes,
    )
    assert [s.shape for s in result.step] == [
        p.shape for p in model.parameters() if p.requires_grad
    ]
    assert relative_error(flat(result.step), expected) < TOLERANCE[dtype]


@pytest.mark.one_in(4)
@cases
@pytest.mark.parametrize("blocks", list(Blocks))
def test_inverse_product_and_step_over_the_whole_space(case: Case, blocks: Blocks) -> None:
    model, loss, x, y = case.build(torch.float64)
    reference = reference_of(case)
    ggn = reference.ggn()
    if blocks is Blocks.LAYER:
        ggn *= reference.block_mask(layer_blocks(model, loss, x, y))
    damped = ggn + 0.3 * torch.eye(len(ggn), dtype=ggn.dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    vectors = [[torch.randn_like(p) for p in parameters] for _ in range(2)]
    products = inverse_product(model, loss, x, y, vectors, damping=0.3, blocks=blocks)
    for product, vector in zip(products, vectors, strict=True):
        assert relative_error(damped @ flat(product), flat(vector)) < 1e-8
    step = newton_step(model, loss, x, y, damping=0.3, cutoff=None, blocks=blocks).step
    expected = torch.linalg.solve(damped, -reference.mean_gradient)
    assert relative_error(flat(step), expected) < 1e-8


@cases
def test_eigenvectors_are_orthonormal_and_eigen(case: Case) -> None:
    model, loss, x, y = case.build(torch.float64)
    ggn = reference_of(case).ggn()
    basis = eigenvectors(model, loss, x, y, k=4)
    one_at_a_time = basis.chunks(max_bytes=1)
    e = torch.stack([flat(vector) for chunk in one_at_a_time for vector in chunk], 1)
    assert e.shape[1] == len(basis.eigenvalues) <= 4
    assert (e.t() @ e - torch.eye(e.shape[1])).abs().max() < 1e-6
    assert relative_error(ggn @ e, e * basis.eigenvalues) < 1e-8
    whole = torch.stack([flat(v) for chunk in basis.chunks() for v in chunk], 1)
    assert torch.allclose(whole, e, atol=1e-10)


@pytest.mark.parametrize("name", ["cnn", "cnn-mse"])
def test_monte_carlo_converges_to_exact(name: str) -> None:
    """The error of the MC GGN falls like 1 / sqrt(M)."""
    (case,) = [c for c in CASES if c.name == name]
    model, loss, x, y = case.build(torch.float64)
    ggn = reference_of(case).ggn()
    expected = torch.linalg.eigvalsh(ggn).flip(0)
    errors = {}
    for count in (4, 100):
        found = [
            eigenvalues(model, loss, x, y, curvature=Curvature.MC, mc_samples=count, seed=seed)
            for seed in range(4)
        ]
        errors[count] = sum(relative_error(f.eigenvalues[:3], expected[:3]) for f in found) / 4
    assert errors[100] < 0.15
    assert errors[100] < errors[4] / 2.5


def test_monte_carlo_trace_is_unbiased() -> None:
    model, loss, x, y = case("cnn").build(torch.float64)
    trace = dense(model, loss, x, y).ggn().trace().item()
    found = [
        eigenvalues(model, loss, x, y, curvature=Curvature.MC, mc_samples=50, seed=seed).trace
        for seed in range(20)
    ]
    assert sum(found) / 20 == pytest.approx(trace, rel=0.05)


@pytest.mark.parametrize("curvature", list(Curvature))
@pytest.mark.parametrize("samples", list(Samples))
def test_cutting_the_batch_does_not_change_the_result(
    curvature: Curvature, samples: Samples
) -> None:
    """Micro-batches of samples and columns are an implementation detail, also for MC."""
    model, loss, x, y = case("cnn").build(torch.float64)
    options = {"curvature": curvature, "samples": samples, "seed": 5}
    if curvature is Curvature.MC:
        options["mc_samples"] = 3
    whole = eigenvalues(model, loss, x, y, **options)
    cut = eigenvalues(model, loss, x, y, working_bytes=1, **options)
    assert relative_error(cut.eigenvalues, whole.eigenvalues) < 1e-10
    assert cut.info == whole.info or cut.info.loss == pytest.approx(whole.info.loss)


@pytest.mark.parametrize("weight", [1e-9, 1e9], ids=["pairs", "chunks"])
def test_contractions_compute_the_same_gram_matrix(
    weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loss, x, y = case("cnn").build(torch.float64)
    expected = torch.linalg.eigvalsh(dense(model, loss, x, y).ggn()).flip(0)
    monkeypatch.setattr(*tuned(pairs_weight=weight))
    found = eigenvalues(model, loss, x, y).eigenvalues
    assert relative_error(found, expected[: len(found)]) < 1e-10


def test_model_is_left_as_it_was() -> None:
    model, loss, x, y = case("cnn").build(torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = [len(m._forward_hooks) for m in model.modules()]
    newton_step(model, loss, x, y)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert all(p.grad is None for p in model.parameters())
    assert all("forward" not in vars(m) for m in model.modules())


def test_signal_to_noise_of_samples_that_are_equal_to_rounding() -> None:
    values = torch.tensor(
        [
            [1.0, 5.0, 0.0, 1e-9, 1e9],
            [3.0, 5.0 * (1 + 1e-14), 0.0, 3e-9, 3e9],
        ],
        dtype=torch.float64,
    )
    assert has_zero_variance(values).tolist() == [False, True, True, False, False]
    ratio = signal_to_noise(values)
    assert ratio[[0, 3, 4]].tolist() == pytest.approx([4.0] * 3)
    assert ratio[1] == torch.inf
    assert ratio[2].isnan()
    assert has_zero_variance(values * (1 + 1e-3 * torch.eye(2, 5))).tolist()[1] is False
    assert signal_to_noise(values[:0]).tolist() == [0.0] * 5
    assert has_zero_variance(values[:0]).tolist() == [False] * 5


def test_steps_of_blocks_of_several_layers() -> None:
    model, loss, x, y = case("cnn").build(torch.float64)
    names = [n for n, _ in model.named_parameters()]
    groups = [[n for n in names if (int(n.split(".")[0]) < 8) is first] for first in (True, False)]
    reference = dense(model, loss, x, y)
    blocks = dict(zip(("body", "head"), groups, strict=True))
    for options in ({}, {"samples": "frac"}):
        ggn = reference.ggn(1 if options else None) * reference.block_mask(groups)
        step = newton_step(model, loss, x, y, blocks=blocks, damping=0.5, **options).step
        expected = newton_reference(ggn, reference.mean_gradient, 0.5, CUTOFF)
        assert relative_error(flat(step), expected) < 1e-6
