"""Mini-batches: sources, seeds, normalisation, limits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vivit_bench.errors import UsageError
from vivit_bench.problems import (
    DataSource,
    available_sources,
    data_folder,
    default_source,
    load_batch,
    load_dataset,
    load_problem,
)
from vivit_bench.problems.data import normalise
from vivit_bench.problems.datasets import DATASETS
from vivit_bench.problems.deepobs_torch import deepobs_module

USER = "scripts/examples/small_cnn.py:digits"


@pytest.fixture(scope="module")
def logreg():
    return load_problem("mnist_logreg")


@pytest.fixture(scope="module")
def cifar():
    return load_problem("cifar10_3c3d")


@pytest.mark.parametrize("key", ["cifar10", "cifar100", "svhn"])
def test_normalisation_is_deepobs_evaluation_transform(key):
    module = deepobs_module(f"datasets.{key}")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    theirs = torch.stack([module.training_transform_not_augmented(image) for image in pixels])
    ours = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), DATASETS[key])
    assert torch.equal(ours, theirs)


def test_mnist_normalisation_is_scaling_to_one():
    from torchvision.transforms import ToTensor

    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)
    theirs = torch.stack([ToTensor()(image) for image in pixels])
    ours = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), DATASETS["fmnist"])
    assert torch.equal(ours, theirs)


def test_synthetic_batches_are_seeded_and_of_any_size(cifar):
    inputs, targets = load_batch(cifar, 4000, DataSource.SYNTHETIC, seed=1)
    again, _ = load_batch(cifar, 4000, DataSource.SYNTHETIC, seed=1)
    other, _ = load_batch(cifar, 4000, DataSource.SYNTHETIC, seed=2)
    assert torch.equal(inputs, again)
    assert not torch.equal(inputs, other)
    assert inputs.dtype == torch.float32
    assert targets.dtype == torch.int64
    assert torch.bincount(targets, minlength=10).min() > 300
    assert abs(float(inputs.mean())) < 0.01
    assert abs(float(inputs.std()) - 1) < 0.01


def test_a_plain_string_names_a_source_too(logreg):
    inputs, _ = load_batch(logreg, 5, "synthetic", seed=1)
    assert torch.equal(inputs, load_batch(logreg, 5, DataSource.SYNTHETIC, seed=1)[0])


def test_synthetic_digits_have_the_moments_of_real_ones(logreg):
    synthetic, _ = load_batch(logreg, 2000, DataSource.SYNTHETIC)
    real, _ = load_dataset("mnist", DataSource.MNIST5K)
    assert float(synthetic.mean()) == pytest.approx(float(real.mean()), abs=0.02)
    assert float(synthetic.std()) == pytest.approx(float(real.std()), abs=0.02)


def test_mnist5k_splits_are_balanced_fixed_and_apart():
    train, train_labels = load_dataset("fmnist_mlp", DataSource.MNIST5K, split="train")
    test, test_labels = load_dataset("mnist", DataSource.MNIST5K, split="test")
    assert train.shape == (4000, 1, 28, 28)
    assert test.shape == (1000, 1, 28, 28)
    assert torch.bincount(train_labels).tolist() == [400] * 10
    assert torch.bincount(test_labels).tolist() == [100] * 10
    assert float(train.min()) == 0
    assert float(train.max()) == 1
    as_rows = {row.numpy().tobytes() for row in torch.cat([train, test])}
    assert len(as_rows) > 4990  # a digit may occur twice in MNIST itself


def test_real_batches_are_drawn_without_replacement(logreg):
    everything, labels = load_dataset(logreg, DataSource.MNIST5K)
    inputs, targets = load_batch(logreg, 4000, DataSource.MNIST5K, seed=1)
    assert torch.equal(torch.bincount(targets), torch.bincount(labels))
    assert not torch.equal(inputs, everything)
    torch.testing.assert_close(inputs.sum((0, 1)), everything.sum((0, 1)))
    first, _ = load_batch(logreg, 10, DataSource.MNIST5K, seed=1)
    again, _ = load_batch(logreg, 10, DataSource.MNIST5K, seed=1)
    other, _ = load_batch(logreg, 10, DataSource.MNIST5K, seed=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batches_of_impossible_size_are_refused(logreg):
    with pytest.raises(UsageError, match=r"4001 .* the 4000 of .*mnist5k.* --data synthetic"):
        load_batch(logreg, 4001, DataSource.MNIST5K)
    with pytest.raises(UsageError, match="at least 1"):
        load_batch(logreg, 0, DataSource.SYNTHETIC)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DataSource.MNIST5K, "--data mnist5k does not fit cifar10_3c3d: use deepobs or synthetic"),
        (DataSource.OWN, "--data own does not fit cifar10_3c3d: use deepobs or synthetic"),
    ],
)
def test_sources_that_do_not_fit_are_refused(cifar, source, message):
    for load in (lambda: load_batch(cifar, 2, source), lambda: load_dataset(cifar, source)):
        with pytest.raises(UsageError, match=message):
            load()


@pytest.mark.parametrize(
    ("name", "source", "split", "message"),
    [
        ("mnist_mlp", DataSource.SYNTHETIC, "train", "no splits"),
        ("cifar10", DataSource.MNIST5K, "train", "does not fit cifar10: use mnist or fmnist"),
        ("cifar11", DataSource.DEEPOBS, "train", "unknown problem 'cifar11'"),
        (USER, DataSource.OWN, "test", "no test split"),
        (USER, DataSource.MNIST5K, "train", "use own or synthetic"),
        (USER.replace("digits", "regression"), DataSource.OWN, "train", "return tensors"),
    ],
)
def test_data_sets_that_do_not_exist_are_refused(name, source, split, message):
    with pytest.raises(UsageError, match=message):
        load_dataset(name, source, split=split)


def test_sources_of_a_problem_and_their_defaults():
    assert available_sources("fmnist_2c2d") == ["deepobs", "mnist5k", "synthetic"]
    assert available_sources("svhn_wrn164") == ["deepobs", "synthetic"]
    assert available_sources("any/file.py:function") == ["own", "synthetic"]
    assert default_source("fmnist_2c2d", "memory") is DataSource.SYNTHETIC
    assert default_source("fmnist_2c2d", "real") is DataSource.DEEPOBS
    assert default_source("any/file.py:function", "memory") is DataSource.OWN
    assert default_source("any/file.py:function", "real") is DataSource.OWN
    with pytest.raises(UsageError, match="unknown problem"):
        default_source("nothing", "real")


def test_data_folder_is_argument_then_variable_then_cache(monkeypatch):
    monkeypatch.delenv("VIVIT_BENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data_folder() == Path("/cache/vivit-bench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == Path.home() / ".cache" / "vivit-bench"
    monkeypatch.setenv("VIVIT_BENCH_DATA", "~/sets")
    assert data_folder() == Path.home() / "sets"
    assert data_folder(Path("here")) == Path("here")
