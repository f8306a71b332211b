"""What a child measures of itself, and the limit it puts on itself, from "ready" on."""

import resource
from dataclasses import asdict
from typing import Any, Protocol

from vivit_bench.critical_batch.budget import MemoryBudget
from vivit_bench.critical_batch.process_memory import (
    MemoryReading,
    peak_over,
    read_memory,
    reset_peak,
    settle,
)


class Meter(Protocol):
    """Memory of one device."""

    def start(self) -> dict[str, Any]:
        """Take the present memory for the idle process's, and set the limit.

        Returns:
            ``idle_bytes`` and whatever else the parent is to know.
        """

    def stop(self) -> dict[str, Any]:
        """Lift the limit and read the peak.

        Returns:
            ``peak_bytes`` over the idle process and ``absolute_peak_bytes``.
        """


class HostMeter:
    """The process's own memory."""

    def __init__(self, budget: MemoryBudget, one_cpu: bool):
        self._budget = budget
        self._one_cpu = one_cpu
        self._idle: MemoryReading | None = None
        self._unlimited = resource.getrlimit(resource.RLIMIT_DATA)

    def start(self) -> dict[str, Any]:
        """See `Meter`; ``idle`` has the full reading."""
        settle(self._one_cpu)
        reset_peak()
        idle = _read_own_memory()
        self._idle = idle
        _, hard = self._unlimited
        soft = idle.data + self._budget.fence_bytes
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        # Not RLIMIT_AS, which also counts reserved address space, more for every thread.
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        return {"idle_bytes": idle.resident, "idle": asdict(idle)}

    def stop(self) -> dict[str, Any]:
        """See `Meter`."""
        resource.setrlimit(resource.RLIMIT_DATA, self._unlimited)
        now = _read_own_memory()
        assert self._idle is not None
        return {"peak_bytes": peak_over(self._idle, now), "absolute_peak_bytes": now.peak}


def _read_own_memory() -> MemoryReading:
    reading = read_memory()
    if reading is None:
        raise OSError("/proc/self/status has no VmHWM: critical-batch needs Linux")
    return reading
