"""Running work in a fresh child process, and watching it."""

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vivit_bench.curvature.available import available_memory
from vivit_bench.errors import VivitBenchError
from vivit_bench.hardware import CUDA_ENVIRONMENT, CUDA_VARIABLES, thread_environment
from vivit_bench.measure.budget import MACHINE_RESERVE, MemoryBudget, check_ulimits
from vivit_bench.measure.host_memory import (
    EXACT_MEMORY,
    MemoryReading,
    PeakOverIdle,
    others_memory,
    read_all_memory,
    read_memory,
)
from vivit_bench.measure.keeper import descendants
from vivit_bench.measure.protocol import (
    Loaded,
    Measured,
    Message,
    Outcome,
    Reading,
    Ready,
    Spec,
    TrialReport,
    decode,
)
from vivit_bench.measure.verdict import Evidence, Kill, judge

LOADING_TIMEOUT_SECONDS = 900.0
"""For libraries, model and a data set's download, if not the work's is longer."""
WARM_UP_TIMEOUT_SECONDS = 60.0
"""For the work on 2 samples, if not that of all is longer: libraries load more, and compile."""

_WATCH_SECONDS = {Reading.MEMORY: 0.005, Reading.TIME: 0.2}
_SLOW_WATCH_SECONDS = 0.1
_SLOW_WATCH_SHARE = 20
"""A search of all processes may take one part in so many of the time."""
_STDERR_BYTES = 16_384
_LONGEST_MESSAGE = 2**20
_KEEPER_PATIENCE_SECONDS = 15.0


@dataclass(frozen=True)
class Observation:
    """A child that has ended: what it said, what was seen of it, and what that means."""

    outcome: Outcome
    message: str
    """The reason on one line; empty for `Outcome.FITS`."""
    ready: Ready | None
    """None if its set-up did not end."""
    measured: Measured | None
    """None if the work did not end by itself."""
    report: TrialReport | None
    peak_bytes: int | None
    """Over the idle process, by the child's reading or the parent's; None if not read."""
    absolute_peak_bytes: int | None
    """Of the whole process."""
    other_processes: int
    """The most other processes that were seen; their memory is part of the peak."""
    stderr: str
    """End of what the child wrote there."""
    kill: Kill | None = None


def measure(spec: Spec, timeout_seconds: float) -> Observation:
    """Run a child to its end.

    Args:
        spec: What it does.
        timeout_seconds: For the work, after the set-up; and as much again for its check.

    Returns:
        What was seen. No process is left behind, whatever interrupts this function.

    Raises:
        UsageError: The shell allows less than the limit needs.
        VivitBenchError: No process can be started.
    """
    if spec.limit_bytes is not None and spec.device == "cpu" and spec.reading is Reading.MEMORY:
        check_ulimits(spec.limit_bytes)  # the child, which knows what it holds, does so again
    with _child(spec) as (keeper, pipe), selectors.DefaultSelector() as selector:
        watch = Watch(spec, timeout_seconds, keeper.pid)
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        sources: list[tuple[int, Callable[[bytes], None]]] = [
            (pipe, watch.hear),
            (keeper.stderr.fileno(), watch.hear_stderr),
            (keeper.stdout.fileno(), watch.hear_keeper),
        ]
        for descriptor, hear in sources:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ, hear)
        while not watch.ended and watch.report is None and watch.kill is None:
            _listen(selector, _WATCH_SECONDS[spec.reading])
            reading = watch.read()
            _listen(selector, 0)  # did the work end before that was read?
            if watch.report is None and watch.kill is None:
                watch.kill = watch.look(reading)
        _stop(keeper)
        deadline = time.monotonic() + _KEEPER_PATIENCE_SECONDS
        while not watch.ended and time.monotonic() < deadline:
            _listen(selector, 0.1)
        _listen(selector, 0)
    return watch.observation()


