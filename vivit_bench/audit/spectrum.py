"""Stored spectra: what they must have, and what they would hold under now."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NotRequired, TypedDict

from vivit_bench.audit.record import NOT_ASKED, Audit, Look, Present
from vivit_bench.audit.workloads import absent_data, absent_files, why_not
from vivit_bench.errors import VivitBenchError
from vivit_bench.imported import imported_files
from vivit_bench.problems.workload import WorkloadSpec, load_workload
from vivit_bench.spectrum.record import EIGENVALUES, StoredCertificate, load_spectrum
from vivit_bench.spectrum.settings import SpectrumSettings
from vivit_bench.spectrum.stored import environment_of
from vivit_bench.store import StoredRun


class _Settings(TypedDict):
    problem: str
    batch_size: int
    data: str
    seed: int
    checkpoint: str | None
    dtype: str
    device: str
    curvature: str
    samples: str
    mc_samples: int
    blocks: str | dict[str, list[str]]
    params: list[str] | None
    cutoff: float
    drop_columns: NotRequired[float]
    model: str


class _Results(TypedDict):
    num_params: int
    num_samples: int
    num_outputs: int
    num_columns: int
    trace: float
    loss: float
    solver_dtype: str
    threads: int
    compute_seconds: float
    certificate: StoredCertificate
    num_eigenvalues: int
    num_above_cutoff: int
    num_zeros: int
    dropped: NotRequired[dict[str, Any]]
    blocks: NotRequired[dict[str, dict[str, Any]]]


def _contents(stored: StoredRun) -> Iterator[str]:
    try:
        record = load_spectrum(stored)
    except VivitBenchError as error:
        yield str(error)
        return
    told = {
        "num_eigenvalues": len(record.eigenvalues),
        "num_above_cutoff": record.num_above_cutoff,
        "num_zeros": record.num_zeros,
    }
    for name, number in told.items():
        if stored.results[name] != number:
            yield f"{EIGENVALUES} says {name} {number}, results: {stored.results[name]}"


def _present(stored: StoredRun, look: Look) -> Present:
    chosen = {name: value for name, value in stored.settings.items() if name != "model"}
    spec = SpectrumSettings.from_json(chosen).workload
    environment = environment_of(spec.device, **imported_files(spec.problem))
    if not look.data:
        return Present(environment, unknown=(NOT_ASKED,))
    if absent := absent_files(spec) or absent_data(spec, look.data_dir):
        return Present(environment, unknown=(absent,))
    try:
        here = replace(spec, device="cpu", data_dir=look.data_dir)
        model, batch = look.once(here, lambda: _fingerprints(here))
    except VivitBenchError as error:
        return Present(environment, unknown=(why_not(error),))
    return Present({**environment, "batch": batch}, {"model": model})


def _fingerprints(spec: WorkloadSpec) -> tuple[str, str]:
    """Of model and mini-batch."""
    workload = load_workload(spec)
    return workload.model_fingerprint, workload.batch_fingerprint


AUDIT = Audit(_Settings, _Results, _contents, _present)
