"""Problems of the user's: what they may be, and one line for what they may not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vivit_bench.errors import UsageError
from vivit_bench.problems import DataSource, guest, load_batch, load_dataset, load_problem

EXAMPLE = "scripts/examples/small_cnn.py"

HEADER = """
import torch
from torch import nn
x, y = torch.randn(5, 3), torch.arange(5) % 2
net = nn.Linear(3, 2)
ce, mse, bce = nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss()
"""


@pytest.fixture
def write(tmp_path):
    def write(body: str) -> str:
        file = tmp_path / "own.py"
        file.write_text(HEADER + body)
        return f"{file}:build"

    return write


def returning(expression: str) -> str:
    return f"def build():\n    return {expression}\n"


def test_example_with_tensors():
    problem = load_problem(f"{EXAMPLE}:digits", seed=1)
    assert problem.num_params == sum(p.numel() for p in problem.model.parameters()) == 3818
    assert problem.num_outputs == 10
    assert problem.input_shape == (1, 8, 8)
    assert problem.default_batch_size == problem.spectrum_batch_size == 128
    assert problem.default_epochs is None
    assert problem.is_classification
    assert not problem.model.training
    inputs, targets = load_batch(problem, 1797, DataSource.OWN, seed=1)
    everything, labels = load_dataset(problem, DataSource.OWN)
    assert torch.equal(torch.bincount(targets), torch.bincount(labels))
    torch.testing.assert_close(inputs.sum((0, 1)), everything.sum((0, 1)))
    with pytest.raises(UsageError, match=r"1798 samples .* the 1797 .* --data synthetic"):
        load_batch(problem, 1798, DataSource.OWN)
    synthetic, labels = load_batch(problem, 2000, DataSource.SYNTHETIC)
    assert synthetic.shape == (2000, 1, 8, 8)
    assert labels.unique().tolist() == list(range(10))


def test_example_with_a_function():
    problem = load_problem(f"{EXAMPLE}:regression")
    assert (problem.num_params, problem.num_outputs, problem.target_shape) == (114, 2, (2,))
    assert problem.default_batch_size == 128
    first, again, other = (load_batch(problem, 300, DataSource.OWN, seed=s) for s in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    _, targets = load_batch(problem, 3, DataSource.SYNTHETIC)
    assert targets.shape == (3, 2)
    assert targets.dtype == torch.float32


def test_seed_decides_the_weights():
    weights = [load_problem(f"{EXAMPLE}:digits", seed=s).model[0].weight for s in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_fresh_process_rebuilds_the_problem_from_its_name():
    name = f"{EXAMPLE}:digits"
    code = f"""
import json
from vivit_bench.problems import DataSource, load_batch, load_problem
problem = load_problem({name!r}, seed=4)
inputs, targets = load_batch(problem, 16, DataSource.OWN, seed=5)
print(json.dumps(float(problem.loss(problem.model(inputs), targets).item())))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    problem = load_problem(name, seed=4)
    inputs, targets = load_batch(problem, 16, DataSource.OWN, seed=5)
    loss = problem.loss(problem.model(inputs), targets).item()
    assert json.loads(done.stdout) == pytest.approx(loss, rel=1e-5)


def test_small_data_set_bounds_the_default_batch_size(write):
    problem = load_problem(write(returning("net, ce, (x, y)")))
    assert problem.default_batch_size == 5
    assert problem.num_params == 8


def test_outputs_of_any_shape_under_mse(write):
    body = returning("nn.Linear(3, 2), mse, [torch.randn(5, 4, 3), torch.randn(5, 4, 2)]")
    problem = load_problem(write(body))
    assert problem.num_outputs == 8
    assert problem.target_shape == (4, 2)


def test_frozen_parameters_do_not_count(write):
    problem = load_problem(write("net.bias.requires_grad_(False)\n" + returning("net, ce, (x, y)")))
    assert problem.num_params == 6


def test_file_may_import_its_neighbours(write, tmp_path):
    (tmp_path / "neighbour_of_own.py").write_text("from torch.nn import CrossEntropyLoss\n")
    path = sys.path.copy()
    body = "def build():\n    from neighbour_of_own import CrossEntropyLoss\n"
    load_problem(write(body + "    return net, CrossEntropyLoss(), (x, y)\n"))
    assert sys.path == path


NORMALISED = "nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))"


def test_running_statistics_never_updated_are_filled_from_own_data(write):
    norm = load_problem(write(returning(f"{NORMALISED}, ce, (x, y)"))).model[1]
    assert int(norm.num_batches_tracked) == 3
    assert not torch.equal(norm.running_mean, torch.zeros(4))


