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
from dataclasses import dataclass
from pathlib import Path

_MADV_POPULATE_READ = 22  # Linux 5.14

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


def read_memory(pid: int | str = "self") -> MemoryReading | None:
    """Read a process's memory; None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    fields = dict(
        line.split(":", 1) for line in text.splitlines() if line.startswith(("Vm", "Rss"))
    )
    if "VmHWM" not in fields:  # a zombie
        return None
    return MemoryReading(
        *(int(fields[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM", "RssFile", "VmData"))
    )


def read_resident(pid: int) -> int | None:
    """Resident bytes of a process, cheaply; None if it has ended."""
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return resident * PAGE


def reset_peak() -> None:
    """Set this process's VmHWM to its resident size.

    Raises:
        OSError: The kernel does not allow it.
    """
    Path("/proc/self/clear_refs").write_text("5")


def peak_over(idle: MemoryReading, now: MemoryReading) -> int:
    """Peak since ``reset_peak`` over the idle process, in bytes.

    Library pages that were first touched since then are left out: they are not the batch's,
    and how many there are depends on the page cache.
    """
    return max(now.peak - idle.resident - max(now.file - idle.file, 0), 0)


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
