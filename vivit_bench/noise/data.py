"""Training, held-out and test samples of a run, and the order they come in."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vivit_bench.errors import UsageError
from vivit_bench.noise.settings import HELD_OUT_SHARE
from vivit_bench.problems import DataSource, Problem, load_dataset
from vivit_bench.problems.batch import Batch
from vivit_bench.problems.sampling import generator
from vivit_bench.trees import Tree, map_tree, num_bytes, select

_SPLIT, _ORDER, _TRAINING = range(3)
SMALL_SHARE = 8
"""A data set is small against a device if it fills at most one part in so many of what is free."""


@dataclass(frozen=True)
class RunData:
    """All samples of a run, on the CPU as they are loaded.

    A seeded tenth of the training split is held out; monitor batches are its first samples.
    The test samples are the test split, or for a user's problem another tenth.
    """

    inputs: Tree
    """[n, ...] tensors, the training split."""
    targets: Tensor
    train: Tensor
    """Indices of the samples trained on, shuffled."""
    held_out: Tensor
    """Indices of the samples held out, shuffled."""
    test: Batch

    @property
    def num_test(self) -> int:
        """Number of test samples."""
        return len(self.test[1])

    @property
    def num_bytes(self) -> int:
        """Memory of all samples."""
        return num_bytes(self.inputs, self.targets, *self.test)

    def on(self, device: torch.device) -> "RunData":
        """The same on a device, indices too: mini-batches are then made there."""
        inputs, targets = self.test
        return replace(
            self,
            inputs=map_tree(lambda t: t.to(device), self.inputs),
            targets=self.targets.to(device),
            train=self.train.to(device),
            held_out=self.held_out.to(device),
            test=(map_tree(lambda t: t.to(device), inputs), targets.to(device)),
        )

    def monitor_batch(self, size: int) -> Batch:
        """The first ``size`` held-out samples.

        Raises:
            UsageError: There are fewer.
        """
        if size > len(self.held_out):
            raise UsageError(
                f"--monitor-batch-size {size} is more than the {len(self.held_out)} held-out "
                f"samples (1/{HELD_OUT_SHARE} of the training split): "
                f"give at most {len(self.held_out)}"
            )
        return self.samples(self.held_out[:size])

    def train_subset(self) -> Batch:
        """As many training samples as there are test samples, always the same ones."""
        return self.samples(self.train[: self.num_test])

    def samples(self, indices: Tensor) -> Batch:
        """Some samples of the training split."""
        return select(self.inputs, indices), self.targets[indices]

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full mini-batches in an epoch.

        Raises:
            UsageError: There is none.
        """
        if batch_size > len(self.train):
            raise UsageError(
                f"--batch-size {batch_size} is more than the {len(self.train)} training samples: "
                f"give at most {len(self.train)}"
            )
        return len(self.train) // batch_size

    def epoch(self, seed: int, epoch: int, batch_size: int) -> list[Tensor]:
        """Indices of every mini-batch of an epoch: a function of the arguments alone.

        They are where the samples are, for which the order is copied once.
        """
        order = torch.randperm(
            len(self.train), generator=generator(stream_seed(seed, _ORDER, epoch))
        )
        batches = self.train[order.to(self.train.device)].split(batch_size)
        return list(batches[: self.steps_per_epoch(batch_size)])


def load_run_data(
    problem: Problem, source: DataSource, data_dir: Path | None, seed: int
) -> RunData:
    """Load and split the samples of a run. Training samples are not augmented.

    Args:
        problem: Of DeepOBS or the user.
        source: Real data, or the user's own: tensors, or a Dataset, whose items are all
            loaded once.
        data_dir: Data folder.
        seed: Of the splits, and of random augmentations of a user's Dataset.

    Raises:
        UsageError: The source has no whole data set, its items do not go into one batch, or
            it is too small to split.
        VivitBenchError: The data set is missing and cannot be downloaded.
    """
    inputs, targets = load_dataset(problem, source, data_dir, split="train", seed=seed)
    part = len(targets) // HELD_OUT_SHARE
    if part < 1:
        raise UsageError(
            f"{problem.name} has {len(targets)} samples, too few to hold out a "
            f"1/{HELD_OUT_SHARE}: at least {HELD_OUT_SHARE} are needed"
        )
    order = torch.randperm(len(targets), generator=generator(stream_seed(seed, _SPLIT)))
    held_out, train = order[:part], order[part:]
    if source is DataSource.OWN:
        chosen, train = train[:part], train[part:]
        test = (select(inputs, chosen), targets[chosen])
    else:
        test = load_dataset(problem, source, data_dir, split="test")
    return RunData(inputs, targets, train, held_out, test)


def chunks(inputs: Tree, targets: Tensor, size: int) -> Iterator[Batch]:
    """Consecutive parts of at most ``size`` samples."""
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        yield select(inputs, part), targets[part]


def is_small_for(device: torch.device, size: int) -> bool:
    """Whether so many bytes of samples can stay on a device beside all that a training needs."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return SMALL_SHARE * size <= free


def training_seed(seed: int) -> int:
    """Seed of the global random state during training (dropout)."""
    return stream_seed(seed, _TRAINING)


def stream_seed(seed: int, stream: int, index: int = 0) -> int:
    """A seed of its own for each use, so that no two share random numbers."""
    sequence = np.random.SeedSequence([seed % 2**64, stream, index])
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1
