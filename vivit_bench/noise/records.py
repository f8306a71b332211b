"""A run on disk: tables, per-sample values, and under way the state that it goes on from.

Every file is replaced atomically, and tables come before the state that counts on them: killed
at any moment, a run leaves whole tables and a state that is at most one record behind. The state
knows the checksums of what it counts on. torch is imported where a state is handled: figures and
tables do without.
"""

import io
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vivit_bench import store
from vivit_bench.arguments import problem_slug
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.store import Run, State, StoredRun
from vivit_bench.store.files import sha256

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from vivit_bench.noise.measurement import Measurement

EXPERIMENT = "noise"
STATE = "state.pt"
DIRECTIONS, CHECKPOINTS, CURVES = "directions.csv", "checkpoints.csv", "curves.csv"
PER_SAMPLE = "per_sample"
"""Folder of ``step_<step>.npz``: gammas [N, K] and lambdas [N_curv, K], float64."""

OWNS = (
    *(STATE, DIRECTIONS, CHECKPOINTS, CURVES, f"{PER_SAMPLE}/step_*.npz"),
    *(f"{stem}.{ending}" for stem in ("directions", "training") for ending in ("png", "pdf")),
    *(f"table.{ending}" for ending in ("csv", "md", "tex")),
)
"""What a run, its figures and its tables are called."""

COLUMNS = {
    CURVES: ("step", "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    CHECKPOINTS: (
        *("step", "epoch", "loss", "num_directions", "num_columns", "gradient_norm_squared"),
        *("alignment_sum", "zero_variance_gamma", "zero_variance_lambda"),
        *("certificate_error", "certified_samples"),
    ),
    DIRECTIONS: (
        *("step", "epoch", "direction", "eigenvalue", "gamma", "alignment"),
        *("snr_gamma", "snr_lambda"),
    ),
}
"""Of every table. They are read in this order, the reverse of that in which they are written, so
that a run under way never shows a row without those that belong to it."""
_COUNTS = {
    *("step", "direction", "num_directions", "num_columns"),
    *("zero_variance_gamma", "zero_variance_lambda", "certified_samples"),
}


@dataclass(frozen=True)
class NoiseRun:
    """A stored run, finished or not."""

    stored: StoredRun
    """``run.json``. Its results have ``sizes``; of a run that came to an end also ``timing``; of
    one that diverged ``failure`` and ``diverged_at``."""
    directions: pd.DataFrame
    """``step``, ``epoch`` and the columns of `direction_table`."""
    checkpoints: pd.DataFrame
    """``step``, ``epoch`` and the values of `Measurement.summary`."""
    curves: pd.DataFrame
    """``step``, ``epoch``, ``train_loss``, ``train_accuracy``, ``test_loss``,
    ``test_accuracy`` (shares; empty for a regression), at checkpoints and ends of epochs."""

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.stored.folder

    @property
    def settings(self) -> dict[str, Any]:
        """``Settings.record()``, number of threads and fingerprint of the model."""
        return self.stored.settings

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of samples, outputs, parameters and steps."""
        return dict(self.stored.results["sizes"])

    def at(self, step: int) -> pd.DataFrame:
        """Directions of one checkpoint."""
        return self.directions[self.directions["step"] == step]


def find_run(name: str, results_dir: Path) -> NoiseRun:
    """Read a run by its folder, its name, the readable start of its name or PROBLEM_OPTIMIZER.

    Raises:
        UsageError: No run is called so, several are, or nothing has been recorded yet.
        VivitBenchError: A file is missing or not the one that was written.
    """
    command = "vivit-bench noise run PROBLEM"
    if ".py:" in name and not Path(name).exists():
        name = problem_slug(name)
    return read_run(store.find_run(name, results_dir, EXPERIMENT, command))


def load_run(folder: Path) -> NoiseRun:
    """Read the run in a folder; raises what `find_run` raises."""
    return read_run(store.load_run(folder, EXPERIMENT))


def read_run(stored: StoredRun) -> NoiseRun:
    """Read a run's tables, in whatever state it is; raises what `find_run` raises."""
    tables = {name: _read_table(stored, name) for name in COLUMNS}
    # Directions are written first: those of a checkpoint that is not there yet are left out.
    directions = tables[DIRECTIONS]
    known = directions["step"].isin(tables[CHECKPOINTS]["step"])
    return NoiseRun(stored, directions[known], tables[CHECKPOINTS], tables[CURVES])


def _read_table(stored: StoredRun, name: str) -> pd.DataFrame:
    path = stored.folder / name
    if stored.state is State.RUNNING and not path.exists():
        raise UsageError(
            f"{stored.folder} has no {name} yet: let vivit-bench noise run get to a checkpoint"
        )
    if stored.state is State.FAILED and name not in stored.files:
        raise UsageError(f"{stored.folder} has no {name}: {stored.results['failure']}")
    kinds = {column: "int64" if column in _COUNTS else "float64" for column in COLUMNS[name]}
    content = stored.read(name)
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=kinds)
    except (ValueError, OverflowError):
        table = pd.DataFrame()
    whole = tuple(table) == COLUMNS[name] and isinstance(table.index, pd.RangeIndex)
    if whole and name != DIRECTIONS:
        whole = len(table) > 0 and table["step"].is_monotonic_increasing and table["step"].is_unique
    if not whole:
        raise VivitBenchError(
            f"{path} is not the table that was written (edited or cut short): vivit-bench noise "
            "run --fresh computes it again"
        )
    return table


