"""What a child measures of itself, and the limit it puts on itself, from "ready" on."""

import gc
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Protocol

from vivit_bench.arguments import format_size
from vivit_bench.errors import DeviceLowError, UsageError
from vivit_bench.measure.budget import DEVICE_RESERVE, MemoryBudget, check_ulimits
from vivit_bench.measure.host_memory import (
    MemoryReading,
    read_address_space,
    read_all_memory,
    read_memory,
    reset_peak,
    settle,
)
from vivit_bench.measure.keeper import descendants
from vivit_bench.measure.protocol import Measured, Reading, Ready, Spec


class Meter(Protocol):
    """Memory of one device, or none."""

    def start(self) -> Ready:
        """Take the present memory for the idle process's, and set the limit if there is one."""

    def stop(self) -> Measured:
        """Lift the limit and read the peak."""


def make_meter(spec: Spec) -> Meter:
    """The meter of what a child is to read."""
    if spec.reading is Reading.TIME:
        return NoMeter()
    budget = None if spec.limit_bytes is None else MemoryBudget(spec.limit_bytes)
    if spec.device == "cpu":
        return HostMeter(budget, spec.one_cpu, spec.whole_process)
    return DeviceMeter(budget, spec.device, spec.whole_process)


class NoMeter:
    """Where time is taken, nothing else is done."""

    def start(self) -> Ready:
        """See `Meter`."""
        return Ready()

    def stop(self) -> Measured:
        """See `Meter`."""
        return Measured()


class HostMeter:
    """The process's own memory, and that of other processes that work for it.

    Args:
        budget: None sets no limit.
        one_cpu: See `settle`.
        whole_process: Take an idle process of nothing; pages of files, those of libraries first,
            do not count all the same.
    """

    def __init__(self, budget: MemoryBudget | None, one_cpu: bool, whole_process: bool):
        self._budget = budget
        self._one_cpu = one_cpu
        self._whole = whole_process
        self._unlimited = resource.getrlimit(resource.RLIMIT_DATA)

    def start(self) -> Ready:
        """See `Meter`.

        Raises:
            UsageError: The shell allows less than the limit needs.
        """
        _, others = read_all_memory(os.getpid(), _others())
        settle(self._one_cpu)
        reset_peak()
        idle = _read_own_memory()
        if self._budget is not None:
            check_ulimits(self._budget.limit_bytes, idle.data, read_address_space())
            _, hard = self._unlimited
            soft = idle.data + self._budget.fence_bytes
            # Not RLIMIT_AS, which also counts reserved address space, more for every thread.
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        if self._whole:
            nothing = MemoryReading(resident=0, peak=0, file=0, data=idle.data)
            counted = idle.own + others
            return Ready(idle_bytes=idle.resident, memory=nothing, counted_bytes=counted)
        return Ready(idle_bytes=idle.resident, memory=idle, other_bytes=others)

    def stop(self) -> Measured:
        """See `Meter`."""
        resource.setrlimit(resource.RLIMIT_DATA, self._unlimited)
        others = _others()
        now, beside = read_all_memory(os.getpid(), others)
        return Measured(memory=now, other_bytes=beside, other_processes=len(others))


def _others() -> list[int]:
    """Processes that this one has started, also those that have left it (see `keeper`)."""
    return [process for process in descendants(os.getppid()) if process != os.getpid()]


def _read_own_memory() -> MemoryReading:
    reading = read_memory()
    if reading is None:
        raise OSError("/proc/self/status has no VmHWM: memory is measured on Linux only")
    return reading


class DeviceMeter:
    """A CUDA device's memory as PyTorch's allocator sees it.

    The limit is PyTorch's per-process fraction of the device, which bounds what the allocator
    reserves. The peak is that of allocated memory, which repeats exactly; that of reserved memory
    is read too. Both leave out the CUDA context, the handles and kernels of libraries, and what
    libraries allocate for themselves: 0.5 to 0.7 GiB of an H100 under PyTorch 2.11, where a small
    search has run; the tests replace ``torch.cuda``.

    Args:
        budget: None sets no limit.
        device: ``cuda:i``.
        whole_process: Take an idle process of nothing.
    """

    def __init__(self, budget: MemoryBudget | None, device: str, whole_process: bool = False):
        self._budget = budget
        self._device = device
        self._whole = whole_process
        self._idle = self._reserved = self._refused = 0

    def start(self) -> Ready:
        """See `Meter`; the idle process is what model and warm-up left allocated.

        Raises:
            DeviceLowError: The device has less free than the limit and `DEVICE_RESERVE`.
        """
        from torch import cuda

        gc.collect()
        cuda.synchronize(self._device)
        cuda.empty_cache()
        cuda.reset_peak_memory_stats(self._device)
        idle, reserved = cuda.memory_allocated(self._device), cuda.memory_reserved(self._device)
        if not self._whole:
            self._idle, self._reserved = idle, reserved
        self._refused = self._count_refused()
        free, total = cuda.mem_get_info(self._device)
        if self._budget is not None:
            left = self._budget.limit_bytes + self._reserved - reserved
            _check_free(self._device, free, max(left, 0))
            fraction = min((self._reserved + self._budget.limit_bytes) / total, 1.0)
            cuda.set_per_process_memory_fraction(fraction, self._device)
        return Ready(
            idle_bytes=idle,
            outside_bytes=max(total - free - reserved, 0),
            counted_bytes=idle if self._whole else 0,
        )

    def stop(self) -> Measured:
        """See `Meter`.

        Raises:
            RuntimeError: CUDA has failed before, and with it every call since.
        """
        from torch import cuda

        peak = cuda.max_memory_allocated(self._device)
        measured = Measured(
            peak_bytes=max(peak - self._idle, 0),
            absolute_peak_bytes=peak,
            reserved_peak_bytes=max(cuda.max_memory_reserved(self._device) - self._reserved, 0),
            refused_allocations=self._count_refused() - self._refused,
        )
        free, _ = cuda.mem_get_info(self._device)
        if self._budget is None:
            return measured
        allowed = self._reserved + self._budget.limit_bytes - cuda.memory_reserved(self._device)
        cuda.set_per_process_memory_fraction(1.0, self._device)
        return replace(measured, free_bytes=free, allowed_bytes=max(allowed, 0))

    def _count_refused(self) -> int:
        """Allocations that failed for good; cuDNN may have gone on with less workspace."""
        from torch import cuda

        return int(cuda.memory_stats(self._device)["num_ooms"])


def _check_free(device: str, free: int, limit_bytes: int) -> None:
    needed = limit_bytes + DEVICE_RESERVE
    if free < needed:
        raise DeviceLowError(
            f"the device ran low: {device} has {format_size(free)} free after the set-up, and a "
            f"trial under a limit of {format_size(limit_bytes)} needs {format_size(needed)}; free "
            "some that other processes use, or use a smaller --memory-limit"
        )


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of a CUDA device now."""

    free_bytes: int
    """Beside the CUDA context of the process that asked."""
    total_bytes: int
    name: str
    """Of the card."""


def device_memory(device: str) -> DeviceMemory:
    """Ask a CUDA device for its memory.

    Asked in a process of its own: a CUDA context in this one would take memory from the trials.

    Raises:
        UsageError: It cannot be read.
    """
    code = (
        "import json, sys; from torch import cuda; device = sys.argv[1]; "
        "print(json.dumps([*cuda.mem_get_info(device), cuda.get_device_name(device)]))"
    )
    command = [sys.executable, "-P", "-c", code, device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"--device {device}: its free memory cannot be read: {last}")
    return DeviceMemory(*json.loads(done.stdout))
