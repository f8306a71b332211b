"""The jobs of a command that are in Slurm's queue, and what becomes of them."""

import time
from collections import deque

from vivit_bench.cluster.jobs import EndedJob, QueueJob, QueueListener
from vivit_bench.cluster.request import Request
from vivit_bench.cluster.slurm import JobState, Scheduler
from vivit_bench.cluster.task import Outcome
from vivit_bench.cluster.words import why_stopped, why_without_a_word
from vivit_bench.errors import UsageError, VivitBenchError

_ASK_SECONDS = (2.0, 30.0)
"""Between questions to Slurm: at first, and when nothing has changed for long."""
_LATE_SECONDS = 30.0
"""For a network file system to show what a job that completed has left."""
_GONE_AFTER = 3
"""Answers in which Slurm does not know a job, after which it is taken for gone."""


class _Held:
    """A job in the queue."""

    def __init__(self, job: QueueJob, number: str) -> None:
        self.job, self.number = job, number
        self.state = JobState("PENDING")
        self.began = time.monotonic()
        self.is_running = False
        self.unknown = 0
        self.over_since: float | None = None


class HeldJobs:
    """The jobs of a command."""

    def __init__(self, scheduler: Scheduler, request: Request, listener: QueueListener) -> None:
        self.held: list[_Held] = []
        self.ended: list[EndedJob] = []
        self._scheduler, self._request, self._listener = scheduler, request, listener
        self._numbers: set[str] = set()
        self._asked = self._changed = -_ASK_SECONDS[1]
        self._complaint = ""

    def adopt(self, waiting: "deque[QueueJob]", fresh: bool) -> None:
        """Take over the jobs that a command before has submitted.

        Raises:
            UsageError: They are not wanted.
        """
        live = self._scheduler.live([job.name for job in waiting])
        for job in [job for job in waiting if job.name in live]:
            number = live[job.name]
            if fresh:
                raise UsageError(
                    f"--fresh: job {number} has {job.label} still; scancel {number} ends it, and "
                    "without --fresh it is waited for"
                )
            waiting.remove(job)
            self._hold(job, number)
            self._listener.note(f"{job.label}: job {number} has it already, and is waited for")

    def submit(self, job: QueueJob) -> None:
        """Submit a job.

        Raises:
            VivitBenchError: It is refused, and so would all be.
        """
        if (root := job.logs.parent.parent).is_symlink():
            raise UsageError(f"{root} is a symbolic link: nothing is written through it")
        try:
            parameters = self._request.parameters(job.name, job.node)
            number = self._scheduler.submit(job.logs, parameters, job.task)
        except VivitBenchError as error:
            if not self._numbers and job.node is None:
                raise VivitBenchError(f"{error} (asked for: {self._request.line()})") from error
            where = "" if job.node is None else f" (it goes on on {job.node}; --fresh starts over)"
            self._end(EndedJob(job, None, 0.0, error=VivitBenchError(f"{error}{where}")))
            return
        self._hold(job, number)
        where = "" if job.node is None else f", on {job.node}, where it was interrupted"
        self._listener.note(f"{job.label}: job {number} is submitted{where}")

    def look(self) -> None:
        """See which jobs have ended, and now and then what Slurm says of the others."""
        now = time.monotonic()
        least, most = _ASK_SECONDS
        if now - self._asked >= min(max((now - self._changed) / 4, least), most):
            self._ask(now, self.held)
        for held in list(self.held):
            outcome = self._scheduler.outcome(held.job.logs, held.number)
            if outcome is not None:
                self._tell_running(held)
                self._finish(held, outcome)
            elif held.over_since is not None and now - held.over_since >= self._late(held):
                self._finish(held, None)

    def left_behind(self, waiting: int) -> list[str]:
        """What an interruption leaves."""
        numbers = " ".join(held.number for held in self.held)
        what, them = ("job", "it") if len(self.held) == 1 else ("jobs", "them")
        notes = []
        if numbers:
            notes.append(
                f"in Slurm's queue, and going on there: {what} {numbers}; the same command waits "
                f"for {them}, scancel {numbers} ends {them} and keeps what was done"
            )
        if waiting:
            notes.append(f"not submitted: {waiting}, as the same command does")
        return notes

    def _hold(self, job: QueueJob, number: str) -> None:
        self._numbers.add(number)
        self.held.append(_Held(job, number))
        self._changed = time.monotonic()

    def _ask(self, now: float, jobs: "list[_Held]") -> None:
        self._asked = now
        try:
            states = self._scheduler.states([held.number for held in jobs])
        except VivitBenchError as error:  # Slurm's controller may be restarted: jobs go on
            if str(error) != self._complaint:
                self._listener.note(f"{error}; jobs go on, and it is asked again")
            self._complaint = str(error)
            return
        self._complaint = ""
        for held in jobs:
            self._take_in(held, states.get(held.number), now)

    def _take_in(self, held: _Held, state: JobState | None, now: float) -> None:
        """What Slurm says of a job; None: it does not know it."""
        held.unknown = 0 if state is not None else held.unknown + 1
        if state is None:
            if held.unknown >= _GONE_AFTER and held.over_since is None:
                held.state, held.over_since = JobState("GONE"), now
            return
        if state != held.state:
            self._changed = now
            if _is_news(state, held.state):
                self._listener.note(f"{held.job.label}: job {held.number} waits ({state.reason})")
        held.state = state
        if state.name == "RUNNING":
            self._tell_running(held)
        if state.has_ended and held.over_since is None:
            held.over_since = now

    def _tell_running(self, held: _Held) -> None:
        if not held.is_running:
            held.is_running, held.began = True, time.monotonic()
            self._listener.running(held.job, held.number, held.state.node)

    def _late(self, held: _Held) -> float:
        return _LATE_SECONDS if held.state.name == "COMPLETED" else _LATE_SECONDS / 10

    def _finish(self, held: _Held, outcome: Outcome | None) -> None:
        self.held.remove(held)
        log = self._scheduler.log(held.job.logs, held.number)
        said = ""
        if outcome is None:
            said = why_without_a_word(held.number, held.state, self._request, log)
        elif outcome.stopped is not None:
            self._ask(time.monotonic(), [held])  # it was told before Slurm's state was asked
            said = why_stopped(held.number, held.state, outcome, self._request, log)
        elif outcome.failed:
            said = f"{outcome.failed} (job {held.number}, log {log})"
        error = VivitBenchError(said) if said else None
        value = None if outcome is None else outcome.value
        seconds = time.monotonic() - held.began if held.is_running else 0.0
        self._end(EndedJob(held.job, held.number, seconds, value, error))

    def _end(self, ended: EndedJob) -> None:
        self.ended.append(ended)
        self._changed = time.monotonic()
        self._listener.ended(ended)


def _is_news(state: JobState, before: JobState) -> bool:
    """Whether the reason why a job waits should be told: the first, and any but the usual ones."""
    usual = ("Priority", "Resources")
    waits = state.name == "PENDING" and state.reason not in ("", before.reason)
    return waits and not (before.reason and state.reason in usual)