class Records:
    """What a run under way has recorded so far.

    Args:
        run: Open, and new or gone on with.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.folder = run.folder
        self._tables = dict.fromkeys((DIRECTIONS, CHECKPOINTS, CURVES), b"")
        self._per_sample: dict[str, tuple[int, str]] = {}

    def add_curves(self, row: dict[str, Any]) -> None:
        """Add a row to ``curves.csv``."""
        self._append(CURVES, pd.DataFrame([row]))

    def add_measurement(self, row: dict[str, Any], seen: "Measurement", per_sample: bool) -> None:
        """Add a checkpoint: per-sample values, directions, then the row that counts."""
        if per_sample:
            content = io.BytesIO()
            found = seen.derivatives
            np.savez_compressed(content, gammas=found.gammas.numpy(), lambdas=found.lambdas.numpy())
            name = f"{PER_SAMPLE}/step_{row['step']:08d}.npz"
            self._run.write(name, content.getvalue())
            self._per_sample[name] = _summed(content.getvalue())
        table = seen.directions.copy()
        table.insert(0, "step", row["step"])
        table.insert(1, "epoch", row["epoch"])
        self._append(DIRECTIONS, table)
        self._append(CHECKPOINTS, pd.DataFrame([row]))

    def _append(self, name: str, rows: pd.DataFrame) -> None:
        before = self._tables[name]
        text = rows.to_csv(index=False, header=not before, float_format="%.8g", na_rep="nan")
        self._tables[name] = before + text.encode()
        self._run.write(name, self._tables[name])

    def save_state(
        self, model: "nn.Module", optimizer: "Optimizer", progress: dict[str, Any]
    ) -> None:
        """Write down all that the training needs to go on bit by bit from these records.

        Args:
            model: Parameters and running statistics.
            optimizer: Its buffers.
            progress: Numbers, texts, lists and dictionaries.
        """
        import torch

        content = io.BytesIO()
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": _random_states(next(model.parameters()).device),
            "progress": progress,
            "files": self._written(),
        }
        torch.save(state, content)
        payload = content.getvalue()
        self._run.write(STATE, f"{sha256(payload)}\n".encode() + payload)

    def load_state(self, model: "nn.Module", optimizer: "Optimizer") -> dict[str, Any] | None:
        """Put back what was last saved, these records and the global random states included.

        Returns:
            The progress; None if nothing was saved.

        Raises:
            VivitBenchError: The file is no state of this model, or a file that it counts on is
                not as it was.
        """
        import torch

        path = self.folder / STATE
        try:
            check, _, payload = path.read_bytes().partition(b"\n")
            if sha256(payload).encode() != check:
                raise ValueError("checksum")
            state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            _set_random_states(state["random"], next(model.parameters()).device)
            progress, files = dict(state["progress"]), dict(state["files"])
        except FileNotFoundError:
            return None
        except Exception as error:  # unpickling garbage raises almost anything
            raise VivitBenchError(
                f"{path} is no state that this training can go on from (edited, cut short or of "
                "another model): --fresh starts over"
            ) from error
        for name, (size, digest) in files.items():
            content = self._read(name)[:size]
            if sha256(content) != digest:
                raise self._changed(name)
            if name in self._tables:
                self._tables[name] = content
            else:
                self._per_sample[name] = (size, digest)
        return progress

    def finish(self, results: Mapping[str, Any], state: State) -> StoredRun:
        """End the run; its header vouches for every file that was recorded.

        Raises:
            VivitBenchError: Somebody else changed one.
        """
        files = {name: digest for name, (size, digest) in self._written().items() if size}
        for name, digest in files.items():
            if sha256(self._read(name)) != digest:
                raise self._changed(name)
        stored = self._run.finish(results, list(files), state=state)
        self._run.remove(STATE)
        return stored

    def _written(self) -> dict[str, tuple[int, str]]:
        """Bytes and SHA-256 of every file so far."""
        tables = {name: _summed(content) for name, content in self._tables.items()}
        return {**tables, **self._per_sample}

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError:
            raise self._changed(name) from None

    def _changed(self, name: str) -> VivitBenchError:
        return VivitBenchError(
            f"{self.folder / name} is not as this run has written it (edited, cut short or "
            "removed): --fresh starts over"
        )


def _summed(content: bytes) -> tuple[int, str]:
    return len(content), sha256(content)


def _random_states(device: "torch.device") -> dict[str, Any]:
    """Of the CPU and of the model's device; the states of other devices play no part."""
    import torch

    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "python": [version, list(words), gauss],
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
    }


def _set_random_states(states: dict[str, Any], device: "torch.device") -> None:
    import torch

    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    key = states["numpy"]["state"]["key"].numpy().astype(np.uint32)
    numpy_state = {**states["numpy"], "state": {**states["numpy"]["state"], "key": key}}
    np.random.set_state(numpy_state)
    torch.set_rng_state(states["torch"])
    for state in states["cuda"]:
        torch.cuda.set_rng_state(state, device)