def test_running_statistics_of_a_trained_model_are_kept(write):
    body = f"net = {NORMALISED}\nnet[1].num_batches_tracked += 1\n" + returning("net, ce, (x, y)")
    norm = load_problem(write(body)).model[1]
    assert int(norm.num_batches_tracked) == 1
    assert torch.equal(norm.running_mean, torch.zeros(4))


def test_checkpoint_is_loaded(write, tmp_path):
    state = nn.Linear(3, 2).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    problem = load_problem(write(returning("net, ce, (x, y)")), checkpoint=tmp_path / "weights.pt")
    assert torch.equal(problem.model.weight, state["weight"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("import nothing_of_this_name", "raised ModuleNotFoundError: No module named"),
        ("def build(:", "raised SyntaxError"),
        ("raise SystemExit(3)", "raised SystemExit: 3"),
        ("def built():\n    pass", "has no function 'build': did you mean 'built'?"),
        ("def other():\n    pass", "has no function 'build' (it has: other)"),
        ("build = 3", "has no function 'build' (it has: none)"),
        ("def build(width, depth=2):\n    pass", ":build requires width: give every argument"),
        ("def build():\n    raise ValueError('a\\nb')", "raised ValueError: a b"),
        (returning("None"), "must return (model, loss, data), got a NoneType"),
        (returning("net, ce"), "must return (model, loss, data), got 2 values"),
        (returning("'net', ce, (x, y)"), "the model must be a torch module, got a str"),
        (returning("nn.ReLU(), ce, (x, y)"), "the model has no trainable parameter"),
        (
            returning("net.double(), ce, (x, y)"),
            "return model.float() (--dtype float64 converts",
        ),
        (
            returning(
                "nn.Sequential(net, nn.BatchNorm1d(2, track_running_stats=False)), ce, (x, y)"
            ),
            "layer 1 has no running statistics",
        ),
        (
            returning("nn.Sequential(net, nn.Linear(2, 2, dtype=torch.cfloat)), ce, (x, y)"),
            "parameter 1.weight is torch.complex64; keep its real and imaginary part",
        ),
        (returning("net, nn.L1Loss(), (x, y)"), "loss L1Loss is not supported"),
        (returning("net, nn.MSELoss, (x, y)"), "got the class MSELoss; write MSELoss()"),
        (returning("net, 'mse', (x, y)"), "such as CrossEntropyLoss(), got a str"),
        (returning("net, nn.MSELoss(reduction='none'), (x, y)"), "reduction is 'none'"),
        (returning("net, nn.CrossEntropyLoss(-torch.ones(2)), (x, y)"), "weights must be finite"),
        (returning("net, nn.CrossEntropyLoss(torch.ones(3)), (x, y)"), "weight of CrossEntropy"),
        (returning("net, ce, 3"), "data must be tensors (inputs, targets), a map-style torch"),
        (returning("net, ce, (x, [0, 1])"), "targets must be one tensor, got 2 values"),
        (returning("net, ce, (x, y, y)"), "a pair (inputs, targets), got 3 values"),
        (returning("net, ce, ({'a': x, 'b': 'c'}, y)"), "inputs hold a str; they must be"),
        (returning("net, ce, ([x, x[:4]], y)"), "inputs[0] has 5 samples and inputs[1] has 4"),
        (returning("net, ce, ({'a': x + 1j}, y)"), "inputs['a'] are torch.complex64"),
        (returning("net, ce, (x.to_sparse(), y)"), "inputs are a nested or sparse tensor"),
        (returning("net, ce, (x, y[:4])"), "must have as many samples"),
        (returning("net, ce, (x[:0], y[:0])"), "got 0 samples instead of at least 1"),
        (returning("net, ce, (torch.randn(5, 4), y)"), "the model failed on inputs [2, 4]"),
        (
            returning("nn.Sequential(net, nn.Flatten(0)), ce, (x, y)"),
            "one tensor [2, ...], got [4]",
        ),
        (returning("nn.LSTM(3, 2), ce, (x, y)"), "to one tensor [2, ...], got a tuple"),
        (returning("net, ce, (torch.randn(5, 4, 3), y)"), "needs labels of shape [N, 2]"),
        (returning("net, ce, (x, y.float())"), "convert labels with targets.long()"),
        (returning("net, ce, (x, y + 1)"), "labels lie in 1..2, the model has C = 2 outputs"),
        (returning("net, mse, (x, y)"), "MSELoss needs floating-point targets"),
        (returning("net, mse, (x, torch.randn(5, 3))"), "MSELoss needs equal shapes"),
        (returning("net, bce, (x, 3 * x[:, :2])"), "BCEWithLogitsLoss needs probabilities"),
        (
            returning("net, ce, lambda n: (x[:n], y[:n])"),
            "batch(n=2, seed=0) raised TypeError",
        ),
        (returning("net, ce, lambda n, seed: x[:n]"), "a pair (inputs, targets), got a Tensor"),
        (returning("net, ce, lambda n, seed: (x, y)"), "got 5 samples instead of 2"),
        (returning("nn.Linear(7, 2), ce, lambda n, seed: (x[:n], y[:n])"), "the model failed on"),
        (
            returning("nn.Sequential(nn.Linear(7, 2), nn.BatchNorm1d(2)), ce, (x, y)"),
            "the model failed in a forward pass of 5 samples, RuntimeError",
        ),
    ],
)
def test_each_mistake_has_its_own_line(write, body, message):
    with pytest.raises(UsageError) as error:
        load_problem(write(body))
    assert message in str(error.value)
    assert "own.py" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("import asyncio; raise asyncio.CancelledError", "raised CancelledError"),
        ("class Own(BaseException): pass\n    raise Own('x')", "raised Own: x"),
        ("torch.set_default_device('meta'); return nn.Linear(3, 2), ce, (x, y)", "meta device"),
        ("return net, ce, (x.to('meta'), y)", "inputs are on the meta device"),
    ],
)
def test_what_code_may_do_beside_raising_is_one_line_too(write, statement, message):
    with pytest.raises(UsageError, match=message):
        load_problem(write(f"def build():\n    {statement}\n"))
    assert torch.empty(0).device.type == "cpu"


