"""What ``explain`` says of a computation's cost, against counts of the computation itself."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vivit_bench.curvature import Approximation, Memory, explain
from vivit_bench.curvature.costs import contraction_flops
from vivit_bench.curvature.factors import Contraction
from vivit_bench.curvature.minibatch import MiniBatch, undisturbed
from vivit_bench.curvature.options import Goal
from vivit_bench.curvature.passes import sweep_curvature
from vivit_bench.curvature.plan import Plan
from vivit_bench.curvature.session import Request, plan_request
from vivit_bench.errors import UsageError

Call = tuple[nn.Module, nn.Module, Tensor, Tensor]


def mlp() -> Call:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 10))
    return model, nn.CrossEntropyLoss(), torch.randn(50, 20), torch.randint(10, (50,))


def convolutions() -> Call:
    """One layer for each contraction."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 64, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(64, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 9, 10),
    )  # fmt: skip
    return model, nn.CrossEntropyLoss(), torch.randn(24, 1, 10, 10), torch.randint(10, (24,))


def products_in_place(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
    """Of ``addmm_``, which the counter does not know."""
    _, (m, k), (_, n) = shapes[:3]
    return int(2 * m * k * n)


def counted(work: Any) -> float:
    known = {torch.ops.aten.addmm_: products_in_place}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        work()
    return counter.get_total_flops()


def planned(call: Call, memory: int | None, blocks: str = "none") -> tuple[MiniBatch, Plan]:
    bound = None if memory is None else Memory(memory, strict=False)
    return plan_request(Request(*call, Approximation(), blocks, certify=False, memory=bound))


@pytest.mark.parametrize("memory", [None, 8 * 2**20, 1], ids=["fastest", "some", "leanest"])
@pytest.mark.parametrize("call", [mlp, convolutions], ids=["mlp", "convolutions"])
def test_flops_are_those_of_the_computation(call: Any, memory: int | None) -> None:
    request = call()
    batch, plan = planned(request, memory)
    seen = set()
    with undisturbed(request[0]):
        taken: list[float] = []
        sweeps = [counted(lambda: taken.append(sweep_curvature(batch, plan, with_gradient=False)))]
        sweep: Any = taken.pop()
        gram = torch.zeros(batch.rows, batch.rows)
        for number, pieces in enumerate(plan.passes):
            for piece in pieces:
                factors: list[Any] = []
                flops = counted(lambda p=piece, f=factors: f.append(sweep.take(p)))
                if number and piece is pieces[0]:
                    sweeps.append(flops)
                seen.add(piece.contraction)
                (block,) = plan.blocks
                work = lambda factor=factors[0]: factor.add_gram(gram)  # noqa: E731
                assert counted(work) == contraction_flops(batch, block, piece)
    bound = None if memory is None else Memory(memory, strict=False)
    costs = explain(*request, memory=bound, certify=False).costs
    assert [cost.flops for cost in costs.passes] == pytest.approx(sweeps)
    assert len(sweeps) == len(plan.passes)
    units = [sum(contraction_flops(batch, plan.blocks[0], p) for p in plan.pieces(u))
             for u in plan.units]  # fmt: skip
    assert [cost.flops for cost in costs.contractions] == units
    if call is convolutions and memory is None:
        assert seen == set(Contraction)


def test_flops_of_a_perceptron_by_hand() -> None:
    costs = explain(*mlp(), quantity="newton").costs
    forward, last = 2 * (20 * 30 + 30 * 10), 2 * 30 * 10
    (sweep,) = costs.passes
    assert sweep.flops == 50 * (forward + 9 * last)
    assert costs.solvers[0].flops == pytest.approx(14 / 3 * 450**3)
    # V w: forward, and backward through the last layer to both weights.
    assert costs.gradient.flops == 50 * (forward + last + forward)


def test_flops_in_parameter_space() -> None:
    """D < M: one product of V with itself for all layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    call = (model, nn.CrossEntropyLoss(), torch.randn(60, 5), torch.randint(3, (60,)))
    costs = explain(*call).costs
    d, m = 5 * 4 + 4 + 4 * 3 + 3, 60 * 2
    assert sum(cost.flops for cost in costs.contractions) == pytest.approx(2 * m * d * d)
    assert costs.solvers[0].flops == pytest.approx(4 / 3 * d**3)


@pytest.mark.parametrize("quantity", list(Goal))
def test_more_passes_cost_more(quantity: Goal) -> None:
    call = convolutions()
    fastest = explain(*call, quantity=quantity)
    leanest = explain(*call, quantity=quantity, memory=Memory(1, strict=False))
    assert len(fastest.passes) == 1 < len(leanest.passes)
    assert max(leanest.parts) > 1
    passes = [sum(c.flops for c in found.costs.passes) for found in (fastest, leanest)]
    assert passes[1] > 2 * passes[0]
    assert leanest.costs.flops > fastest.costs.flops
    assert leanest.peak.bytes < fastest.peak.bytes
    for found in (fastest, leanest):
        assert found.costs.seconds > 0
        assert all(cost.seconds >= 0 for cost in found.costs)
        costs = (*found.costs.passes, *found.costs.contractions, *found.costs.solvers)
        others = {"gradient", "vectors", "result", "checks of the request"}
        assert {cost.name for cost in costs} == {stage.name for stage in found.stages} - others


def test_per_sample_gradients_that_v_does_not_have_cost_passes() -> None:
    call = convolutions()
    exact, mc = (explain(*call, quantity="directional", curvature=c).costs for c in ("exact", "mc"))
    assert exact.gradient.flops == 0
    assert mc.gradient.flops > 24 * 10**6


def test_a_network_that_changes_with_its_samples_is_explained_as_it_is_computed() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([(self.a if row.sum() > 0 else self.b)(row[None]) for row in x])

    torch.manual_seed(0)
    x = torch.randn(8, 3)
    found = explain(Branches(), nn.CrossEntropyLoss(), x, torch.randint(4, (8,)))
    assert found.one_sample_at_a_time
    assert found.costs.flops > 0


@pytest.mark.parametrize("quantity", list(Goal))
def test_a_network_without_products_is_explained(quantity: Goal) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten())
    call = (model, nn.MSELoss(), torch.randint(7, (5, 2)), torch.randn(5, 6))
    costs = explain(*call, quantity=quantity).costs
    assert costs.passes[0].flops == 0
    assert 0 < costs.seconds < float("inf")


def test_quantities_by_name() -> None:
    with pytest.raises(UsageError, match="quantity is 'newtons'; use 'eigenvalues' or"):
        explain(*mlp(), quantity="newtons")
