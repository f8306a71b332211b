"""Columns of V that cannot matter: what is dropped, what is proven of it, what is left."""

import copy

import pytest
import torch
from curvature_cases import CASES, Case, case, tuned
from oracle import Dense, dense, relative_error
from torch import Tensor, nn

from vivit_bench.curvature import (
    Approximation,
    Blocks,
    Curvature,
    Dropped,
    Samples,
    directional_derivatives,
    eigenvalues,
)
from vivit_bench.curvature.factors import AffineFactor, Contraction
from vivit_bench.curvature.grouped import keep_columns
from vivit_bench.curvature.kept import MOST_GROUPS, choose_columns
from vivit_bench.curvature.loss_factor import loss_factor
from vivit_bench.curvature.passes import sweep_curvature
from vivit_bench.curvature.session import Request, plan_request
from vivit_bench.errors import CertificateError, UsageError

CUTOFF = 1e-4
PRODUCT = Contraction.GRAM_PRODUCT
cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


@pytest.fixture(autouse=True)
def however_few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop also what is not worth it, as tests have few columns."""
    if "too_few" not in request.node.name:
        monkeypatch.setattr("vivit_bench.curvature.kept.LEAST_SHARE", 0.0)


class Peaked(nn.Module):
    """A network that is as sure of itself as after training: its logits, many times as large."""

    def __init__(self, model: nn.Module, factor: float = 12.0) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * self.factor


def confident(case: Case, dtype: torch.dtype = torch.float64) -> tuple:
    model, *rest = case.build(dtype)
    return Peaked(model).eval(), *rest


def columns_of_v(reference: Dense, roots: Tensor) -> Tensor:
    """[N, c, D] J_n^T s / sqrt(N) for the square roots [N, c, C] of the loss Hessians."""
    return torch.einsum("ncf,nfd->ncd", roots, reference.jacobians) / len(roots) ** 0.5


def loss_roots(model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The columns of S_n that the engine takes; S_n S_n^T = H_n is compared below."""
    with torch.no_grad():
        outputs = model(x).double()
    factor = loss_factor(loss, outputs.shape[1:], y, Approximation())
    return factor.columns(outputs, slice(0, len(outputs)), None).flatten(2)


def a_trace(reference: Dense) -> float:
    """A bound that some columns are dropped for."""
    return 1e-2 * reference.ggn().trace().item()


@pytest.mark.one_in(4)
@cases
@dtypes
def test_no_eigenvalue_changes_by_more_than_the_dropped_trace(
    case: Case, dtype: torch.dtype
) -> None:
    model, loss, x, y = confident(case, dtype)
    reference = dense(model, loss, x, y)
    expected = torch.linalg.eigvalsh(reference.ggn()).flip(0)
    result = eigenvalues(model, loss, x, y, drop_trace=a_trace(reference), certify="all")
    count, rounding = len(result.eigenvalues), TOLERANCE[dtype] * expected[0]
    assert count == min(result.info.num_columns, result.info.num_params)
    assert result.dropped is not None
    assert result.dropped.trace <= a_trace(reference)
    below = expected[:count] - result.eigenvalues
    assert below.min() > -rounding
    assert below.max() < result.dropped.trace + rounding
    # The bound is the dropped trace itself: what is left of the whole trace is what is kept.
    whole = reference.ggn().trace().item()
    assert result.trace == pytest.approx(whole, rel=TOLERANCE[dtype])
    missing = whole - result.eigenvalues.sum().item()
    assert result.dropped.trace == pytest.approx(missing, abs=float(TOLERANCE[dtype] * whole))


def reduced(case: Case) -> tuple[tuple, Dense, Tensor, float]:
    """Request, reference, [N, c, D] V without its dropped columns, and the trace to drop."""
    request = confident(case)
    reference = dense(*request)
    v = columns_of_v(reference, loss_roots(*request))
    ggn = torch.einsum("ncd,nce->de", v, v)
    assert relative_error(ggn, reference.ggn()) < 1e-8
    squares, order = v.square().sum(2).flatten().sort()
    sums = squares.cumsum(0)
    count = min(int((sums <= a_trace(reference)).sum()), len(squares) - 1)
    while count and squares[count - 1] >= squares[count] * (1 - 1e-6):
        count -= 1  # of equal ones all are dropped, or none
    v.view(-1, v.shape[2])[order[:count]] = 0
    return request, reference, v, (sums[count] - squares[count] / 2).item()


@cases
def test_the_smallest_columns_are_dropped_and_no_others(case: Case) -> None:
    request, _, v, trace = reduced(case)
    result = eigenvalues(*request, drop_trace=trace)
    assert result.dropped is not None
    squares = v.square().sum(2)
    if result.info.num_columns // len(v) <= MOST_GROUPS:
        # As many as there are zeros, but for columns that are zero to rounding.
        gone = int((squares == 0).sum())
        assert result.dropped.num_columns == gone
    expected = torch.linalg.eigvalsh(torch.einsum("ncd,nce->de", v, v)).flip(0)
    count = len(result.eigenvalues)
    assert relative_error(result.eigenvalues, expected[:count]) < 1e-8


