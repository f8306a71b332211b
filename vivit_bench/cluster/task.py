"""In a job: the work, until it has ended or Slurm wants it to.

Slurm sends SIGTERM when a job is cancelled or pre-empted, and SIGUSR2 shortly before its time is
over; half a minute after the former it kills. Either stops the work in order, so that what it keeps
can be said.
"""

import signal
import traceback
from dataclasses import dataclass
from typing import Any, NoReturn

from vivit_bench.cluster.jobs import Task
from vivit_bench.errors import Stopped, VivitBenchError, describe

_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Outcome:
    """How a job's work ended; it is pickled beside the job's logs."""

    value: Any = None
    """What the work returned."""
    failed: str = ""
    """Why it failed; empty if it did not."""
    stopped: int | None = None
    """The signal that stopped it."""
    kept: tuple[str, ...] = ()
    """What there is of work that was stopped."""


def run_task(task: Task) -> Outcome:
    """Do the work, unless another job has by now; whatever ends it but a kill is told."""
    for number in _SIGNALS:
        signal.signal(number, _stop)
    try:
        found = task.look()  # another node's result is one, though this one could not go on with it
        value = task() if found.result is None else found.result()
    except Stopped as stopped:
        return Outcome(stopped=stopped.number, kept=tuple(getattr(stopped, "__notes__", ())))
    except Exception as error:
        _ignore_signals()
        if not isinstance(error, (VivitBenchError, OSError)):
            traceback.print_exc()
        return Outcome(failed=str(error) if isinstance(error, VivitBenchError) else describe(error))
    _ignore_signals()  # from here on there is nothing to stop
    return Outcome(value)


def _stop(number: int, _: object) -> NoReturn:
    """End in order at the first signal; others change nothing."""
    _ignore_signals()
    raise Stopped(number)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
