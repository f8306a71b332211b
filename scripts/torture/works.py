"""More works that end badly, beside those of ``tests/stub_work.py``; run in measured children."""

import ctypes
import errno
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from vivit_bench.errors import StorageError, UsageError, VivitBenchError
from vivit_bench.measure.work import Work

MIB = 2**20
_PAUSE = "import signal; signal.pause()"
_kept: list[object] = []


class At(Work):
    """Something happens at one place: set-up, warm-up, run, check, digest, certify or a thread."""

    def __init__(self, ending: str, place: str) -> None:
        self._do, self._place = ENDINGS[ending], place
        self._meet("set-up")

    def _meet(self, place: str) -> object:
        return self._do() if place == self._place else None

    def warm_up(self) -> None:
        self._meet("warm-up")

    def run(self, n: int) -> object:
        if self._place == "thread":
            thread = threading.Thread(target=self._do)
            thread.start()
            thread.join()
            return 0
        return self._meet("run")

    def check(self, result: object) -> str:
        self._meet("check")
        return "1 of 1 numbers are NaN or infinite" if result != result else ""

    def digest(self, result: object) -> dict[str, Any]:
        self._meet("digest")
        return {}

    def certify(self, n: int) -> None:
        self._meet("certify")


def _raises(make: Callable[[], BaseException]) -> Callable[[], object]:
    def work() -> object:
        raise make()

    return work


class _MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class _DeepError(Exception):
    def __str__(self) -> str:
        return str(self)