@dataclass
class Watch:
    """What the parent has seen of a child so far."""

    spec: Spec
    timeout_seconds: float
    keeper: int
    """Process whose descendants are the child and all that it started."""
    loaded: bool = False
    ready: Ready | None = None
    measured: Measured | None = None
    report: TrialReport | None = None
    kill: Kill | None = None
    ended: bool = False
    _pid: int | None = None
    _exit_code: int = 0
    _since: float = field(default_factory=time.monotonic)
    """When the present phase began."""
    _peak: PeakOverIdle | None = None
    _others: list[int] = field(default_factory=list)
    _most_others: int = 0
    _beside: int = 0
    """Memory of the others in the last reading."""
    _next_slow_look: float = 0.0
    _next_search: float = 0.0
    _stderr: bytes = b""
    _line: bytes = b""
    _keeper_line: bytes = b""

    def hear(self, data: bytes) -> None:
        """Take in bytes of the child's pipe."""
        if self.report is not None:
            return  # that was its last message
        *lines, self._line = (self._line + data).split(b"\n")
        try:
            if len(self._line) > _LONGEST_MESSAGE:
                raise ValueError("no end of a message")
            for line in lines:
                self._take(decode(line))
        except ValueError:
            self.kill = self.kill or Kill.GARBLED

    def _take(self, message: Message) -> None:
        self._since = time.monotonic()
        match message:
            case Loaded():
                self.loaded = True
            case Ready():
                self.ready = message
                if message.memory is not None:
                    self._peak = PeakOverIdle(message.memory, message.other_bytes)
            case Measured():
                self.measured = message
                self._most_others = max(self._most_others, message.other_processes)
                if self._peak is not None and message.memory is not None:
                    self._peak.see(message.memory, message.other_bytes)
            case TrialReport():
                self.report = message

    def hear_stderr(self, data: bytes) -> None:
        """Keep the end of what the child writes to stderr."""
        self._stderr = (self._stderr + data)[-_STDERR_BYTES:]

    def hear_keeper(self, data: bytes) -> None:
        """Take in what the keeper tells, or that it has ended."""
        *lines, self._keeper_line = (self._keeper_line + data).split(b"\n")
        for line in lines:
            kind, number = line.split()
            if kind == b"child":
                self._pid = int(number)
            else:
                self._exit_code = int(number)
                self.ended = True
        self.ended = self.ended or not data

    def read(self) -> MemoryReading | None:
        """Read the child's memory while it works, and that of others; they are sought at times."""
        if self._peak is None or self.measured is not None or self._pid is None:
            return None
        now = time.monotonic()
        if now < self._next_search:
            self._beside = others_memory(self._others)
            return read_memory(self._pid)
        self._others = [each for each in descendants(self.keeper) if each != self._pid]
        self._most_others = max(self._most_others, len(self._others))
        reading, self._beside = read_all_memory(self._pid, self._others)
        cost = time.monotonic() - now
        self._next_search = now + max(_SLOW_WATCH_SECONDS, _SLOW_WATCH_SHARE * cost)
        return reading

    def look(self, reading: MemoryReading | None) -> Kill | None:
        """Take in a reading and the clocks; say why the child must be killed, if it must."""
        now = time.monotonic()
        if now >= self._next_slow_look:
            self._next_slow_look = now + _SLOW_WATCH_SECONDS
            if available_memory() < MACHINE_RESERVE:
                return Kill.MACHINE
        if self.ready is None:
            late = now - self._since > self._set_up_seconds
            return Kill.SETUP_TIMEOUT if late else None
        if reading is not None and self.measured is None:
            assert self._peak is not None
            over_idle = self._peak.see(reading, self._beside)
            limit = self.spec.limit_bytes
            if limit is not None and over_idle > MemoryBudget(limit).watchdog_bytes:
                return Kill.MEMORY
        return Kill.TIMEOUT if now - self._since > self.timeout_seconds else None

    @property
    def _set_up_seconds(self) -> float:
        least = WARM_UP_TIMEOUT_SECONDS if self.loaded else LOADING_TIMEOUT_SECONDS
        return max(least, self.timeout_seconds)

    def observation(self) -> Observation:
        """Judge the child, once it has ended."""
        stderr = self._stderr.decode(errors="replace").strip()
        peak, absolute = self._peaks()
        limit = self.spec.limit_bytes
        late_set_up = self.kill is Kill.SETUP_TIMEOUT
        evidence = Evidence(
            budget=None if limit is None else MemoryBudget(limit),
            loaded=self.loaded,
            ready=self.ready is not None,
            report=self.report,
            kill=self.kill,
            exit_code=self._exit_code,
            peak_bytes=peak,
            counted_bytes=0 if self.ready is None else self.ready.counted_bytes,
            measured=self.measured,
            other_processes=self._most_others,
            stderr=last_words(stderr),
            timeout_seconds=self._set_up_seconds if late_set_up else self.timeout_seconds,
        )
        outcome, message = judge(evidence)
        return Observation(
            outcome=outcome,
            message=message,
            ready=self.ready,
            measured=self.measured,
            report=self.report,
            peak_bytes=peak,
            absolute_peak_bytes=absolute,
            other_processes=self._most_others,
            stderr=stderr,
            kill=self.kill,
        )

    def _peaks(self) -> tuple[int | None, int | None]:
        if self._peak is not None:
            return self._peak.bytes, self._peak.absolute_bytes
        if self.measured is not None:
            return self.measured.peak_bytes, self.measured.absolute_peak_bytes
        return None, None


