"""What a search is asked for, and under which name its records are kept."""

import hashlib
import json
import math
import os
import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from vivit_bench.curvature.options import Approximation, Curvature, Samples
from vivit_bench.errors import UsageError
from vivit_bench.hardware import OPENMP_WAITING, parse_device
from vivit_bench.peers import Quantity, get_engine
from vivit_bench.problems.catalogue import is_user_problem
from vivit_bench.problems.sources import DataSource, check_source, default_source
from vivit_bench.store.provenance import Provenance, code_fingerprint, library_version

DEFAULT_MAX_BATCH = 32_768
DEFAULT_TRIAL_TIMEOUT = 1_800.0
DEFAULT_ENGINE = "vivit-bench"

# Rooms of the package that can change a measurement.
_MEASURING_ROOMS = ("measure", "curvature", "peers", "problems")
_ENVIRONMENT = (
    "vivit_bench",
    "python",
    "torch",
    "torchvision",
    "backpack",
    "deepobs",
    "numpy",
    "scipy",
    "host",
    "cpu",
    "cores",
    "ram_bytes",
)
_ENGINE_DISTRIBUTIONS = {
    "vivit-for-pytorch": "vivit-for-pytorch",
    "curvlinops": "curvlinops-for-pytorch",
}


@dataclass(frozen=True)
class Cell:
    """Everything that determines a critical batch size but the memory limit."""

    problem: str
    """DeepOBS name or ``path/to/file.py:function``, as the user typed it."""
    quantity: Quantity
    curvature: Curvature | None
    """None for the gradient, which has none."""
    samples: Samples | None
    """None for the gradient."""
    mc_samples: int
    """M, label draws per sample; 1 unless ``curvature`` is mc."""
    device: str
    """``cpu`` or ``cuda:i``."""
    engine: str
    data: DataSource
    seed: int
    threads: int
    """CPU threads of a trial."""
    checkpoint: str | None
    data_dir: str | None

    @property
    def variant(self) -> str:
        """Short name of quantity and approximation, e.g. ``eigenvalues, mc (M = 2), frac``."""
        if self.curvature is None:
            return self.quantity.value
        draws = f" (M = {self.mc_samples})" if self.mc_samples != 1 else ""
        return f"{self.quantity}, {self.curvature}{draws}, {self.samples}"

    @property
    def label(self) -> str:
        """Name for people: problem, variant, engine, device."""
        return f"{self.problem}: {self.variant} ({self.engine}, {self.device})"

    def work(self) -> dict[str, Any]:
        """Arguments of `vivit_bench.measure.work.EngineWork`."""
        values = {key: _plain(value) for key, value in asdict(self).items()}
        values.pop("threads")
        values["curvature"] = values["curvature"] or Curvature.EXACT.value
        values["samples"] = values["samples"] or Samples.FULL.value
        return values

    def key_fields(self) -> dict[str, Any]:
        """Values that tell this cell's records from others', as plain JSON types.

        Files count by their contents, and not by where the data folder is.
        """
        values = {key: _plain(value) for key, value in asdict(self).items()}
        values.pop("data_dir")
        values["problem_file"] = _hash_of(self.problem.rpartition(":")[0])
        values["checkpoint_file"] = _hash_of(self.checkpoint)
        return values

    def slug(self) -> str:
        """Start of a file name."""
        parts = [self.problem, self.quantity, self.curvature, self.samples, self.engine]
        text = "_".join(str(part) for part in parts if part is not None)
        return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")


