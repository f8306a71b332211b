"""A computed spectrum and its stored form: a CSV of eigenvalues and a JSON beside it."""

import csv
import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivit_bench.errors import UsageError
from vivit_bench.spectrum.settings import SpectrumSettings
from vivit_bench.store import Provenance, check_writable, write_atomic

FORMAT = "vivit-bench spectrum 2"

_COLUMNS = ["index", "eigenvalue"]
_BLOCK_COLUMNS = ["block", *_COLUMNS]
# Keys of the JSON that are fields of the record under the same name.
_PLAIN_FIELDS = {
    "num_params": int,
    "num_samples": int,
    "num_outputs": int,
    "num_columns": int,
    "trace": float,
    "loss": float,
    "solver_dtype": str,
    "threads": int,
    "seconds": float,
    "model_fingerprint": str,
    "batch_fingerprint": str,
    "certificate": dict,
}


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
    seconds: float
    """Wall time of the eigenvalue computation, without loading model and data."""
    model_fingerprint: str
    """Hash of model, parameters, buffers and loss."""
    batch_fingerprint: str
    """Hash of the mini-batch."""
    certificate: dict[str, Any]
    """What was compared with plain autograd: ``samples``, ``errors``, ``tolerance``, ``notes``,
    ``seconds``; empty if it was switched off."""
    provenance: Provenance
    data_dir: str | None = None
    """Folder of the data, if one was given."""
    blocks: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Layer name -> eigenvalues of its diagonal block, descending; empty for the full GGN."""

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

    def save(self, path: Path | str) -> Path:
        """Write ``path`` (CSV) and the JSON of the same stem; the JSON completes the pair.

        Eigenvalues are written with ``repr``, so that reading them gives the same bits.

        Args:
            path: File that ends in ``.csv``; missing parent folders are made.

        Returns:
            Path of the CSV.

        Raises:
            UsageError: The path does not end in ``.csv`` or cannot be written.
            ValueError: Trace or loss is not finite (JSON has no such number).
        """
        path = check_output(path)
        table = self._csv()
        description = json.dumps(self._json(_digest(table)), indent=2, allow_nan=False) + "\n"
        try:
            # An older pair loses its JSON first: a half-replaced pair must not look finished.
            path.with_suffix(".json").unlink(missing_ok=True)
            write_atomic(path, table)
            write_atomic(path.with_suffix(".json"), description)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
        return path

    def _csv(self) -> str:
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

    def _json(self, digest: str) -> dict[str, Any]:
        description: dict[str, Any] = {
            "format": FORMAT,
            "settings": self.settings.to_json(),
            "data_dir": self.data_dir,
            **{key: getattr(self, key) for key in _PLAIN_FIELDS},
            "num_eigenvalues": len(self.eigenvalues),
            "num_above_cutoff": self.num_above_cutoff,
            "num_zeros": self.num_zeros,
        }
        if self.settings.is_blocked:
            description["blocks"] = {
                name: {
                    "num_eigenvalues": len(values),
                    "num_above_cutoff": _above(values, self.settings.cutoff),
                    "trace": float(values.sum()),
                }
                for name, values in self.blocks.items()
            }
        return {**description, "csv_sha256": digest, "provenance": self.provenance}


def check_output(path: Path | str) -> Path:
    """Return the path of a spectrum's CSV if one can be written there.

    Called before a computation too, so that a long run does not end with a wrong path.

    Raises:
        UsageError: Another file ending, a folder, a place that cannot be written, or a file
            of that name (CSV or JSON) that is no spectrum and would be lost.
    """
    path = Path(path)
    if path.suffix != ".csv":
        raise UsageError(f"output {path}: the name must end in .csv (a .json is written beside it)")
    check_writable(path)
    try:
        foreign = [file for file in (path, path.with_suffix(".json")) if _is_foreign(file)]
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    if foreign:
        raise UsageError(f"output {foreign[0]}: exists and is no spectrum; name another file")
    return path


def _is_foreign(path: Path) -> bool:
    """Whether a file exists that no ``save`` of this or another version can have written."""
    if not path.exists():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        start = file.read(200)
    if path.suffix == ".json":
        return FORMAT.rsplit(" ", 1)[0] not in start
    return start.partition("\n")[0] not in {",".join(_COLUMNS), ",".join(_BLOCK_COLUMNS)}


def load_spectrum(path: Path | str) -> SpectrumRecord:
    """Read a stored spectrum; either file of the pair may be named.

    Raises:
        UsageError: A file is missing or is not (or no longer) what ``save`` wrote.
    """
    path = Path(path)
    table_path, json_path = path.with_suffix(".csv"), path.with_suffix(".json")
    if path.suffix not in {".csv", ".json"}:
        raise UsageError(f"{path}: not a stored spectrum (a .csv with a .json beside it)")
    try:
        table = table_path.read_text(encoding="utf-8")
        description = json.loads(json_path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: no stored spectrum, {error.filename} is missing; "
            "make one with: vivit-bench spectrum compute PROBLEM"
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a stored spectrum ({error})") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UsageError(f"{path}: not a stored spectrum ({json_path} lacks format {FORMAT!r})")
    if description.get("csv_sha256") != _digest(table):
        raise UsageError(
            f"{path}: the eigenvalues are not those {json_path.name} describes "
            "(edited, or a replacement was interrupted); compute the spectrum again"
        )
    try:
        return _parse(table, description)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: not a stored spectrum (bad or missing {error})") from error


def _parse(table: str, description: dict[str, Any]) -> SpectrumRecord:
    settings = SpectrumSettings.from_json(description["settings"])
    eigenvalues, blocks = _parse_table(table, settings.is_blocked)
    return SpectrumRecord(
        settings=settings,
        eigenvalues=eigenvalues,
        blocks=blocks,
        data_dir=description["data_dir"],
        provenance=description["provenance"],
        **{key: kind(description[key]) for key, kind in _PLAIN_FIELDS.items()},
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


def _digest(table: str) -> str:
    return hashlib.sha256(table.encode()).hexdigest()
