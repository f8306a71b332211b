"""Data of one's own: tensors of any dtype, trees of them, Datasets and DataLoaders."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from typer.testing import CliRunner

from vivit_bench.cli.problems import app
from vivit_bench.curvature.options import Precision
from vivit_bench.errors import UsageError
from vivit_bench.measure import Outcome, Spec, run_trial
from vivit_bench.measure.work import EngineWork
from vivit_bench.noise import Choices, OptimizerName, run_noise
from vivit_bench.noise.data import chunks, load_run_data
from vivit_bench.noise.training import evaluate
from vivit_bench.problems import DataSource, Problem, load_batch, load_dataset, load_problem
from vivit_bench.problems.describe import describe_problem, layer_rows
from vivit_bench.problems.own_data import as_own_data
from vivit_bench.problems.sampling import TooFewSamplesError
from vivit_bench.problems.workload import (
    WorkloadSpec,
    batch_fingerprint,
    load_workload,
    model_fingerprint,
)
from vivit_bench.spectrum import compute_spectrum
from vivit_bench.trees import leaves

EXAMPLE = Path(__file__).parent.parent / "scripts" / "examples" / "transformer.py"
CLASSIFIER, LANGUAGE_MODEL = f"{EXAMPLE}:classifier", f"{EXAMPLE}:language_model"

HEADER = """
import random

import numpy as np
import torch
from torch import nn
from torch.utils import data as loading

X, Y = torch.randn(40, 3), torch.arange(40) % 2
TOKENS = torch.arange(200).view(40, 5) % 7
IGNORED = torch.where(TOKENS < 2, TOKENS, -100).unsqueeze(1)
net, ce, mse, bce = nn.Linear(3, 2), nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss()
embed = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(20, 2))


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(7, 4), nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs):
        words = self.embedding(inputs["tokens"]).mean(1)
        return self.head((words + self.linear(inputs["more"][0])).tanh())


class Items(loading.Dataset):
    def __init__(self, make, length=40):
        self.make, self.length = make, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.make(index)


class Stream(loading.IterableDataset):
    def __iter__(self):
        yield X[0], 0


def tree(index):
    return {"tokens": TOKENS[index], "more": (X[index],)}, int(Y[index])
"""

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a problem that returns the given (model, loss, data), after the given lines."""

    def write(expression: str, lines: str = "") -> str:
        file = tmp_path / "own.py"
        file.write_text(f"{HEADER}\n{lines}\n\n\ndef build():\n    return {expression}\n")
        return f"{file}:build"

    return write


def own(problem: Problem, n: int, seed: int = 0) -> tuple[Any, Tensor]:
    return load_batch(problem, n, DataSource.OWN, seed=seed)


def same(a: Any, b: Any) -> bool:
    return all(
        place == other and torch.equal(x, y)
        for (place, x), (other, y) in zip(leaves(a), leaves(b), strict=True)
    )


TREE = "({'tokens': TOKENS, 'more': (X,)}, Y)"


# Tensors and trees


