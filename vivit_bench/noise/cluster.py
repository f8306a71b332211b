"""A monitored training as a job of a cluster."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vivit_bench.cluster import (
    QueueJob,
    QueueListener,
    Request,
    Scheduler,
    Standing,
    run_in_queue,
)
from vivit_bench.hardware import cpu_threads, library_errors
from vivit_bench.noise.choices import Choices
from vivit_bench.noise.records import NoiseRun, read_run
from vivit_bench.noise.runner import check_saved, identity_of, run_noise
from vivit_bench.noise.training import Listener
from vivit_bench.store import Action, Identity, as_elsewhere, check_name, foresee_run, made_on


@dataclass(frozen=True)
class NoiseTask:
    """A training, for the process of a job; it can be pickled."""

    choices: Choices
    identity: Identity = field(compare=False)
    """Of the choices, with the facts of the machine where the user types."""
    results_dir: Path
    name: str | None
    fresh: bool
    save_model: Path | None
    threads: int
    make_listener: Callable[[], Listener]
    """Of what is told in the job's log."""

    def look(self) -> Standing:
        """See `Task`.

        Raises:
            UsageError: Also where the weights are wanted of a finished run that has not kept them.
        """
        identity = as_elsewhere(self.results_dir, self.identity, self.name)
        action, stored = foresee_run(self.results_dir, identity, name=self.name, fresh=self.fresh)
        if action is Action.RETURN and stored is not None:
            if self.save_model is not None:
                check_saved(stored, self.save_model)
            return Standing(partial(read_run, stored))
        goes_on = action is Action.RESUME
        return Standing(node=made_on(self.results_dir, identity, self.name) if goes_on else None)

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
        identity = identity_of(choices)
    folder = results_dir / identity.experiment / (name or identity.address)
    task = NoiseTask(
        choices, identity, results_dir, name, fresh, save_model, request.cpus, make_listener
    )
    stored = task.look()
    if stored.result is not None:
        note(f"finished already: {folder} (--fresh runs it again)")
        found = stored.result()
    else:
        job = QueueJob(folder, f"{choices.problem} {choices.optimizer}", task)
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
