"""A monitored training as a job of a cluster."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vivit_bench.cluster import (
    QueueJob,
    QueueListener,
    Request,
    Scheduler,
    run_in_queue,
)
from vivit_bench.hardware import cpu_threads, library_errors
from vivit_bench.noise.choices import Choices
from vivit_bench.noise.records import NoiseRun, read_run
from vivit_bench.noise.runner import check_saved, identity_of, run_noise
from vivit_bench.noise.training import Listener
from vivit_bench.store import Action, as_elsewhere, check_name, foresee_run, interrupted_on


@dataclass(frozen=True)
class NoiseTask:
    """A training, for the process of a job; it can be pickled."""

    choices: Choices
    results_dir: Path
    name: str | None
    fresh: bool
    save_model: Path | None
    threads: int
    make_listener: Callable[[], Listener]
    """Of what is told in the job's log."""

    def __call__(self) -> NoiseRun:
        """Train on this node, or go on.

        Raises:
            VivitBenchError: See `run_noise`.
        """
        work = f"{self.choices.problem} on {self.choices.device}"
        advice = "try a smaller --monitor-batch-size, or --slurm mem=SIZE with more"
        with cpu_threads(self.threads), library_errors(work, advice):
            return run_noise(
                self.choices,
                self.results_dir,
                name=self.name,
                fresh=self.fresh,
                listener=self.make_listener(),
                save_model=self.save_model,
            )


def run_noise_in_queue(
    choices: Choices,
    results_dir: Path,
    request: Request,
    scheduler: Scheduler,
    *,
    name: str | None = None,
    fresh: bool = False,
    save_model: Path | None = None,
    make_listener: Callable[[], Listener],
    note: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> NoiseRun:
    """`run_noise` in a job, which is waited for.

    Data are loaded here as well, as nodes may have no network.

    Args:
        choices: What to run; its ``memory`` is that of the job.
        results_dir: Folder of all results.
        request: What the job asks for.
        scheduler: Slurm.
        name: See `run_noise`.
        fresh: See there.
        save_model: See there.
        make_listener: In the job, makes what tells its log; can be pickled.
        note: Is told what happens.
        pause: Sleeps for some seconds.

    Returns:
        The finished run.

    Raises:
        UsageError: See `run_noise`; with ``fresh`` also a job in the queue.
        VivitBenchError: See there, or Slurm refuses or ends the job.
    """
    if name is not None:
        check_name(name)
    with cpu_threads(request.cpus):  # which are one of the settings
        here = identity_of(choices)
    identity = as_elsewhere(results_dir, here, name)
    action, stored = foresee_run(results_dir, identity, name=name, fresh=fresh)
    if action is Action.RETURN and stored is not None:
        note(f"finished already: {stored.folder} (--fresh runs it again)")
        if save_model is not None:
            check_saved(stored, save_model)
        return read_run(stored)
    job = QueueJob(
        folder=results_dir / identity.experiment / (name or identity.address),
        label=f"{choices.problem} {choices.optimizer}",
        task=NoiseTask(choices, results_dir, name, fresh, save_model, request.cpus, make_listener),
        node=None if fresh else interrupted_on(results_dir, identity, name),
    )
    (ended,) = run_in_queue(scheduler, [job], request, _Told(note), fresh=fresh, pause=pause)
    if ended.error is not None:
        raise ended.error
    found = ended.value
    assert isinstance(found, NoiseRun)
    return found


class _Told(QueueListener):
    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def note(self, text: str) -> None:
        """See `QueueListener`."""
        self._note(text)

    def running(self, job: QueueJob, number: str, node: str) -> None:
        """See `QueueListener`."""
        self._note(f"{job.label}: job {number} runs{f' on {node}' if node else ''}")
