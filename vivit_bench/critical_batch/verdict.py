"""From what the parent saw of a child to the outcome of its trial: a pure function."""

import signal
from dataclasses import dataclass
from enum import StrEnum

from vivit_bench.critical_batch.budget import MemoryBudget
from vivit_bench.critical_batch.failures import FailureKind
from vivit_bench.critical_batch.outcomes import Outcome
from vivit_bench.critical_batch.sizes import format_size

EVIDENCE_SHARE = 0.8
"""A failure that may or may not be memory is taken for memory if the peak reached this share
of the budget."""


class Kill(StrEnum):
    """Why the parent killed its child. The kernel's own kill looks the same from outside."""

    MEMORY = "memory"
    """Its resident memory passed the watchdog's margin above the budget."""
    TIMEOUT = "timeout"
    SETUP_TIMEOUT = "set-up timeout"
    MACHINE = "machine"
    """The machine's memory ran low, whoever uses it."""


@dataclass(frozen=True)
class Evidence:
    """All that is known about a child that has ended."""

    budget: MemoryBudget
    ready: bool = False
    """Whether the child reported that its set-up was done."""
    finished: bool = False
    """Whether it reported that the work was done and its results are sound."""
    failure: FailureKind | None = None
    """What it reported of an exception, in the set-up or the work."""
    message: str = ""
    """Its words for that."""
    kill: Kill | None = None
    exit_code: int = 0
    """Of the process; -9 for SIGKILL."""
    peak_bytes: int | None = None
    """Largest peak over the idle process that anyone saw."""
    stderr: str = ""
    """Last line the child wrote there."""
    timeout_seconds: float = 0.0


def judge(evidence: Evidence) -> tuple[Outcome, str]:
    """Decide the outcome of a trial.

    A peak above the budget means that the batch does not fit, whether the work finished, took
    too long or met another limit on the way. Errors stay errors.

    Args:
        evidence: What was seen.

    Returns:
        The outcome and the reason on one line (empty for `Outcome.FITS`).
    """
    if evidence.kill is Kill.MACHINE:
        return Outcome.ERROR, (
            "stopped because the machine's memory ran low; free some, or use a smaller "
            "--memory-limit"
        )
    if not evidence.ready:
        return Outcome.ERROR, f"set-up failed: {_set_up_failure(evidence)}"
    outcome, reason = _judge_work(evidence)
    if outcome in (Outcome.FITS, Outcome.TIMEOUT, Outcome.LIMIT) and _above_budget(evidence):
        return Outcome.OUT_OF_MEMORY, "; ".join(filter(None, [_peak_reason(evidence), reason]))
    return outcome, reason


def _judge_work(evidence: Evidence) -> tuple[Outcome, str]:
    if evidence.finished:
        return Outcome.FITS, ""
    if evidence.kill is Kill.MEMORY:
        return Outcome.OUT_OF_MEMORY, _peak_reason(evidence)
    if evidence.kill is Kill.TIMEOUT:
        return Outcome.TIMEOUT, f"stopped after {evidence.timeout_seconds:g} s"
    match evidence.failure:
        case FailureKind.MEMORY:
            return Outcome.OUT_OF_MEMORY, evidence.message
        case FailureKind.LIMIT:
            return Outcome.LIMIT, evidence.message
        case FailureKind.ERROR:
            return Outcome.ERROR, evidence.message
    reason = evidence.message or _crash(evidence)
    if _near_budget(evidence):
        return Outcome.OUT_OF_MEMORY, f"{reason} ({_peak_reason(evidence)})"
    return Outcome.ERROR, f"{reason} ({_peak_reason(evidence)}: no sign of memory)"


def _set_up_failure(evidence: Evidence) -> str:
    if evidence.kill is Kill.SETUP_TIMEOUT:
        return f"not done after {evidence.timeout_seconds:g} s"
    return evidence.message or _crash(evidence)


def _crash(evidence: Evidence) -> str:
    code = evidence.exit_code
    if code < 0:
        try:
            ending = f"killed by {signal.Signals(-code).name}"
        except ValueError:
            ending = f"killed by signal {-code}"
    else:
        ending = f"ended without a result, exit code {code}"
    return f"{ending}: {evidence.stderr}" if evidence.stderr else ending


def _above_budget(evidence: Evidence) -> bool:
    return (evidence.peak_bytes or 0) > evidence.budget.limit_bytes


def _near_budget(evidence: Evidence) -> bool:
    return (evidence.peak_bytes or 0) >= EVIDENCE_SHARE * evidence.budget.limit_bytes


def _peak_reason(evidence: Evidence) -> str:
    limit = format_size(evidence.budget.limit_bytes)
    return f"peak {format_size(evidence.peak_bytes)} of a budget of {limit}"
