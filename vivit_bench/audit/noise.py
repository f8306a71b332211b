"""Stored training runs: what they must have, and what they would hold under now."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NotRequired, TypedDict

from vivit_bench.audit.record import NOT_ASKED, Audit, Look, Present
from vivit_bench.audit.workloads import absent_data, absent_files, why_not
from vivit_bench.errors import VivitBenchError
from vivit_bench.imported import imported_files
from vivit_bench.noise.records import CHECKPOINTS, read_run
from vivit_bench.noise.settings import OptimizerName
from vivit_bench.problems.sources import DataSource
from vivit_bench.problems.workload import WorkloadSpec
from vivit_bench.store import StoredRun


class _Settings(TypedDict):
    problem: str
    optimizer: OptimizerName
    lr: float
    momentum: float | None
    betas: list[float] | None
    epochs: int
    batch_size: int
    seed: int
    data: DataSource
    checkpoints: list[int]
    monitor_batch_size: int
    curvature: str
    samples: str
    mc_samples: int
    cutoff: float
    per_sample: bool
    device: str
    drop_columns: NotRequired[float]
    threads: int
    model: str


class _Results(TypedDict):
    sizes: dict[str, int]
    timing: dict[str, Any]
    dropped: NotRequired[Any]
    saved_model: NotRequired[str]
    deterministic: NotRequired[bool]
    not_deterministic: NotRequired[list[str]]


class _Failed(_Results):
    failure: str
    diverged_at: dict[str, Any]


def _contents(stored: StoredRun) -> Iterator[str]:
    try:
        run = read_run(stored)
    except VivitBenchError as error:
        yield str(error)
        return
    steps = run.checkpoints["step"].tolist()
    if missing := [step for step in stored.settings["checkpoints"] if step not in steps]:
        yield f"{CHECKPOINTS} has no checkpoint at step {', '.join(map(str, missing))}"
    for step, count in zip(steps, run.checkpoints["num_directions"], strict=True):
        if len(run.at(step)) != count:
            yield f"{len(run.at(step))} directions at step {step} instead of {count}"


def _present(stored: StoredRun, look: Look) -> Present:
    import torch

    from vivit_bench.noise.runner import environment_of

    settings = stored.settings
    device = torch.device(settings["device"])
    environment = environment_of(device, **imported_files(settings["problem"]))
    if not look.data:
        return Present(environment, unknown=(NOT_ASKED,))
    spec = WorkloadSpec(
        settings["problem"], data=DataSource(settings["data"]), seed=settings["seed"]
    )
    if absent := absent_files(spec) or absent_data(spec, look.data_dir):
        return Present(environment, unknown=(absent,))
    try:
        here = replace(spec, data_dir=look.data_dir)
        model, data = look.once(("noise", here), lambda: _fingerprints(here))
    except VivitBenchError as error:
        return Present(environment, unknown=(why_not(error),))
    return Present({**environment, **data}, {"model": model})


def _fingerprints(spec: WorkloadSpec) -> tuple[str, dict[str, str]]:
    """Of the model before it is trained, and of all data."""
    from vivit_bench.noise.data import load_run_data
    from vivit_bench.noise.runner import data_fingerprints
    from vivit_bench.problems import load_problem
    from vivit_bench.problems.workload import model_fingerprint

    assert spec.data is not None
    loaded = load_problem(spec.problem, seed=spec.seed)
    found = load_run_data(loaded, spec.data, spec.data_dir, spec.seed)
    model = model_fingerprint(loaded.name, loaded.model, loaded.loss)
    return model, data_fingerprints(found)


AUDIT = Audit(_Settings, _Results, _contents, _present, _Failed)