def test_an_interrupt_is_of_the_keyboard_unless_the_command_line_takes_signals(write, monkeypatch):
    problem = write("def build():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_problem(problem)
    monkeypatch.setattr(guest.signal, "getsignal", lambda _: None)
    with pytest.raises(UsageError, match="raised KeyboardInterrupt"):
        load_problem(problem)


@pytest.mark.parametrize("where", ["def build():\n    {}", "def build(): ...\n{}"])
def test_code_that_changes_the_folder_moves_nothing_else(write, tmp_path, monkeypatch, where):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    write(where.format("import os; os.chdir('elsewhere')") + "\n")
    with pytest.raises(UsageError, match="must return"):
        load_problem("own.py:build")
    assert Path.cwd() == tmp_path
    move = "def batch(n, seed):\n    import os; os.chdir('elsewhere'); return x[:n], y[:n]\n"
    write(move + returning("net, ce, batch"))
    load_batch(load_problem("own.py:build"), 2, DataSource.OWN)
    assert Path.cwd() == tmp_path


def test_what_code_prints_or_closes_is_not_standard_output(write, capfd):
    prints = "import os, sys; print('a'); os.system('echo b'); sys.stdout.close(); os.close(1)"
    load_problem(write(f"def build():\n    {prints}\n    return net, ce, (x, y)\n"))
    print("c")
    out, err = capfd.readouterr()
    assert out == "c\n"
    assert "a" in err
    assert "b" in err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (EXAMPLE, "write path/to/file.py:function"),
        (f"{EXAMPLE}:", "write path/to/file.py:function"),
        (f"{EXAMPLE}:two words", "write path/to/file.py:function"),
        ("some/folder", "write path/to/file.py:function"),
        ("nowhere.py:build", "no file nowhere.py"),
        (f"{EXAMPLE}:digit", "did you mean 'digits'?"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(UsageError) as error:
        load_problem(name)
    assert message in str(error.value)


def test_function_may_change_shapes_that_the_model_takes(write):
    body = (
        "def batch(n, seed):\n    return torch.randn(n, 3 if n < 3 else 4), torch.zeros(n).long()\n"
    )
    name = write(body + returning("net, ce, batch"))
    with pytest.raises(UsageError, match=r"the model failed on inputs \[1, 4\], RuntimeError"):
        load_batch(load_problem(name), 3, DataSource.OWN)
    pooled = "nn.Sequential(nn.AdaptiveAvgPool1d(3), net)"
    problem = load_problem(write(body + returning(f"{pooled}, ce, batch")))
    assert load_batch(problem, 3, DataSource.OWN)[0].shape == (3, 4)


def test_function_must_keep_its_labels_in_range(write):
    body = "def batch(n, seed):\n    return torch.randn(n, 3), torch.full((n,), n - 2)\n"
    problem = load_problem(write(body + returning("net, ce, batch")))
    with pytest.raises(UsageError, match=r"labels lie in 5\.\.5"):
        load_batch(problem, 7, DataSource.OWN)


def test_example_is_where_the_documentation_says():
    assert f"{EXAMPLE}:digits" in Path(EXAMPLE).read_text()
