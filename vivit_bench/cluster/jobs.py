"""A run that is to be a job, what there is of it, how the job ended, and who is told."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from vivit_bench.errors import VivitBenchError

LOGS = "slurm"
"""Folder beside the experiments' in which jobs have their logs."""


@dataclass(frozen=True)
class Standing:
    """What is stored of a run; by default nothing that a job would go on with."""

    result: Callable[[], Any] | None = None
    """Reads the result, which is all that was asked for; None: there is something left to do."""
    node: str | None = None
    """Where that must be done, as a run's numbers are of one machine; None: anywhere."""


class Task(Protocol):
    """The work of a job, as a command asks for it; can be pickled."""

    def look(self) -> Standing:
        """What is stored of the run now, judged by the machine that has made it.

        Raises:
            VivitBenchError: It is not what is asked for, and the work would be refused.
        """

    def __call__(self) -> Any:
        """Do the work on this machine, or go on with it; its result.

        Raises:
            VivitBenchError: Why there is none.
        """


@dataclass(frozen=True)
class QueueJob:
    """A run that is to be a job."""

    folder: Path
    """Of the run: ``results/<experiment>/<address>``."""
    label: str
    """Name for people."""
    task: Task

    @property
    def name(self) -> str:
        """Of the job; no other run has it."""
        start = re.sub(r"[^A-Za-z0-9_.+-]+", "-", self.folder.name)[:60]
        return f"{start}-{sha256(str(self.folder.resolve()).encode()).hexdigest()[:12]}"

    @property
    def logs(self) -> Path:
        """Folder of the job's script, work and logs; the run's has its own files only."""
        experiment = self.folder.parent
        return experiment.parent / LOGS / experiment.name / self.folder.name


@dataclass(frozen=True)
class EndedJob:
    """A job that has ended."""

    job: QueueJob
    number: str | None
    """None where there was none: it could not be submitted, or had become needless."""
    seconds: float
    """Since it was seen running."""
    value: Any = None
    """The result."""
    error: VivitBenchError | None = None
    """Why there is nothing; it costs its run."""


class QueueListener:
    """Is told what happens; this one ignores it."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def running(self, job: QueueJob, number: str, node: str) -> None:
        """A job begins to run."""

    def ended(self, ended: EndedJob) -> None:
        """A job ended."""
