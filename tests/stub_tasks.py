"""Work for jobs of a cluster."""

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vivit_bench.cluster import Standing
from vivit_bench.errors import Stopped, UsageError


@dataclass(frozen=True)
class StubTask:
    """Does what a test asks for, and leaves when it did so."""

    kind: str
    folder: Path
    seconds: float = 0.0

    def store(self, what: str) -> None:
        """Store ``finished RESULT``, ``on NODE`` (a part) or ``refused REASON``."""
        (self.folder / f"{self.kind}.stored").write_text(what)

    def look(self) -> Standing:
        path = self.folder / f"{self.kind}.stored"
        how, _, what = (path.read_text() if path.exists() else "").partition(" ")
        if how == "refused":
            raise UsageError(what)
        return Standing(
            result=partial(str, what) if how == "finished" else None,
            node=what if how == "on" else None,
        )

    def __call__(self) -> str:
        began = time.time()
        if self.kind == "refuse":
            raise UsageError("--memory-limit 1 GiB: too much")
        if self.kind == "fail":
            raise ZeroDivisionError("by nothing")
        if self.kind == "be_killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "be_told_to_stop":
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            time.sleep(self.seconds)
        except Stopped as stopped:
            stopped.add_note("half of it is kept")
            raise
        name = f"{os.environ.get('SLURM_JOB_ID', os.getpid())}"
        (self.folder / name).write_text(f"{began} {time.time()}")
        return "done"
