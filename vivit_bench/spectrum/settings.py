"""What determines a spectrum, and what makes two of them comparable."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from vivit_bench.curvature.options import Approximation, Blocks, Curvature, Precision, Samples


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
    blocks: Blocks | dict[str, list[str]]
    """Or block name -> patterns of parameter names."""
    cutoff: float
    data: str
    """Name of the data source."""
    seed: int
    checkpoint: str | None
    dtype: Precision
    device: str
    params: list[str] | None = None
    """Patterns of the names of the parameters that count; None: all trainable ones."""

    @property
    def approximation(self) -> Approximation:
        """As the engine takes it.

        Raises:
            UsageError: It makes no sense.
        """
        return Approximation(self.curvature, self.samples, self.mc_samples, self.seed)

    @property
    def is_blocked(self) -> bool:
        """Whether the spectrum is one of diagonal blocks."""
        return self.blocks != Blocks.NONE

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
        blocks = settings.blocks
        return cls(
            **{
                **asdict(settings),
                "curvature": Curvature(settings.curvature),
                "samples": Samples(settings.samples),
                "blocks": blocks if isinstance(blocks, dict) else Blocks(blocks),
                "dtype": Precision(settings.dtype),
            }
        )

    @property
    def variant(self) -> str:
        """Short name of the approximation, e.g. ``mc (M = 2), frac``."""
        blocks = ", per layer" if self.blocks == Blocks.LAYER else ""
        if isinstance(self.blocks, dict):
            blocks = f", blocks {', '.join(self.blocks)}"
        params = f", of {', '.join(self.params)}" if self.params else ""
        return f"{self.approximation.label}{blocks}{params}"

    def differences(self, other: "SpectrumSettings") -> dict[str, tuple[Any, Any]]:
        """Settings in which two spectra differ, as name -> (mine, theirs)."""
        mine, theirs = self.to_json(), other.to_json()
        return {key: (mine[key], theirs[key]) for key in mine if mine[key] != theirs[key]}
