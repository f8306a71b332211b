"""A Slurm that runs jobs in this process."""

import pickle
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivit_bench.cluster.slurm import JobState
from vivit_bench.cluster.task import Outcome, run_task
from vivit_bench.errors import VivitBenchError


class FakeScheduler:
    """Runs a job's work when it is asked after the job for the first time."""

    def __init__(self, **states: Sequence[JobState | None]) -> None:
        self.said = {name: list(states) for name, states in states.items()}
        self.queued: dict[str, str] = {}
        """Name of those that are there before -> number."""
        self.submitted: dict[str, tuple[Path, Mapping[str, Any]]] = {}
        self.most = 0
        self.refuses: list[str] = []
        self._tasks: dict[str, Callable[[], Any]] = {}
        self._outcomes: dict[str, Outcome] = {}
        self.fails = 0

    def submit(self, folder: Path, parameters: Mapping[str, Any], task: Callable[[], Any]) -> str:
        if folder.name in self.refuses:
            raise VivitBenchError("Slurm refuses the job: Invalid node name specified")
        number = str(len(self.submitted) + 1)
        self.submitted[number] = folder, parameters
        self._tasks[number] = pickle.loads(pickle.dumps(task))
        return number

    def live(self, names: Sequence[str]) -> dict[str, str]:
        return {name: number for name, number in self.queued.items() if name in names}

    def states(self, numbers: Sequence[str]) -> dict[str, JobState]:
        self.most = max(self.most, len(numbers))
        if self.fails:
            self.fails -= 1
            raise VivitBenchError("Slurm's squeue fails: Unable to contact slurm controller")
        found = {}
        for number in numbers:
            said = self.said.get(f"job{number}")
            if said:
                state = said.pop(0) if len(said) > 1 else said[0]
                if state is not None:
                    found[number] = state
            elif number in self._tasks:
                found[number] = JobState("RUNNING", "n1")
                self._outcomes[number] = run_in_process(self._tasks.pop(number))
        return found

    def outcome(self, folder: Path, number: str) -> Outcome | None:
        return self._outcomes.get(number)

    def log(self, folder: Path, number: str) -> Path:
        return folder / f"{number}_0_log.err"


def run_in_process(task: Callable[[], Any]) -> Outcome:
    """`run_task`, after which signals are as they were."""
    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        return run_task(task)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
