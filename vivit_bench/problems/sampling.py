"""Drawing samples: from tensors, from a user's function, or at random."""

import torch
from torch import Tensor

from vivit_bench.errors import UsageError
from vivit_bench.problems.messages import describe
from vivit_bench.problems.problem import Batch, OwnData
from vivit_bench.problems.seeding import generator
from vivit_bench.problems.user_checks import check_batch


def choose(n: int, available: int, seed: int, what: str) -> Tensor:
    """Indices of n samples without replacement.

    Args:
        n: Number of samples.
        available: Number there are.
        seed: Of the choice.
        what: Names the data, for the message.

    Returns:
        Indices [n], int64.

    Raises:
        UsageError: There are fewer.
    """
    if n > available:
        raise UsageError(
            f"{n} samples are more than the {available} of {what}: "
            f"ask for at most {available}, or use --data synthetic"
        )
    return torch.randperm(available, generator=generator(seed))[:n]


def own_batch(name: str, data: OwnData, n: int, seed: int) -> Batch:
    """Draw n samples: from tensors without replacement, else by the user's function.

    Args:
        name: Of the problem, for messages.
        data: The user's.
        n: Number of samples, at least 1.
        seed: Of the draw.

    Returns:
        Inputs [n, ...] float32 and targets [n, ...] on the CPU.

    Raises:
        UsageError: Fewer samples than n, or the function fails or returns something else.
    """
    if isinstance(data, tuple):
        inputs, targets = data
        chosen = choose(n, len(inputs), seed, f"the data of {name}")
        return inputs[chosen], targets[chosen]
    try:
        batch = data(n, seed)
    except Exception as error:
        raise UsageError(f"{name}: batch(n={n}, seed={seed}) raised {describe(error)}") from error
    return check_batch(f"{name}, batch(n={n}, seed={seed})", batch, expected=n)


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