def make_cell(
    problem: str,
    *,
    quantity: Quantity = Quantity.EIGENVALUES,
    curvature: Curvature | None = None,
    samples: Samples | None = None,
    mc_samples: int = 1,
    device: str = "cpu",
    engine: str = DEFAULT_ENGINE,
    data: DataSource | None = None,
    seed: int = 0,
    threads: int | None = None,
    checkpoint: Path | None = None,
    data_dir: Path | None = None,
) -> Cell:
    """Check what was asked for and fill in defaults.

    Args:
        problem: DeepOBS name or ``path/to/file.py:function``.
        quantity: What is computed, beside the gradient of the whole mini-batch.
        curvature: Default exact; None for the gradient.
        samples: Default full; None for the gradient.
        mc_samples: M, with ``curvature`` mc only.
        device: ``cpu``, ``cuda`` or ``cuda:i``.
        engine: Its name.
        data: Default ``synthetic``; ``own`` for a user's problem.
        seed: Of parameters, mini-batch and Monte-Carlo draws.
        threads: CPU threads of a trial; None for all this process may use.
        checkpoint: File of parameters; None for initial ones.
        data_dir: Folder of the data sets; None for the default.

    Returns:
        The cell.

    Raises:
        UsageError: A value that is not allowed, with those that are.
    """
    quantity = Quantity(quantity)
    if quantity not in (offered := get_engine(engine).quantities):
        names = ", ".join(sorted(offered))
        raise UsageError(f"--quantity {quantity}: the engine {engine} has {names}")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: must be at least 1")
    if checkpoint is not None and not checkpoint.is_file():
        raise UsageError(f"--checkpoint {checkpoint}: no such file")
    _check_problem_file(problem)
    source = default_source(problem, "memory") if data is None else DataSource(data)
    check_source(problem, source)
    curvature, samples = _approximation(quantity, curvature, samples, mc_samples)
    return Cell(
        problem=problem,
        quantity=quantity,
        curvature=curvature,
        samples=samples,
        mc_samples=mc_samples,
        device=parse_device(device),
        engine=engine,
        data=source,
        seed=seed,
        threads=threads or len(os.sched_getaffinity(0)),
        checkpoint=str(checkpoint) if checkpoint is not None else None,
        data_dir=str(data_dir) if data_dir is not None else None,
    )


def check_bounds(max_batch: int, trial_timeout: float) -> None:
    """Refuse bounds of a search that cannot be.

    Raises:
        UsageError: With the values allowed.
    """
    if max_batch < 1:
        raise UsageError(f"--max-batch {max_batch}: must be at least 1")
    if not 0 < trial_timeout < math.inf:
        raise UsageError(
            f"--trial-timeout {trial_timeout:g}: must be a number of seconds above 0, "
            "for example 600"
        )


def environment_key(cell: Cell, provenance: Provenance) -> dict[str, Any]:
    """What must be the same for two trials of a cell to be comparable.

    Args:
        cell: The cell, whose engine and device decide what else counts.
        provenance: Of this process.

    Returns:
        Plain JSON types. ``code`` is that of the measuring parts of the package only; how
        a trial's threads wait is set outside of them.
    """
    on_device = () if cell.device == "cpu" else ("gpu", "gpu_bytes")
    key = {name: provenance[name] for name in (*_ENVIRONMENT, *on_device)}
    if distribution := _ENGINE_DISTRIBUTIONS.get(cell.engine):
        key[distribution] = library_version(distribution)
    return {"code": code_fingerprint(_MEASURING_ROOMS), **key, **OPENMP_WAITING}


def record_key(cell: Cell, memory_limit_bytes: int, environment: dict[str, Any]) -> str:
    """Hash of all that tells one search's records from another's (12 hex digits)."""
    content = [cell.key_fields(), memory_limit_bytes, environment]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _approximation(
    quantity: Quantity, curvature: Curvature | None, samples: Samples | None, mc_samples: int
) -> tuple[Curvature | None, Samples | None]:
    if quantity is Quantity.GRADIENT:
        draws = None if mc_samples == 1 else mc_samples
        given = {"--curvature": curvature, "--samples": samples, "--mc-samples": draws}
        for option, value in given.items():
            if value is not None:
                raise UsageError(f"{option} {value}: the gradient has none; leave the option out")
        return None, None
    curvature = curvature or Curvature.EXACT
    found = Approximation(curvature, samples or Samples.FULL, mc_samples)
    return found.curvature, found.samples


def _check_problem_file(problem: str) -> None:
    """A missing file of the user's is told before a child is started for it."""
    if not is_user_problem(problem):
        return
    file, colon, function = problem.rpartition(":")
    if not colon or not file or not function:
        raise UsageError(f"{problem}: write path/to/file.py:function")
    if not Path(file).is_file():
        raise UsageError(f"{problem}: there is no file {file}")


def _hash_of(file: str | None) -> str | None:
    if not file:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]


def _plain(value: object) -> Any:
    return value.value if isinstance(value, StrEnum) else value
