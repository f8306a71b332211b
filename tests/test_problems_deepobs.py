"""DeepOBS's problems: the same networks, out of modules other tools understand."""

import functools
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vivit_bench.errors import UsageError
from vivit_bench.problems import DataSource, Problem, list_problems, load_batch, load_problem
from vivit_bench.problems.catalogue import PROBLEMS, UNSUPPORTED
from vivit_bench.problems.deepobs_torch import deepobs_module
from vivit_bench.problems.load import build_network
from vivit_bench.problems.plain import needs_statistics
from vivit_bench.problems.sampling import seeded

IMAGE_PROBLEMS = [name for name in PROBLEMS if name != "quadratic_deep"]
PAPER_D = {"cifar10_3c3d": 895_210, "fmnist_2c2d": 3_274_634, "cifar100_allcnnc": 1_387_108}


@functools.cache
def problem(name: str) -> Problem:
    return load_problem(name, seed=3)


def raw_problem(name: str, monkeypatch: pytest.MonkeyPatch):
    """DeepOBS's own set-up with nothing replaced but the data set it would download."""
    module = deepobs_module(f"testproblems.{name}")
    monkeypatch.setattr(module, PROBLEMS[name].dataset, lambda *args, **kwargs: None)
    raw = getattr(module, name)(batch_size=1)
    raw._device = torch.device("cpu")
    raw.set_up()
    return raw


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", IMAGE_PROBLEMS)
def test_network_is_deepobs_own_to_the_bit(name, monkeypatch):
    with seeded(3):
        raw = raw_problem(name, monkeypatch)
    ours = problem(name)
    assert raw.loss_function is type(ours.loss) is nn.CrossEntropyLoss
    # Same seed, same initial weights, and the same names.
    assert list(raw.net.state_dict()) == list(ours.model.state_dict())
    for (key, theirs), parameter in zip(
        raw.net.named_parameters(), ours.model.parameters(), strict=True
    ):
        assert torch.equal(theirs, parameter), key
    raw.net.load_state_dict(ours.model.state_dict())  # running statistics
    raw.net.eval()
    inputs, _ = load_batch(ours, 3, DataSource.SYNTHETIC, seed=1)
    with torch.no_grad():
        assert torch.equal(raw.net(inputs.clone()), ours.model(inputs))


@pytest.mark.parametrize("name", PROBLEMS)
def test_table_agrees_with_the_built_network(name):
    spec, ours = PROBLEMS[name], problem(name)
    assert ours.num_params == spec.num_params == PAPER_D.get(name, spec.num_params)
    inputs, targets = load_batch(ours, 2, DataSource.SYNTHETIC)
    with torch.no_grad():
        outputs = ours.model(inputs)
    assert outputs.shape == (2, ours.num_outputs)
    assert ours.num_outputs == spec.num_outputs
    assert inputs.shape[1:] == ours.input_shape == spec.data.shape
    assert targets.shape[1:] == ours.target_shape
    assert type(ours.loss).__name__ == spec.loss
    assert torch.isfinite(ours.loss(outputs, targets))
    assert not any(module.training for module in ours.model.modules())


def test_table_agrees_with_deepobs_settings():
    deepobs_module("testproblems.testproblems_modules")  # from here on without TensorFlow
    settings = importlib.import_module("deepobs.config").DEFAULT_TEST_PROBLEMS_SETTINGS
    assert "cifar100_3c3d" not in settings
    settings = {**settings, "cifar100_3c3d": settings["cifar10_3c3d"]}
    for name, spec in PROBLEMS.items():
        assert settings[name] == {"batch_size": spec.batch_size, "num_epochs": spec.epochs}, name


def test_every_problem_of_deepobs_is_offered_or_refused_with_a_reason():
    folder = Path(deepobs_module("testproblems.testproblems_modules").__file__).parent
    files = {file.stem for file in folder.glob("*.py") if "testproblem" not in file.stem}
    assert files - {"__init__"} == {*PROBLEMS, *UNSUPPORTED}


@pytest.mark.parametrize("name", IMAGE_PROBLEMS)
def test_networks_hold_plain_modules_only(name):
    leaves = {
        type(module).__module__.split(".")[0]
        for module in problem(name).model.modules()
        if not list(module.children())
    }
    assert leaves == {"torch"}
    assert not any(module._forward_pre_hooks for module in problem(name).model.modules())


def test_paddings_of_zero_are_gone():
    paddings = [
        module.padding
        for name in IMAGE_PROBLEMS
        for module in problem(name).model.modules()
        if isinstance(module, nn.ZeroPad2d)
    ]
    assert paddings
    assert all(any(padding) for padding in paddings)


