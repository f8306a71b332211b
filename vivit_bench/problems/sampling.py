"""Seeded randomness: the global state set for a while, and samples drawn."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from vivit_bench.errors import UsageError


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, numpy and ``random``; restore all three afterwards.

    Args:
        seed: Any integer.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def generator(seed: int) -> torch.Generator:
    """A torch generator of one's own, on the CPU."""
    return torch.Generator().manual_seed(seed)


class TooFewSamplesError(UsageError):
    """The data do not give as many samples as were asked for.

    Attributes:
        available: Number of samples there are.
    """

    def __init__(self, message: str, available: int) -> None:
        super().__init__(message)
        self.available = available


def check_enough(n: int, available: int, what: str, instead: str) -> None:
    """Refuse more samples than there are.

    Args:
        n: Number of samples.
        available: Number there are.
        what: Names the data, for the message.
        instead: What gives more, for the message.

    Raises:
        TooFewSamplesError: There are fewer.
    """
    if n > available:
        raise TooFewSamplesError(
            f"{n} samples are more than the {available} of {what}: "
            f"ask for at most {available}, or {instead}",
            available,
        )


def choose(n: int, available: int, seed: int) -> Tensor:
    """Indices [n], int64, of n samples without replacement, n at most ``available``."""
    return torch.randperm(available, generator=generator(seed))[:n]


def normal_inputs(
    n: int, shape: tuple[int, ...], moments: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Normal random inputs, within the memory of the result.

    Args:
        n: Number of samples.
        shape: Of one.
        moments: Mean and standard deviation.
        generator: On the CPU.

    Returns:
        Inputs [n, *shape], float32.
    """
    mean, std = moments
    return torch.randn(n, *shape, generator=generator).mul_(std).add_(mean)
