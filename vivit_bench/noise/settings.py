"""What decides the numbers of a monitored training run, and its defaults (Table S.2).

Light to import.
"""

import csv
import math
from dataclasses import dataclass, fields
from enum import StrEnum
from importlib import resources
from typing import Any

from vivit_bench.curvature.options import Approximation
from vivit_bench.errors import UsageError
from vivit_bench.problems.catalogue import find_spec, is_user_problem

DEFAULT_CHECKPOINTS = 16
HELD_OUT_SHARE = 10
"""One in this many training samples is never trained on; monitor batches come from there."""

SAME_NETWORK = {"mnist_2c2d": "fmnist_2c2d"}
"""Problems the paper did not train, and the one of the same network whose values they take."""

DEFAULT_MOMENTUM = 0.9
DEFAULT_BETAS = (0.9, 0.999)


class OptimizerName(StrEnum):
    """How the network is trained."""

    SGD = "sgd"
    """Stochastic gradient descent with momentum."""
    ADAM = "adam"


@dataclass(frozen=True)
class Settings:
    """A run with every default filled in."""

    problem: str
    """DeepOBS name or ``path/to/file.py:function``, as the user typed it."""
    optimizer: OptimizerName
    lr: float
    momentum: float | None
    """Of SGD; None for Adam."""
    betas: tuple[float, float] | None
    """Of Adam; None for SGD."""
    epochs: int
    batch_size: int
    """Of training; an epoch drops the samples that fill no batch, as DeepOBS does."""
    seed: int
    """Of weights, splits, data order and dropout."""
    data: str
    """Name of the data source."""
    checkpoints: tuple[int, ...]
    """Steps at which the monitor looks, ascending."""
    monitor_batch_size: int
    approximation: Approximation
    """Its seed is that of the run."""
    cutoff: float
    per_sample: bool
    """Whether gamma_nk and lambda_nk are stored."""
    device: str
    drop_columns: float | None = None
    """Share of the cutoff that the trace of left out columns of V may be; None: all are used."""

    def record(self) -> dict[str, Any]:
        """The settings, flat and JSON-ready."""
        record: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Approximation):
                record |= value.record()
            elif field.name != "drop_columns" or value is not None:
                record[field.name] = _plain(value)  # runs without it keep their address
        return record


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


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
