"""The data sets of DeepOBS's problems: shapes, normalisation, files on disk (no torch)."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DatasetSpec:
    """One data set as DeepOBS reads it.

    Attributes:
        key: Name within DeepOBS.
        title: Name for people.
        torchvision_class: Class of ``torchvision.datasets``; None: made in memory.
        shape: Of one input, channels first.
        normalisation: Per-channel means and standard deviations DeepOBS's evaluation
            transform applies after scaling pixels to [0, 1]; None: scaling only.
        moments: Mean and standard deviation of the normalised training inputs, which
            synthetic inputs imitate.
        files: Path below the data folder -> size in bytes, where torchvision checks
            nothing but existence, or None, where it checks the checksum on loading.
    """

    key: str
    title: str
    torchvision_class: str | None
    shape: tuple[int, ...]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
    moments: tuple[float, float]
    files: dict[str, int | None]

    def missing(self, folder: Path) -> list[str]:
        """The files that are absent from ``folder`` or are incomplete, each with its reason."""
        found = []
        for name, size in self.files.items():
            path = folder / name
            if not path.is_file():
                found.append(f"no {name}")
            elif size is not None and path.stat().st_size != size:
                found.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
        return found


def _idx_files(folder: str) -> dict[str, int | None]:
    # The IDX format: a header of 16 (images) or 8 (labels) bytes, then one byte a value.
    files: dict[str, int | None] = {}
    for split, samples in (("train", 60_000), ("t10k", 10_000)):
        files[f"{folder}/raw/{split}-images-idx3-ubyte"] = 16 + samples * 28 * 28
        files[f"{folder}/raw/{split}-labels-idx1-ubyte"] = 8 + samples
    return files


# Normalisation constants: deepobs/pytorch/datasets/*.py, compared in the tests.
DATASETS: dict[str, DatasetSpec] = {
    spec.key: spec
    for spec in (
        DatasetSpec(
            key="mnist",
            title="MNIST",
            torchvision_class="MNIST",
            shape=(1, 28, 28),
            normalisation=None,
            moments=(0.1307, 0.3081),
            files=_idx_files("MNIST"),
        ),
        DatasetSpec(
            key="fmnist",
            title="Fashion-MNIST",
            torchvision_class="FashionMNIST",
            shape=(1, 28, 28),
            normalisation=None,
            moments=(0.2860, 0.3530),
            files=_idx_files("FashionMNIST"),
        ),
        DatasetSpec(
            key="cifar10",
            title="CIFAR-10",
            torchvision_class="CIFAR10",
            shape=(3, 32, 32),
            normalisation=(
                (0.49139968, 0.48215841, 0.44653091),
                (0.24703223, 0.24348513, 0.26158784),
            ),
            moments=(0.0, 1.0),
            files={
                f"cifar-10-batches-py/{name}": None
                for name in (
                    *(f"data_batch_{i}" for i in range(1, 6)),
                    "test_batch",
                    "batches.meta",
                )
            },
        ),
        DatasetSpec(
            key="cifar100",
            title="CIFAR-100",
            torchvision_class="CIFAR100",
            shape=(3, 32, 32),
            normalisation=(
                (0.50707516, 0.48654887, 0.44091784),
                (0.26733429, 0.25643846, 0.27615047),
            ),
            moments=(0.0, 1.0),
            files={f"cifar-100-python/{name}": None for name in ("train", "test", "meta")},
        ),
        DatasetSpec(
            key="svhn",
            title="SVHN",
            torchvision_class="SVHN",
            shape=(3, 32, 32),
            normalisation=(
                (0.4376821, 0.4437697, 0.47280442),
                (0.19803012, 0.20101562, 0.19703614),
            ),
            moments=(0.0, 1.0),
            files={f"{name}_32x32.mat": None for name in ("train", "test")},
        ),
        DatasetSpec(
            key="quadratic",
            title="Quadratic",
            torchvision_class=None,
            shape=(100, 100),
            normalisation=None,
            moments=(0.0, 0.6),
            files={},
        ),
    )
}


DATA_VARIABLE = "VIVIT_BENCH_DATA"


def data_folder(data_dir: Path | None = None) -> Path:
    """The folder real data sets live in.

    Args:
        data_dir: The user's choice.

    Returns:
        ``data_dir``, else the environment's ``VIVIT_BENCH_DATA``, else ``vivit-bench``
        below ``XDG_CACHE_HOME`` or ``~/.cache``. It need not exist.
    """
    if data_dir is not None:
        return data_dir.expanduser()
    if chosen := os.environ.get(DATA_VARIABLE):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vivit-bench"