@pytest.mark.one_in(4)
@cases
@pytest.mark.parametrize("working_bytes", [2**22, 1], ids=["whole", "cut"])
def test_directions_of_the_kept_columns_and_slopes_of_the_whole_gradients(
    case: Case, working_bytes: int
) -> None:
    request, reference, v, trace = reduced(case)
    result = directional_derivatives(
        *request,
        cutoff=CUTOFF,
        drop_trace=trace,
        with_gradient=True,
        working_bytes=working_bytes,
        certify="all",
    )
    values, vectors = torch.linalg.eigh(torch.einsum("ncd,nce->de", v, v))
    keep = values > CUTOFF
    values, vectors = values[keep].flip(0), vectors[:, keep].flip(1)
    assert len(result.eigenvalues) == len(values)
    assert relative_error(result.eigenvalues, values) < 1e-8
    gradient = torch.cat([g.flatten() for g in result.gradient or []])
    assert relative_error(gradient, reference.mean_gradient) < 1e-8
    if not len(values):
        return
    assert relative_error(result.lambdas.mean(0), result.eigenvalues) < 1e-8
    gaps = (values[:, None] - values[None, :]).abs().fill_diagonal_(torch.inf).min(1).values
    single = gaps > 1e-2 * values[0]
    gammas = reference.gradients @ vectors
    lambdas = (v @ vectors).square().sum(1) * len(v)
    assert relative_error(result.gammas @ result.gammas.t(), gammas @ gammas.t()) < 1e-7
    if single.any():
        found = result.gammas[:, single].abs()
        assert relative_error(found, gammas[:, single].abs()) < 1e-7
        assert relative_error(result.lambdas[:, single], lambdas[:, single]) < 1e-7


@cases
def test_where_nothing_is_dropped_the_result_is_the_ordinary_one(case: Case) -> None:
    request = case.build(torch.float32)  # not sure of itself: no column is zero
    plain, dropping = eigenvalues(*request), eigenvalues(*request, drop_trace=0.0)
    assert plain.dropped is None
    assert dropping.dropped is not None
    if dropping.dropped.num_columns == 0:
        assert torch.equal(dropping.eigenvalues, plain.eigenvalues)
        assert dropping.trace == plain.trace
    else:  # saturated samples, dead layers
        assert dropping.dropped.trace == 0.0
        assert relative_error(dropping.eigenvalues, plain.eigenvalues) < 1e-5
    ours = directional_derivatives(*request, drop_trace=0.0)
    assert relative_error(ours.eigenvalues, directional_derivatives(*request).eigenvalues) < 1e-5


@pytest.mark.parametrize("name", ["cnn", "many-layers", "duplicates", "sequence-linear"])
@pytest.mark.parametrize("curvature", list(Curvature))
@pytest.mark.parametrize("samples", list(Samples))
def test_blocks_and_approximations(name: str, curvature: Curvature, samples: Samples) -> None:
    """Each block loses no more than the trace; the other approximations drop their own columns."""
    request = confident(case(name))
    options = {"curvature": curvature, "samples": samples, "mc_samples": 1}
    for blocks in Blocks:
        whole = eigenvalues(*request, blocks=blocks, **options)
        trace = 1e-2 * whole.trace
        part = eigenvalues(*request, blocks=blocks, drop_trace=trace, **options)
        assert part.dropped is not None
        named = part.blocks or {"": part.eigenvalues}
        for block, values in (whole.blocks or {"": whole.eigenvalues}).items():
            below = values - named[block]
            assert below.min() > -1e-8 * whole.trace
            assert below.max() < part.dropped.trace + 1e-8 * whole.trace
    slopes = directional_derivatives(*request, drop_trace=trace, with_gradient=True, **options)
    along = slopes.gammas.mean(0)
    gradient = torch.cat([g.flatten() for g in slopes.gradient or []])
    assert relative_error(gradient, dense(*request).mean_gradient) < 1e-8
    assert along.norm() <= gradient.norm() * (1 + 1e-8)


def test_all_samples_confident() -> None:
    """The largest column stays, so that there is always something to check; the bound holds."""
    model, loss, x, y = case("cnn").build(torch.float64)
    model = Peaked(model, 500.0).eval()
    reference = dense(model, loss, x, y)
    whole = reference.ggn().trace().item()
    result = eigenvalues(model, loss, x, y, drop_trace=2 * whole + 1)
    assert result.dropped is not None
    assert result.dropped.num_columns == result.info.num_columns - 1
    expected = torch.linalg.eigvalsh(reference.ggn()).flip(0)[: len(result.eigenvalues)]
    assert (expected - result.eigenvalues).max() <= result.dropped.trace + 1e-12
    assert int((result.eigenvalues > 1e-12 * whole).sum()) == 1
    found = directional_derivatives(model, loss, x, y, drop_trace=2 * whole + 1, cutoff=0.0)
    assert len(found.eigenvalues) <= 1


