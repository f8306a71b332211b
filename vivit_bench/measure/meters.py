"""What a child measures of itself, and the limit it puts on itself, from "ready" on."""

import json
import os
import resource
import subprocess
import sys
from typing import Protocol

from vivit_bench.errors import UsageError
from vivit_bench.measure.budget import MemoryBudget
from vivit_bench.measure.host_memory import (
    MemoryReading,
    others_memory,
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
        return HostMeter(budget, spec.one_cpu)
    return DeviceMeter(budget, spec.device)


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
    """

    def __init__(self, budget: MemoryBudget | None, one_cpu: bool):
        self._budget = budget
        self._one_cpu = one_cpu
        self._unlimited = resource.getrlimit(resource.RLIMIT_DATA)

    def start(self) -> Ready:
        """See `Meter`."""
        others = others_memory(_others())
        settle(self._one_cpu)
        reset_peak()
        idle = _read_own_memory()
        if self._budget is not None:
            _, hard = self._unlimited
            soft = idle.data + self._budget.fence_bytes
            if hard != resource.RLIM_INFINITY:
                soft = min(soft, hard)
            # Not RLIMIT_AS, which also counts reserved address space, more for every thread.
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        return Ready(idle_bytes=idle.resident, memory=idle, other_bytes=others)

    def stop(self) -> Measured:
        """See `Meter`."""
        resource.setrlimit(resource.RLIMIT_DATA, self._unlimited)
        now = _read_own_memory()
        others = _others()
        return Measured(memory=now, other_bytes=others_memory(others), other_processes=len(others))


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

    The limit is PyTorch's per-process fraction of the device. The peak is that of allocated
    memory, which repeats exactly; reserved memory must stay within the limit. Not run yet: no
    GPU was at hand, the tests replace ``torch.cuda``.

    Args:
        budget: None sets no limit.
        device: ``cuda:i``.
    """

    def __init__(self, budget: MemoryBudget | None, device: str):
        self._budget = budget
        self._device = device
        self._idle = 0

    def start(self) -> Ready:
        """See `Meter`; the idle process is what model and warm-up left allocated."""
        import torch

        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self._idle = torch.cuda.memory_allocated(self._device)
        if self._budget is not None:
            total = torch.cuda.get_device_properties(self._device).total_memory
            reserved = torch.cuda.memory_reserved(self._device)
            fraction = min((reserved + self._budget.limit_bytes) / total, 1.0)
            torch.cuda.set_per_process_memory_fraction(fraction, self._device)
        return Ready(idle_bytes=self._idle)

    def stop(self) -> Measured:
        """See `Meter`."""
        import torch

        peak = torch.cuda.max_memory_allocated(self._device)
        if self._budget is not None:
            torch.cuda.set_per_process_memory_fraction(1.0, self._device)
        return Measured(peak_bytes=max(peak - self._idle, 0), absolute_peak_bytes=peak)


def available_device_memory(device: str) -> int:
    """Free bytes of a CUDA device.

    Asked in a process of its own: a CUDA context in this one would take memory from the trials.

    Raises:
        UsageError: It cannot be read.
    """
    code = "import json, sys, torch; print(json.dumps(torch.cuda.mem_get_info(sys.argv[1])))"
    command = [sys.executable, "-P", "-c", code, device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"--device {device}: its free memory cannot be read: {last}")
    return int(json.loads(done.stdout)[0])
