"""What is said of a job that ended without its result: the reason, and what to type next."""

import signal
from pathlib import Path

from vivit_bench.cluster.request import OPTION, Request
from vivit_bench.cluster.slurm import JobState
from vivit_bench.cluster.task import Outcome

_GOES_ON = "the same command goes on with it"
_LONGEST = 200


def why_stopped(number: str, state: JobState, outcome: Outcome, request: Request, log: Path) -> str:
    """Of a job whose work stopped in order at a signal.

    Args:
        number: Of the job.
        state: What Slurm said of it last.
        outcome: What the work left.
        request: What the job asked for.
        log: Its log.
    """
    assert outcome.stopped is not None
    name = signal.Signals(outcome.stopped).name
    kept = "; ".join(outcome.kept) or _GOES_ON
    if state.name in ("CANCELLED", "PREEMPTED"):
        return f"job {number} was {state.name.lower()}; {kept} (log {log})"
    if outcome.stopped == signal.SIGUSR2 or state.name == "TIMEOUT":
        return f"job {number} came to the end of its time ({_time(request)}); {kept} (log {log})"
    return f"job {number} was stopped by {name}, as Slurm cancels and pre-empts; {kept} (log {log})"


def why_without_a_word(number: str, state: JobState, request: Request, log: Path) -> str:
    """Of a job whose work could not say anything; see `why_stopped`."""
    match state.name:
        case "CANCELLED" | "PREEMPTED":
            said = f"was {state.name.lower()}; {_GOES_ON}"
        case "TIMEOUT" | "DEADLINE":
            said = f"came to the end of its time ({_time(request)}); {_GOES_ON}"
        case "OUT_OF_MEMORY":
            said = (
                f"was killed for its memory (mem={request.memory}); ask for more, for example "
                f"{OPTION} mem={_twice(request)}, and {_GOES_ON}"
            )
        case "NODE_FAIL" | "BOOT_FAIL":
            said = f"lost its node {state.node} ({state.name}); {_GOES_ON}"
        case "GONE":
            said = f"is not known to Slurm any more, and left no result; {_GOES_ON}"
        case _:
            how = state.name if not state.reason else f"{state.name}, {state.reason}"
            said = f"ended without a word ({how}){_last_words(log)}; {_GOES_ON}"
    return f"job {number} {said} (log {log})"


def _time(request: Request) -> str:
    if request.minutes is None:
        return f"that of the partition; {OPTION} time=HOURS:00:00 asks for more"
    return f"{request.minutes} min; {OPTION} time={2 * request.minutes} asks for more"


def _twice(request: Request) -> str:
    return f"{2 * int(request.memory.removesuffix('M'))}M"


def _last_words(log: Path) -> str:
    """The last line of a log that says something; slurmstepd's own, of the kill, is one as well."""
    try:
        lines = log.read_text(errors="replace")[-4096:].splitlines()
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last[:_LONGEST]}" if last else ""
