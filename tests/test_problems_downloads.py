"""Real data sets on disk: read through torchvision, never half there."""

import dataclasses
import gzip
import hashlib
import pickle
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision

from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.problems import DataSource, list_problems, load_batch, load_dataset, load_problem
from vivit_bench.problems.datasets import DATASETS

SAMPLES = {"train": 6, "t10k": 4}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.fixture
def small_mnist(monkeypatch):
    """Let the complete MNIST be one of 6 and 4 digits."""
    sizes = {}
    for split, n in SAMPLES.items():
        sizes[f"MNIST/raw/{split}-images-idx3-ubyte"] = 16 + 784 * n
        sizes[f"MNIST/raw/{split}-labels-idx1-ubyte"] = 8 + n
    monkeypatch.setitem(DATASETS, "mnist", dataclasses.replace(DATASETS["mnist"], files=sizes))
    return sizes


def idx_file(name: str) -> bytes:
    n = SAMPLES[Path(name).name.split("-")[0]]
    if "images" in name:
        return struct.pack(">IIII", 2051, n, 28, 28) + bytes(i % 256 for i in range(784 * n))
    return struct.pack(">II", 2049, n) + bytes(range(n))


class FakeMirror:
    """Stands for torchvision's download of one archive."""

    def __init__(self, failure=None, after=0):
        self.failure, self.after, self.calls = failure, after, 0

    def __call__(self, url, download_root, filename, md5):
        name = filename.removesuffix(".gz")
        if self.calls == self.after and self.failure is not None:
            (Path(download_root) / name).write_bytes(idx_file(name)[:9])  # cut short
            raise self.failure
        self.calls += 1
        (Path(download_root) / name).write_bytes(idx_file(name))
        (Path(download_root) / filename).write_bytes(gzip.compress(b"archive"))
        print("Extracting", filename)


def mirror(monkeypatch, **kwargs) -> FakeMirror:
    fake = FakeMirror(**kwargs)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fake)
    return fake


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("key", ["mnist", "fmnist", "cifar10", "cifar100", "svhn"])
def test_without_network_one_line_says_what_is_missing_where(tmp_path, key):
    folder = tmp_path / "data"
    with pytest.raises(VivitBenchError) as error:
        load_dataset(key, DataSource.DEEPOBS, folder)
    message = str(error.value)
    assert not isinstance(error.value, UsageError)
    assert message.startswith(f"{DATASETS[key].title} is not in {folder} (no ")
    assert "no network in tests" in message
    assert "--data-dir or VIVIT_BENCH_DATA" in message
    assert message.endswith("or a problem of another data set") == ("mnist" in key)
    assert ("--data mnist5k" in message) == ("mnist" in key)
    assert "synthetic" not in message  # has no splits
    assert "\n" not in message
    assert files_below(folder) == []


def test_a_mini_batch_may_also_be_synthetic(tmp_path):
    problem = load_problem("mnist_logreg")
    with pytest.raises(VivitBenchError, match=r"or use --data mnist5k or --data synthetic$"):
        load_batch(problem, 4, DataSource.DEEPOBS, tmp_path)


@pytest.mark.parametrize(
    "failure", [urllib.error.URLError("cut"), RuntimeError("bad checksum"), OSError("disk full")]
)
@pytest.mark.parametrize("after", [0, 3])
def test_download_that_fails_leaves_nothing(
    tmp_path, small_mnist, monkeypatch, capsys, failure, after
):
    mirror(monkeypatch, failure=failure, after=after)
    with pytest.raises(VivitBenchError, match="downloading it failed"):
        load_dataset("mnist", DataSource.DEEPOBS, tmp_path)
    assert files_below(tmp_path) == []
    assert not list_problems(tmp_path)[0].data_present


def test_interrupted_download_leaves_nothing(tmp_path, small_mnist, monkeypatch):
    mirror(monkeypatch, failure=KeyboardInterrupt(), after=2)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("mnist", DataSource.DEEPOBS, tmp_path)
    assert files_below(tmp_path) == []


