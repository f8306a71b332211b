"""Data of a run: its parts are apart, its order is a function of place; requests are checked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noise_cases import CHOICES, with_changes, write_tiny

from vivit_bench.curvature import Approximation
from vivit_bench.errors import UsageError
from vivit_bench.noise import parse_positions as positions
from vivit_bench.noise import run_noise
from vivit_bench.noise.data import load_run_data
from vivit_bench.problems import DataSource, load_problem

EXAMPLE = Path(__file__).parent.parent / "scripts" / "examples" / "small_cnn.py"


@pytest.fixture(autouse=True)
def _problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)


@pytest.mark.parametrize(
    ("name", "source", "sizes"),
    [
        ("mnist_logreg", DataSource.MNIST5K, (3600, 400, 1000)),
        ("tiny.py:tiny", DataSource.OWN, (128, 16, 16)),
    ],
)
def test_parts_of_the_data_are_apart(
    name: str, source: DataSource, sizes: tuple[int, int, int]
) -> None:
    problem = load_problem(name)
    data = load_run_data(problem, source, None, seed=0)
    assert (len(data.train), len(data.held_out), len(data.test[0])) == sizes
    used = torch.cat([data.train, data.held_out])
    assert len(used.unique()) == len(used)
    keys = {tuple(x.flatten().tolist()) for x in data.test[0]}
    assert not any(tuple(data.inputs[i].flatten().tolist()) in keys for i in used)
    inputs, targets = data.monitor_batch(10)
    assert torch.equal(inputs, data.inputs[data.held_out[:10]])
    assert torch.equal(targets, data.targets[data.held_out[:10]])
    other = load_run_data(problem, source, None, seed=1)
    assert not torch.equal(other.held_out, data.held_out)
    # Digits are stored by class; every class is among those held out.
    assert len(data.targets[data.held_out].unique()) == problem.num_outputs


def test_every_epoch_has_each_sample_once_in_an_order_of_its_own() -> None:
    data = load_run_data(load_problem("tiny.py:tiny"), DataSource.OWN, None, seed=0)
    first, second = data.epoch(0, 0, 16), data.epoch(0, 1, 16)
    for epoch in (first, second):
        assert sorted(torch.cat(epoch).tolist()) == sorted(data.train.tolist())
    assert not torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first, data.epoch(0, 0, 16), strict=True))
    assert not torch.equal(first[0], data.epoch(1, 0, 16)[0])
    assert [len(batch) for batch in data.epoch(0, 0, 50)] == [50, 50]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": None}, "give one with --lr"),
        ({"epochs": None}, "--epochs 10"),
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"batch_size": 129}, "--batch-size 129 is more than the 128 training samples"),
        ({"monitor_batch_size": 17}, "--monitor-batch-size 17 is more than the 16 held-out"),
        ({"checkpoints": 26}, "give at most 25"),
        ({"at": positions("0")}, "--checkpoints and --at exclude each other"),
        ({"checkpoints": None, "at": positions("4epochs")}, "after the last step 24"),
        ({"approximation": Approximation(seed=1)}, "a run has one"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**63}, "2\\^63"),
        ({"cutoff": 0.0}, "--cutoff"),
        ({"device": "tpu"}, "--device tpu: write cpu, cuda"),
        ({"data": DataSource.SYNTHETIC}, "no splits"),
        ({"data": DataSource.MNIST5K}, "use own"),
        ({"problem": f"{EXAMPLE}:regression"}, "have no end"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        run_noise(with_changes(**changes), tmp_path, name="run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "noise").exists()


def test_too_little_data_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "tiny.py"
    text = (
        source.read_text()
        .replace("(INPUTS, ", "(INPUTS[:9], ")
        .replace("SCORES.argmax(1)", "SCORES[:9].argmax(1)")
    )
    source.write_text(text)
    with pytest.raises(UsageError, match="9 samples, too few to hold out"):
        run_noise(CHOICES, tmp_path, name="run")


def test_defaults_of_a_users_problem_fit_its_data(tmp_path: Path) -> None:
    run = run_noise(with_changes(batch_size=None, monitor_batch_size=None), tmp_path, name="run")
    assert run.settings["batch_size"] == 128
    assert run.settings["monitor_batch_size"] == 16


@pytest.mark.parametrize("seed", [0, 3])
def test_the_held_out_tenth_is_drawn_by_the_seed(seed: int) -> None:
    """Stored runs hold for this split alone: its random numbers are spelled out here."""
    data = load_run_data(load_problem("tiny.py:tiny"), DataSource.OWN, None, seed=seed)
    drawn = np.random.SeedSequence([seed, 0, 0]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    order = torch.randperm(160, generator=torch.Generator().manual_seed(int(drawn)))
    assert torch.equal(data.held_out, order[:16])
    assert torch.equal(data.test[0], data.inputs[order[16:32]])
    assert torch.equal(data.train, order[32:])
