"""Training steps of a user's, as files with functions that return them; no libraries."""

MIB = 2**20


def step():
    """1 MiB a sample, and an optimizer's state of 32 MiB that appears in the first call."""
    weights = bytearray(b"w") * (64 * MIB)
    state = []

    def train(n, seed):
        batch = bytearray(b"x") * (n * MIB)
        if not state:
            state.append(bytearray(b"s") * (32 * MIB))
        return batch[seed % len(batch)] + weights[0]

    return train


def grows():
    """Keeps 1 MiB of every call for ever: what fits three times does not fit twenty times."""
    kept = []
    return lambda n, seed: kept.append(bytearray(b"x") * MIB)


def needs_two():
    def train(n, seed):
        if n < 2:
            raise ValueError("more than 1 value per channel")

    return train


def wants_more():
    return lambda n: None


def number():
    return 3


def waits():
    async def train(n, seed):
        raise AssertionError("it runs")

    return train


def yields():
    def train(n, seed):
        yield n

    return train


def waits_and_yields():
    async def train(n, seed):
        yield n

    return train


def step_itself(n, seed):
    """A step, where a function that returns one is expected."""


def raises():
    raise RuntimeError("no weights")


def problem():
    import torch

    data = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    return torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), data
