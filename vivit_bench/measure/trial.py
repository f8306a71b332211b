"""A trial: one batch size, run to a verdict on its memory."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from vivit_bench.measure.budget import ONE_CPU_RESOLUTION, MemoryBudget
from vivit_bench.measure.host_memory import PAGE
from vivit_bench.measure.parent import Observation, measure
from vivit_bench.measure.protocol import Measured, Outcome, Ready, Spec

MOST_CONFIRMATIONS = 4
AGREEING_BYTES = 3 * PAGE
"""By which two readings on one CPU may differ and be called equal."""


@dataclass(frozen=True)
class Trial:
    """One batch size that was really run."""

    n: int
    """Batch size N."""
    outcome: Outcome
    message: str
    """Why it did not fit, on one line; empty if it did."""
    peak_bytes: int | None
    """Peak memory over the idle process, of the reading that decided; None if not known."""
    idle_bytes: int | None
    """Memory of the idle process: libraries, model and data, after a 2-sample warm-up."""
    absolute_peak_bytes: int | None
    """Peak memory of the whole process, in the first reading."""
    elapsed_seconds: float
    """Wall time with the start of the process, and of all readings."""
    timeout_seconds: float
    """The time-out it ran under."""
    confirmed: bool
    """Whether it was measured again, on one CPU, because its peak was too near to the budget
    for the first reading to decide."""
    ended_at: str
    """UTC, ISO 8601."""
    certificate_error: float | None = None
    """Largest error of the check by plain autograd of the 2-sample warm-up; None where the engine
    has no check, or it was not reached. The measured work itself is not checked."""
    certified_samples: int | None = None
    """On how many samples it was made."""
    available_samples: int | None = None
    """Samples there are, where the data end before N."""
    other_processes: int = 0
    """Processes that the work started and whose memory is part of the peak."""
    reserved_peak_bytes: int | None = None
    """On CUDA devices the peak over the idle process of what the allocator has reserved, where
    the limit acts; ``peak_bytes`` is that of what it has handed out."""
    outside_bytes: int | None = None
    """On CUDA devices what was in use beside at the start of the work, see `Ready`; no limit
    bounds it."""
    work_seconds: float | None = None
    """Wall time of the work alone, in the reading that decided; None if it did not end. What
    makes memory repeat (`EXACT_MEMORY`, one CPU) makes it slower than elsewhere."""
    repeat: int = 0
    """How often this batch size had been run to a verdict before."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**asdict(self), "outcome": self.outcome.value}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Trial":
        """Rebuild what ``to_json`` wrote.

        Raises:
            TypeError: A field is missing or unknown.
            ValueError: An unknown outcome.
        """
        trial = cls(**values)
        return replace(trial, outcome=Outcome(trial.outcome))


@dataclass(frozen=True)
class TrialRun:
    """A trial and what its last child wrote to stderr."""

    trial: Trial
    stderr: str


Confirming = Callable[[int, float], None]
"""Is told that a trial is measured again: the how-manieth time of at most
`MOST_CONFIRMATIONS`, and the seconds it took so far."""


def run_trial(
    spec: Spec, timeout_seconds: float, confirming: Confirming = lambda reading, seconds: None
) -> TrialRun:
    """Run one batch size to a verdict.

    Where the peak is too near to the budget for one reading, the trial is run again with all
    its threads on one CPU, where the kernel's page counts are exact, and that decides. The
    verdict then does not depend on luck, and only trials near the limit pay for it. A trial of
    one thread is kept on one CPU from the first.

    Args:
        spec: What to run; it has a limit.
        timeout_seconds: For the work, after the set-up.
        confirming: Is told before each run again.

    Returns:
        The trial.
    """
    started = time.monotonic()
    if spec.threads == 1:
        spec = replace(spec, one_cpu=True)
    first = decisive = measure(spec, timeout_seconds)
    confirmed = _too_near(spec, first)
    if confirmed:
        decisive = _confirm(
            spec,
            timeout_seconds,
            lambda k: confirming(k, time.monotonic() - started),
            first if spec.one_cpu else None,
        )
    ready = first.ready or Ready()
    report = decisive.report
    trial = Trial(
        n=spec.n,
        outcome=decisive.outcome,
        message=decisive.message,
        peak_bytes=decisive.peak_bytes,
        idle_bytes=ready.idle_bytes,
        absolute_peak_bytes=first.absolute_peak_bytes,
        elapsed_seconds=round(time.monotonic() - started, 3),
        timeout_seconds=timeout_seconds,
        confirmed=confirmed,
        ended_at=datetime.now(UTC).isoformat(timespec="seconds"),
        certificate_error=ready.certificate_error,
        certified_samples=ready.certified_samples,
        available_samples=report.available_samples if report is not None else None,
        other_processes=decisive.other_processes,
        reserved_peak_bytes=(decisive.measured or Measured()).reserved_peak_bytes,
        outside_bytes=ready.outside_bytes,
        work_seconds=None if decisive.measured is None else decisive.measured.wall_seconds,
    )
    return TrialRun(trial, decisive.stderr)


def _finished(seen: Observation) -> bool:
    return seen.report is not None and seen.report.failure is None


def _too_near(spec: Spec, seen: Observation) -> bool:
    """Whether a trial that ended well has a peak that one reading cannot compare."""
    if spec.device != "cpu" or spec.limit_bytes is None:
        return False
    if not _finished(seen) or seen.peak_bytes is None:
        return False
    above = seen.peak_bytes - spec.limit_bytes
    if spec.one_cpu:  # exact, or else too large
        return 0 < above <= ONE_CPU_RESOLUTION
    return abs(above) <= MemoryBudget(spec.limit_bytes).resolution_bytes(spec.threads)


def _confirm(
    spec: Spec, timeout_seconds: float, told: Callable[[int], None], first: Observation | None
) -> Observation:
    """Repeat a trial on one CPU; the smallest of a few peaks decides.

    On one CPU most readings are equal to a few pages. Where they are not, on a busy machine,
    they are too large: a thread was interrupted while it held a buffer. Two that agree end it.

    Args:
        spec: Of the trial.
        timeout_seconds: Of the trial.
        told: Is told before each run.
        first: What was read, if that was on one CPU.
    """
    assert spec.limit_bytes is not None
    smallest = first
    for reading in range(1, MOST_CONFIRMATIONS + 1):
        told(reading)
        # One CPU does the work of all threads.
        seen = measure(replace(spec, one_cpu=True), timeout_seconds * spec.threads)
        if not _finished(seen) or seen.peak_bytes is None:
            return seen
        before = None if smallest is None else smallest.peak_bytes
        if smallest is None or before is None or seen.peak_bytes < before:
            smallest = seen
        agree = before is not None and abs(seen.peak_bytes - before) <= AGREEING_BYTES
        if seen.peak_bytes <= spec.limit_bytes or agree:
            break
    assert smallest is not None
    return smallest
