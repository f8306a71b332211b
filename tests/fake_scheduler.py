"""A Slurm that runs jobs in this process."""

import pickle
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vivit_bench.cluster.jobs import Task
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
        self.tasks: dict[str, Task] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.fails: dict[str, int] = {}
        """``live`` or ``states`` -> how often it is not answered."""

    def submit(self, folder: Path, parameters: Mapping[str, Any], task: Task) -> str:
        if folder.name in self.refuses:
            raise VivitBenchError("Slurm refuses the job: Invalid node name specified")
        number = str(len(self.submitted) + 1)
        self.submitted[number] = folder, parameters
        self.tasks[number] = pickle.loads(pickle.dumps(task))
        return number

    def live(self, names: Sequence[str]) -> dict[str, str]:
        self._answer("live")
        own = {p["job_name"]: n for n, (_, p) in self.submitted.items() if not self._has_ended(n)}
        return {name: n for name, n in {**own, **self.queued}.items() if name in names}

    def states(self, numbers: Sequence[str]) -> dict[str, JobState]:
        self.most = max(self.most, len(numbers))
        self._answer("states")
        found = {}
        for number in numbers:
            said = self.said.get(f"job{number}")
            if said:
                state = said.pop(0) if len(said) > 1 else said[0]
                if state is not None:
                    found[number] = state
            elif number in self.tasks and number not in self.outcomes:
                found[number] = JobState("RUNNING", "n1")
                self.outcomes[number] = run_in_process(self.tasks[number])
        return found

    def _answer(self, question: str) -> None:
        if self.fails.get(question):
            self.fails[question] -= 1
            raise VivitBenchError("Slurm's squeue fails: Unable to contact slurm controller")

    def _has_ended(self, number: str) -> bool:
        state = self.said.get(f"job{number}", [JobState("RUNNING")])[0]
        return number in self.outcomes or (state is not None and state.has_ended)

    def outcome(self, folder: Path, number: str) -> Outcome | None:
        return self.outcomes.get(number)

    def log(self, folder: Path, number: str) -> Path:
        return folder / f"{number}_0_log.err"


def run_in_process(task: Task) -> Outcome:
    """`run_task`, after which signals are as they were."""
    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        return run_task(task)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
