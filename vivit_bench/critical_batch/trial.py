"""Running a trial: a fresh child process, watched by its parent."""

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from vivit_bench.critical_batch.budget import MACHINE_RESERVE, MemoryBudget, available_memory
from vivit_bench.critical_batch.failures import FailureKind
from vivit_bench.critical_batch.outcomes import Trial
from vivit_bench.critical_batch.process_memory import (
    MemoryReading,
    peak_over,
    read_memory,
    read_resident,
)
from vivit_bench.critical_batch.spec import TrialSpec
from vivit_bench.critical_batch.verdict import Evidence, Kill, judge
from vivit_bench.hardware import thread_environment

SETUP_TIMEOUT_SECONDS = 900.0
"""For libraries, model, warm-up and a data set's download."""

_WATCH_SECONDS = 0.005
_SLOW_WATCH_EVERY = 20  # readings that cost more, in watch periods
_MOST_READINGS = 4
_STDERR_BYTES = 16_384
_ADDR_NO_RANDOMIZE = 0x0040000


@dataclass(frozen=True)
class TrialRun:
    """A trial and what its last child wrote to stderr."""

    trial: Trial
    stderr: str


def run_trial(spec: TrialSpec, timeout_seconds: float) -> TrialRun:
    """Run one batch size to a verdict.

    Where the peak is too near to the budget for one reading, the trial is run again with all
    its threads on one CPU, where the kernel's page counts are exact, and that decides. The
    verdict then does not depend on luck, and only trials near the limit pay for it.

    Args:
        spec: What to run.
        timeout_seconds: For the work, after the set-up.

    Returns:
        The trial.
    """
    started = time.monotonic()
    first = watch = watch_child(spec, timeout_seconds)
    confirmed = _too_near(first)
    if confirmed:
        watch = _confirm(spec, timeout_seconds)
    evidence = watch.evidence()
    outcome, message = judge(evidence)
    trial = Trial(
        n=spec.n,
        outcome=outcome,
        message=message,
        peak_bytes=evidence.peak_bytes,
        idle_bytes=first.idle_bytes,
        absolute_peak_bytes=first.absolute_peak_bytes,
        seconds=round(time.monotonic() - started, 3),
        timeout_seconds=timeout_seconds,
        confirmed=confirmed,
        **first.certified,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return TrialRun(trial, watch.stderr_text())


def _too_near(watch: "Watch") -> bool:
    evidence = watch.evidence()
    if watch.idle is None or not evidence.finished or evidence.peak_bytes is None:
        return False
    distance = abs(evidence.peak_bytes - watch.budget.limit_bytes)
    return distance <= watch.budget.resolution_bytes(watch.spec.threads)


def _confirm(spec: TrialSpec, timeout_seconds: float) -> "Watch":
    """Repeat a trial on one CPU; the smallest of a few peaks decides.

    On one CPU most readings are equal to a few pages. Where they are not, on a busy machine,
    they are too large: a thread was interrupted while it held a buffer.
    """
    smallest: Watch | None = None
    for _ in range(_MOST_READINGS):
        # One CPU does the work of all threads.
        watch = watch_child(replace(spec, one_cpu=True), timeout_seconds * spec.threads)
        if not watch.evidence().finished or watch.peak_bytes is None:
            return watch
        if smallest is None or watch.peak_bytes < (smallest.peak_bytes or 0):
            smallest = watch
        if watch.peak_bytes <= spec.limit_bytes:
            break
    assert smallest is not None
    return smallest


@dataclass
class Watch:
    """What the parent has seen of a child so far."""

    spec: TrialSpec
    timeout_seconds: float
    budget: MemoryBudget
    started: float = field(default_factory=time.monotonic)
    ready_at: float | None = None
    idle: MemoryReading | None = None
    """Of the child's own memory (not on CUDA devices)."""
    idle_bytes: int | None = None
    peak_bytes: int | None = None
    absolute_peak_bytes: int | None = None
    certified: dict[str, Any] = field(default_factory=dict)
    """Fields of a `Trial` on the warm-up's certificate."""
    report: dict[str, Any] = field(default_factory=dict)
    """The child's last message, "finished" or "failed"."""
    kill: Kill | None = None
    exit_code: int = 0
    stderr: bytes = b""
    _line: bytes = b""

    def hear(self, data: bytes) -> None:
        """Take in bytes of the pipe."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["event"] == "ready":
                self.ready_at = time.monotonic()
                self.idle_bytes = message["idle_bytes"]
                names = ("certificate_error", "certified_samples")
                self.certified = {name: message[name] for name in names}
                self.idle = MemoryReading(**message["idle"]) if "idle" in message else None
            else:
                self.report = message
                self._see_peak(message.get("peak_bytes"), message.get("absolute_peak_bytes"))

    def hear_stderr(self, data: bytes) -> None:
        """Keep the end of what the child writes to stderr."""
        self.stderr = (self.stderr + data)[-_STDERR_BYTES:]

    def look(self, pid: int, thoroughly: bool) -> Kill | None:
        """Read memory and clocks; say why the child must be killed, if it must."""
        now = time.monotonic()
        if thoroughly and available_memory() < MACHINE_RESERVE:
            return Kill.MACHINE
        if self.ready_at is None:
            late = now - self.started > max(SETUP_TIMEOUT_SECONDS, self.timeout_seconds)
            return Kill.SETUP_TIMEOUT if late else None
        if now - self.ready_at > self.timeout_seconds:
            return Kill.TIMEOUT
        if self.idle is None:
            return None
        resident = read_resident(pid)
        if resident is None:
            return None
        over_idle = resident - self.idle.resident
        self._see_peak(over_idle, resident)
        if thoroughly:
            self.look_at_peak(pid)
        return Kill.MEMORY if over_idle > self.budget.watchdog_bytes else None

    def look_at_peak(self, pid: int) -> None:
        """Read the child's peak from outside."""
        reading = read_memory(pid) if self.idle is not None else None
        if reading is not None and self.idle is not None:
            self._see_peak(peak_over(self.idle, reading), reading.peak)

    def evidence(self) -> Evidence:
        """Everything `judge` needs."""
        failure = self.report.get("failure")
        waited = max(SETUP_TIMEOUT_SECONDS, self.timeout_seconds)
        return Evidence(
            budget=self.budget,
            ready=self.ready_at is not None,
            finished=self.report.get("event") == "finished",
            failure=FailureKind(failure) if failure else None,
            message=self.report.get("message", ""),
            kill=self.kill,
            exit_code=self.exit_code,
            peak_bytes=self.peak_bytes,
            stderr=last_words(self.stderr_text()),
            timeout_seconds=waited if self.kill is Kill.SETUP_TIMEOUT else self.timeout_seconds,
        )

    def stderr_text(self) -> str:
        """End of the child's stderr."""
        return self.stderr.decode(errors="replace").strip()

    def _see_peak(self, peak: int | None, absolute: int | None) -> None:
        if peak is not None and peak > (self.peak_bytes if self.peak_bytes is not None else -1):
            self.peak_bytes, self.absolute_peak_bytes = peak, absolute


def last_words(stderr: str) -> str:
    """The line of a child's stderr that says most: a fatal error, or else the last one."""
    lines = [" ".join(line.split()) for line in stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    return (fatal or lines or [""])[-1]


def watch_child(spec: TrialSpec, timeout_seconds: float) -> Watch:
    """Run a child to its end.

    Args:
        spec: What it does.
        timeout_seconds: For the work, after the set-up.

    Returns:
        What was seen. No process is left behind, whatever interrupts this function.
    """
    watch = Watch(spec, timeout_seconds, MemoryBudget(spec.limit_bytes))
    with _child(spec) as (child, pipe), selectors.DefaultSelector() as selector:
        assert child.stderr is not None
        sources: list[tuple[int, Callable[[bytes], None]]] = [
            (pipe, watch.hear),
            (child.stderr.fileno(), watch.hear_stderr),
        ]
        for descriptor, hear in sources:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ, hear)
        period = 0
        while not _ended(child) and not watch.report and watch.kill is None:
            _listen(selector, _WATCH_SECONDS)
            period += 1
            if not watch.report:
                watch.kill = watch.look(child.pid, period % _SLOW_WATCH_EVERY == 0)
        if watch.kill is not None:
            watch.look_at_peak(child.pid)
        _kill_group(child)
        watch.exit_code = child.wait()
        _listen(selector, 0)
    return watch


def _listen(selector: selectors.BaseSelector, seconds: float) -> None:
    if not selector.get_map():
        time.sleep(seconds)
        return
    for key, _ in selector.select(seconds):
        data = os.read(key.fd, 65_536)
        if data:
            key.data(data)
        else:
            selector.unregister(key.fd)


@contextlib.contextmanager
def _child(spec: TrialSpec) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a child; yields it and the reading end of its pipe; leaves none behind."""
    reading, writing = os.pipe()
    told = replace(spec, parent=os.getpid())
    module = "vivit_bench.critical_batch.worker"
    # -P: the working directory's files must not be taken for libraries.
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", module, str(writing)]
    child = None
    try:
        with _fixed_addresses():
            child = subprocess.Popen(
                [*command, told.to_json()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[writing],
                start_new_session=True,
                env=child_environment(spec.threads),
            )
        os.close(writing)
        writing = -1
        yield child, reading
    finally:
        for descriptor in {reading, writing} - {-1}:
            os.close(descriptor)
        if child is not None:
            if child.returncode is None:
                _kill_group(child)
                child.wait()
            assert child.stderr is not None
            child.stderr.close()


def child_environment(threads: int) -> dict[str, str]:
    """Environment of a trial's process."""
    return {
        **os.environ,
        **thread_environment(threads),
        # Every block of 64 KiB and more is mapped alone and returned when freed; otherwise
        # the critical batch size varies by several samples, with holes.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "PYTHONHASHSEED": "0",
    }


@contextlib.contextmanager
def _fixed_addresses() -> Iterator[None]:
    """Start children without address randomisation, where the kernel allows it.

    Random addresses change which library pages share a page fault, and so the peak.
    """
    library = ctypes.CDLL(None)
    before = library.personality(0xFFFFFFFF)
    library.personality(before | _ADDR_NO_RANDOMIZE)
    try:
        yield
    finally:
        library.personality(before)


def _ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether a child has ended; it is left unreaped, so that its group's number stays taken."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, child.pid, options) is not None


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill a child that has not been waited for, and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
