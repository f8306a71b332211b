"""What determines a spectrum, and what makes two of them comparable."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from vivit_bench.curvature.options import Blocks, Curvature, Samples
from vivit_bench.errors import UsageError

DEFAULT_CUTOFF = 1e-4
"""Eigenvalues above it count as directions (the paper's threshold)."""


class Precision(StrEnum):
    """Floating-point type of model, data and matrix products."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


@dataclass(frozen=True)
class SpectrumSettings:
    """Everything a user chooses that changes the eigenvalues or their count."""

    problem: str
    """DeepOBS name or ``path/to/file.py:function``, as the user typed it."""
    batch_size: int
    """N."""
    curvature: Curvature
    samples: Samples
    mc_samples: int
    """M, label draws per sample; 1 when ``curvature`` is exact."""
    blocks: Blocks
    cutoff: float
    data: str
    """Name of the data source."""
    seed: int
    checkpoint: str | None
    dtype: Precision
    device: str

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON types."""
        return {
            key: value.value if isinstance(value, StrEnum) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SpectrumSettings":
        """Rebuild the settings that ``to_json`` wrote.

        Raises:
            TypeError: A setting is missing or unknown.
            ValueError: A setting has a value that is not allowed.
        """
        settings = cls(**values)
        return cls(
            **{
                **asdict(settings),
                "curvature": Curvature(settings.curvature),
                "samples": Samples(settings.samples),
                "blocks": Blocks(settings.blocks),
                "dtype": Precision(settings.dtype),
            }
        )

    @property
    def variant(self) -> str:
        """Short name of the approximation, e.g. ``mc (M = 2), frac``."""
        monte_carlo = f" (M = {self.mc_samples})" if self.mc_samples != 1 else ""
        layer = ", per layer" if self.blocks is Blocks.LAYER else ""
        return f"{self.curvature}{monte_carlo}, {self.samples}{layer}"

    def differences(self, other: "SpectrumSettings") -> dict[str, tuple[Any, Any]]:
        """Settings in which two spectra differ, as name -> (mine, theirs)."""
        mine, theirs = self.to_json(), other.to_json()
        return {key: (mine[key], theirs[key]) for key in mine if mine[key] != theirs[key]}


def check_mc_samples(curvature: Curvature, mc_samples: int) -> None:
    """Refuse a number of Monte-Carlo samples that is invalid or would be ignored.

    Raises:
        UsageError: ``mc_samples`` is below 1, or given for exact curvature.
    """
    if mc_samples < 1:
        raise UsageError(f"--mc-samples {mc_samples}: must be at least 1")
    if curvature is Curvature.EXACT and mc_samples != 1:
        raise UsageError(
            f"--mc-samples {mc_samples}: exact curvature draws no samples; "
            "leave the option out or add --curvature mc"
        )


def check_cutoff(cutoff: float) -> None:
    """Refuse a cutoff that a logarithmic axis has no place for.

    Raises:
        UsageError: The cutoff is not a positive finite number.
    """
    if not (math.isfinite(cutoff) and cutoff > 0):
        raise UsageError(f"--cutoff {cutoff}: must be a positive number, for example 1e-4")
