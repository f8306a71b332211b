"""What the end of a child means, by all that its parent saw.

Most finders of batch sizes match a few strings: they miss some failures for memory and take
errors for others. Here only what cannot mean anything else is memory; what may or may not be
needs evidence, a peak near the budget or an allocation that a device's allocator refused;
everything else is an error. A crash may be memory, as native code that is refused some writes to
address 0 or aborts; a process that ends itself in any other way may only if its last words are of
memory. Pure functions.
"""

import signal
from dataclasses import dataclass
from enum import StrEnum

from vivit_bench.arguments import format_size
from vivit_bench.errors import FailureKind, speaks_of_memory
from vivit_bench.measure.budget import MemoryBudget, format_peak
from vivit_bench.measure.protocol import REPORT_LOST, Measured, Outcome, TrialReport

EVIDENCE_SHARE = 0.8
"""A failure that may or may not be memory is taken for memory if the peak reached this share
of the budget, or a device's allocator refused memory. Both are taken over what the process held
before the work: a large interpreter is no sign of memory."""

_CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV}
"""Ends of native code that was refused memory; SIGKILL is the kernel's, where the machine has none
left."""


class Kill(StrEnum):
    """Why the parent killed its child. The kernel's own kill looks the same from outside."""

    MEMORY = "memory"
    """Its resident memory passed the watchdog's margin above the budget."""
    TIMEOUT = "timeout"
    SETUP_TIMEOUT = "set-up timeout"
    MACHINE = "machine"
    """The machine's memory ran low, whoever uses it."""
    GARBLED = "garbled"
    """Something else than the child's messages came out of its pipe."""


@dataclass(frozen=True)
class Evidence:
    """All that is known about a child that has ended."""

    budget: MemoryBudget | None
    """None: there was none, and nothing is above it."""
    loaded: bool = False
    """Whether it reported that only its warm-up was left of its set-up."""
    ready: bool = False
    """Whether the child reported that its set-up was done."""
    report: TrialReport | None = None
    """Its last message, in the set-up or after the work."""
    kill: Kill | None = None
    exit_code: int = 0
    """Of the process; -9 for SIGKILL."""
    peak_bytes: int | None = None
    """Largest peak over the idle process that anyone saw."""
    counted_bytes: int = 0
    """What the peak and the budget hold of the idle process, see `Ready`."""
    measured: Measured | None = None
    """What the child read of a device when the work had ended."""
    other_processes: int = 0
    """Other processes whose memory is part of the peak."""
    stderr: str = ""
    """Last line the child wrote there."""
    timeout_seconds: float = 0.0


def judge(evidence: Evidence) -> tuple[Outcome, str]:
    """Decide the outcome of a trial.

    A peak above the budget means that the batch does not fit, whether the work finished, took
    too long or met another limit on the way. Errors stay errors. What a device refused because
    others use its memory, and not for the budget, is one of them.

    Args:
        evidence: What was seen.

    Returns:
        The outcome and the reason on one line (empty for `Outcome.FITS`).
    """
    if evidence.kill is Kill.MACHINE:
        smaller = "" if evidence.budget is None else ", or use a smaller --memory-limit"
        return Outcome.ERROR, f"stopped because the machine's memory ran low; free some{smaller}"
    if evidence.kill is Kill.GARBLED or evidence.exit_code == REPORT_LOST:
        done = "wrote into" if evidence.kill is Kill.GARBLED else "closed"
        return Outcome.ERROR, (
            f"the work {done} the pipe by which its process reports; it must leave file "
            "descriptors alone that it did not open"
        )
    if not evidence.ready:
        if evidence.report is not None and evidence.report.failure is FailureKind.DEVICE:
            return Outcome.ERROR, evidence.report.message
        return Outcome.ERROR, f"set-up failed: {_set_up_failure(evidence)}"
    outcome, reason = _judge_work(evidence)
    if outcome is Outcome.FITS and evidence.budget is not None and evidence.peak_bytes is None:
        return Outcome.ERROR, "it finished, and its memory could not be read"
    if outcome in (Outcome.FITS, Outcome.TIMEOUT, Outcome.LIMIT) and _above_budget(evidence):
        return Outcome.OUT_OF_MEMORY, "; ".join(filter(None, [_peak_reason(evidence), reason]))
    return outcome, reason


