"""Works that end in every way a trial can; run in child processes by the trial tests."""

import ctypes
import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

from vivit_bench.measure.work import Work

MIB = 2**20
_kept: list[object] = []


class Stub(Work):
    """Does nothing but `work`, after a warm-up that does nothing."""

    def __init__(self, work: Callable[[int], object]):
        self._work = work

    def run(self, n: int) -> object:
        return self._work(n)

    def check(self, result: object) -> str:
        return "eigenvalues: 1 of 1 numbers are NaN or infinite" if result != result else ""


def fill(mib_per_sample: float = 1.0) -> Stub:
    """Uses memory in proportion to N."""
    return Stub(lambda n: len(bytearray(os.urandom(4096)) * int(n * mib_per_sample * 256)))


def fill_then(ending: str, mib_per_sample: float = 1.0) -> Stub:
    """Uses memory in proportion to N and then ends badly, held for the watchdog to see."""

    def work(n: int) -> object:
        _kept.append(b"x" * int(n * mib_per_sample * MIB))
        threading.Event().wait(0.3)
        return endings[ending](n)

    return Stub(work)


def holds_then(mib: int, ending: str) -> Stub:
    """Does what `fill_then` does in a process that has taken much before."""
    _kept.append(b"x" * (mib * MIB))
    return fill_then(ending)


def ends(ending: str) -> Stub:
    return Stub(endings[ending])


def fails_in_set_up(ending: str) -> Stub:
    endings[ending](1)
    raise AssertionError("the ending did not end")


class FailsInWarmUp(Stub):
    def __init__(self, ending: str):
        super().__init__(endings["finish"])
        self._ending = ending

    def warm_up(self) -> None:
        endings[self._ending](2)


class SlowAtFirst(Work):
    """Loads something in its first run, and counts its runs."""

    def __init__(self) -> None:
        self._runs = 0

    def run(self, n: int) -> object:
        self._runs += 1
        if self._runs == 1:
            threading.Event().wait(0.5)
        return self._runs

    def digest(self, result: object) -> dict[str, object]:
        return {"runs": result}


def torch_memory() -> Stub:
    import torch

    torch.ones(2) + 1
    return Stub(lambda n: torch.zeros(2**40))


def numpy_memory() -> Stub:
    import numpy as np

    return Stub(lambda n: np.ones(2**40))


def writes_pid(path: str) -> Stub:
    """Tells its own process and those of its descendants, then waits for ever.

    One of them is in its group, one in a session of its own, one an orphan in another session.
    """

    def work(n: int) -> object:
        pause = [sys.executable, "-S", "-c", "import signal; signal.pause()"]
        near = subprocess.Popen(pause)
        away = subprocess.Popen(pause, start_new_session=True)
        start = (
            "import subprocess, sys; "
            "print(subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=-3).pid)"
        )
        orphan = subprocess.check_output([sys.executable, "-S", "-c", start, *pause], text=True)
        with open(f"{path}.part", "w") as file:
            file.write(f"{os.getpid()} {near.pid} {away.pid} {orphan}")
        os.rename(f"{path}.part", path)
        return _wait(n)

    return Stub(work)


def works_elsewhere(way: str) -> Stub:
    """Uses memory in proportion to N in another process."""

    def hold(n: int) -> None:
        _kept.append(b"x" * (n * MIB))
        os.write(1, b"held")
        threading.Event().wait()

    def work(n: int) -> object:
        reading, writing = os.pipe()
        if way == "fork":
            if os.fork() == 0:
                os.dup2(writing, 1)
                hold(n)
        else:
            code = (
                f"kept = b'x' * {n * MIB}; print('held', flush=True); import signal; signal.pause()"
            )
            subprocess.Popen([sys.executable, "-S", "-c", code], stdout=writing)
        os.read(reading, 4)
        return 0

    return Stub(work)


def fills_a_file_in_memory() -> Stub:
    """Of N MiB, which nobody maps, as a DataLoader's workers do with batches made ahead."""

    def work(n: int) -> object:
        file = os.memfd_create("batch")
        for _ in range(n):
            os.write(file, b"x" * MIB)
        threading.Event().wait(0.5)  # for the watchdog to see
        os.close(file)
        return 0

    return Stub(work)


