"""What the end of a child means: of an exception, and of all that its parent saw.

Most finders of batch sizes match a few strings: they miss some failures for memory and take
errors for others. Here only what cannot mean anything else is memory; what may or may not be
needs evidence, a peak near the budget; everything else is an error. Pure functions.
"""

import re
import signal
from dataclasses import dataclass
from enum import StrEnum

from vivit_bench.errors import VivitBenchError, causes, is_out_of_memory, message_of
from vivit_bench.measure.budget import MemoryBudget, format_peak
from vivit_bench.measure.protocol import REPORT_LOST, FailureKind, Outcome, TrialReport

EVIDENCE_SHARE = 0.8
"""A failure that may or may not be memory is taken for memory if the peak reached this share
of the budget."""

# PyTorch issue 92141: a workspace of 2 n^2 + 6 n + 1 numbers passes 2^31 above n = 32,766, and
# LAPACK calls its argument illegal.
_LIMIT = re.compile(
    r"Argument \d+ has illegal value"
    r"|illegal value in .*argument|parameter number +\d+ had an illegal value"
    r"|Too large work array|32-bit LAPACK"
    r"|INT_MAX|int(eger)?[ _]?overflow"
    r"|(int32|32-?bit)\b.*\b(overflow|exceed|limit|large)|(overflow|exceed|too large)\b.*\b"
    r"(int32|32-?bit)|canUse32BitIndexMath",
    re.IGNORECASE,
)
_AMBIGUOUS = re.compile(
    r"could not (create|execute) a primitive|could not create a memory"
    r"|can't start new thread|Thread creation failed|Resource temporarily unavailable"
    r"|failed to map segment|Cannot allocate memory|out of memory"
    r"|CUBLAS_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR|EXECUTION_FAILED)"
    r"|CUDNN_STATUS_(NOT_SUPPORTED|INTERNAL_ERROR|EXECUTION_FAILED)"
    r"|CUSOLVER_STATUS_(INTERNAL_ERROR|EXECUTION_FAILED)"
    r"|CUDACachingAllocator",
)


def classify(error: BaseException) -> FailureKind:
    """Sort an exception; that of its cause decides if it is a sign of memory.

    Args:
        error: What the work raised.

    Returns:
        Its kind; never `FailureKind.DATA`, which only the work's data can tell.
    """
    if is_out_of_memory(error):
        return FailureKind.MEMORY
    kinds = [_kind(link) for link in causes(error)]
    for kind in (FailureKind.LIMIT, FailureKind.AMBIGUOUS):
        if kind in kinds:
            return kind
    return FailureKind.ERROR


def _kind(error: BaseException) -> FailureKind:
    if isinstance(error, VivitBenchError):
        return FailureKind.ERROR  # it says what is wrong; its cause may say more
    text = message_of(error)
    if _LIMIT.search(text):
        return FailureKind.LIMIT
    if isinstance(error, (SystemError, ImportError)) or _AMBIGUOUS.search(text):
        return FailureKind.AMBIGUOUS
    return FailureKind.ERROR


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
    ready: bool = False
    """Whether the child reported that its set-up was done."""
    report: TrialReport | None = None
    """Its last message, in the set-up or after the work."""
    kill: Kill | None = None
    exit_code: int = 0
    """Of the process; -9 for SIGKILL."""
    peak_bytes: int | None = None
    """Largest peak over the idle process that anyone saw."""
    other_processes: int = 0
    """Other processes whose memory is part of the peak."""
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
        smaller = "" if evidence.budget is None else ", or use a smaller --memory-limit"
        return Outcome.ERROR, f"stopped because the machine's memory ran low; free some{smaller}"
    if evidence.kill is Kill.GARBLED or evidence.exit_code == REPORT_LOST:
        done = "wrote into" if evidence.kill is Kill.GARBLED else "closed"
        return Outcome.ERROR, (
            f"the work {done} the pipe by which its process reports; it must leave file "
            "descriptors alone that it did not open"
        )
    if not evidence.ready:
        return Outcome.ERROR, f"set-up failed: {_set_up_failure(evidence)}"
    outcome, reason = _judge_work(evidence)
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
    match report.failure if report is not None else FailureKind.AMBIGUOUS:
        case FailureKind.MEMORY:
            return Outcome.OUT_OF_MEMORY, message
        case FailureKind.LIMIT:
            return Outcome.LIMIT, message
        case FailureKind.DATA:
            return Outcome.DATA, message
        case FailureKind.ERROR:
            return Outcome.ERROR, message
    if evidence.budget is None:
        return Outcome.ERROR, message
    if _near_budget(evidence):
        return Outcome.OUT_OF_MEMORY, f"{message} ({_peak_reason(evidence)})"
    return Outcome.ERROR, f"{message} ({_peak_reason(evidence)}: no sign of memory)"


def _set_up_failure(evidence: Evidence) -> str:
    if evidence.kill is Kill.SETUP_TIMEOUT:
        return f"not done after {evidence.timeout_seconds:g} s"
    return evidence.report.message if evidence.report is not None else _crash(evidence)


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


def _near_budget(evidence: Evidence) -> bool:
    assert evidence.budget is not None
    return (evidence.peak_bytes or 0) >= EVIDENCE_SHARE * evidence.budget.limit_bytes


def _peak_reason(evidence: Evidence) -> str:
    peak = f"peak {format_peak(evidence.peak_bytes)}"
    if evidence.budget is not None:
        peak += f" of a budget of {format_peak(evidence.budget.limit_bytes)}"
    if evidence.other_processes:
        peak += f", with {count_processes(evidence.other_processes)}"
    return peak


def count_processes(number: int) -> str:
    """``1 other process`` or ``3 other processes``, for messages."""
    return f"{number} other process{'es' if number != 1 else ''}"
