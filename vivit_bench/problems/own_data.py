"""The data a user's problem brings: tensors, a function, a Dataset or a DataLoader."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from vivit_bench.errors import UsageError, describe
from vivit_bench.problems.batch import Batch, a_type, check_batch
from vivit_bench.problems.sampling import TooFewSamplesError, choose, seeded
from vivit_bench.trees import select

_FORMS = (
    "tensors (inputs, targets), a map-style torch Dataset, a DataLoader or a function "
    "batch(n, seed)"
)
_SHOWN = 3


class OwnData(ABC):
    """Where a user's mini-batches come from.

    Attributes:
        size: Number of samples; None where there is no end.
        description: For people.
    """

    size: int | None
    description: str

    @abstractmethod
    def batch(self, n: int, seed: int) -> Batch:
        """Draw samples; the same arguments give the same ones.

        Args:
            n: Number of samples, from 1 to ``size``.
            seed: Of the choice without replacement, and of whatever else is random.

        Returns:
            Inputs [n, ...] and targets [n, ...] as `check_batch` returns them.

        Raises:
            TooFewSamplesError: A function does not give n samples.
            UsageError: Samples cannot be loaded, or are not what they should be.
        """

    @abstractmethod
    def everything(self, seed: int) -> Batch:
        """All samples, in their own order.

        Args:
            seed: Of whatever is random in a sample, such as augmentations.

        Raises:
            UsageError: There is no end, or as in `batch`.
        """


class OwnTensors(OwnData):
    """All samples in memory.

    Args:
        batch: As `check_batch` returns it.
    """

    def __init__(self, batch: Batch) -> None:
        self.inputs, self.targets = batch
        self.size: int = len(self.targets)
        self.description = f"own tensors, {self.size} samples"

    def batch(self, n: int, seed: int) -> Batch:
        """See `OwnData`."""
        chosen = choose(n, self.size, seed)
        return select(self.inputs, chosen), self.targets[chosen]

    def everything(self, seed: int) -> Batch:
        """See `OwnData`; nothing is random."""
        return self.inputs, self.targets


class OwnFunction(OwnData):
    """A function ``batch(n, seed)``, called with torch, numpy and ``random`` seeded.

    Args:
        name: Of the problem, for messages.
        function: The user's.
    """

    size = None
    description = "own function of (n, seed)"

    def __init__(self, name: str, function: Callable[[int, int], Any]) -> None:
        self._name, self._function = name, function

    def batch(self, n: int, seed: int) -> Batch:
        """See `OwnData`."""
        call = f"batch(n={n}, seed={seed})"
        try:
            with seeded(seed):
                batch = self._function(n, seed)
        except Exception as error:
            raise UsageError(f"{self._name}: {call} raised {describe(error)}") from error
        what = f"{self._name}, {call}"
        inputs, targets = check_batch(what, batch)
        if (available := len(targets)) < n:
            raise TooFewSamplesError(f"{what}: got {available} samples instead of {n}", available)
        return check_batch(what, (inputs, targets), expected=n)

    def everything(self, seed: int) -> Batch:
        """Refused, see `OwnData`."""
        raise UsageError(
            f"the data of {self._name} are a function and have no end: "
            "return tensors (inputs, targets), a Dataset or a DataLoader instead"
        )


class OwnDataset(OwnData):
    """A map-style Dataset, of which no more than the chosen samples are loaded.

    Args:
        name: Of the problem, for messages.
        dataset: Of items (input, target), or whatever ``collate`` makes a batch of.
        collate: Makes (inputs, targets) of a list of items.

    Raises:
        UsageError: It is iterable-style, or has no length or no samples.
    """

    def __init__(
        self, name: str, dataset: Dataset[Any], collate: Callable[[list[Any]], Any]
    ) -> None:
        self._name, self._dataset, self._collate = name, dataset, collate
        self._kind = type(dataset).__name__
        if isinstance(dataset, IterableDataset):
            raise UsageError(
                f"{name}: samples of the iterable-style {self._kind} cannot be chosen by a seed; "
                f"return {_FORMS} instead"
            )
        try:
            self.size: int = len(dataset)  # type: ignore[arg-type]
        except Exception as error:
            raise UsageError(
                f"{name}: {self._kind} has no length, {describe(error)}; define __len__"
            ) from error
        if self.size < 1:
            raise UsageError(f"{name}: {self._kind} has {self.size} samples instead of at least 1")
        self.description = f"own {self._kind}, {self.size} samples"

    def batch(self, n: int, seed: int) -> Batch:
        """See `OwnData`."""
        return self._load(choose(n, self.size, seed).tolist(), seed)

    def everything(self, seed: int) -> Batch:
        """See `OwnData`; all samples are in memory at once."""
        return self._load(list(range(self.size)), seed)

    def _load(self, indices: list[int], seed: int) -> Batch:
        with seeded(seed):
            items = [self._item(index) for index in indices]
            try:
                batch = self._collate(items)
            except Exception as error:
                which = self._culprit(items, indices)
                raise UsageError(
                    f"{self._name}: {which} of {self._kind} cannot be collated, {describe(error)}"
                ) from error
        what = f"{self._name}: {_listed(indices)} of {self._kind}"
        return check_batch(what, batch, expected=len(indices))

    def _item(self, index: int) -> Any:
        try:
            item = self._dataset[index]
        except Exception as error:
            raise UsageError(
                f"{self._name}: item {index} of {self._kind} raised {describe(error)}"
            ) from error
        pair = isinstance(item, tuple | list) and len(item) == 2
        if self._collate is default_collate and not pair:
            raise UsageError(
                f"{self._name}: item {index} of {self._kind} is {a_type(item)}, not "
                "(input, target); return such items, or a DataLoader with a collate_fn of your own"
            )
        return item

    def _culprit(self, items: list[Any], indices: list[int]) -> str:
        """The first item, alone or with the first that does not go together with it."""
        for item, index in zip(items, indices, strict=True):
            try:
                self._collate([items[0], item])
            except Exception:
                return f"item {index}" if index == indices[0] else _listed([indices[0], index])
        return _listed(indices)


def as_own_data(name: str, data: Any) -> OwnData:
    """What a user's function returned as its data.

    Args:
        name: Of the problem, for messages.
        data: A pair of inputs and targets, a Dataset, a DataLoader (its dataset and
            ``collate_fn`` are used; a seeded choice takes the place of its order, its batch size
            and workers do not matter), or a function of (n, seed).

    Raises:
        UsageError: It is something else, or none that samples can be chosen from.
    """
    if isinstance(data, DataLoader):
        return _from_loader(name, data)
    if isinstance(data, Dataset):
        return OwnDataset(name, data, default_collate)
    if isinstance(data, tuple | list):
        return OwnTensors(check_batch(name, data))
    if callable(data):
        return OwnFunction(name, data)
    raise UsageError(f"{name}: data must be {_FORMS}, got {a_type(data)}")


def _from_loader(name: str, loader: DataLoader[Any]) -> OwnDataset:
    dataset = OwnDataset(name, loader.dataset, loader.collate_fn)
    if loader.batch_sampler is None:
        raise UsageError(
            f"{name}: the DataLoader has batch_size=None and so no samples to choose; return a "
            "DataLoader of single samples"
        )
    if not isinstance(loader.sampler, SequentialSampler | RandomSampler):
        raise UsageError(
            f"{name}: the {type(loader.sampler).__name__} of the DataLoader would be ignored; "
            "return one over torch.utils.data.Subset(dataset, indices) without a sampler"
        )
    return dataset


def _listed(indices: list[int]) -> str:
    if len(indices) == 1:
        return f"item {indices[0]}"
    shown = ", ".join(map(str, indices[:_SHOWN]))
    more = f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
    return f"items {shown}{more}"
