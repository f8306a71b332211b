"""The engines agree: the same numbers through one interface, wherever a peer is installed."""

import pytest
import torch
from oracle import relative_error
from torch import nn

from vivit_bench.curvature import Approximation, Curvature, Samples
from vivit_bench.errors import UsageError
from vivit_bench.peers import Quantity, engine_names, get_engine
from vivit_bench.peers.registry import _ENGINES


def network() -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)
    )
    return model, nn.CrossEntropyLoss(), torch.randn(9, 2, 6, 6), torch.arange(9) % 4


def run(name: str, quantity: Quantity, **options: object) -> dict[str, torch.Tensor]:
    model, loss, x, y = network()
    if name != "vivit-bench":
        pytest.importorskip({"curvlinops": "curvlinops", "backpack": "backpack"}.get(name, "vivit"))
    engine = get_engine(name)
    model, loss = engine.prepare(model, loss)
    result = engine.run(quantity, model, loss, x, y, Approximation(**options))  # type: ignore[arg-type]
    assert all(p.grad is not None for p in model.parameters())
    return result


@pytest.mark.parametrize("name", [n for n in engine_names() if n != "vivit-bench"])
@pytest.mark.parametrize("samples", list(Samples))
def test_leading_eigenvalues_agree(name: str, samples: Samples) -> None:
    ours = run("vivit-bench", Quantity.EIGENVALUES, samples=samples)["eigenvalues"][:3]
    theirs = run(name, Quantity.EIGENVALUES, samples=samples)["eigenvalues"][:3]
    assert relative_error(theirs, ours) < 1e-4


@pytest.mark.parametrize("name", ["vivit-for-pytorch", "backpack"])
@pytest.mark.parametrize("quantity", [Quantity.BLOCK_NEWTON, Quantity.FULL_NEWTON])
@pytest.mark.parametrize("samples", list(Samples))
def test_newton_steps_agree(name: str, quantity: Quantity, samples: Samples) -> None:
    ours = run("vivit-bench", quantity, samples=samples)["step"]
    theirs = run(name, quantity, samples=samples)["step"]
    assert relative_error(theirs, ours) < 1e-3


@pytest.mark.parametrize("name", ["vivit-bench", "vivit-for-pytorch", "backpack"])
def test_monte_carlo_is_seeded_and_near_exact(name: str) -> None:
    options = {"curvature": Curvature.MC, "mc_samples": 200}
    first = run(name, Quantity.EIGENVALUES, **options, seed=1)["eigenvalues"]
    again = run(name, Quantity.EIGENVALUES, **options, seed=1)["eigenvalues"]
    other = run(name, Quantity.EIGENVALUES, **options, seed=2)["eigenvalues"]
    exact = run("vivit-bench", Quantity.EIGENVALUES)["eigenvalues"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert relative_error(first[:1], exact[:1]) < 0.3


def test_unknown_engine_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'backpack'"):
        get_engine("bakpack")


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_ENGINES, "gone", ("no_such_library", "X"))
    with pytest.raises(UsageError, match=r"no_such_library.*vivit-bench\[peers\]"):
        get_engine("gone")


def test_network_that_backpack_cannot_convert_is_one_line() -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    with pytest.raises(UsageError, match="BackPACK cannot convert Untraceable"):
        get_engine("backpack").prepare(Untraceable(), nn.CrossEntropyLoss())


def test_curvlinops_refuses_what_it_cannot() -> None:
    with pytest.raises(UsageError, match="exact curvature only"):
        run("curvlinops", Quantity.EIGENVALUES, curvature=Curvature.MC)
    with pytest.raises(UsageError, match="cannot compute full-newton"):
        run("curvlinops", Quantity.FULL_NEWTON)
