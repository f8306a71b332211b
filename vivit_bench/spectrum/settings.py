"""What determines a spectrum, and what makes two of them comparable."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivit_bench.arguments import DEFAULT_CUTOFF, check_cutoff, check_drop_columns
from vivit_bench.curvature.options import Approximation, Blocks, Curvature, Samples
from vivit_bench.errors import UsageError
from vivit_bench.problems.workload import WorkloadSpec


@dataclass(frozen=True)
class SpectrumSettings:
    """Everything a user chooses that changes the eigenvalues or their count.

    Raises:
        UsageError: A value that makes no sense, two seeds, or a workload whose defaults are
            not filled in.
    """

    workload: WorkloadSpec
    """With its defaults filled in, as in ``load_workload(...).spec``."""
    approximation: Approximation
    """Its seed is that of the workload."""
    blocks: Blocks | dict[str, list[str]] = Blocks.NONE
    """Or block name -> patterns of parameter names."""
    params: list[str] | None = None
    """Patterns of the names of the parameters that count; None: all trainable ones."""
    cutoff: float = DEFAULT_CUTOFF
    """Eigenvalues above it are counted as directions."""
    drop_columns: float | None = None
    """Share of the cutoff that the trace of left out columns of V may be; None: all are used."""

    def __post_init__(self) -> None:
        check_cutoff(self.cutoff)
        check_drop_columns(self.drop_columns)
        if self.workload.batch_size is None or self.workload.data is None:
            raise UsageError(
                f"{self.problem}: settings need a batch size and a data source; take the spec of "
                "load_workload(...)"
            )
        if self.approximation.seed != self.workload.seed:
            raise UsageError(
                f"the approximation's seed {self.approximation.seed} is not that of the workload, "
                f"{self.workload.seed}; a spectrum has one"
            )
        if not isinstance(self.blocks, dict):
            object.__setattr__(self, "blocks", Blocks(self.blocks))

    @property
    def problem(self) -> str:
        """DeepOBS name or ``path/to/file.py:function``, as the user typed it."""
        return self.workload.problem

    @property
    def batch_size(self) -> int:
        """N."""
        assert self.workload.batch_size is not None
        return self.workload.batch_size

    @property
    def curvature(self) -> Curvature:
        """Of the approximation."""
        return self.approximation.curvature

    @property
    def samples(self) -> Samples:
        """Of the approximation."""
        return self.approximation.samples

    @property
    def is_blocked(self) -> bool:
        """Whether the spectrum is one of diagonal blocks."""
        return self.blocks != Blocks.NONE

    @property
    def variant(self) -> str:
        """Short name of the approximation, e.g. ``mc (M = 2), frac``."""
        blocks = ", per layer" if self.blocks == Blocks.LAYER else ""
        if isinstance(self.blocks, dict):
            blocks = f", blocks {', '.join(self.blocks)}"
        params = f", of {', '.join(self.params)}" if self.params else ""
        dropped = "" if self.drop_columns is None else ", columns dropped"
        return f"{self.approximation.label}{blocks}{params}{dropped}"

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a flat dictionary of plain JSON types.

        ``drop_columns`` is one where columns are dropped, so that other spectra keep the address
        that they have without it.
        """
        dropped = {} if self.drop_columns is None else {"drop_columns": self.drop_columns}
        return {
            **self.workload.record(),
            **self.approximation.record(),
            "blocks": self.blocks.value if isinstance(self.blocks, Blocks) else self.blocks,
            "params": self.params,
            "cutoff": self.cutoff,
            **dropped,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SpectrumSettings":
        """Rebuild the settings that ``to_json`` wrote.

        Raises:
            KeyError: A setting is missing.
            TypeError: A setting is unknown or of another type.
            ValueError: A setting has a value that is not allowed.
            UsageError: A setting makes no sense.
        """
        left = dict(values)
        names = ("problem", "batch_size", "data", "seed", "dtype", "device")
        chosen: dict[str, Any] = {name: left.pop(name) for name in names}
        checkpoint = left.pop("checkpoint")
        approximation = Approximation(
            left.pop("curvature"), left.pop("samples"), left.pop("mc_samples"), chosen["seed"]
        )
        rest = {name: left.pop(name) for name in ("blocks", "params", "cutoff")}
        rest["drop_columns"] = left.pop("drop_columns", None)
        if left:
            raise TypeError(f"settings: {', '.join(left)} unknown")
        chosen["checkpoint"] = None if checkpoint is None else Path(checkpoint)
        return cls(WorkloadSpec(**chosen), approximation, **rest)

    def differences(self, other: "SpectrumSettings") -> dict[str, tuple[Any, Any]]:
        """Settings in which two spectra differ, as name -> (mine, theirs)."""
        mine, theirs = self.to_json(), other.to_json()
        values = {key: (mine.get(key), theirs.get(key)) for key in mine | theirs}
        return {key: (a, b) for key, (a, b) in values.items() if a != b}
