"""A training run small enough for tests: 160 samples, dropout and batch normalisation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.noise import Choices, OptimizerName

_TINY = '''
"""Three classes that a linear map tells apart."""

import torch
from torch import nn

GENERATOR = torch.Generator().manual_seed(3)
INPUTS = torch.randn(160, 6, generator=GENERATOR)
SCORES = INPUTS @ torch.randn(6, 3, generator=GENERATOR)


def tiny():
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)]
    return nn.Sequential(*layers), nn.CrossEntropyLoss(), (INPUTS, SCORES.argmax(1))


def regression():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, nn.MSELoss(), (INPUTS, SCORES)
'''

CHOICES = Choices(
    problem="tiny.py:tiny",
    optimizer=OptimizerName.ADAM,
    epochs=3,
    batch_size=16,
    lr=0.05,
    checkpoints=4,
    monitor_batch_size=6,
    per_sample=True,
)
"""8 steps an epoch (128 training samples), 16 held-out and 16 test samples; checkpoints at
steps 0, 1, 5 and 24."""


def write_tiny(folder: Path) -> None:
    """Put the problem where ``CHOICES`` look for it, once ``folder`` is the working directory."""
    (folder / "tiny.py").write_text(_TINY)


def with_changes(**changes: Any) -> Choices:
    return replace(CHOICES, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    """Every result of a run that must come out the same each time."""
    paths = [*folder.glob("*.csv"), *folder.glob("per_sample/*.npz")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def small_network() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """A network whose training draws random numbers; model, loss, inputs and targets."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(48, 4),
    )
    inputs, targets = torch.randn(24, 1, 6, 6), torch.randint(4, (24,))
    return model, nn.CrossEntropyLoss(), inputs, targets
