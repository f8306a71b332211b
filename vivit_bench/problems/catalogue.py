"""DeepOBS's problems as a table (no torch), and the look-up of their names."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from vivit_bench.errors import UsageError
from vivit_bench.problems.datasets import DATASETS, DatasetSpec, data_folder


@dataclass(frozen=True)
class ProblemSpec:
    """What is known about a DeepOBS problem without building it.

    Attributes:
        name: DeepOBS's name.
        network: Class in ``deepobs.pytorch.testproblems.testproblems_modules``.
        arguments: Keyword arguments of that class.
        dataset: Key of `DATASETS`.
        num_params: D, trainable parameters.
        num_outputs: C, outputs per sample.
        batch_size: Of DeepOBS's training runs.
        epochs: Of DeepOBS's training runs.
        spectrum_batch_size: Mini-batch of a spectrum. The Gram matrix has N C rows, so
            problems with C = 100 get fewer samples.
        loss: Name of the torch class.
    """

    name: str
    network: str
    arguments: dict[str, int]
    dataset: str
    num_params: int
    num_outputs: int = 10
    batch_size: int = 128
    epochs: int = 100
    spectrum_batch_size: int = 128
    loss: str = "CrossEntropyLoss"

    @property
    def data(self) -> DatasetSpec:
        """The data set."""
        return DATASETS[self.dataset]


_TEN = {"num_outputs": 10}
_HUNDRED = {"num_outputs": 100}
_WRN164 = {"num_outputs": 10, "num_residual_blocks": 2, "widening_factor": 4}

# Batch sizes and epochs: DEFAULT_TEST_PROBLEMS_SETTINGS in deepobs/config.py. It has no
# entry for cifar100_3c3d, which takes those of the same network on CIFAR-10.
PROBLEMS: dict[str, ProblemSpec] = {
    spec.name: spec
    for spec in (
        ProblemSpec("mnist_logreg", "net_mnist_logreg", _TEN, "mnist", 7_850, epochs=50),
        ProblemSpec("mnist_mlp", "net_mlp", _TEN, "mnist", 1_336_610),
        ProblemSpec("mnist_2c2d", "net_mnist_2c2d", _TEN, "mnist", 3_274_634),
        ProblemSpec("fmnist_mlp", "net_mlp", _TEN, "fmnist", 1_336_610),
        ProblemSpec("fmnist_2c2d", "net_mnist_2c2d", _TEN, "fmnist", 3_274_634),
        ProblemSpec("cifar10_3c3d", "net_cifar10_3c3d", _TEN, "cifar10", 895_210),
        ProblemSpec(
            "cifar100_3c3d",
            "net_cifar10_3c3d",
            _HUNDRED,
            "cifar100",
            918_340,
            num_outputs=100,
            spectrum_batch_size=64,
        ),
        ProblemSpec(
            "cifar100_allcnnc",
            "net_cifar100_allcnnc",
            {},
            "cifar100",
            1_387_108,
            num_outputs=100,
            batch_size=256,
            epochs=350,
            spectrum_batch_size=64,
        ),
        ProblemSpec("svhn_wrn164", "net_wrn", _WRN164, "svhn", 2_748_890, epochs=160),
        # Every sample of the quadratic has the same curvature: 8 of them are plenty.
        ProblemSpec(
            "quadratic_deep",
            "net_quadratic_deep",
            {},
            "quadratic",
            100,
            num_outputs=100,
            spectrum_batch_size=8,
            loss="MSELoss",
        ),
    )
}

_VAE = "a variational autoencoder, whose loss is no function of one output and one target"
UNSUPPORTED = {"mnist_vae": _VAE, "fmnist_vae": _VAE}


@dataclass(frozen=True)
class ProblemInfo:
    """One row of `list_problems`.

    Attributes:
        name: DeepOBS's name.
        num_params: D.
        num_outputs: C.
        input_shape: Without the batch axis.
        loss: ``CrossEntropyLoss`` or ``MSELoss``.
        default_batch_size: Of DeepOBS's training runs.
        spectrum_batch_size: Default mini-batch of a spectrum.
        default_epochs: Of DeepOBS's training runs.
        dataset: Name of the data set.
        data_path: Folder its files are looked for in; None: made in memory.
        data_present: Whether all its files are there (existence, for MNIST and
            Fashion-MNIST also their size; checksums are compared on loading).
    """

    name: str
    num_params: int
    num_outputs: int
    input_shape: tuple[int, ...]
    loss: str
    default_batch_size: int
    spectrum_batch_size: int
    default_epochs: int
    dataset: str
    data_path: str | None
    data_present: bool


def is_user_problem(name: str) -> bool:
    """Whether ``name`` means a file of the user's rather than a DeepOBS problem."""
    return ":" in name or name.endswith(".py") or os.sep in name


def list_problems(data_dir: Path | None = None) -> list[ProblemInfo]:
    """Describe every DeepOBS problem and where its data is, without building any.

    Args:
        data_dir: Data folder; default as in `data_folder`.

    Returns:
        One row per problem.
    """
    folder = data_folder(data_dir)
    return [
        ProblemInfo(
            name=spec.name,
            num_params=spec.num_params,
            num_outputs=spec.num_outputs,
            input_shape=spec.data.shape,
            loss=spec.loss,
            default_batch_size=spec.batch_size,
            spectrum_batch_size=spec.spectrum_batch_size,
            default_epochs=spec.epochs,
            dataset=spec.data.title,
            data_path=str(folder) if spec.data.files else None,
            data_present=not spec.data.missing(folder),
        )
        for spec in PROBLEMS.values()
    ]


def find_spec(name: str) -> ProblemSpec:
    """Look up a DeepOBS problem.

    Args:
        name: DeepOBS's name.

    Returns:
        Its row.

    Raises:
        UsageError: The name is unknown (the message has the nearest one), or the
            problem is one of DeepOBS's that no GGN of ours applies to.
    """
    if name in PROBLEMS:
        return PROBLEMS[name]
    if name in UNSUPPORTED:
        raise UsageError(
            f"problem '{name}' is not supported: {UNSUPPORTED[name]}; "
            "'vivit-bench problems list' shows those that are"
        )
    near = difflib.get_close_matches(name.lower(), PROBLEMS, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise UsageError(
        f"unknown problem '{name}': {hint}'vivit-bench problems list' shows all; "
        "one of your own is path/to/file.py:function"
    )


def dataset_of(name: str) -> DatasetSpec:
    """The data set of a DeepOBS problem, or the data set of that name.

    Args:
        name: A problem's or a data set's name.

    Returns:
        The data set.

    Raises:
        UsageError: The name is neither, or names a user's problem.
    """
    if name in DATASETS:
        return DATASETS[name]
    if is_user_problem(name):
        raise UsageError(f"'{name}' is a problem of your own and has no DeepOBS data set")
    return find_spec(name).data
