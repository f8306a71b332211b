"""Global random state, set for a while and put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


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