def _judge_work(evidence: Evidence) -> tuple[Outcome, str]:
    report = evidence.report
    if report is not None and report.failure is None:
        return Outcome.FITS, ""
    if evidence.kill is Kill.MEMORY:
        return Outcome.OUT_OF_MEMORY, _peak_reason(evidence)
    if evidence.kill is Kill.TIMEOUT:
        return Outcome.TIMEOUT, f"stopped after {evidence.timeout_seconds:g} s"
    message = report.message if report is not None else _crash(evidence)
    kind = _kind_of_crash(evidence) if report is None else report.failure
    match kind:
        case FailureKind.LIMIT:
            return Outcome.LIMIT, message
        case FailureKind.DATA:
            return Outcome.DATA, message
        case FailureKind.MEMORY | FailureKind.AMBIGUOUS:
            return _judge_memory(evidence, message, certain=kind is FailureKind.MEMORY)
    return Outcome.ERROR, message


def _judge_memory(evidence: Evidence, message: str, certain: bool) -> tuple[Outcome, str]:
    """Whether a failure for memory, certain or not, is one for want of budget."""
    if evidence.budget is None:
        return Outcome.OUT_OF_MEMORY if certain else Outcome.ERROR, message
    seen = evidence.measured or Measured()
    if _device_low(seen) and not _above_budget(evidence):
        return Outcome.ERROR, (
            f"the device's memory ran low before the limit was reached ({message}): the limit "
            f"allowed {format_size(seen.allowed_bytes)} more, and {format_size(seen.free_bytes)} "
            "were free; free some that other processes use, or use a smaller --memory-limit"
        )
    refused = seen.refused_allocations
    if certain and refused is None:  # of the host's memory, which nothing else counts
        return Outcome.OUT_OF_MEMORY, message
    if refused or _near_budget(evidence):
        return Outcome.OUT_OF_MEMORY, f"{message} ({_peak_reason(evidence)})"
    return Outcome.ERROR, f"{message} ({_peak_reason(evidence)}: no sign of memory)"


def _set_up_failure(evidence: Evidence) -> str:
    if evidence.kill is Kill.SETUP_TIMEOUT:
        what = "its libraries, model and data were not there"
        if evidence.loaded:
            what = "its warm-up on 2 samples was not done"
        return f"{what} after {evidence.timeout_seconds:g} s; a longer --timeout gives it more"
    return evidence.report.message if evidence.report is not None else _crash(evidence)


def _kind_of_crash(evidence: Evidence) -> FailureKind:
    if -evidence.exit_code in _CRASHES or speaks_of_memory(evidence.stderr):
        return FailureKind.AMBIGUOUS
    return FailureKind.ERROR


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
    budget = evidence.budget
    return budget is not None and (evidence.peak_bytes or 0) > budget.limit_bytes


def _device_low(seen: Measured) -> bool:
    """Whether a device had less than the limit would still have allowed."""
    if seen.free_bytes is None or seen.allowed_bytes is None:
        return False
    return seen.free_bytes < seen.allowed_bytes


def _near_budget(evidence: Evidence) -> bool:
    assert evidence.budget is not None
    taken = (evidence.peak_bytes or 0) - evidence.counted_bytes
    allowed = evidence.budget.limit_bytes - evidence.counted_bytes
    return taken >= EVIDENCE_SHARE * max(allowed, 0)


def _peak_reason(evidence: Evidence) -> str:
    peak = f"peak {format_peak(evidence.peak_bytes)}"
    if evidence.budget is not None:
        peak += f" of a budget of {format_peak(evidence.budget.limit_bytes)}"
    if refused := (evidence.measured or Measured()).refused_allocations:
        peak += f", {refused} allocation{'s' if refused != 1 else ''} refused"
    if evidence.other_processes:
        peak += f", with {count_processes(evidence.other_processes)}"
    return peak


def count_processes(number: int) -> str:
    """``1 other process`` or ``3 other processes``, for messages."""
    return f"{number} other process{'es' if number != 1 else ''}"
