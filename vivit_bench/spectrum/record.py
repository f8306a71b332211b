"""A computed spectrum and its stored form: a run with one table of eigenvalues."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.spectrum.settings import SpectrumSettings
from vivit_bench.store import StoredRun, load_run
from vivit_bench.store.schema import violations

EXPERIMENT = "spectrum"
EIGENVALUES = "eigenvalues.csv"

_COLUMNS = ["direction", "eigenvalue"]
_BLOCK_COLUMNS = ["block", *_COLUMNS]
# Results in the header that are fields of the record under the same name.
_FACTS = {
    "num_params": int,
    "num_samples": int,
    "num_outputs": int,
    "num_columns": int,
    "trace": float,
    "loss": float,
    "solver_dtype": str,
    "threads": int,
    "compute_seconds": float,
    "certificate": dict,
}


class StoredCertificate(TypedDict, total=False):
    """What a header says of the check; nothing where there was none."""

    samples: list[int]
    num_samples: int
    errors: dict[str, float]
    tolerance: float
    notes: list[str]
    seconds: float


@dataclass(frozen=True, eq=False)
class SpectrumRecord:
    """Non-trivial eigenvalues of one GGN, with all that made them."""

    settings: SpectrumSettings
    eigenvalues: NDArray[np.float64]
    """[min(num_columns, D)] float64, descending; with layer blocks those of all blocks.
    The remaining ``num_zeros`` eigenvalues are exactly zero."""
    num_params: int
    """D, trainable parameters."""
    num_samples: int
    """Samples that carry the curvature."""
    num_outputs: int
    """C, model outputs per sample."""
    num_columns: int
    """Columns of V (Equation 4)."""
    trace: float
    """Trace of the GGN."""
    loss: float
    """Mean loss of the mini-batch."""
    solver_dtype: str
    """Precision of the eigensolver."""
    threads: int
    """CPU threads of the computation."""
    compute_seconds: float
    """Wall time of the eigenvalue computation, without loading model and data."""
    certificate: dict[str, Any]
    """What was compared with plain autograd: ``samples``, ``errors``, ``tolerance``, ``notes``,
    ``seconds``; empty if it was switched off."""
    dropped: dict[str, Any] = field(default_factory=dict)
    """Of columns that were left out ``num_columns`` and ``trace``, by which no eigenvalue is
    larger than stated; empty if that was not asked for."""
    blocks: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Layer name -> eigenvalues of its diagonal block, descending; empty for the full GGN."""
    folder: Path | None = None
    """Where it is stored; None if it is not."""
    computed_on: str = ""
    """Day on which its computation began, ISO 8601."""

    @property
    def num_zeros(self) -> int:
        """Eigenvalues that are exactly zero because V has too few columns (appendix A.1).

        D - columns for the full GGN; summed over the blocks otherwise.
        """
        return self.num_params - len(self.eigenvalues)

    @property
    def num_above_cutoff(self) -> int:
        """K, eigenvalues above ``settings.cutoff``."""
        return _above(self.eigenvalues, self.settings.cutoff)

    def table(self) -> str:
        """The eigenvalues as CSV: [block,] direction (from 1), eigenvalue.

        They are written with ``repr``, so that reading them gives the same bits.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if self.settings.is_blocked:
            writer.writerow(_BLOCK_COLUMNS)
            for name, values in self.blocks.items():
                writer.writerows([name, i, repr(v)] for i, v in enumerate(values.tolist(), 1))
        else:
            writer.writerow(_COLUMNS)
            writer.writerows([i, repr(v)] for i, v in enumerate(self.eigenvalues.tolist(), 1))
        return text.getvalue()

    def facts(self) -> dict[str, Any]:
        """What the header of the stored run says of it, JSON-ready."""
        facts: dict[str, Any] = {
            **{name: getattr(self, name) for name in _FACTS},
            "num_eigenvalues": len(self.eigenvalues),
            "num_above_cutoff": self.num_above_cutoff,
            "num_zeros": self.num_zeros,
        }
        if self.dropped:
            facts["dropped"] = self.dropped
        if self.settings.is_blocked:
            facts["blocks"] = {
                name: {
                    "num_eigenvalues": len(values),
                    "num_above_cutoff": _above(values, self.settings.cutoff),
                    "trace": float(values.sum()),
                }
                for name, values in self.blocks.items()
            }
        return facts


def load_spectrum(stored: StoredRun | Path | str) -> SpectrumRecord:
    """Read a stored spectrum.

    Args:
        stored: The run, or its folder.

    Raises:
        UsageError: It is no finished spectrum.
        VivitBenchError: A file is missing, edited or cut short.
    """
    if not isinstance(stored, StoredRun):
        stored = load_run(Path(stored), EXPERIMENT)
    if not stored.is_finished:
        raise UsageError(
            f"{stored.folder}: its computation was interrupted; the same vivit-bench spectrum "
            "compute makes it"
        )
    try:
        return _parse(stored, stored.read(EIGENVALUES).decode())
    except (KeyError, TypeError, ValueError) as error:
        raise VivitBenchError(
            f"{stored.folder}: not a stored spectrum (bad or missing {error})"
        ) from error


def _settings_of(stored: StoredRun) -> SpectrumSettings:
    """The settings of a stored run.

    Raises:
        KeyError: A setting is missing; TypeError, ValueError and UsageError as in `from_json`.
    """
    # The model's hash decides the address, and is no choice of the user's.
    chosen = {name: value for name, value in stored.settings.items() if name != "model"}
    return SpectrumSettings.from_json(chosen)


def _parse(stored: StoredRun, table: str) -> SpectrumRecord:
    settings = _settings_of(stored)
    certificate = stored.results["certificate"]
    if wrong := next(violations(certificate, StoredCertificate, "certificate:"), ""):
        raise ValueError(wrong)
    eigenvalues, blocks = _parse_table(table, settings.is_blocked)
    return SpectrumRecord(
        settings=settings,
        eigenvalues=eigenvalues,
        blocks=blocks,
        dropped=dict(stored.results.get("dropped", {})),
        folder=stored.folder,
        computed_on=str(stored.provenance["started_at"])[:10],
        **{name: kind(stored.results[name]) for name, kind in _FACTS.items()},
    )


def _parse_table(
    table: str, is_blocked: bool
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    header, *rows = csv.reader(io.StringIO(table))
    columns = _BLOCK_COLUMNS if is_blocked else _COLUMNS
    if header != columns:
        raise ValueError(f"columns: {','.join(header)} instead of {','.join(columns)}")
    if not is_blocked:
        return np.array([float(value) for _, value in rows]), {}
    by_block: dict[str, list[float]] = {}
    for name, _, value in rows:
        by_block.setdefault(name, []).append(float(value))
    parts = {name: np.array(values) for name, values in by_block.items()}
    return merge_blocks(parts), parts


def merge_blocks(blocks: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Eigenvalues of a block-diagonal matrix from those of its blocks, descending."""
    return np.sort(np.concatenate(list(blocks.values()) or [np.empty(0)]))[::-1].copy()


def _above(eigenvalues: NDArray[np.float64], cutoff: float) -> int:
    return int((eigenvalues > cutoff).sum())
