"""Every quantity under every kind of plan: the same numbers, and no more memory than foreseen."""

import gc
import itertools
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import Mock
from weakref import WeakSet

import pytest
import torch
from curvature_cases import CASES, Case
from oracle import dense
from torch import Tensor, nn

import vivit_bench.curvature.plan as plan_module
from vivit_bench.curvature import (
    Approximation,
    Memory,
    batched_convolution,
    directional_derivatives,
    eigenvalues,
    eigenvectors,
    explain,
    inverse_product,
    newton_step,
)
from vivit_bench.curvature.factors import AffineFactor
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.options import Goal
from vivit_bench.curvature.plan import Piece, gradient_copies
from vivit_bench.curvature.route import Collected, Route
from vivit_bench.curvature.session import Request, leanest_of, plan_request
from vivit_bench.curvature.square import Square
from vivit_bench.curvature.units import plan_blocks
from vivit_bench.errors import UsageError
from vivit_bench.measure.host_memory import read_memory, reset_peak
from vivit_bench.problems.workload import WorkloadSpec, load_workload

LEANEST = Memory(1, strict=False)
APPROXIMATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"curvature": "mc", "mc_samples": 2},
    {"samples": "frac"},
)


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def policy(gammas: Tensor, lambdas: Tensor) -> Tensor:
    return 0.1 + lambdas.mean(0) + gammas.square().mean(0)


