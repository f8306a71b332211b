"""The engine's pieces side by side on two threads, in numbers and sizes that share out."""

from collections.abc import Iterator

import pytest
import torch
from curvature_cases import case, tuned
from oracle import dense
from torch import Tensor

import vivit_bench.curvature.factors as factors
from vivit_bench.curvature import eigenvalues, newton_step
from vivit_bench.curvature.kernels import add_lower, for_each
from vivit_bench.curvature.options import Approximation
from vivit_bench.curvature.passes import sweep_curvature
from vivit_bench.curvature.session import Request, plan_request
from vivit_bench.hardware import cpu_threads

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    with cpu_threads(2):
        yield


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("rows", [300, 1100])
def test_lower_triangle_by_stripes(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(rows, 3, dtype=torch.float64, generator=generator)
    start = torch.randn(rows, rows, dtype=torch.float64, generator=generator)
    gram = start.clone()
    add_lower(gram, v)
    torch.testing.assert_close((gram - start).tril(), (v @ v.t()).tril())
    # Above the blocks on the diagonal nothing is touched.
    assert torch.equal(gram[:128, 512:], start[:128, 512:])


@pytest.mark.usefixtures("two_threads")
def test_for_each_does_everything_once_and_passes_errors_on() -> None:
    done: list[int] = []
    for_each(done.append, range(100), CPU)
    assert sorted(done) == list(range(100))
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError):
        for_each(lambda i: 1 // (i - 50), range(100), CPU)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_many_tiles_of_sample_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contracted in the smallest tiles, pairs and chunks give the same Gram matrix."""
    found: list[Tensor] = []
    for rule in (factors.Contraction.PAIRS, factors.Contraction.CHUNKS):
        for tile in (1, 2000, 2**21):
            monkeypatch.setattr(*tuned(tile_bytes=tile))
            found.append(_gram_of_convolution(rule))
    for gram in found[1:]:
        torch.testing.assert_close(gram, found[0])


def _gram_of_convolution(rule: factors.Contraction) -> Tensor:
    model, loss, x, y = case("cnn").build(torch.float64)
    batch, plan = plan_request(Request(model, loss, x, y, Approximation()))
    gram = torch.zeros(batch.rows, batch.rows, dtype=torch.float64)
    with torch.no_grad():
        sweep = sweep_curvature(batch, plan, with_gradient=False)
        for factor in map(sweep.take, plan.passes[0]):
            if isinstance(factor, factors.AffineFactor):
                factor.contraction = rule
                factor.add_gram(gram)
    return gram.tril()


@pytest.mark.usefixtures("two_threads")
def test_small_pieces_change_nothing() -> None:
    model, loss, x, y = case("cnn").build(torch.float64)
    expected = torch.linalg.eigvalsh(dense(model, loss, x, y).ggn()).flip(0)
    found = eigenvalues(model, loss, x, y, working_bytes=1).eigenvalues
    torch.testing.assert_close(found, expected[: len(found)])
    for options in ({"samples": "frac"}, {"curvature": "mc"}):
        steps = [
            torch.cat([s.flatten() for s in newton_step(model, loss, x, y, **options, **cut).step])
            for cut in ({}, {"working_bytes": 1})
        ]
        torch.testing.assert_close(steps[1], steps[0])
