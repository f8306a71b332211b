"""A run that is to be a job, how the job ended, and who is told."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from vivit_bench.errors import VivitBenchError


@dataclass(frozen=True)
class QueueJob:
    """A run that is to be a job."""

    folder: Path
    """Of the run: ``results/<experiment>/<address>``."""
    label: str
    """Name for people."""
    task: Callable[[], Any]
    """The work; can be pickled."""
    node: str | None = None
    """Where it must run: an interrupted run goes on on its own machine."""

    @property
    def name(self) -> str:
        """Of the job; no other run has it."""
        start = re.sub(r"[^A-Za-z0-9_.+-]+", "-", self.folder.name)[:60]
        return f"{start}-{sha256(str(self.folder.resolve()).encode()).hexdigest()[:12]}"

    @property
    def logs(self) -> Path:
        """Folder of the job's script, work and logs; the run's has its own files only."""
        experiment = self.folder.parent
        return experiment.parent / "slurm" / experiment.name / self.folder.name


@dataclass(frozen=True)
class EndedJob:
    """A job that has ended."""

    job: QueueJob
    number: str | None
    """None where it could not be submitted."""
    seconds: float
    """Since it was seen running."""
    value: Any = None
    """What its work returned."""
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
