"""Some runs, each a job in Slurm's queue: submitted, waited for, and told of.

One writer a run. A job's name is made of its run's folder, and every job depends on all others of
its name (``singleton``): Slurm itself starts it when they have ended, whichever command submitted
it, and whether or not the file system has locks. A command that finds a job of its run in the queue
waits for that one, and submits its own if that did less than is asked for now.
"""

import time
from collections.abc import Callable, Sequence

from vivit_bench.cluster.held import HeldJobs
from vivit_bench.cluster.jobs import EndedJob, QueueJob, QueueListener
from vivit_bench.cluster.request import Request
from vivit_bench.cluster.slurm import Scheduler

_LOOK_SECONDS = 1.0
"""Between looks for what ended jobs have left."""


def run_in_queue(
    scheduler: Scheduler,
    jobs: Sequence[QueueJob],
    request: Request,
    listener: QueueListener,
    *,
    at_once: int | None = None,
    fresh: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> list[EndedJob]:
    """Submit some runs, and wait until all have ended.

    Args:
        scheduler: Slurm.
        jobs: In the order in which they are submitted.
        request: What each asks for.
        listener: Is told what happens.
        at_once: Most jobs in the queue at a time; None for all.
        fresh: Whether the runs start over, so that no other command's job is waited for.
        pause: Sleeps for some seconds.

    Returns:
        How they ended, the first first. Interrupted, jobs go on, which is added to the exception.

    Raises:
        UsageError: With ``fresh``, where a job of one of the runs is in the queue at the start.
        VivitBenchError: Slurm does not answer, or refuses the first job.
    """
    queue = HeldJobs(scheduler, request, listener, jobs, fresh)
    try:
        queue.adopt()
        while queue.waiting or queue.held:
            while queue.waiting and (at_once is None or len(queue.held) < at_once):
                if not queue.submit():
                    break
            if queue.waiting or queue.held:
                queue.look()
                pause(_LOOK_SECONDS)
    except BaseException as error:
        if not isinstance(error, Exception):
            for note in queue.left_behind():
                error.add_note(note)
        raise
    return queue.ended
