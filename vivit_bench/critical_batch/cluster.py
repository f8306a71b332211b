"""The searches of a sweep as jobs of a cluster, one a cell."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from vivit_bench.cluster import (
    EndedJob,
    QueueJob,
    QueueListener,
    Request,
    Scheduler,
    Standing,
    run_in_queue,
)
from vivit_bench.critical_batch.jobs import SearchJob, SweepListener, SweepStep, run_here
from vivit_bench.critical_batch.listener import Listener
from vivit_bench.critical_batch.records import identity_of
from vivit_bench.critical_batch.runner import FinishedSearch
from vivit_bench.critical_batch.sweep_plan import Stored, SweepPlan, in_order, look_up
from vivit_bench.errors import VivitBenchError
from vivit_bench.hardware import parse_device
from vivit_bench.measure.budget import MemoryBudget
from vivit_bench.store import Identity, made_on


@dataclass(frozen=True)
class SearchTask:
    """A search, for the process of a job; it can be pickled."""

    job: SearchJob
    make_listener: Callable[[], Listener]
    """Of what is told in the job's log."""

    def look(self) -> Standing:
        """See `Task`."""
        planned = look_up(self.job)
        if planned.stored is Stored.REFUSED:
            raise VivitBenchError(planned.reason)
        if planned.stored is Stored.FINISHED:
            return Standing(self.job.run)
        goes_on = planned.stored is Stored.INTERRUPTED
        return Standing(node=made_on(self.job.results_dir, self.identity) if goes_on else None)

    @property
    def identity(self) -> Identity:
        """Of the search, with this machine's facts."""
        return identity_of(self.job.cell, self.job.memory_limit.limit_bytes)

    def __call__(self) -> FinishedSearch:
        """Search on this node.

        Raises:
            VivitBenchError: See `run_search`, or the node does not have the device.
        """
        parse_device(self.job.cell.device)
        return replace(self.job, elsewhere=False).run(self.make_listener())


def budget_of(plan: SweepPlan) -> int:
    """Bytes that a trial of any search may take before it is stopped.

    On a CUDA device too: what its solver has no room for is solved by the CPU.
    """
    limits = {each.job.memory_limit.limit_bytes for each in plan.searches}
    return max(MemoryBudget(limit).watchdog_bytes for limit in limits)


def run_sweep_in_queue(
    plan: SweepPlan,
    request: Request,
    scheduler: Scheduler,
    listener: SweepListener,
    *,
    make_listener: Callable[[], Listener],
    note: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> list[SweepStep]:
    """Search all cells of a plan, each in a job of its own.

    Args:
        plan: From `plan_sweep`, ``elsewhere``; as many jobs are in the queue at a time as it says.
        request: What each job asks for.
        scheduler: Slurm.
        listener: Is told what happens.
        make_listener: In a job, makes what tells its log; can be pickled.
        note: Is told of the queue.
        pause: Sleeps for some seconds.

    Returns:
        How each search ended, in the plan's order.

    Raises:
        UsageError: With ``fresh``, where a job has one of the searches still.
        VivitBenchError: Slurm does not answer, or refuses the first job.
    """
    steps = [run_here(each.job, listener) for each in plan.searches if not each.is_to_run]
    by_queue = {
        _queue_job(each.job, make_listener): each.job for each in plan.searches if each.is_to_run
    }
    told = _Told(listener, note, by_queue)
    fresh = any(job.fresh for job in by_queue.values())
    run_in_queue(
        scheduler, list(by_queue), request, told, at_once=plan.at_once, fresh=fresh, pause=pause
    )
    steps += told.steps
    return in_order(plan, steps)


def _queue_job(job: SearchJob, make_listener: Callable[[], Listener]) -> QueueJob:
    task = SearchTask(job, make_listener)
    identity = task.identity
    folder = job.results_dir / identity.experiment / identity.address
    return QueueJob(folder, job.cell.label, task)


class _Told(QueueListener):
    """Tells of jobs as of searches."""

    def __init__(
        self,
        listener: SweepListener,
        note: Callable[[str], None],
        jobs: dict[QueueJob, SearchJob],
    ) -> None:
        self._listener, self._note, self._jobs = listener, note, jobs
        self._running: dict[QueueJob, Listener] = {}
        self.steps: list[SweepStep] = []

    def note(self, text: str) -> None:
        """See `QueueListener`."""
        self._note(text)

    def running(self, job: QueueJob, number: str, node: str) -> None:
        """See `QueueListener`."""
        if job not in self._running:  # another job may have had it before
            self._running[job] = self._listener.begun(self._jobs[job])
        self._running[job].note(f"job {number} runs{f' on {node}' if node else ''}")

    def ended(self, ended: EndedJob) -> None:
        """See `QueueListener`."""
        if ended.job not in self._running:
            self._listener.begun(self._jobs[ended.job])
        step = SweepStep(self._jobs[ended.job], ended.seconds, ended.value, ended.error)
        self.steps.append(step)
        self._listener.ended(step)