def test_download_happens_once_and_quietly(tmp_path, small_mnist, monkeypatch, capsys):
    fake = mirror(monkeypatch)
    inputs, targets = load_dataset("mnist", DataSource.DEEPOBS, tmp_path)
    assert fake.calls == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"downloading MNIST to {tmp_path}\n"
    expected = torch.arange(784 * 6).remainder(256).view(6, 1, 28, 28) / 255
    assert torch.equal(inputs, expected)
    assert targets.tolist() == list(range(6))
    assert files_below(tmp_path) == sorted(small_mnist)
    assert list_problems(tmp_path)[0].data_present
    test, _ = load_dataset("mnist", DataSource.DEEPOBS, tmp_path, split="test")
    assert len(test) == 4
    assert fake.calls == 4


def test_truncated_file_is_named_or_fetched_again(tmp_path, small_mnist, monkeypatch):
    for name in small_mnist:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(idx_file(name))
    broken = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    broken.write_bytes(idx_file(broken.name)[:100])
    assert not list_problems(tmp_path)[0].data_present
    with pytest.raises(VivitBenchError, match="train-images-idx3-ubyte has 100 bytes instead of"):
        load_dataset("mnist", DataSource.DEEPOBS, tmp_path)
    mirror(monkeypatch)
    inputs, _ = load_dataset("mnist", DataSource.DEEPOBS, tmp_path)
    assert len(inputs) == 6


def test_batch_from_a_data_set_is_limited_by_its_size(tmp_path, small_mnist, monkeypatch):
    mirror(monkeypatch)
    problem = load_problem("mnist_logreg")
    inputs, targets = load_batch(problem, 6, DataSource.DEEPOBS, tmp_path, seed=1)
    assert inputs.shape == (6, 1, 28, 28)
    assert sorted(targets.tolist()) == list(range(6))
    with pytest.raises(UsageError, match=r"7 samples .* the 6 of the training split of MNIST"):
        load_batch(problem, 7, DataSource.DEEPOBS, tmp_path)


def test_data_folder_that_is_a_file_gets_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VivitBenchError, match="FileExistsError"):
        load_dataset("mnist", DataSource.DEEPOBS, tmp_path / "file")


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_pickle(path: Path, content) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return md5(path)


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """A CIFAR-10 of 10 training images and its pixels, planar as on disk."""
    data_class = torchvision.datasets.CIFAR10
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3 * 32 * 32), dtype=np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    sums = []
    for i, name in enumerate(names):
        content = {"data": pixels[2 * i : 2 * i + 2], "labels": [i, 9]}
        sums.append([name, write_pickle(tmp_path / data_class.base_folder / name, content)])
    meta = write_pickle(
        tmp_path / data_class.base_folder / "batches.meta", {"label_names": list("0123456789")}
    )
    monkeypatch.setattr(data_class, "train_list", sums[:5])
    monkeypatch.setattr(data_class, "test_list", sums[5:])
    monkeypatch.setattr(data_class, "meta", {**data_class.meta, "md5": meta})
    return torch.from_numpy(pixels).view(-1, 3, 32, 32)


def test_cifar_is_read_channels_first_and_normalised(tmp_path, small_cifar):
    inputs, targets = load_dataset("cifar10_3c3d", DataSource.DEEPOBS, tmp_path)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in DATASETS["cifar10"].normalisation)
    torch.testing.assert_close(inputs, (small_cifar[:10] / 255 - mean) / std)
    assert targets.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]


def test_damaged_cifar_file_is_not_read(tmp_path, small_cifar):
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(b"damaged")
    with pytest.raises(VivitBenchError, match=r"damaged files: .*corrupted"):
        load_dataset("cifar10_3c3d", DataSource.DEEPOBS, tmp_path)


def test_svhn_is_read_channels_first_with_ten_as_zero(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    splits = {}
    for split in ("train", "test"):
        file = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(file, {"X": pixels, "y": np.array([[10], [1], [2], [9]], np.uint8)})
        splits[split] = ["", file.name, md5(file)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", splits)
    inputs, targets = load_dataset("svhn_wrn164", DataSource.DEEPOBS, tmp_path, split="test")
    assert targets.tolist() == [0, 1, 2, 9]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in DATASETS["svhn"].normalisation)
    expected = (torch.from_numpy(pixels).permute(3, 2, 0, 1) / 255 - mean) / std
    torch.testing.assert_close(inputs, expected)