@pytest.mark.parametrize(
    ("expression", "dtype", "shape"),
    [
        ("embed, ce, (TOKENS, Y)", torch.int64, (5,)),
        ("embed, ce, (TOKENS.int(), Y)", torch.int32, (5,)),
        ("nn.Embedding(7, 2), ce, (TOKENS[:, 0], Y)", torch.int64, ()),
        ("net, ce, (X.double(), Y)", torch.float32, (3,)),
        ("net, ce, (X.half(), Y)", torch.float32, (3,)),
        ("net, ce, (X.bfloat16().requires_grad_(), Y.to(torch.uint8))", torch.float32, (3,)),
    ],
)
def test_integers_stay_and_floating_point_becomes_float32(
    write: Write, expression: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    problem = load_problem(write(expression))
    inputs, targets = own(problem, 7)
    assert (inputs.dtype, problem.input_shape) == (dtype, shape)
    assert targets.dtype == torch.int64
    assert not inputs.requires_grad
    assert problem.is_classification


@pytest.mark.parametrize(
    "data", [TREE, "Items(tree)", "loading.DataLoader(Items(tree), 3)", "lambda n, seed: draw(n)"]
)
def test_trees_come_the_same_however_they_are_given(write: Write, data: str) -> None:
    draw = "def draw(n):\n    return {'tokens': TOKENS[:n], 'more': (X[:n],)}, Y[:n]"
    problem = load_problem(write(f"Bag(), ce, {data}", draw))
    assert problem.input_shape == {"['tokens']": (5,), "['more'][0]": (3,)}
    inputs, targets = own(problem, 6)
    assert inputs["tokens"].shape == (6, 5)
    assert inputs["tokens"].dtype == targets.dtype == torch.int64
    assert inputs["more"][0].dtype == torch.float32
    assert problem.model(inputs).shape == (6, problem.num_outputs) == (6, 2)


def test_samples_of_a_dataset_are_those_of_the_tensors(write: Write) -> None:
    batches = [
        own(load_problem(write(f"Bag(), ce, {data}")), 9, seed=3)
        for data in (TREE, "Items(tree)", "loading.DataLoader(Items(tree), shuffle=True)")
    ]
    for inputs, targets in batches[1:]:
        assert torch.equal(targets, batches[0][1])
        assert torch.equal(inputs["tokens"], batches[0][0]["tokens"])
        assert torch.equal(inputs["more"][0], batches[0][0]["more"][0])


@pytest.mark.parametrize(
    ("expression", "outputs", "target_shape"),
    [
        ("nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), mse, (X, X[:, 0])", (), ()),
        ("nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), bce, (X, Y.double())", (), ()),
        ("net, nn.MSELoss(reduction='sum'), (X, X[:, :2])", (2,), (2,)),
        ("net, nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)), (X, X[:, :2] ** 0)", (2,), (2,)),
        ("net, nn.CrossEntropyLoss(torch.ones(2).double()), (X, Y)", (2,), ()),
        ("net, nn.CrossEntropyLoss(label_smoothing=0.1), (X, X[:, :2].softmax(1))", (2,), (2,)),
        ("nn.Conv1d(3, 4, 1), ce, (X.unsqueeze(2).repeat(1, 1, 5), TOKENS % 4)", (4, 5), (5,)),
        ("nn.Conv2d(3, 2, 1), ce, (torch.randn(40, 3, 1, 5), IGNORED)", (2, 1, 5), (1, 5)),
    ],
)
def test_outputs_and_losses(
    write: Write, expression: str, outputs: tuple[int, ...], target_shape: tuple[int, ...]
) -> None:
    problem = load_problem(write(expression))
    assert problem.output_shape == outputs
    assert problem.num_outputs == math.prod(outputs)
    inputs, targets = own(problem, 4)
    assert targets.shape[1:] == problem.target_shape == target_shape
    assert targets.dtype == problem.target_dtype
    assert problem.model(inputs).shape[1:] == outputs
    assert problem.is_classification == (not targets.is_floating_point())
    synthetic = load_batch(problem, 50, DataSource.SYNTHETIC)
    assert synthetic[1].shape == (50, *target_shape)
    assert problem.loss(problem.model(synthetic[0]), synthetic[1]).isfinite()


# Datasets


class Recorder(Dataset[tuple[Tensor, int]]):
    """Knows which of its items were loaded."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.loaded.append(index)
        return torch.full((3,), index), index


def test_only_chosen_items_are_loaded() -> None:
    items = Recorder()
    data = as_own_data("own", items)
    assert items.loaded == []
    inputs, targets = data.batch(5, seed=1)
    assert len(set(items.loaded)) == 5
    assert targets.tolist() == inputs[:, 0].tolist() == items.loaded
    items.loaded.clear()
    assert data.everything(seed=1)[1].tolist() == items.loaded == list(range(40))


def test_random_augmentations_are_seeded(write: Write) -> None:
    lines = (
        "def jitter(i):\n"
        "    noise = random.random() + np.random.rand() + torch.rand(3)\n"
        "    return X[i] + noise, Y[i]"
    )
    problem = load_problem(write("net, ce, Items(jitter)", lines), seed=1)
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    first, again, other = (own(problem, 40, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(()), expected)  # nothing else is disturbed
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0].sort(0).values, other[0].sort(0).values)
    whole = [load_dataset(problem, DataSource.OWN, seed=seed)[0] for seed in (1, 1, 2)]
    assert torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[0], whole[2])


def test_a_function_that_draws_from_global_generators_is_seeded(write: Write) -> None:
    problem = load_problem(write("net, ce, lambda n, seed: (torch.randn(n, 3), Y[:n])"))
    assert torch.equal(own(problem, 4, seed=1)[0], own(problem, 4, seed=1)[0])


def test_more_samples_than_there_are(write: Write) -> None:
    problem = load_problem(write("net, ce, Items(lambda i: (X[i], Y[i]))"))
    with pytest.raises(UsageError, match=r"41 samples .* the 40 .* --data synthetic"):
        own(problem, 41)
    problem = load_problem(write(f"Bag(), ce, {TREE}"))
    with pytest.raises(UsageError, match=r"41 samples .* a function batch\(n, seed\) as its data"):
        own(problem, 41)
    with pytest.raises(UsageError, match=r"--data synthetic does not fit .* use --data own"):
        load_batch(problem, 41, DataSource.SYNTHETIC)


def test_padding_may_differ_between_batches() -> None:
    problem = load_problem(LANGUAGE_MODEL)
    lengths = set()
    for seed in range(6):
        inputs, targets = own(problem, 3, seed)
        assert inputs.shape == targets.shape
        assert problem.loss(problem.model(inputs), targets).isfinite()
        lengths.add(inputs.shape[1])
    assert len(lengths) > 1
    inputs, targets = load_dataset(problem, DataSource.OWN)
    assert len(targets) == problem.own_data.size  # type: ignore[union-attr]
    assert inputs.shape[1] == 11


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Stream()", "samples of the iterable-style Stream cannot be chosen by a seed; return"),
        ("loading.DataLoader(Stream())", "the iterable-style Stream cannot be chosen"),
        ("loading.Dataset()", "Dataset has no length, TypeError: "),
        ("Items(tree, 0)", "Items has 0 samples instead of at least 1"),
        (
            "Items(lambda i: (X[i], 1 // (i - 16)))",
            "item 16 of Items raised ZeroDivisionError",
        ),
        ("Items(lambda i: X[i])", "of Items is a Tensor, not (input, target)"),
        ("Items(lambda i: {'x': X[i]})", "of Items is a dict, not (input, target)"),
        ("Items(lambda i: (X[i], Y[i], 3))", "of Items is 3 values, not (input, target)"),
        ("Items(lambda i: (X[i], object()))", "item 4 of Items cannot be collated, TypeError"),
        ("Items(lambda i: (X[i, : 1 + i // 10], 0))", "items 4, 16 of Items cannot be collated"),
        ("Items(lambda i: ('a', 0))", "items 4, 16 of Items: inputs hold a str"),
        ("Items(lambda i: (X[i], 'a'))", "items 4, 16 of Items: targets must be one tensor"),
        ("Items(lambda i: (X[i], 7))", "labels lie in 7..7, the model has C = 2 outputs"),
        ("with_collate(lambda items: X)", "items 4, 16 of Items: data must be a pair"),
        ("with_collate(lambda items: (X[:1], Y[:1]))", "got 1 samples instead of 2"),
        ("with_collate(lambda items: items[9])", "cannot be collated, IndexError"),
        ("loading.DataLoader(Items(tree), batch_size=None)", "batch_size=None and so no samples"),
        (
            "loading.DataLoader(Items(tree), sampler=loading.SubsetRandomSampler([1]))",
            "the SubsetRandomSampler of the DataLoader would be ignored; return one over",
        ),
    ],
)
def test_each_mistake_has_its_own_line(write: Write, data: str, message: str) -> None:
    """The two samples of the check are items 4 and 16."""
    lines = "def with_collate(f):\n    return loading.DataLoader(Items(tree), collate_fn=f)"
    with pytest.raises(UsageError) as refused:
        load_problem(write(f"net, ce, {data}", lines))
    assert message in str(refused.value)
    assert "own.py:build" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_item_met_later_is_named(write: Write) -> None:
    problem = load_problem(write("net, ce, Items(lambda i: (X[i], 1 // (i - 5) % 2))"))
    with pytest.raises(UsageError, match="item 5 of Items raised ZeroDivisionError"):
        load_dataset(problem, DataSource.OWN)


# What is said about them


def test_description(write: Write) -> None:
    facts = describe_problem(load_problem(CLASSIFIER))
    assert facts["input_shape"] == {"['tokens']": [12], "['padding']": [12]}
    assert facts["dataset"] == "own Sequences, 1000 samples"
    assert facts["sources"] == ["own"]
    json.dumps(facts)
    facts = describe_problem(load_problem(write("net, ce, loading.TensorDataset(X, Y)")))
    assert facts["input_shape"] == [3]
    assert facts["dataset"] == "own TensorDataset, 40 samples"
    assert facts["sources"] == ["own", "synthetic"]


@pytest.mark.parametrize("name", [CLASSIFIER, LANGUAGE_MODEL])
def test_show_lists_every_parameter(name: str) -> None:
    problem = load_problem(name)
    assert sum(row["num_params"] for row in layer_rows(problem)) == problem.num_params
    shown = CliRunner().invoke(app, ["show", name], catch_exceptions=False)
    assert shown.exit_code == 0


def test_batch_fingerprint_sees_trees() -> None:
    x, y = torch.arange(6).view(3, 2), torch.arange(3)
    variants: list[Any] = [
        x,
        [x, x],
        {"a": x, "b": x},
        {"b": x, "a": x},
        {"a": x, "b": x + 1},
        {"a": x, "b": x.int()},
        {"a": x, "b": x.view(3, 2, 1)},
        {"a": x},
        {"a": x > 2},
    ]
    assert len({batch_fingerprint(inputs, y) for inputs in variants}) == len(variants)
    assert batch_fingerprint({"a": x.clone()}, y) == batch_fingerprint({"a": x}, y)


def test_model_fingerprint_sees_the_loss_and_any_precision() -> None:
    model = nn.Linear(2, 2).bfloat16()
    losses = [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(torch.ones(2)),
        nn.CrossEntropyLoss(2 * torch.ones(2)),
        nn.CrossEntropyLoss(ignore_index=0),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.BCEWithLogitsLoss(),
        nn.BCEWithLogitsLoss(torch.ones(2)),
        nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)),
    ]
    assert len({model_fingerprint("mnist_mlp", model, loss) for loss in losses}) == len(losses)


# Where they are used


@pytest.mark.parametrize("dtype", list(Precision))
def test_a_spectrums_workload_has_one_precision(write: Write, dtype: Precision) -> None:
    lines = "class Rotated(Bag):\n    def __init__(self):\n        super().__init__()\n"
    lines += "        self.register_buffer('phases', torch.tensor([1j]))"
    loss = "nn.CrossEntropyLoss(torch.ones(2))"
    problem = write(f"Rotated(), {loss}, Items(tree)", lines)
    workload = load_workload(WorkloadSpec(problem, batch_size=6, dtype=dtype))
    model, weighted, inputs, targets = workload.request
    floating = getattr(torch, dtype.value)
    assert inputs["tokens"].dtype == torch.int64
    assert inputs["more"][0].dtype == weighted.weight.dtype == floating
    assert model.phases.is_complex()
    weighted(model(inputs), targets)


def evaluated(model: nn.Module, loss: nn.Module, inputs: Any, targets: Tensor) -> Any:
    return evaluate(model, loss, inputs, targets, torch.device("cpu"))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_evaluation_is_the_loss_of_all_samples(
    reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vivit_bench.noise.training._EVALUATION_BATCH", 7)
    random = torch.Generator().manual_seed(0)
    inputs = {"x": torch.randn(20, 3, 4, generator=random)}

    class Model(nn.Module):
        def forward(self, tree: dict[str, Tensor]) -> Tensor:
            return tree["x"] * 2

    labels = torch.randint(3, (20, 4), generator=random)
    labels[:8] = -100
    options = {"weight": torch.tensor([1.0, 2.0, 5.0]), "reduction": reduction}
    numbers = torch.rand(20, 3, 4, generator=random)
    outputs = Model()(inputs)
    for loss, targets in (
        (nn.CrossEntropyLoss(**options, label_smoothing=0.1), labels),
        (nn.CrossEntropyLoss(**options), numbers.softmax(1)),
        (nn.MSELoss(reduction=reduction), numbers),
        (nn.BCEWithLogitsLoss(reduction=reduction), numbers),
    ):
        value, accuracy = evaluated(Model(), loss, inputs, targets)
        assert value == pytest.approx(float(loss(outputs, targets)), rel=1e-6)
        if targets is labels:
            hits = (outputs.argmax(1) == labels)[8:].float().mean()
            assert accuracy == pytest.approx(float(hits))
        else:
            assert math.isnan(accuracy)
    outcome = evaluated(Model(), nn.CrossEntropyLoss(), inputs, torch.full((20, 4), -100))
    assert all(map(math.isnan, outcome))


def test_data_of_a_training_run_are_trees(write: Write) -> None:
    data = load_run_data(load_problem(write("Bag(), ce, Items(tree)")), DataSource.OWN, None, 0)
    assert (len(data.train), len(data.held_out), data.num_test) == (32, 4, 4)
    assert same(data.monitor_batch(2)[0], data.samples(data.held_out[:2])[0])
    assert len(data.train_subset()[1]) == 4
    parts = list(chunks(*data.test, 3))
    assert [len(targets) for _, targets in parts] == [3, 1]
    joined = torch.cat([inputs["more"][0] for inputs, _ in parts])
    assert torch.equal(joined, data.test[0]["more"][0])


def test_a_dataset_that_does_not_go_into_one_batch_is_refused(write: Write) -> None:
    short = "Items(lambda i: (X[i, : 2 if i == 11 else 3], Y[i]))"
    problem = load_problem(write(f"net, ce, {short}"))
    with pytest.raises(UsageError, match="items 0, 11 of Items cannot be collated, RuntimeError"):
        load_run_data(problem, DataSource.OWN, None, 0)


def work(problem: str, quantity: str = "eigenvalues") -> dict[str, Any]:
    return {
        "problem": problem,
        "quantity": quantity,
        "curvature": "exact",
        "samples": "full",
        "mc_samples": 1,
        "engine": "vivit-bench",
        "data": "own",
        "data_dir": None,
        "seed": 0,
        "checkpoint": None,
        "device": "cpu",
    }


def test_a_trial_knows_the_end_of_the_data_from_an_error(write: Write) -> None:
    with pytest.raises(TooFewSamplesError, match="41 samples are more than the 40"):
        EngineWork(**work(write(f"Bag(), ce, {TREE}"))).run(41)
    function = "lambda n, seed: (X[:n], Y[:n])"
    with pytest.raises(TooFewSamplesError, match="got 40 samples instead of 50"):
        EngineWork(**work(write(f"net, ce, {function}"))).run(50)
    name = write("net, ce, Items(lambda i: (X[i], 1 // (i - 5) % 2))")
    with pytest.raises(UsageError, match="item 5 of Items raised ZeroDivisionError"):
        EngineWork(**work(name)).run(40)


@pytest.mark.parametrize("data", [TREE, "Items(tree)"])
@pytest.mark.parametrize("quantity", ["eigenvalues", "full-newton"])
def test_a_trial_runs_on_trees(write: Write, data: str, quantity: str) -> None:
    workload = EngineWork(**work(write(f"Bag(), ce, {data}"), quantity))
    workload.warm_up()
    assert workload.check(workload.run(9)) == ""


@pytest.mark.thorough
def test_a_trial_in_a_process_of_its_own_takes_a_dict() -> None:
    for n, outcome in ((20, Outcome.FITS), (1001, Outcome.DATA)):
        spec = Spec(n=n, limit_bytes=2**28, threads=1, arguments=work(CLASSIFIER))
        trial = run_trial(spec, 120.0).trial
        assert trial.outcome is outcome, trial.message
        assert trial.available_samples == (1000 if outcome is Outcome.DATA else None)


def dense_spectrum(name: str, n: int) -> Tensor:
    from oracle import dense

    problem = load_problem(name)
    found = dense(problem.model, problem.loss, *own(problem, n))
    ggn = torch.einsum("nci,ncd,ndj->ij", found.jacobians, found.hessians, found.jacobians) / n
    return torch.linalg.eigvalsh(ggn).flip(0)


@pytest.mark.parametrize("name", [CLASSIFIER, LANGUAGE_MODEL])
def test_spectra_of_transformers(name: str) -> None:
    record = compute_spectrum(name, batch_size=3, dtype=Precision.FLOAT64)
    expected = dense_spectrum(name, 3)[: len(record.eigenvalues)]
    found = torch.from_numpy(record.eigenvalues)[: len(expected)]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("expression", "accuracies"),
    [
        ("Bag(), ce, Items(tree)", True),
        ("Bag(), bce, Items(lambda i: (tree(i)[0], torch.tensor([0.0, 1.0])))", False),
        ("nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), mse, (X, X[:, 0])", False),
        ("nn.Conv1d(3, 4, 1), ce, (X[:, :, None].repeat(1, 1, 2), TOKENS[:, :2] % 4)", True),
    ],
)
def test_training_runs_under_a_monitor(
    write: Write, tmp_path: Path, expression: str, accuracies: bool
) -> None:
    choices = Choices(
        problem=write(expression),
        optimizer=OptimizerName.SGD,
        epochs=2,
        batch_size=16,
        lr=0.1,
        checkpoints=2,
    )
    run = run_noise(choices, tmp_path, name="run")
    assert run.checkpoints["step"].tolist() == [0, 4]
    assert run.sizes["test_samples"] == 4
    assert run.curves["test_loss"].iloc[-1] < run.curves["test_loss"].iloc[0]
    assert run.curves[["train_accuracy", "test_accuracy"]].notna().all(axis=None) == accuracies
