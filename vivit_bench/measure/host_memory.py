"""Memory of a Linux process, read from /proc, and made to be exact.

What was seen without these measures: the same trial's peak differs by 0.3 MiB from run to run,
as much as 20 samples of a small network use. With them most readings on one CPU are equal to
0.01 MiB.
"""

import contextlib
import ctypes
import functools
import gc
import mmap
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment of a process whose peak is to repeat; without it, peaks differ by 10 MiB.

Every block of 64 KiB and more is mapped alone and returned when freed. It makes work slower.
"""

_MADV_POPULATE_READ = 22  # Linux 5.14
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_STATUS = re.compile(
    rb"VmHWM:\s*(\d+) kB\nVmRSS:\s*(\d+) kB\n.*?RssFile:\s*(\d+) kB\n.*?VmData:\s*(\d+) kB",
    re.DOTALL,
)
_PRIVATE = "Private_Dirty:"
_IN_MEMORY = re.compile(r"/(memfd:|dev/shm/).* \(deleted\)", re.DOTALL)
_MAPPED = re.compile(r"^\S+ \S+ \S+ (\S+) (\d+) +/(?:memfd:|dev/shm/)", re.MULTILINE)
_NOISE = 2**20

PAGE = os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True)
class MemoryReading:
    """Fields of /proc/PID/status, in bytes."""

    resident: int
    """VmRSS."""
    peak: int
    """VmHWM, the largest resident size since it was reset."""
    file: int
    """RssFile: pages of libraries and mapped files."""
    data: int
    """VmData: private writable memory, whether or not touched."""

    @property
    def own(self) -> int:
        """Resident memory without pages of files: anonymous and shared memory."""
        return self.resident - self.file


def read_memory(pid: int | str = "self") -> MemoryReading | None:
    """Read a process's memory; None if it has ended."""
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            found = _STATUS.search(file.read())
    except OSError:
        return None
    if found is None:  # a zombie
        return None
    peak, resident, of_files, data = (int(kib) * 1024 for kib in found.groups())
    return MemoryReading(resident, peak, of_files, data)


