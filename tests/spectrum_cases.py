"""Made-up spectra for the tests of storage, figures and comparisons."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from vivit_bench.curvature.options import Approximation, Blocks, Precision
from vivit_bench.problems.workload import WorkloadSpec
from vivit_bench.spectrum import SpectrumRecord, SpectrumSettings
from vivit_bench.spectrum.record import EIGENVALUES, merge_blocks
from vivit_bench.spectrum.stored import identity_of
from vivit_bench.store import StoredRun, open_run

SETTINGS = SpectrumSettings(
    WorkloadSpec("cifar10_3c3d", batch_size=128, data="deepobs", dtype=Precision.FLOAT32),
    Approximation(),
)


def settings_with(**changes: Any) -> SpectrumSettings:
    """`SETTINGS` with other values, by their names in the flat record."""
    return SpectrumSettings.from_json({**SETTINGS.to_json(), **changes})


def make_record(
    eigenvalues: Sequence[float] = (3.0, 0.5, 1e-6),
    *,
    num_params: int = 100,
    layers: dict[str, Sequence[float]] | None = None,
    **settings: Any,
) -> SpectrumRecord:
    """A record of given eigenvalues; keywords change the settings."""
    parts = {name: np.array(values, dtype=float) for name, values in (layers or {}).items()}
    values = merge_blocks(parts) if layers else np.array(eigenvalues, dtype=float)
    if layers:
        settings["blocks"] = Blocks.LAYER
    finite = values[np.isfinite(values)]
    return SpectrumRecord(
        settings=settings_with(**settings),
        eigenvalues=values,
        blocks=parts,
        num_params=num_params,
        num_samples=2,
        num_outputs=3,
        num_columns=len(values),
        trace=float(finite.sum()),
        loss=0.7,
        solver_dtype="float64",
        threads=1,
        compute_seconds=0.1,
        certificate={},
    )


def store_record(
    results_dir: Path,
    record: SpectrumRecord,
    *,
    model: str = "model",
    batch: str = "batch",
    name: str | None = None,
    **environment: Any,
) -> StoredRun:
    """Store a record as if it had been computed; keywords change its conditions."""
    workload: Any = SimpleNamespace(model_fingerprint=model, batch_fingerprint=batch)
    identity = identity_of(workload, record.settings)
    identity = replace(identity, environment={**identity.environment, **environment})
    with open_run(results_dir, identity, name=name) as run:
        run.write(EIGENVALUES, record.table())
        return run.finish(record.facts(), [EIGENVALUES])


def store_made_up(results_dir: Path, **changes: Any) -> StoredRun:
    """Store a made-up spectrum; keywords change its settings."""
    return store_record(results_dir, make_record(**changes))