def maps_a_file(mib: int) -> Stub:
    """Reads a file through memory; the kernel can take those pages back at any time."""
    import mmap

    # Not in /tmp, which may itself be memory.
    file = tempfile.TemporaryFile(dir="/var/tmp")  # noqa: SIM115
    file.write(bytes(mib * MIB))
    file.flush()

    def work(n: int) -> object:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as region:
            for place in range(0, mib * MIB, 4096):
                region[place]
            threading.Event().wait(0.3)  # for the watchdog to see
        return 0

    return Stub(work)


class ChecksMuch(Stub):
    """What its check and digest take is not the work's."""

    def __init__(self) -> None:
        super().__init__(lambda n: 0)

    def check(self, result: object) -> str:
        _kept.append(b"x" * (200 * MIB))
        threading.Event().wait(0.1)
        return ""

    def digest(self, result: object) -> dict[str, object]:
        return {
            "threads": os.environ["OMP_NUM_THREADS"],
            "malloc": "MALLOC_MMAP_THRESHOLD_" in os.environ,
        }


class OnDevice(Stub):
    """On a CUDA device that is made up: 3 GiB, 2 of them free; N is what the work takes in MiB.

    Args:
        ending: How the work ends.
        broken: Every call of CUDA fails from then on, as after an illegal access.
        refused: Allocations that are refused meanwhile.
        free: MiB that other processes leave free meanwhile.
    """

    def __init__(self, ending: str, broken: bool = False, refused: int = 0, free: int = 2048):
        import torch

        super().__init__(self._on_device)
        self._ending, self._broken, self._refused = ending, broken, refused
        self._free_then, self._free = free, 2048
        self._taken, self._ooms = 0, 7
        torch.cuda = self

    def _on_device(self, n: int) -> object:
        self._taken, self._ooms = n, self._ooms + self._refused
        self._free, self._is_broken = self._free_then, self._broken
        return endings[self._ending](n)

    _is_broken = False

    def synchronize(self, device: str) -> None: ...

    def empty_cache(self) -> None: ...

    def reset_peak_memory_stats(self, device: str) -> None: ...

    def memory_allocated(self, device: str) -> int:
        return self._taken * MIB

    max_memory_allocated = max_memory_reserved = memory_reserved = memory_allocated

    def memory_stats(self, device: str) -> dict[str, int]:
        return {"num_ooms": self._ooms}

    def mem_get_info(self, device: str) -> tuple[int, int]:
        if self._is_broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self._free * MIB, 3072 * MIB

    def set_per_process_memory_fraction(self, fraction: float, device: str) -> None:
        self.mem_get_info(device)

    def digest(self, result: object) -> dict[str, object]:
        import torch

        cudnn = torch.backends.cudnn
        names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "CUDA_LAUNCH_BLOCKING")
        return {
            "cudnn": [cudnn.deterministic, cudnn.benchmark],
            "environment": [os.environ.get(name) for name in names],
        }


def in_a_thread(ending: str) -> Stub:
    """Its main thread waits for a thread that ends badly, and then goes on as if nothing were."""

    def work(n: int) -> object:
        thread = threading.Thread(target=endings[ending], args=(n,))
        thread.start()
        thread.join()
        return 0

    return Stub(work)


def spiky_set_up(mib: int) -> Stub:
    """Needs more in its set-up than in its work."""
    del_me = bytearray(mib * MIB)
    assert len(del_me)
    return fill()


def leaves_free_memory(mib: int) -> Stub:
    """Frees many small blocks that lie below one that stays, so that the heap cannot shrink."""
    blocks = [bytes(1024) for _ in range(mib * 1024)]
    _kept.append(bytes(1024))
    blocks.clear()
    return Stub(lambda n: len(_hold(n * 32)))


def _hold(count: int) -> list[object]:
    """``count`` blocks of 32 KiB, below the size that is mapped alone."""
    return [b"x" * 32_768 for _ in range(count)]