@pytest.mark.parametrize("in_place", [False, True], ids=["cut", "in place"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.one_in(5)
def test_plans_agree(case: Case, in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    request = case.build(torch.float64)
    options = APPROXIMATIONS[CASES.index(case) % 3]
    blocks = "layer" if in_place else "none"
    vector = [torch.randn_like(p) for p in request[0].parameters() if p.requires_grad]

    def compute(**memory: Any) -> list[Any]:
        both: dict[str, Any] = {**options, **memory}
        several = {**both, "blocks": blocks}
        spectrum = eigenvalues(*request, with_gradient=True, **several)
        derivatives = directional_derivatives(*request, cutoff=1e-3, **both)
        basis = eigenvectors(*request, k=2, **both)
        for _ in basis.chunks():
            pass
        return [
            spectrum.eigenvalues,
            spectrum.gradient,
            newton_step(*request, **several).step,
            newton_step(*request, cutoff=None, damping=0.5, **several).step,
            newton_step(*request, damping=policy, **several).step,
            derivatives.gammas.abs(),
            derivatives.lambdas,
            basis.eigenvalues,
            inverse_product(*request, [vector], damping=0.3, **both),
        ]

    expected = compute()
    if in_place:  # copies for the dense solver never fit
        monkeypatch.setattr(plan_module, "_DIRECT", dict.fromkeys(Goal, 1e12))
    model, loss, x, y = request
    wanted = Request(model, loss, x, y, Approximation(**options), memory=LEANEST)
    _, plan = plan_request(wanted)
    assert plan.in_place or not (in_place and plan.lean)
    for found, right in zip(compute(memory=LEANEST), expected, strict=True):
        assert_close(found, right)


def network(width: int = 16) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(width * 36, 10),
    )  # fmt: skip
    return model, nn.CrossEntropyLoss(), torch.randn(256, 3, 8, 8), torch.randint(10, (256,))


def leanest_peak(n: int, goal: Goal, blocks: str) -> int:
    model, loss, x, y = network()
    request = Request(
        model, loss, x[:n], y[:n], Approximation(), blocks, certify=False, memory=LEANEST, goal=goal
    )
    return plan_request(request)[1].peak.bytes


@pytest.mark.parametrize("goal", Goal)
@pytest.mark.parametrize("blocks", ["none", "layer"])
@pytest.mark.one_in(5)
def test_what_the_leanest_plan_needs_does_not_fall_with_n(goal: Goal, blocks: str) -> None:
    peaks = [leanest_peak(n, goal, blocks) for n in (1, 2, 5, 13, 34, 89, 233)]
    assert peaks == sorted(peaks)


@pytest.mark.parametrize("goal", Goal)
@pytest.mark.parametrize("blocks", ["none", "layer"])
@pytest.mark.parametrize("approximation", [Approximation(), Approximation("mc", "frac")])
@pytest.mark.one_in(5)
def test_the_leanest_need_in_closed_form_is_that_of_cutting_everything(
    goal: Goal, blocks: str, approximation: Approximation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plans for no memory at all, each pass of which is made, against the closed form."""
    for n in (3, 40):
        model, loss, x, y = network(4)
        request = Request(
            model, loss, x[:n], y[:n], approximation, blocks, certify=False, goal=goal
        )
        batch, plan = plan_request(request)
        peaks = [
            made.peak.bytes
            for planner in plan_module._planners(batch, plan.route, blocks, goal, False)
            for made in (planner.fastest(), planner.packed())
        ]
        with monkeypatch.context() as patch:
            patch.setattr(plan_module, "_cut_unit", None)
            assert leanest_of(request).bytes == min(peaks)
        exactly = replace(request, memory=Memory(min(peaks)))
        assert plan_request(exactly)[1].peak.bytes <= min(peaks)
        with pytest.raises(UsageError, match="does not suffice"):
            plan_request(replace(request, memory=Memory(min(peaks) - 1)))


def test_a_block_is_solved_by_its_gram_matrix_where_v_does_not_fit() -> None:
    """Of the last layer D = 5,770, and 8 D^2 and V take more than a triangle of M = 9 * 700."""
    torch.manual_seed(0)
    model, loss, *_ = network()
    x, y = torch.randn(700, 3, 8, 8), torch.randint(10, (700,))
    asked = Request(model, loss, x, y, Approximation(), "layer", certify=False, goal=Goal.STEP)
    _, fastest = plan_request(asked)
    _, leanest = plan_request(replace(asked, memory=LEANEST))
    assert fastest.blocks[-1].in_parameter_space
    assert not leanest.blocks[-1].in_parameter_space
    assert leanest.blocks[0].in_parameter_space  # D = 448
    assert leanest.peak.bytes < 9**2 * 700**2 * 8


def test_a_gram_matrix_with_more_rows_than_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5)).double()
    request = (model, nn.CrossEntropyLoss(), torch.randn(30, 6).double(), torch.randint(5, (30,)))
    reference = dense(*request)
    monkeypatch.setattr(plan_module, "plan_blocks", partial(plan_blocks, lean=True))
    (block,) = plan_request(Request(*request, Approximation()))[1].blocks
    assert not block.in_parameter_space
    assert block.num_params < block.rows < 2 * block.num_params
    found = eigenvalues(*request).eigenvalues
    assert len(found) == block.num_params
    assert_close(found, torch.linalg.eigvalsh(reference.ggn()).flip(0))
    step = newton_step(*request, damping=0.1, cutoff=None).step
    ridge = reference.ggn() + 0.1 * torch.eye(block.num_params, dtype=torch.float64)
    solved = torch.linalg.solve(ridge, reference.mean_gradient)
    assert_close(torch.cat([x.flatten() for x in step]), -solved)
    vector = [torch.randn_like(p) for p in model.parameters()]
    (product,) = inverse_product(*request, [vector], damping=0.1)
    solved = torch.linalg.solve(ridge, torch.cat([x.flatten() for x in vector]))
    assert_close(torch.cat([x.flatten() for x in product]), solved)


def test_less_memory_means_more_passes_and_none_is_refused() -> None:
    model, loss, x, y = network()
    fastest = explain(model, loss, x, y)
    assert len(fastest.passes) == 1
    for memory in (fastest.peak.bytes // 2, 38 * 2**20):
        less = explain(model, loss, x, y, memory=memory)
        assert less.peak.bytes <= memory
    assert len(less.passes) > 1
    with pytest.raises(UsageError, match=r"memory of .* does not suffice for N = 256"):
        eigenvalues(model, loss, x, y, memory=2**20)
    with pytest.raises(UsageError, match="memory is 0"):
        eigenvalues(model, loss, x, y, memory=0)


@pytest.mark.parametrize(
    ("problem", "n", "goal", "options"),
    [
        ("fmnist_2c2d", 287, Goal.STEP, ("mc",)),
        ("cifar10_3c3d", 77, Goal.DERIVATIVES, ("mc",)),
        ("fmnist_2c2d", 1200, Goal.STEP, ("exact", "frac")),
    ],
)
def test_any_memory_has_a_plan_that_keeps_to_it_or_to_the_leanest_need(
    problem: str, n: int, goal: Goal, options: tuple[str, ...]
) -> None:
    """Libraries' buffers are there in all passes but the first; vectors of solved blocks stay."""
    given = load_workload(WorkloadSpec(problem, n, "synthetic", None, 0, None)).request
    request = Request(*given, Approximation(*options), "layer", certify=False, goal=goal)
    least = leanest_of(request).bytes
    for percent in (10, 90, *range(100, 125)):
        memory = least * percent // 100
        _, plan = plan_request(replace(request, memory=Memory(memory, strict=False)))
        assert plan.peak.bytes <= max(memory, least)


def test_layers_are_not_cut_where_what_is_too_large_does_not_collect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradient's pass takes most of it; cut, this network has 84,000 passes."""
    given = load_workload(WorkloadSpec("cifar100_allcnnc", 12, "synthetic", None, 0, None)).request
    approximation = Approximation("mc", "frac")
    request = Request(*given, approximation, "layer", certify=False, goal=Goal.STEP)
    least = leanest_of(request)
    assert not least.collects
    monkeypatch.setattr(plan_module, "_cut_unit", None)
    _, plan = plan_request(replace(request, memory=Memory(least.bytes)))
    assert len(plan.passes) == 1


def test_a_part_of_a_convolution_multiplies_a_few_samples_at_a_time() -> None:
    """Kernels copy their inputs, of which a part of the outputs sees all."""
    model, loss, x, y = network()
    _, plan = plan_request(
        Request(model, loss, x, y, Approximation("mc"), certify=False, goal=Goal.STEP)
    )
    (unit,) = (unit for unit in plan.units if unit.parameters[0] is model[2].weight)
    part = Piece(unit, slice(0, 1), unit.contraction)
    chunk_bytes = 2**16
    factor = part.factor(plan.route, 256, 1, chunk_bytes)
    assert isinstance(factor, AffineFactor)
    torch.nn.init.normal_(factor.z)
    torch.nn.init.normal_(factor.s)
    direction = {p: torch.randn_like(p) for p in unit.parameters}
    weight = direction[unit.parameters[0]][:1]
    outputs = torch.nn.functional.conv2d(factor.z.squeeze(1), weight).flatten(1)
    bias = direction[unit.parameters[1]][0]
    right = (factor.s.view(256, -1) * (outputs + bias)).sum(1)
    convolve = Mock(side_effect=factor._convolve)
    factor._convolve = convolve  # type: ignore[method-assign]
    torch.testing.assert_close(factor.dot(direction), right, rtol=1e-4, atol=1e-4)
    copied = [call.args[0].nbytes for call in convolve.call_args_list]
    assert sum(copied) == factor.z.nbytes
    assert max(copied) <= chunk_bytes // 4


def test_columns_go_no_further_than_the_layer_whose_factor_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor are those of one part of the columns there while the next are on their way."""
    to_input = Mock(side_effect=batched_convolution._to_input)
    monkeypatch.setattr(batched_convolution, "_to_input", to_input)
    send = Route.backpropagate
    alive: WeakSet[Tensor] = WeakSet()
    calls: list[tuple[int, int]] = []

    def observed(route: Route, *args: Any) -> Collected:
        assert not alive
        to_input.reset_mock()
        found = send(route, *args)
        alive.update(found.cotangents.values())
        (number,) = found.cotangents
        calls.append((number, to_input.call_count))
        return found

    monkeypatch.setattr(Route, "backpropagate", observed)
    model, loss, x, y = network()
    work = partial(eigenvalues, model, loss, x[:4], y[:4], memory=LEANEST, certify=False)
    work(working_bytes=2**16)
    assert len(calls) > 3 * 4
    assert {number for number, _ in calls} == {0, 1, 2}
    for number, count in calls:  # from the linear layer, the second and the first convolution
        assert count == (1 if number == 2 else 0)


@pytest.mark.parametrize(("goal", "triangles"), [(Goal.STEP, 1), (Goal.INVERSE, 2)])
def test_cholesky_keeps_the_matrix_in_its_other_triangle(goal: Goal, triangles: int) -> None:
    model, loss, x, y = network(64)  # with more parameters than columns
    request = Request(model, loss, x, y, Approximation(), certify=False, memory=LEANEST, goal=goal)
    batch, plan = plan_request(request)
    assert plan.in_place
    (solver,) = (stage for stage in plan.stages if stage.name == "solver")
    m = batch.num_samples * 9
    assert 4 * triangles * m**2 < solver.bytes < 4 * (triangles + 1) * m**2 + 2**25


@pytest.mark.parametrize("samples", ["full", "frac"])
def test_micro_batches_leave_nothing_behind(samples: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of each, kept one by one, would scatter the heap: 20 MB in 3,000 micro-batches."""
    forward = MiniBatch.forward
    seen: list[tuple[int, int]] = []

    def observed(batch: MiniBatch, *args: Any, **kwargs: Any) -> Tensor:
        there = sum(issubclass(type(each), Tensor) for each in gc.get_objects())
        seen.append((args[0].start if isinstance(args[0], slice) else -1, there))
        return forward(batch, *args, **kwargs)

    monkeypatch.setattr(MiniBatch, "forward", observed)
    model, loss, x, y = network()
    newton_step(
        *(model, loss, x[:16], y[:16]), samples=samples, certify=True, cutoff=1e-3, damping=1.0,
        memory=LEANEST, working_bytes=2**16,
    )  # fmt: skip
    growths = [
        there - before
        for (last, before), (start, there) in itertools.pairwise(seen)
        if last >= 3 and start == last + 1
    ]
    assert len(growths) >= 12
    assert max(growths) <= 0


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1,), (2,), (1, 1, 1)])
def test_a_convolution_takes_its_input_gradient_and_copies_of_it(stride: tuple[int, ...]) -> None:
    axes = len(stride)
    module = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](16, 16, 3, stride, 1)
    size = torch.Size((512, 16, *{1: (4096,), 2: (64, 64), 3: (16, 16, 16)}[axes]))  # 128 MiB
    grad = torch.ones(*size[:2], *(size[2 + i] // stride[i] for i in range(axes)))
    before = read_memory()
    assert before is not None
    reset_peak()
    found = batched_convolution._to_input(grad, module.weight.detach(), size, module)
    after = read_memory()
    assert after is not None
    taken, counted = (after.peak - before.resident) / found.nbytes, gradient_copies(stride)
    assert 1.9 < taken < counted + 0.1


@pytest.mark.parametrize("m", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_widens_where_it_lies(m: int, dtype: torch.dtype) -> None:
    square = Square(m, dtype, torch.device("cpu"))
    values = torch.randn(m, m, dtype=dtype).tril()
    square.view().copy_(values)
    wide = square.widen()
    assert wide.dtype == torch.float64
    assert torch.equal(wide.tril(), values.double())


def test_a_widened_matrix_has_its_triangle_resident_and_no_more() -> None:
    def taken(m: int) -> int:
        before = read_memory().resident
        square, ones = Square(m, torch.float32, torch.device("cpu")), torch.ones(m)
        for row in range(m):
            square.view()[row, : row + 1] = ones[: row + 1]
        square.widen()
        return read_memory().resident - before

    taken(100)  # libraries' own memory
    m = 4000
    triangle = plan_module._triangle(m, 8, torch.device("cpu"))
    assert 4 * m**2 < taken(m) < triangle + 2**20
