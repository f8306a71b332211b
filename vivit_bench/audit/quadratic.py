"""Stored runs of the noisy quadratic: what they must have, and what they would hold under now."""

from collections.abc import Iterator
from typing import TypedDict

from vivit_bench.audit.record import Audit, Look, Present
from vivit_bench.errors import VivitBenchError
from vivit_bench.quadratic.records import LOSSES, environment_of, load_results
from vivit_bench.quadratic.settings import OptimizerName, RouteName
from vivit_bench.store import StoredRun

_COLUMNS = ["optimizer", "repetition", "step", "loss"]


class _Settings(TypedDict):
    repeats: int
    steps: int
    optimizers: list[OptimizerName]
    dampings: list[float]
    grid_low: float
    grid_high: float
    grid_points: int
    resamples: int
    percentile: float
    learning_rate: float
    curvatures: list[float]
    theta_init: float
    batch_size: int
    gradient_variance: float
    curvature_variance: float
    seed: int
    route: RouteName


class _Results(TypedDict):
    seconds: float
    diverged_above_times_initial_loss: float
    curvature_floor: float
    cutoff: float


def _contents(stored: StoredRun) -> Iterator[str]:
    try:
        losses = load_results(stored).losses
    except VivitBenchError as error:
        yield str(error)
        return
    settings = stored.settings
    if list(losses) != _COLUMNS:
        yield f"{LOSSES} has the columns {','.join(map(str, losses))}, not {','.join(_COLUMNS)}"
        return
    each = settings["repeats"] * (settings["steps"] + 1)
    for optimizer, rows in losses.groupby("optimizer"):
        if len(rows) != each:
            yield f"{LOSSES} has {len(rows)} losses of {optimizer} instead of {each}"


def _present(stored: StoredRun, look: Look) -> Present:
    return Present(environment_of())


AUDIT = Audit(_Settings, _Results, _contents, _present)
