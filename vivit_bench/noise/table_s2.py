"""Hyperparameters of the paper's training runs (Table S.2), and the defaults made of them."""

import csv
import math
from dataclasses import dataclass
from importlib import resources

from vivit_bench.errors import UsageError
from vivit_bench.noise.settings import OptimizerName
from vivit_bench.problems.catalogue import find_spec, is_user_problem

SAME_NETWORK = {"mnist_2c2d": "fmnist_2c2d"}
"""Problems the paper did not train, and the one of the same network whose values they take."""

DEFAULT_MOMENTUM = 0.9
DEFAULT_BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Hyperparameters:
    """Of one training run."""

    lr: float
    momentum: float | None
    """Of SGD."""
    betas: tuple[float, float] | None
    """Of Adam."""
    source: str
    """Where the learning rate comes from, for the user to read."""


def released_learning_rate(problem: str, optimizer: OptimizerName) -> float | None:
    """Learning rate of the authors' released code; None if the paper has no such run."""
    text = resources.files(__package__).joinpath("table_s2.csv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for row in csv.DictReader(lines):
        if (row["problem"], row["optimizer"]) == (problem, optimizer.value):
            return float(row["learning_rate_released"])
    return None


def hyperparameters(
    problem: str,
    optimizer: OptimizerName,
    lr: float | None = None,
    momentum: float | None = None,
) -> Hyperparameters:
    """The user's choice, completed from Table S.2.

    Args:
        problem: DeepOBS name or ``path/to/file.py:function``.
        optimizer: SGD or Adam.
        lr: Learning rate; None for the released value of the problem.
        momentum: Of SGD; None for 0.9.

    Raises:
        UsageError: An unknown problem, a value that makes no sense, or no default learning rate.
    """
    if not is_user_problem(problem):
        find_spec(problem)
    if momentum is not None and optimizer is not OptimizerName.SGD:
        raise UsageError(f"--momentum {momentum:g} is of sgd: leave it out for {optimizer}")
    if momentum is not None and not 0 <= momentum < 1:
        raise UsageError(f"--momentum {momentum:g}: give a number from 0 up to, not including, 1")
    if lr is not None and not (math.isfinite(lr) and lr > 0):
        raise UsageError(f"--lr {lr:g}: give a positive number, for example 0.01")
    source = "as given"
    if lr is None:
        model = SAME_NETWORK.get(problem, problem)
        lr = released_learning_rate(model, optimizer)
        if lr is None:
            raise UsageError(
                f"{problem} with {optimizer} has no default learning rate (Table S.2 of the paper "
                "does not have it): give one with --lr, for example --lr 0.01"
            )
        same = "" if model == problem else f" of {model}, the same network"
        source = f"the released value for the paper's Table S.2{same}"
    is_sgd = optimizer is OptimizerName.SGD
    return Hyperparameters(
        lr=lr,
        momentum=(DEFAULT_MOMENTUM if momentum is None else momentum) if is_sgd else None,
        betas=None if is_sgd else DEFAULT_BETAS,
        source=source,
    )
