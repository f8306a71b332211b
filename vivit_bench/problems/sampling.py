"""Drawing samples: some of those there are, or at random."""

import torch
from torch import Tensor

from vivit_bench.errors import UsageError
from vivit_bench.problems.seeding import generator


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
