"""Jobs that do in their processes what tests ask for."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivit_bench.critical_batch.listener import Listener
from vivit_bench.errors import Stopped, VivitBenchError
from vivit_bench.measure import Spec, measure


@dataclass(frozen=True)
class StubJob:
    """Stands in for a `SearchJob`."""

    kind: str
    folder: Path

    def run(self, listener: Listener) -> Any:
        return getattr(self, f"_{self.kind}")(listener)

    def _cpus(self, listener: Listener) -> tuple[float, float, set[int]]:
        """When it ran, and on which CPUs."""
        began = time.monotonic()
        (self.folder / str(os.getpid())).touch()
        deadline = began + 20
        while len(list(self.folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        return began, time.monotonic(), os.sched_getaffinity(0)

    def _tell(self, listener: Listener) -> str:
        for name in [name for name in vars(Listener) if not name.startswith("_")]:
            getattr(listener, name)("told", name)
        return "done"

    def _refuse(self, listener: Listener) -> None:
        raise VivitBenchError("--memory-limit 1 GiB: too much")

    def _fail(self, listener: Listener) -> None:
        raise OSError(28, "No space left on device", "trials.jsonl")

    def _be_killed(self, listener: Listener) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _print(self, listener: Listener) -> str:
        print("a library's chatter", flush=True)
        return "done"

    def _wait(self, listener: Listener) -> None:
        try:
            listener.note(str(os.getpid()))
            time.sleep(60)
        except Stopped as stopped:
            stopped.add_note(f"{self.folder.name} is kept")
            raise

    def _measure(self, listener: Listener) -> None:
        """Until it is killed; its processes are told in a file."""
        stubs = Path(__file__).with_name("stub_work.py")
        told = self.folder / str(os.getpid())
        work = f"{stubs}:writes_pid"
        measure(Spec(n=1, threads=1, arguments={"path": str(told)}, work=work), 60.0)