def last_words(stderr: str) -> str:
    """The line of a child's stderr that says most: a fatal error, or else the last one."""
    lines = [" ".join(line.split()) for line in stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    return (fatal or lines or [""])[-1]


def child_environment(spec: Spec) -> dict[str, str]:
    """Environment of a child."""
    inherited: Mapping[str, str] = os.environ
    exact: dict[str, str] = {}
    if spec.reading is Reading.MEMORY:
        exact = dict(EXACT_MEMORY)
        if spec.device != "cpu":
            inherited = {k: v for k, v in os.environ.items() if k not in CUDA_VARIABLES}
            exact |= CUDA_ENVIRONMENT
    return {**inherited, **thread_environment(spec.threads), **exact, "PYTHONHASHSEED": "0"}


def _listen(selector: selectors.BaseSelector, seconds: float) -> None:
    if not selector.get_map():
        time.sleep(seconds)
        return
    for key, _ in selector.select(seconds):
        data = os.read(key.fd, 65_536)
        key.data(data)
        if not data:
            selector.unregister(key.fd)


@contextlib.contextmanager
def _child(spec: Spec) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a child; yields its keeper and the reading end of its pipe; leaves none behind."""
    reading, writing = os.pipe()
    kind = "exact" if spec.reading is Reading.MEMORY else "plain"
    keeper_file = str(Path(__file__).with_name("keeper.py"))
    keep = [sys.executable, "-I", "-S", keeper_file, kind, str(writing)]
    # -P: the working directory's files must not be taken for libraries.
    run = [sys.executable, "-P", "-X", "faulthandler", "-m", "vivit_bench.measure.child"]
    keeper = None
    try:
        try:
            keeper = subprocess.Popen(
                [*keep, *run, str(writing), spec.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[writing],
                start_new_session=True,
                env=child_environment(spec),
            )
        except OSError as error:
            raise VivitBenchError(f"cannot start a process to measure: {error}") from error
        os.close(writing)
        writing = -1
        yield keeper, reading
    finally:
        for descriptor in {reading, writing} - {-1}:
            os.close(descriptor)
        if keeper is not None:
            _stop(keeper)
            try:
                keeper.wait(_KEEPER_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                keeper.kill()  # the child dies with it
                keeper.wait()
            for stream in (keeper.stdout, keeper.stderr):
                assert stream is not None
                stream.close()


def _stop(keeper: subprocess.Popen[bytes]) -> None:
    """Have the keeper kill the child and whatever it started."""
    assert keeper.stdin is not None
    with contextlib.suppress(OSError):
        keeper.stdin.close()