def tells_limits() -> Stub:
    """Writes oom_score_adj, the soft RLIMIT_DATA and VmData to stderr."""

    def work(n: int) -> object:
        with open("/proc/self/oom_score_adj") as file:
            score = file.read().strip()
        with open("/proc/self/status") as file:
            (data,) = (line.split()[1] for line in file if line.startswith("VmData"))
        limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
        print(score, limit, int(data) * 1024, file=sys.stderr)
        return 0

    return Stub(work)


def _raise(error: BaseException) -> Callable[[int], object]:
    def work(n: int) -> object:
        raise error

    return work


def _kill(number: int) -> Callable[[int], object]:
    return lambda n: os.kill(os.getpid(), number)


def _wait(n: int) -> object:
    threading.Event().wait()
    return 0


def _spin(n: int) -> object:
    while True:
        pass


def _import_error(n: int) -> object:
    return importlib.import_module("a_module_that_is_missing")


def _allocate_blocks(n: int) -> object:
    while True:
        _kept.append(b"x" * MIB)


def _allocate_objects(n: int) -> object:
    numbers = []
    value = 10**6
    while True:
        value += 1
        numbers.append(value)


def _map_shared(n: int) -> object:
    """Memory that RLIMIT_DATA does not count: only the watchdog sees it."""
    import mmap

    while True:
        region = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        region.write(b"x" * (16 * MIB))
        _kept.append(region)


def _pipe() -> int:
    return int(sys.argv[1])


def _close_everything(n: int) -> object:
    os.closerange(0, 256)
    raise ValueError("closed")


def _reopen_pipe(n: int) -> object:
    os.close(_pipe())
    file = tempfile.TemporaryFile()  # noqa: SIM115
    os.dup2(file.fileno(), _pipe())
    return 0


def _write_into_pipe(n: int) -> object:
    os.write(_pipe(), b'{"phase": "report"}\n')
    return _wait(n)


def _fork(n: int) -> object:
    """The fork comes back from the work, as the child does."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return 0


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def _exit_of_a_library(n: int) -> object:
    os.write(2, b"libgomp: Thread creation failed: Resource temporarily unavailable\n")
    os._exit(1)


def _dereference_null(n: int) -> object:
    return ctypes.string_at(0)


endings: dict[str, Callable[[int], object]] = {
    "finish": lambda n: 0,
    "nan": lambda n: float("nan"),
    "sigkill": _kill(signal.SIGKILL),
    "sigsegv": _dereference_null,
    "sigabrt": _kill(signal.SIGABRT),
    "exit": lambda n: os._exit(3),
    "exit-of-a-library": _exit_of_a_library,
    "sys-exit": _raise(SystemExit(1)),
    "import-error": _import_error,
    "wait": _wait,
    "spin": _spin,
    "endless-blocks": _allocate_blocks,
    "endless-objects": _allocate_objects,
    "endless-shared": _map_shared,
    "memory-error": _raise(MemoryError()),
    "primitive": _raise(RuntimeError("could not create a primitive")),
    "lapack": _raise(
        RuntimeError(
            "linalg.eigh: Argument 8 has illegal value. Most certainly there is a bug in the "
            "implementation calling the backend library."
        )
    ),
    "illegal-access": _raise(
        RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors")
    ),
    "cuda-memory": _raise(RuntimeError("CUDA out of memory. Tried to allocate 9 MiB.")),
    "cudnn-engine": _raise(RuntimeError("GET was unable to find an engine to execute this")),
    "value-error": _raise(ValueError("unsupported layer Foo")),
    "words": _raise(ValueError("the label 'CUDA out of memory' is unknown")),
    "unreadable": _raise(UnreadableError()),
    "close-everything": _close_everything,
    "close-pipe": lambda n: os.close(_pipe()),
    "reopen-pipe": _reopen_pipe,
    "garbage": lambda n: os.write(_pipe(), b"garbage\n"),
    "flood": lambda n: [os.write(_pipe(), b"x" * 2**16) for _ in range(1000)],
    "false-message": _write_into_pipe,
    "fork": _fork,
}
