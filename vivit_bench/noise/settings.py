"""What decides the numbers of a monitored training run; light to import."""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from vivit_bench.curvature.options import Approximation

DEFAULT_CHECKPOINTS = 16
HELD_OUT_SHARE = 10
"""One in this many training samples is never trained on; monitor batches come from there."""


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

    def record(self) -> dict[str, Any]:
        """The settings, flat and JSON-ready."""
        record: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Approximation):
                record |= {
                    "curvature": value.curvature.value,
                    "samples": value.samples.value,
                    "mc_samples": value.mc_samples,
                }
            else:
                record[field.name] = _plain(value)
        return record


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    return list(value) if isinstance(value, tuple) else value