def read_address_space() -> int:
    """Bytes of this process's address space, whether or not touched or even usable."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE


def reset_peak() -> None:
    """Set this process's VmHWM to its resident size.

    Raises:
        OSError: The kernel does not allow it.
    """
    Path("/proc/self/clear_refs").write_text("5")


class PeakOverIdle:
    """The peak of a process over its idle state, from readings of it: the rule of every budget.

    What counts is the process's own memory and that of other processes that work for it. Pages
    of files do not: those of libraries are not the batch's, and the kernel takes those of data
    back when it needs them.

    Args:
        idle: The process, right after `reset_peak`.
        idle_others: Memory of other processes then, in bytes.
    """

    def __init__(self, idle: MemoryReading, idle_others: int = 0):
        self._idle = idle
        self._idle_others = idle_others
        self._most_file = idle.file
        self.bytes: int | None = None
        """Largest peak seen; None before the first reading."""
        self.absolute_bytes: int | None = None
        """Peak of the whole process, in the reading that showed it."""

    def see(self, now: MemoryReading, others: int = 0) -> int:
        """Take in a reading.

        Args:
            now: The process.
            others: Memory of other processes, in bytes.

        Returns:
            Memory over the idle process now, in bytes.
        """
        self._most_file = max(self._most_file, now.file)
        over_idle = now.own - self._idle.own + others - self._idle_others
        # The kernel's peak is exact between the readings, but counts the pages of files too.
        peak = now.peak - self._idle.resident - max(now.file - self._idle.file, 0)
        dropped = self._most_file - max(now.file, self._idle.file)
        if dropped > _NOISE:
            peak -= dropped
        seen = max(peak, over_idle, 0)
        if self.bytes is None or seen > self.bytes:
            self.bytes, self.absolute_bytes = seen, now.peak
        return over_idle


def others_memory(processes: Iterable[int]) -> int:
    """Bytes that processes have for themselves alone: no pages of files, nothing shared.

    A forked process shares its parent's memory, where that is counted already.
    """
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            reading = read_memory(process)  # of another user, or it has ended
            total += reading.own if reading is not None else 0
        else:
            total += sum(int(line.split()[1]) * 1024 for line in lines if _PRIVATE in line)
    return total


def read_all_memory(process: int, others: Sequence[int]) -> tuple[MemoryReading | None, int]:
    """Read a process, and the memory of others that work for it with files that none has mapped.

    Workers of a DataLoader put the batches that they have made ahead into deleted files in memory,
    and unmap them. What such a file has counts if no process has it mapped before and after the
    processes are read: else its pages may be theirs.

    Args:
        process: That all is done for.
        others: Processes that work for it.

    Returns:
        Its reading, None if it has ended; and bytes beside.
    """
    before = _unmapped_files((process, *others))
    reading, beside = read_memory(process), others_memory(others)
    if before:
        after = _unmapped_files((process, *others))
        beside += sum(min(size, after.get(file, 0)) for file, size in before.items())
    return reading, beside


def _unmapped_files(processes: Sequence[int]) -> dict[tuple[str, int], int]:
    """Bytes of deleted files in memory that processes have open, and none of them mapped."""
    found: dict[tuple[str, int], int] = {}
    for process in processes:
        with contextlib.suppress(OSError):  # of another user, or it has ended
            for name in os.listdir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):  # it has been closed
                    link = f"/proc/{process}/fd/{name}"
                    if _IN_MEMORY.fullmatch(os.readlink(link)):
                        file = os.stat(link)
                        device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
                        found[device, file.st_ino] = file.st_blocks * 512
    for process in processes if found else ():
        with contextlib.suppress(OSError):
            for device, number in _MAPPED.findall(Path(f"/proc/{process}/maps").read_text()):
                found.pop((device, int(number)), None)
    return found


def forget_exactness() -> None:
    """Let the allocator keep freed memory again, as it does without `EXACT_MEMORY`."""
    with contextlib.suppress(AttributeError):  # the C library is not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)


def settle(one_cpu: bool) -> None:
    """Bring this process to rest before ``reset_peak``, so that peaks repeat.

    The kernel adds up page counts per CPU and publishes them in batches; what a CPU holds back
    is published by one large change on that CPU.

    Args:
        one_cpu: Keep all threads on one CPU from now on: the counts are then exact.
    """
    gc.collect()
    _return_freed_memory()
    cpus = os.sched_getaffinity(0)
    for cpu in sorted(cpus):
        os.sched_setaffinity(0, {cpu})
        _publish_counts()
    if not one_cpu:
        os.sched_setaffinity(0, cpus)
        return
    _touch_code()
    chosen = {max(cpus)}
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), chosen)
    _publish_counts()


def _return_freed_memory() -> None:
    """Give back what set-up and warm-up have freed: a batch made of it would seem to cost nothing.

    Reading a data set leaves tens of MiB of it.
    """
    with contextlib.suppress(AttributeError):  # the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _touch_code() -> None:
    """Map all of the libraries' code now, so that no page of it is counted during the work."""
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions = line.split(maxsplit=2)[:2]
        if permissions.startswith("r-x") and " /" in line:
            start, end = (int(address, 16) for address in addresses.split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_POPULATE_READ)


def _publish_counts() -> None:
    library = _largest_mapped_file()
    size = 256 * PAGE
    private, populate = mmap.MAP_PRIVATE, mmap.MAP_POPULATE
    for _ in range(2):
        mmap.mmap(-1, size, flags=private | mmap.MAP_ANONYMOUS | populate).close()
        with library.open("rb") as file:
            part = min(size, library.stat().st_size)
            mmap.mmap(file.fileno(), part, flags=private | populate, prot=mmap.PROT_READ).close()


@functools.cache
def _largest_mapped_file() -> Path:
    lines = Path("/proc/self/maps").read_text().splitlines()
    files = {Path(line.split(maxsplit=5)[5]) for line in lines if " /" in line}
    return max((file for file in files if file.is_file()), key=lambda file: file.stat().st_size)
