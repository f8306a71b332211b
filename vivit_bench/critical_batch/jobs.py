"""Searches in processes of their own, several at a time.

A `SearchJob` is all that another process needs to search one cell. Here it is run by
`vivit_bench.critical_batch.worker`, on CPUs of its own: a trial of one thread pins itself to the
last CPU it may use, which two searches must not share. Workers are in sessions of their own, so
that Ctrl-C reaches this process alone, which stops them in order; a worker whose starter is gone
sees the end of its stdin, and stops as well.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vivit_bench.critical_batch.listener import Listener
from vivit_bench.critical_batch.runner import (
    FinishedSearch,
    MemoryLimit,
    look_ahead,
    run_search,
)
from vivit_bench.critical_batch.settings import Cell
from vivit_bench.errors import VivitBenchError

_WORKER = "vivit_bench.critical_batch.worker"
_PATIENCE_SECONDS = 30.0
"""For a worker to stop its trial and to say what it keeps."""


@dataclass(frozen=True)
class SearchJob:
    """One search, for whatever process runs it; it can be pickled."""

    cell: Cell
    memory_limit: MemoryLimit
    results_dir: Path
    max_batch: int
    trial_timeout: float
    fresh: bool = False
    at_once: int = 1
    """Searches that run at the same time, this one included."""
    elsewhere: bool = False
    """Whether another machine runs it: here it is returned, where it is finished, and not run."""
    begun: bool = False
    """Whether this command has run its small trials already."""

    @property
    def starts_over(self) -> bool:
        """Whether what is stored is not gone on with."""
        return self.fresh and not self.begun

    def run(self, listener: Listener | None = None) -> FinishedSearch:
        """Search in this process.

        Raises:
            VivitBenchError: See `run_search`.
        """
        return run_search(
            self.cell,
            self.memory_limit,
            results_dir=self.results_dir,
            max_batch=self.max_batch,
            trial_timeout=self.trial_timeout,
            fresh=self.fresh,
            begun=self.begun,
            at_once=self.at_once,
            elsewhere=self.elsewhere,
            listener=listener,
        )


@dataclass(frozen=True)
class AheadJob:
    """The small trials of a search, which say what is expected of it; it can be pickled."""

    search: SearchJob

    @property
    def cell(self) -> Cell:
        """That is searched."""
        return self.search.cell

    def run(self, listener: Listener | None = None) -> None:
        """Begin the search in this process.

        Raises:
            VivitBenchError: See `look_ahead`.
        """
        look_ahead(
            self.search.cell,
            self.search.memory_limit,
            results_dir=self.search.results_dir,
            max_batch=self.search.max_batch,
            trial_timeout=self.search.trial_timeout,
            fresh=self.search.fresh,
            at_once=self.search.at_once,
            listener=listener,
        )


Job = SearchJob | AheadJob


@dataclass(frozen=True)
class SweepStep:
    """A search of a sweep that has ended, or its small trials have."""

    job: Job
    seconds: float
    """Wall time."""
    finished: FinishedSearch | None = None
    """None for small trials, too."""
    error: VivitBenchError | None = None
    """Why the search failed; the sweep goes on."""


class SweepListener:
    """Is told what happens during a sweep; this one ignores it."""

    def begun(self, job: Job) -> Listener:
        """A job begins; what is returned is told what happens during it."""
        return Listener()

    def ended(self, step: SweepStep) -> None:
        """A job ended."""


def run_here(job: Job, listener: SweepListener) -> SweepStep:
    """Run a job in this process."""
    started = time.monotonic()
    finished, failed = None, None
    try:
        finished = job.run(listener.begun(job))
    except VivitBenchError as error:
        failed = error
    step = SweepStep(job, time.monotonic() - started, finished, failed)
    listener.ended(step)
    return step


def run_jobs(jobs: Sequence[Job], at_once: int, listener: SweepListener) -> list[SweepStep]:
    """Keep some jobs going, each in a process of its own, until all have ended.

    One that fails, or whose process is killed, costs itself.

    Args:
        jobs: In the order in which they begin.
        at_once: How many run at a time; this process may use as many CPUs at least.
        listener: Is told what happens.

    Returns:
        How they ended, the first first. No process is left behind, whatever interrupts this
        function; what they keep is then added to the exception.

    Raises:
        VivitBenchError: No process can be started.
    """
    waiting, free = deque(jobs), deque(cpu_slots(at_once))
    steps: list[SweepStep] = []
    workers: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and free:
                workers.append(_Worker(waiting[0], free.popleft(), listener))
                waiting.popleft()
            for ready in wait([worker.events for worker in workers]):
                worker = next(each for each in workers if each.events is ready)
                if worker.hear():
                    continue
                steps.append(worker.end())
                workers.remove(worker)
                free.append(worker.cpus)
                listener.ended(steps[-1])
    except BaseException as error:
        for note in _stop(workers):
            error.add_note(note)
        raise
    return steps


def cpu_slots(at_once: int) -> list[list[int]]:
    """The CPUs this process may use, in as many equal parts; what is left over is in none."""
    cpus = sorted(os.sched_getaffinity(0))
    each = len(cpus) // at_once
    return [cpus[number * each : (number + 1) * each] for number in range(at_once)]


class _Worker:
    """A process that runs one job.

    Raises:
        VivitBenchError: It cannot be started.
    """

    def __init__(self, job: Job, cpus: list[int], listener: SweepListener) -> None:
        self.job, self.cpus = job, cpus
        self._started = time.monotonic()
        self._told = listener.begun(job)
        self.said: dict[str, Any] = {}
        """Its last words: ``done`` with what it returns, ``failed`` or ``kept`` with a text."""
        reading, writing = os.pipe()
        self.events = Connection(reading, writable=False)
        try:
            # -P: the working directory's files must not be taken for libraries.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", _WORKER, str(writing), ",".join(map(str, cpus))],
                stdin=subprocess.PIPE,
                stdout=2,  # stdout is the result's
                pass_fds=[writing],
                start_new_session=True,
            )
        except OSError as error:
            self.events.close()
            raise VivitBenchError(f"cannot start a process to search: {error}") from error
        finally:
            os.close(writing)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is seen at the other pipe
            pickle.dump(job, self.process.stdin)
            self.process.stdin.flush()

    def hear(self) -> bool:
        """Take in one message; False at the end of them."""
        try:
            name, arguments = self.events.recv()
        except (EOFError, OSError, pickle.UnpicklingError):  # perhaps in the middle of one
            return False
        if name in ("done", "failed", "kept"):
            self.said[name] = arguments
        else:
            getattr(self._told, name)(*arguments)
        return True

    def end(self, patience: float = _PATIENCE_SECONDS) -> SweepStep:
        """Wait for the process, whose messages have ended or are not wanted any more."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()  # its trial ends with it
            code = self.process.wait()
        self.events.close()
        finished, failed = self.said.get("done"), self.said.get("failed")
        if "done" not in self.said and failed is None:
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            failed = f"its process ended without a word ({how}); the same command goes on with it"
        error = None if failed is None else VivitBenchError(failed)
        return SweepStep(self.job, time.monotonic() - self._started, finished, error)


def _stop(workers: Sequence[_Worker]) -> list[str]:
    """Have all workers stop; what they keep."""
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    for worker in workers:
        while worker.events.poll(max(deadline - time.monotonic(), 0)) and worker.hear():
            pass
        worker.end(max(deadline - time.monotonic(), 1.0))
    return [worker.said["kept"] for worker in workers if "kept" in worker.said]
