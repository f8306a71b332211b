"""The jobs of a command that are in Slurm's queue, and what becomes of them."""

import time
from collections import deque
from collections.abc import Sequence

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

    def __init__(self, job: QueueJob, number: str, is_own: bool) -> None:
        self.job, self.number = job, number
        self.is_own = is_own
        """Whether this command has submitted it, so that it does what is asked for."""
        self.state = JobState("PENDING")
        self.began = time.monotonic()
        self.is_running = False
        self.unknown = 0
        self.over_since: float | None = None


class HeldJobs:
    """The jobs of a command.

    Args:
        scheduler: Slurm.
        request: What each job asks for.
        listener: Is told what happens.
        jobs: In the order in which they are submitted.
        fresh: Whether the runs start over.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        request: Request,
        listener: QueueListener,
        jobs: Sequence[QueueJob],
        fresh: bool,
    ) -> None:
        self.waiting = deque(jobs)
        """Not in the queue yet."""
        self.held: list[_Held] = []
        self.ended: list[EndedJob] = []
        self._scheduler, self._request, self._listener = scheduler, request, listener
        self._fresh = fresh
        self._numbers: set[str] = set()
        """Of all jobs that are or were held."""
        self._asked = self._changed = -_ASK_SECONDS[1]
        self._complaint = ""

    def adopt(self) -> None:
        """Take over the jobs that other commands have submitted.

        Raises:
            UsageError: They are not wanted.
            VivitBenchError: Slurm does not answer.
        """
        live = self._scheduler.live([job.name for job in self.waiting])
        for job in [job for job in self.waiting if job.name in live]:
            self._take_over(job, live[job.name])
            self.waiting.remove(job)

    def submit(self) -> bool:
        """Submit the next job, unless another command has, or its run is finished, by now.

        Returns:
            Whether Slurm answered; otherwise the job waits on.

        Raises:
            UsageError: Another command's job is not wanted, and this command has none yet.
            VivitBenchError: It is refused, and so would all be.
        """
        job = self.waiting[0]
        try:
            number = self._scheduler.live([job.name]).get(job.name)
        except VivitBenchError as error:
            self._complain(error)
            return False
        # A job that has left its result may be in the queue for some seconds more.
        if number is not None and number not in self._numbers:
            self._take_over(job, number)
        else:
            self._submit(job)
        self.waiting.popleft()
        return True

    def look(self) -> None:
        """See which jobs have ended, and now and then what Slurm says of the others."""
        now = time.monotonic()
        least, most = _ASK_SECONDS
        if self.held and now - self._asked >= min(max((now - self._changed) / 4, least), most):
            self._ask(now, self.held)
        for held in list(self.held):
            outcome = self._scheduler.outcome(held.job.logs, held.number)
            if outcome is not None:
                self._tell_running(held)
                self._finish(held, outcome)
            elif held.over_since is not None and now - held.over_since >= self._late(held):
                self._finish(held, None)

    def left_behind(self) -> list[str]:
        """What an interruption leaves."""
        numbers = " ".join(held.number for held in self.held)
        what, them = ("job", "it") if len(self.held) == 1 else ("jobs", "them")
        notes = []
        if numbers:
            notes.append(
                f"in Slurm's queue, and going on there: {what} {numbers}; the same command waits "
                f"for {them}, scancel {numbers} ends {them} and keeps what was done"
            )
        if self.waiting:
            notes.append(f"not submitted: {len(self.waiting)}, as the same command does")
        return notes

    def _take_over(self, job: QueueJob, number: str) -> None:
        if not self._fresh:
            self._hold(job, number, is_own=False)
            self._listener.note(f"{job.label}: job {number} has it already, and is waited for")
            return
        unwanted = UsageError(
            f"--fresh: job {number} has {job.label} still; scancel {number} ends it, and "
            "without --fresh it is waited for"
        )
        if not self._numbers:
            raise unwanted
        self._end(EndedJob(job, None, 0.0, error=unwanted))

    def _submit(self, job: QueueJob) -> None:
        if (root := job.logs.parent.parent).is_symlink():
            raise UsageError(f"{root} is a symbolic link: nothing is written through it")
        try:
            found = job.task.look()
            value = None if found.result is None else found.result()
        except VivitBenchError as error:
            self._end(EndedJob(job, None, 0.0, error=error))
            return
        if found.result is not None:
            self._listener.note(f"{job.label}: finished meanwhile: {job.folder}")
            self._end(EndedJob(job, None, 0.0, value))
            return
        try:
            parameters = self._request.parameters(job.name, found.node)
            number = self._scheduler.submit(job.logs, parameters, job.task)
        except VivitBenchError as error:
            if not self._numbers and found.node is None:
                raise VivitBenchError(f"{error} (asked for: {self._request.line()})") from error
            more = f" (it goes on on {found.node}; --fresh starts over)" if found.node else ""
            self._end(EndedJob(job, None, 0.0, error=VivitBenchError(f"{error}{more}")))
            return
        self._hold(job, number, is_own=True)
        where = f", on {found.node}, where it was begun" if found.node else ""
        self._listener.note(f"{job.label}: job {number} is submitted{where}")

    def _hold(self, job: QueueJob, number: str, is_own: bool) -> None:
        self._numbers.add(number)
        self.held.append(_Held(job, number, is_own))
        self._changed = time.monotonic()

    def _complain(self, error: VivitBenchError) -> None:
        """Tell, once, that Slurm does not answer: its controller may be restarted."""
        if str(error) != self._complaint:
            self._listener.note(f"{error}; jobs go on, and it is asked again")
        self._complaint = str(error)

    def _ask(self, now: float, jobs: "list[_Held]") -> None:
        self._asked = now
        try:
            states = self._scheduler.states([held.number for held in jobs])
        except VivitBenchError as error:
            self._complain(error)
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
        said = self._why_there_is_nothing(held, outcome)
        error = VivitBenchError(said) if said else None
        if error is None and not held.is_own:
            try:
                is_enough = held.job.task.look().result is not None
            except VivitBenchError as refused:
                is_enough, error = True, refused
            if not is_enough:
                self._listener.note(
                    f"{held.job.label}: job {held.number} has done less than is asked for now"
                )
                self.waiting.append(held.job)
                return
        value = None if outcome is None or error is not None else outcome.value
        seconds = time.monotonic() - held.began if held.is_running else 0.0
        self._end(EndedJob(held.job, held.number, seconds, value, error))

    def _why_there_is_nothing(self, held: _Held, outcome: Outcome | None) -> str:
        """What is said of a job without a result; empty where there is one."""
        log = self._scheduler.log(held.job.logs, held.number)
        if outcome is None:
            return why_without_a_word(held.number, held.state, self._request, log)
        if outcome.stopped is not None:
            self._ask(time.monotonic(), [held])  # it was told before Slurm's state was asked
            return why_stopped(held.number, held.state, outcome, self._request, log)
        return f"{outcome.failed} (job {held.number}, log {log})" if outcome.failed else ""

    def _end(self, ended: EndedJob) -> None:
        self.ended.append(ended)
        self._changed = time.monotonic()
        self._listener.ended(ended)


def _is_news(state: JobState, before: JobState) -> bool:
    """Whether the reason why a job waits should be told: the first, and any but the usual ones."""
    usual = ("Priority", "Resources")
    waits = state.name == "PENDING" and state.reason not in ("", before.reason)
    return waits and not (before.reason and state.reason in usual)
