"""Weights from a file, and one line for each way that can go wrong."""

import pytest
import torch
from torch import nn

from vivit_bench.errors import UsageError
from vivit_bench.problems import load_problem
from vivit_bench.problems.deepobs_torch import deepobs_module

NAME = "mnist_logreg"


@pytest.mark.parametrize("wrapped", [False, True])
def test_state_dict_of_deepobs_own_network_loads(tmp_path, wrapped):
    raw = deepobs_module("testproblems.testproblems_modules").net_mnist_logreg(10)
    nn.init.normal_(raw.dense.weight)
    state = raw.state_dict()
    file = tmp_path / "weights.pt"
    torch.save({"model": state, "epoch": 3} if wrapped else state, file)
    model = load_problem(NAME, checkpoint=file).model
    assert torch.equal(model.dense.weight, raw.dense.weight)


def test_the_model_of_a_lightning_module_is_found_by_its_names(tmp_path):
    """An attribute of a module that also has a metric; which of two such models is asked for."""
    raw = load_problem(NAME, seed=7).model
    state = {f"net.model.{name}": value for name, value in raw.state_dict().items()}
    file = tmp_path / "last.ckpt"
    whole = {"state_dict": {**state, "metric.total": torch.ones(1)}, "epoch": 3}
    torch.save(whole, file)
    model = load_problem(NAME, checkpoint=file).model
    assert torch.equal(model.dense.weight, raw.dense.weight)
    averaged = {f"average.{name}": value for name, value in raw.state_dict().items()}
    torch.save({**whole, "state_dict": {**whole["state_dict"], **averaged}}, file)
    with pytest.raises(UsageError, match=r"several such models: 'average\.', 'net\.model\.'"):
        load_problem(NAME, checkpoint=file)


def test_running_statistics_of_a_checkpoint_are_kept(tmp_path):
    state = load_problem("svhn_wrn164").model.state_dict()
    state["bn.running_mean"] = torch.full((256,), 7.0)
    torch.save(state, tmp_path / "weights.pt")
    model = load_problem("svhn_wrn164", seed=5, checkpoint=tmp_path / "weights.pt").model
    assert torch.equal(model.bn.running_mean, torch.full((256,), 7.0))


@pytest.mark.parametrize("key", ["model", "model_state_dict", "state_dict"])
def test_a_state_dict_is_found_under_the_usual_keys(tmp_path, key):
    state = load_problem(NAME, seed=3).model.state_dict()
    torch.save({"epoch": 3, "optimizer": {}, key: state}, tmp_path / "last.pt")
    model = load_problem(NAME, checkpoint=tmp_path / "last.pt").model
    assert torch.equal(model.dense.weight, state["dense.weight"])


def _state(**changes):
    state = load_problem(NAME).model.state_dict()
    state.update(changes)
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: _state(**{"dense.bias": None}), "lacks dense.bias"),
        (lambda: _state(extra=torch.zeros(1)), "has unknown extra"),
        (
            lambda: _state(**{"dense.bias": torch.zeros(3)}),
            "has other shapes for dense.bias [3] instead of [10]",
        ),
        (lambda: [1, 2], "holds a list, not a state dict"),
        (lambda: {"epoch": 3}, "holds a dict of epoch, not a state dict"),
        (lambda: nn.Linear(1, 1), "cannot be read as tensors"),
    ],
)
def test_wrong_content_is_refused(tmp_path, content, message):
    file = tmp_path / "weights.pt"
    torch.save(content(), file)
    with pytest.raises(UsageError) as error:
        load_problem(NAME, checkpoint=file)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_long_lists_of_names_are_cut(tmp_path):
    torch.save(load_problem("quadratic_deep").model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=r"lacks .* and 5 more, has unknown theta.weight"):
        load_problem("mnist_mlp", checkpoint=tmp_path / "weights.pt")


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    for file, message in (
        (text, "cannot be read as tensors"),
        (tmp_path, "does not exist or is no file"),
        (tmp_path / "none.pt", "does not exist"),
    ):
        with pytest.raises(UsageError, match=message):
            load_problem(NAME, checkpoint=file)
