"""The monitor sees what the dense float64 oracle sees, and the training does not notice it."""

import copy
import random

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from curvature_cases import CASES, Case
from noise_cases import small_network
from oracle import Dense, dense, relative_error
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vivit_bench.curvature import Approximation, BatchInfo, DirectionalDerivatives
from vivit_bench.errors import UsageError
from vivit_bench.noise import NoiseMonitor, direction_table, measure
from vivit_bench.noise.measurement import Measurement

CUTOFF = 1e-4
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
_NAMES = ("cnn", "cnn-mse", "many-layers", "residual-reused", "frozen-layers")
_CASES = [case for case in CASES if case.name in _NAMES]

cases = pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def biased_snr(values: Tensor) -> Tensor:
    return values.mean(0) ** 2 / ((values**2).mean(0) - values.mean(0) ** 2)


def check_against_oracle(seen: Measurement, oracle: Dense, tolerance: float, samples: int) -> None:
    """Every column of the table along directions that are told apart from their neighbours."""
    values, vectors = torch.linalg.eigh(oracle.ggn(samples))
    values, vectors = values.flip(0), vectors.flip(1)
    count = int((values > CUTOFF).sum())
    table = seen.directions
    assert len(table) == seen.summary()["num_directions"] == count > 0
    gap = torch.minimum((values - values.roll(1)).abs(), (values - values.roll(-1)).abs())[:count]
    apart = (gap > 2e-3 * values[0]).numpy()
    assert apart.any()
    values, vectors = values[:count], vectors[:, :count]
    gammas, lambdas = oracle.gradients @ vectors, oracle.curvatures(vectors, samples)
    norm = oracle.mean_gradient.square().sum()
    expected = {
        "eigenvalue": values,
        "gamma": gammas.mean(0).abs(),
        "alignment": gammas.mean(0) ** 2 / norm,
        "snr_gamma": biased_snr(gammas),
        "snr_lambda": biased_snr(lambdas),
    }
    for name, column in expected.items():
        found = torch.tensor(table[name].abs().to_numpy())
        assert relative_error(found[apart], column[apart]) < tolerance, name
    assert seen.gradient_norm_squared == pytest.approx(norm.item(), rel=tolerance)
    total = (gammas.mean(0) ** 2).sum() / norm
    assert seen.summary()["alignment_sum"] == pytest.approx(total.item(), rel=tolerance)
    assert seen.summary()["loss"] == seen.derivatives.info.loss


@cases
@dtypes
def test_oracle_at_initialisation_and_after_steps(case: Case, dtype: torch.dtype) -> None:
    model, loss, x, y = case.build(dtype)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9
    )
    monitor = NoiseMonitor(model, loss, x, y, at=[0, 4])
    train_x, train_y = x.flip(0), y.flip(0)
    for step in range(5):
        if step in monitor.measurements:
            model.eval()
            oracle = dense(model, loss, x, y)
            seen = monitor.measurements[step]
            check_against_oracle(seen, oracle, TOLERANCE[dtype], len(x))
        model.train()
        optimizer.zero_grad()
        loss(model(train_x), train_y).backward()
        optimizer.step()
        monitor.step()
    assert list(monitor.measurements) == [0, 4]
    assert not monitor.measurements[0].directions.equals(monitor.measurements[4].directions)


def test_frac_takes_the_curvature_of_an_eighth_and_the_gradient_of_all() -> None:
    model, loss, x, y = next(c for c in CASES if c.name == "cnn").build(torch.float64)
    x, y = torch.cat([x, x + 0.3, -x]), torch.cat([y, y, y])
    seen = measure(model, loss, x, y, Approximation("exact", "frac"))
    assert seen.derivatives.gammas.shape[0] == 18
    assert seen.derivatives.lambdas.shape[0] == 2
    check_against_oracle(seen, dense(model, loss, x, y), 1e-6, 2)


def test_monte_carlo_depends_on_its_seed_alone() -> None:
    model, loss, x, y = next(c for c in CASES if c.name == "cnn").build(torch.float64)
    seen = [measure(model, loss, x, y, Approximation("mc", "full", 3, s)) for s in (0, 0, 1)]
    assert seen[0].directions.equals(seen[1].directions)
    assert not seen[0].directions.equals(seen[2].directions)
    assert seen[0].derivatives.info.num_columns == 3 * len(x)
    assert 0 < seen[0].summary()["alignment_sum"] < 1


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["sgd", "adam"])
def test_training_is_bitwise_the_same_with_and_without_monitor(make: type) -> None:
    trained = []
    for watched in (False, True):
        model, loss, x, y = small_network()
        optimizer = make(model.parameters(), lr=0.05)
        monitor = NoiseMonitor(model, loss, x[:8], y[:8]) if watched else None
        model.train()
        torch.manual_seed(1)
        for _ in range(6):
            batch = torch.randperm(16)[:8] + 8
            optimizer.zero_grad()
            loss(model(x[batch]), y[batch]).backward()
            optimizer.step()
            if monitor is not None:
                assert monitor.step() is monitor.measurements[monitor.steps]
        trained.append((model.state_dict(), torch.get_rng_state()))
    for name, values in trained[0][0].items():
        assert torch.equal(values, trained[1][0][name]), name
    assert torch.equal(trained[0][1], trained[1][1])


