"""Stored searches: what they must have, and what they would hold under now."""

from collections.abc import Iterator
from typing import Any, NotRequired, TypedDict

from vivit_bench.audit.record import Audit, Look, Present, journal_problems, present_files
from vivit_bench.critical_batch.records import TRIALS
from vivit_bench.critical_batch.search import StoppedBy
from vivit_bench.critical_batch.settings import measuring_environment
from vivit_bench.measure import Outcome, Trial
from vivit_bench.store import StoredRun, read_journal


class _Settings(TypedDict):
    problem: str
    data: str | None
    seed: int
    checkpoint: str | None
    dtype: str
    device: str
    quantity: str
    curvature: str | None
    samples: str | None
    mc_samples: int | None
    engine: str
    threads: int
    memory_limit_bytes: int
    calls: NotRequired[int]
    problem_file: str | None
    checkpoint_file: str | None


class _Results(TypedDict):
    critical_batch_size: int
    is_lower_bound: bool
    stopped_by: StoppedBy
    message: str
    trials: int
    peak_bytes: int | None
    idle_bytes: int | None
    reserved_peak_bytes: NotRequired[int | None]
    work_seconds: NotRequired[float | None]
    confirmed: NotRequired[bool | None]
    elapsed_seconds: float
    repeats: NotRequired[int]
    max_batch: int
    trial_timeout_seconds: float
    ended_at: str
    limit_chosen_by_user: NotRequired[bool]
    planned_peaks: NotRequired[list[list[float]]]
    expected_seconds: NotRequired[list[list[float]]]
    small_sizes: NotRequired[list[int]]
    largest_batch: NotRequired[int | None]
    predicted: NotRequired[dict[str, Any] | None]
    jobs: NotRequired[int]


def _contents(stored: StoredRun) -> Iterator[str]:
    yield from journal_problems(stored, TRIALS, Trial)
    size = stored.results["critical_batch_size"]
    entries, _ = read_journal(stored.folder / TRIALS)
    fitting = [entry.get("n") for entry in entries if entry.get("outcome") == Outcome.FITS]
    if size and size not in fitting:
        yield f"{TRIALS} has no trial of N = {size} that fits, the critical batch size"


def _present(stored: StoredRun, look: Look) -> Present:
    settings = stored.settings
    files, unknown = present_files(stored)
    environment = measuring_environment(
        [settings["engine"]], settings["device"], settings["problem"], settings["quantity"]
    )
    return Present(environment, files, unknown)


AUDIT = Audit(_Settings, _Results, _contents, _present)