@pytest.mark.parametrize("rule", [Contraction.CHUNKS, Contraction.PAIRS], ids=str)
@pytest.mark.parametrize("tile", [1, 2**21], ids=["small-tiles", "one-tile"])
def test_factors_of_samples_with_different_numbers_of_columns(
    rule: Contraction, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way a layer is contracted, and between groups, as the oracle's columns say."""
    monkeypatch.setattr(*tuned(tile_bytes=tile))
    request = confident(case("cnn"))
    reference, roots = dense(*request), loss_roots(*request)
    whole = columns_of_v(reference, roots)
    names = dict(request[0].named_parameters())
    parts = dict(zip(reference.names, whole.split(reference.sizes, 2), strict=True))
    batch, plan = plan_request(Request(*request, Approximation()))
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(whole.shape[:2], generator=generator).double() ** 8
    kept = choose_columns(sizes, sizes.sum().item() / 10)
    assert kept is not None
    assert len(kept.groups) > 1
    seen = set()
    with torch.no_grad():
        sweep = sweep_curvature(batch, plan, with_gradient=False)
        for factor in map(sweep.take, plan.passes[0]):
            own = [n for p in factor.parameters for n, q in names.items() if q is p]
            v = torch.cat([parts[name] for name in own], 2)
            assert relative_error(factor.squared_norms(), v.square().sum(2)) < 1e-10
            if isinstance(factor, AffineFactor) and factor.contraction is not PRODUCT:
                factor.contraction = rule
                factor.chunk_bytes = tile
            seen.add(type(factor))
            one = copy.copy(factor)
            cut = keep_columns(factor, kept)
            rows = v.flatten(0, 1)[kept.index]
            gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
            cut.add_gram(gram)
            assert relative_error(gram.tril(), (rows @ rows.t()).tril()) < 1e-10
            cross = torch.zeros(len(rows), v[..., 0].numel(), dtype=torch.float64)
            cut.add_cross(one, cross)
            assert relative_error(cross, rows @ v.flatten(0, 1).t()) < 1e-10
            x = {p: torch.randn(p.shape, generator=generator).double() for p in cut.parameters}
            flat = torch.cat([x[p].flatten() for p in cut.parameters])
            assert relative_error(cut.dot(x), rows @ flat) < 1e-10
            w = torch.randn(len(rows), generator=generator, dtype=torch.float64)
            found = cut.combine(w)
            assert (
                relative_error(torch.cat([found[p].flatten() for p in cut.parameters]), w @ rows)
                < 1e-10
            )
    assert len(seen) == 2


def test_there_are_few_groups_however_many_columns() -> None:
    generator = torch.Generator().manual_seed(0)
    squares = torch.rand(200, 99, generator=generator, dtype=torch.float64) ** 8
    kept = choose_columns(squares, squares.sum().item() / 10)
    assert kept is not None
    assert 1 < len(kept.groups) <= MOST_GROUPS
    assert kept.dropped.trace <= squares.sum().item() / 10
    assert sorted(kept.index.tolist()) == kept.mask.flatten().nonzero()[:, 0].tolist()
    # Nothing that is dropped is larger than what the sample keeps.
    largest = squares.masked_fill(kept.mask, 0).amax(1)
    assert (squares.masked_fill(~kept.mask, 9).amin(1) >= largest).all()


def test_a_wrong_norm_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is checked by plain autograd, as everything else that is stated."""
    squares = AffineFactor.squared_norms
    monkeypatch.setattr(AffineFactor, "squared_norms", lambda self: squares(self) * 1.01)
    with pytest.raises(CertificateError, match="dropped columns is off by"):
        eigenvalues(*confident(case("conv1d")), drop_trace=0.4)


def test_columns_of_another_sample_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    select = AffineFactor.select

    def wrong(self: AffineFactor, samples: Tensor, columns: Tensor) -> AffineFactor:
        found = select(self, samples, columns)
        found.s = found.s.roll(1, 0)
        return found

    monkeypatch.setattr(AffineFactor, "select", wrong)
    result = eigenvalues(*confident(case("sequence-linear")), drop_trace=0.2)
    # As for any layer whose rule fails: it is computed by plain autograd instead, and named.
    assert result.certificate is not None
    assert result.certificate.notes


def test_where_too_few_are_small_all_stay() -> None:
    squares = torch.ones(4, 2, dtype=torch.float64)
    squares[0] = squares[1, 0] = 1e-9
    assert choose_columns(squares, 1e-6) is None  # three of eight
    squares[1, 1] = 1e-9
    kept = choose_columns(squares, 1e-6)
    assert kept is not None
    assert kept.dropped == Dropped(4, pytest.approx(4e-9))
    assert "none of 8" in Dropped(0, 0.0).line(8)


@pytest.mark.parametrize("trace", [-1.0, float("nan"), float("inf"), "0.1", True])
def test_a_trace_that_makes_no_sense_is_refused(trace: object) -> None:
    with pytest.raises(UsageError, match="drop_trace"):
        eigenvalues(*case("cnn").build(torch.float32), drop_trace=trace)  # type: ignore[arg-type]


def test_a_bound_on_memory_is_refused() -> None:
    with pytest.raises(UsageError, match="memory"):
        eigenvalues(*case("cnn").build(torch.float32), drop_trace=1e-5, memory=2**30)
