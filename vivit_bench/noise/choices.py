"""What a user asks of a monitored training, checked and completed by the problem's defaults."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vivit_bench.arguments import DEFAULT_CUTOFF, check_cutoff, check_drop_columns
from vivit_bench.curvature.options import Approximation
from vivit_bench.errors import UsageError
from vivit_bench.hardware import device_name, parse_device
from vivit_bench.noise.checkpoints import Position, log_spaced, resolve_positions
from vivit_bench.noise.data import RunData
from vivit_bench.noise.settings import (
    DEFAULT_CHECKPOINTS,
    Hyperparameters,
    OptimizerName,
    Settings,
)
from vivit_bench.problems import DataSource, Problem
from vivit_bench.problems.sources import check_source

_MOST_EPOCHS = 1_000_000


@dataclass(frozen=True)
class Choices:
    """What the user asks for; None stands for a default that depends on the problem."""

    problem: str
    optimizer: OptimizerName
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    momentum: float | None = None
    seed: int = 0
    data: DataSource | None = None
    data_dir: Path | None = None
    checkpoints: int | None = None
    at: Sequence[Position] | None = None
    monitor_batch_size: int | None = None
    approximation: Approximation | None = None
    """None: the exact GGN of the whole monitor batch. Its seed is that of the run."""
    cutoff: float = DEFAULT_CUTOFF
    per_sample: bool = False
    device: str = "cpu"
    drop_columns: float | None = None
    """Share of the cutoff; see `Settings`."""
    memory: int | None = None
    """Bytes that a look may take; None: as many as the fastest way takes. It changes the rounding
    of what is measured alone, and not the training: it is no setting."""

    def __post_init__(self) -> None:
        # Plain strings are equal to, but are not, members.
        object.__setattr__(self, "optimizer", OptimizerName(self.optimizer))
        if self.data is not None:
            object.__setattr__(self, "data", DataSource(self.data))


def check_choices(choices: Choices, runs_here: bool = True) -> torch.device:
    """Refuse values that need no data to be refused, and find the device.

    Args:
        choices: What the user asks for.
        runs_here: Whether this machine must have the device; a job is run by another one.

    Raises:
        UsageError: With the value and what to give instead.
    """
    check_cutoff(choices.cutoff)
    check_drop_columns(choices.drop_columns)
    if not 0 <= choices.seed < 2**63:
        raise UsageError(f"--seed {choices.seed}: must lie in 0 .. 2^63 - 1")
    if choices.approximation is not None and choices.approximation.seed != choices.seed:
        raise UsageError(
            f"the approximation's seed {choices.approximation.seed} is not that of the run, "
            f"{choices.seed}; a run has one"
        )
    for name in ("epochs", "batch_size", "monitor_batch_size"):
        value = getattr(choices, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if choices.epochs is not None and choices.epochs > _MOST_EPOCHS:
        raise UsageError(f"--epochs {choices.epochs}: more than {_MOST_EPOCHS:,} make no sense")
    if choices.checkpoints is not None and choices.at is not None:
        raise UsageError("--checkpoints and --at exclude each other: give one")
    if choices.data is not None:
        check_source(choices.problem, choices.data)
    find = parse_device if runs_here else device_name
    return torch.device(find(choices.device))


def resolve(
    choices: Choices,
    chosen: Hyperparameters,
    problem: Problem,
    data: RunData,
    source: DataSource,
) -> Settings:
    """Fill in the defaults that depend on the problem and its data.

    Raises:
        UsageError: A batch, checkpoint or number of epochs that does not fit.
    """
    epochs = choices.epochs or problem.default_epochs
    if epochs is None:
        raise UsageError(
            f"{problem.name} has no default number of epochs: give one, for example --epochs 10"
        )
    batch_size = choices.batch_size or problem.default_batch_size
    if choices.batch_size is None and source is DataSource.OWN:
        batch_size = min(batch_size, len(data.train))
    monitor_batch_size = choices.monitor_batch_size or problem.spectrum_batch_size
    if choices.monitor_batch_size is None and source is DataSource.OWN:
        monitor_batch_size = min(monitor_batch_size, len(data.held_out))
    data.monitor_batch(monitor_batch_size)
    steps_per_epoch = data.steps_per_epoch(batch_size)
    total = steps_per_epoch * epochs
    if choices.at is not None:
        checkpoints = resolve_positions(choices.at, steps_per_epoch, total)
    elif choices.checkpoints is not None:
        checkpoints = log_spaced(total, choices.checkpoints)
    else:
        checkpoints = log_spaced(total, min(DEFAULT_CHECKPOINTS, total + 1))
    return Settings(
        problem=choices.problem,
        optimizer=choices.optimizer,
        lr=chosen.lr,
        momentum=chosen.momentum,
        betas=chosen.betas,
        epochs=epochs,
        batch_size=batch_size,
        seed=choices.seed,
        data=str(source),
        checkpoints=checkpoints,
        monitor_batch_size=monitor_batch_size,
        approximation=choices.approximation or Approximation(seed=choices.seed),
        cutoff=choices.cutoff,
        per_sample=choices.per_sample,
        device=device_name(choices.device),
        drop_columns=choices.drop_columns,
    )