@pytest.mark.one_in(3)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", PROBLEMS)
def test_backpack_reproduces_the_gradient_from_its_square_root_of_the_ggn(name):
    """r_n = S_n a_n, so the gradient is V a / sqrt(N): wrong layers would break it."""
    from backpack import backpack, extend
    from backpack.extensions import SqrtGGNExact, SqrtGGNMC

    with seeded(0):
        model = build_network(PROBLEMS[name])
    ours = problem(name)
    model.load_state_dict(ours.model.state_dict())
    model, loss = (
        extend(model, use_converter=name == "svhn_wrn164").eval(),
        extend(type(ours.loss)()),
    )
    inputs, targets = load_batch(ours, 1, DataSource.SYNTHETIC)
    # The exact square root of All-CNN-C takes BackPACK half a minute; same layer rules.
    exact = name != "cifar100_allcnnc"
    with backpack(SqrtGGNExact() if exact else SqrtGGNMC()):
        outputs = model(inputs)
        loss(outputs, targets).backward()
    for parameter in model.parameters():
        if not exact:
            assert parameter.sqrt_ggn_mc.shape == (1, 1, *parameter.shape)
            assert torch.isfinite(parameter.sqrt_ggn_mc).all()
            continue
        if ours.is_classification:
            root = outputs.detach().softmax(1).sqrt().flatten()
            a = root - nn.functional.one_hot(targets[0], len(root)) / root
        else:
            a = (outputs - targets).detach().flatten() * (2 / targets.numel()) ** 0.5
        gradient = torch.einsum("c...,c->...", parameter.sqrt_ggn_exact[:, 0], a)
        scale = parameter.grad.abs().max() + 1e-6
        assert (gradient - parameter.grad).abs().max() < 1e-4 * scale


@pytest.mark.parametrize("name", IMAGE_PROBLEMS)
def test_torch_func_gives_per_sample_gradients(name):
    ours = problem(name)
    inputs, targets = load_batch(ours, 2, DataSource.SYNTHETIC)
    parameters = {key: value.detach() for key, value in ours.model.named_parameters()}
    buffers = dict(ours.model.named_buffers())

    def loss(parameters, x, y):
        state = {**parameters, **buffers}
        return ours.loss(torch.func.functional_call(ours.model, state, (x[None],)), y[None])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, inputs, targets)
    mean = torch.autograd.grad(
        ours.loss(ours.model(inputs), targets), list(ours.model.parameters())
    )
    for key, expected in zip(parameters, mean, strict=True):
        scale = expected.abs().max() + 1e-6
        assert (each[key].mean(0) - expected).abs().max() < 1e-3 * scale, key


def test_seed_decides_the_weights_and_nothing_else_does():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = load_problem("mnist_2c2d", seed=3).model.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again = problem("mnist_2c2d").model.state_dict()
    other = load_problem("mnist_2c2d", seed=4).model.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["dense1.weight"], other["dense1.weight"])


def test_running_statistics_are_filled_and_seeded():
    model = problem("svhn_wrn164").model
    assert not needs_statistics(model)
    assert int(model.bn.num_batches_tracked) == 3
    assert not torch.equal(model.bn.running_var, torch.ones(256))
    again = load_problem("svhn_wrn164", seed=3).model
    torch.testing.assert_close(again.bn.running_var, model.bn.running_var)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10_3c3", "did you mean 'cifar10_3c3d'?"),
        ("CIFAR10_3C3D", "did you mean 'cifar10_3c3d'?"),
        ("qqq", "unknown problem 'qqq': 'vivit-bench problems list' shows all"),
        ("mnist_vae", "variational autoencoder"),
    ],
)
def test_unknown_names_are_refused_with_what_to_type(name, message):
    with pytest.raises(UsageError) as error:
        load_problem(name)
    assert message in str(error.value)
    assert "vivit-bench problems list" in str(error.value)


def test_list_describes_every_problem(tmp_path):
    rows = {row.name: row for row in list_problems(tmp_path)}
    assert list(rows) == list(PROBLEMS)
    assert rows["cifar100_allcnnc"].default_batch_size == 256
    assert rows["cifar100_allcnnc"].data_path == str(tmp_path)
    assert not rows["cifar100_allcnnc"].data_present
    assert rows["quadratic_deep"].data_path is None
    assert rows["quadratic_deep"].data_present


def test_fresh_process_loads_without_tensorflow_and_lists_without_torch():
    code = """
import json, sys
from vivit_bench.problems import list_problems
import vivit_bench.cli.problems
list_problems()
light = "torch" not in sys.modules
from vivit_bench.problems import load_problem
problem = load_problem("svhn_wrn164", seed=3)
import deepobs.pytorch.testproblems.testproblems_modules as modules
from deepobs.pytorch.testproblems import cifar10_3c3d
print(json.dumps([light, "tensorflow" in sys.modules, modules.net_wrn is type(problem.model),
                  isinstance(cifar10_3c3d, type), hasattr(sys.modules["deepobs"], "nothing"),
                  float(problem.model.conv1[-1].weight.sum())]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    weight = problem("svhn_wrn164").model.conv1[-1].weight.detach()
    assert json.loads(done.stdout) == [
        True,
        False,
        True,
        True,
        False,
        pytest.approx(float(weight.sum())),
    ]