def test_measuring_leaves_modes_gradients_and_random_states_alone() -> None:
    model, loss, x, y = small_network()
    model.train()
    model[4].eval()  # as somebody keeps a layer out of training
    loss(model(x), y).backward()
    grads = [p.grad for p in model.parameters()]
    before = copy.deepcopy(grads)
    state = copy.deepcopy(model.state_dict())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with torch.no_grad():
        measure(model, loss, x, y)
    assert [m.training for m in model] == [True, True, True, True, False, True]
    assert model.training
    for parameter, grad, old in zip(model.parameters(), grads, before, strict=True):
        assert parameter.grad is grad
        assert torch.equal(grad, old)
    for name, values in model.state_dict().items():
        assert torch.equal(values, state[name]), name
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_a_failed_look_puts_the_modes_back() -> None:
    model, loss, x, y = small_network()
    model.train()
    with pytest.raises(UsageError, match="NaN"):
        measure(model, loss, x * float("nan"), y)
    assert all(module.training for module in model.modules())


def test_tables_of_a_monitor() -> None:
    model, loss, x, y = small_network()
    monitor = NoiseMonitor(model, loss, x[:4], y[:4], at=(2, 3))
    assert monitor.table().empty
    assert monitor.step() is None
    first, second = monitor.step(), monitor.step()
    assert first is not None
    assert second is not None
    table = monitor.table()
    assert list(table) == [
        "step",
        "direction",
        "eigenvalue",
        "gamma",
        "alignment",
        "snr_gamma",
        "snr_lambda",
    ]
    assert table["step"].tolist() == [2] * len(first.directions) + [3] * len(second.directions)
    assert table["direction"].tolist() == 2 * list(range(1, len(first.directions) + 1))
    summary = monitor.summary()
    assert summary["step"].tolist() == [2, 3]
    assert summary["num_columns"].tolist() == [12, 12]
    with pytest.raises(UsageError, match="step -1"):
        NoiseMonitor(model, loss, x, y, at=[-1])
    for at in ("0,5epochs", 5, [0.5], [], ["1"]):
        with pytest.raises(UsageError, match=r"^at=.* the numbers of the optimizer steps"):
            NoiseMonitor(model, loss, x, y, at=at)  # type: ignore[arg-type]
    assert NoiseMonitor(model, loss, x[:4], y[:4], at=np.array([3])).measurements == {}
    goes_on = NoiseMonitor(model, loss, x[:4], y[:4], at=[0, 5, 6], start=5)
    goes_on.step()
    assert list(goes_on.measurements) == [5, 6]


def made_up(gammas: Tensor, lambdas: Tensor) -> DirectionalDerivatives:
    info = BatchInfo(5, len(gammas), len(lambdas), 2, len(lambdas), 0.5, "float64")
    return DirectionalDerivatives(info, lambdas.mean(0), gammas, lambdas)


def test_zero_variance_is_infinite_or_undefined_and_counted() -> None:
    third = 0.1 + 1e-16 * torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    gammas = torch.stack([torch.full((3,), 0.1), torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])], 1)
    lambdas = torch.stack([torch.tensor([1.0, 2.0, 6.0]), third, torch.full((3,), 2.0)], 1)
    derivatives = made_up(gammas.double(), lambdas.double())
    table = direction_table(derivatives, 10.0)
    np.testing.assert_allclose(table["snr_gamma"], [np.inf, np.nan, 6.0])
    np.testing.assert_allclose(table["snr_lambda"], [27 / 14, np.inf, np.inf])
    np.testing.assert_allclose(table["alignment"], [1e-3, 0, 0.4], rtol=1e-6)
    summary = Measurement(derivatives, 10.0, table, 0.0).summary()
    assert (summary["zero_variance_gamma"], summary["zero_variance_lambda"]) == (2, 2)


@pytest.mark.filterwarnings("error")
def test_no_direction_and_no_gradient() -> None:
    none = made_up(torch.zeros(4, 0), torch.zeros(4, 0))
    table = direction_table(none, 1.0)
    assert len(table) == 0
    summary = Measurement(none, 1.0, table, 0.0).summary()
    assert (summary["num_directions"], summary["alignment_sum"]) == (0, 0.0)
    still = direction_table(made_up(torch.zeros(4, 1), torch.ones(4, 1)), 0.0)
    assert still["alignment"].isna().all()


def test_one_sample_has_no_variance() -> None:
    model = nn.Linear(3, 2)
    seen = measure(model, nn.CrossEntropyLoss(), torch.ones(1, 3), torch.tensor([1]))
    assert np.isinf(seen.directions[["snr_gamma", "snr_lambda"]]).all(axis=None)
    assert seen.summary()["zero_variance_gamma"] == 1


def test_a_distributed_model_is_looked_at_without_the_other_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    batch = (nn.CrossEntropyLoss(), torch.randn(8, 6), torch.randint(3, (8,)))
    expected = measure(model, *batch)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        monkeypatch.delattr(DistributedDataParallel, "forward")  # it would wait for the others
        monitor = NoiseMonitor(wrapped, *batch, at=[0])
    finally:
        dist.destroy_process_group()
    pd.testing.assert_frame_equal(monitor.measurements[0].directions, expected.directions)