class _ExitsError(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


class _LongError(Exception):
    def __str__(self) -> str:
        return "\x1b[31m\0\n" + "long " * 10**6


def _caused() -> object:
    try:
        raise MemoryError
    except MemoryError as error:
        raise ValueError("the layer failed") from error


def _circle() -> object:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    raise first


def _recursion() -> object:
    def deeper(n: int) -> int:
        return deeper(n + 1) + 1

    return deeper(0)


def _hog(mib: int, **options: Any) -> None:
    """Another process that holds memory, and is left alone."""
    code = f"kept = b'x' * {mib * MIB}; print('held', flush=True); {_PAUSE}"
    command = [sys.executable, "-S", "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
    assert process.stdout is not None
    process.stdout.readline()
    _kept.append(process)


def _daemon() -> object:
    """A grandchild in a session of its own, an orphan, deaf to signals."""
    code = (
        "import os, signal\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
        "while True: signal.pause()"
    )
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
    return 0


def _brood() -> object:
    """Many grandchildren that start others."""
    code = (
        "import subprocess, sys\n"
        "[subprocess.Popen([sys.executable, '-S', '-c', sys.argv[1]], start_new_session=True)"
        " for _ in range(4)]"
    )
    for _ in range(3):
        subprocess.run([sys.executable, "-S", "-c", code, _PAUSE], check=True)
    return 0


def _garbage(descriptors: range, content: bytes) -> Callable[[], object]:
    def work() -> object:
        for descriptor in descriptors:
            try:
                os.write(descriptor, content)
            except OSError:
                continue
        return 0

    return work


def _closed() -> object:
    os.closerange(0, 1024)
    return 0


def _many_files() -> object:
    """Uses up the descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    while True:
        _kept.append(open(os.devnull, "rb"))  # noqa: SIM115


def _mapped() -> object:
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.truncate(200 * MIB)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as region:
            return sum(region[k] for k in range(0, 200 * MIB, 4096))


def _private_map() -> object:
    """Pages of a file that are written become memory."""
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.truncate(200 * MIB)
        region = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        for k in range(0, 200 * MIB, 4096):
            region[k] = 1
        _kept.append(region)
        return threading.Event().wait(0.3)


def _own_handlers() -> object:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    return threading.Event().wait()


def _noise() -> object:
    for _ in range(64):
        os.write(2, b"\xff\x00\x1b[2J" * 4096)
        os.write(1, b"\xff" * 16_384)
    raise ValueError("after much noise")


def _kill(number: int) -> Callable[[], object]:
    def work() -> object:
        os.kill(os.getpid(), number)
        return threading.Event().wait()

    return work


def _grows() -> object:
    while True:
        _kept.append(b"x" * MIB)


def _holds(mib: int) -> object:
    _kept.append(b"x" * (mib * MIB))
    return threading.Event().wait(0.3)


def _group() -> object:
    os.killpg(0, signal.SIGKILL)
    return threading.Event().wait()


def _late_thread() -> object:
    """A thread that goes on after the work has ended."""
    threading.Thread(target=threading.Event().wait).start()
    return 0


ENDINGS: dict[str, Callable[[], object]] = {
    "nothing": lambda: 0,
    "nan": lambda: float("nan"),
    "memory": _raises(MemoryError),
    "enomem": _raises(lambda: OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))),
    "enospc": _raises(lambda: OSError(errno.ENOSPC, "no space")),
    "caused": _caused,
    "circle": _circle,
    "words": _raises(lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: 2 GiB")),
    "other words": _raises(lambda: RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")),
    "some words": _raises(lambda: RuntimeError("the queue is out of memory slots")),
    "lapack": _raises(lambda: RuntimeError("Argument 8 has illegal value")),
    "mute": _raises(_MuteError),
    "deep": _raises(_DeepError),
    "exits in str": _raises(_ExitsError),
    "long": _raises(_LongError),
    "usage": _raises(lambda: UsageError("batch: wrong value")),
    "failed": _raises(lambda: VivitBenchError("failed for a reason")),
    "storage": _raises(lambda: StorageError("cannot write")),
    "stop iteration": _raises(StopIteration),
    "group": _raises(lambda: ExceptionGroup("two", [MemoryError(), ValueError("b")])),
    "generator exit": _raises(GeneratorExit),
    "interrupt": _raises(KeyboardInterrupt),
    "sys.exit 0": lambda: sys.exit(0),
    "sys.exit text": lambda: sys.exit("out of memory"),
    "exit 0": lambda: os._exit(0),
    "exit 1": lambda: os._exit(1),
    "exit 113": lambda: os._exit(113),
    "sigkill": _kill(signal.SIGKILL),
    "sigterm": _kill(signal.SIGTERM),
    "sigint": _kill(signal.SIGINT),
    "sigabrt": os.abort,
    "sigsegv": lambda: ctypes.string_at(0),
    "sigbus": _kill(signal.SIGBUS),
    "stopped": _kill(signal.SIGSTOP),
    "real-time signal": _kill(40),
    "kills its group": _group,
    "recursion": _recursion,
    "closed": _closed,
    "garbage out": _garbage(range(1, 3), b"\xff\xfe\n" * 100),
    "garbage everywhere": _garbage(range(1, 64), b"{}\n\xff\n"),
    "many files": _many_files,
    "mapped": _mapped,
    "private map": _private_map,
    "hog": lambda: _hog(150),
    "hog away": lambda: _hog(150, start_new_session=True),
    "small hog": lambda: _hog(20, start_new_session=True),
    "daemon": _daemon,
    "brood": _brood,
    "deaf": _own_handlers,
    "waits": lambda: threading.Event().wait(),
    "noise": _noise,
    "grows": _grows,
    "holds 20": lambda: _holds(20),
    "holds 100": lambda: _holds(100),
    "late thread": _late_thread,
}


def batch_problem(kind: str) -> str:
    """Text of a problem whose batches end so."""
    return _PROBLEM.replace("@", kind)


_PROBLEM = """
import os, sys, time
import torch
from torch import nn
from vivit_bench.errors import UsageError

CHOSEN = "@"

def batch(n, seed):
    if n > 2 and CHOSEN == "usage":
        raise UsageError("no such batch")
    if n > 2 and CHOSEN == "memory":
        raise MemoryError
    if n > 2 and CHOSEN == "nan":
        return torch.full((n, 6), float("nan")), torch.zeros(n, dtype=torch.long)
    if n > 2 and CHOSEN == "exit":
        sys.exit(3)
    if n > 2 and CHOSEN == "words":
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
    if n > 2 and CHOSEN == "sleep":
        time.sleep(60)
    if n > 2 and CHOSEN == "short":
        n = 2
    return torch.randn(n, 6), torch.zeros(n, dtype=torch.long)

def make():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    few = torch.randn(5, 6), torch.zeros(5, dtype=torch.long)
    return model, nn.CrossEntropyLoss(), few if CHOSEN == "few" else batch
"""
