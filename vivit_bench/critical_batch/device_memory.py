"""Memory of a CUDA device.

Not run yet: no GPU was at hand. The tests replace ``torch.cuda``.
"""

import json
import subprocess
import sys
from typing import Any

from vivit_bench.critical_batch.budget import MemoryBudget
from vivit_bench.errors import UsageError


def available_device_memory(device: str) -> int:
    """Free bytes of a CUDA device.

    Asked in a process of its own: a CUDA context in this one would take memory from the trials.
    """
    code = "import json, sys, torch; print(json.dumps(torch.cuda.mem_get_info(sys.argv[1])))"
    command = [sys.executable, "-P", "-c", code, device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"--device {device}: its free memory cannot be read: {last}")
    return int(json.loads(done.stdout)[0])


class DeviceMeter:
    """A CUDA device's memory as PyTorch's allocator sees it (a `Meter`).

    The limit is PyTorch's per-process fraction of the device. The peak is that of allocated
    memory, which repeats exactly; reserved memory must stay within the limit.
    """

    def __init__(self, budget: MemoryBudget, device: str):
        self._budget = budget
        self._device = device
        self._idle = 0

    def start(self) -> dict[str, Any]:
        """See `Meter`; ``idle_bytes`` is what model and warm-up left allocated."""
        import torch

        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self._idle = torch.cuda.memory_allocated(self._device)
        total = torch.cuda.get_device_properties(self._device).total_memory
        reserved = torch.cuda.memory_reserved(self._device)
        fraction = min((reserved + self._budget.limit_bytes) / total, 1.0)
        torch.cuda.set_per_process_memory_fraction(fraction, self._device)
        return {"idle_bytes": self._idle}

    def stop(self) -> dict[str, Any]:
        """See `Meter`."""
        import torch

        peak = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.set_per_process_memory_fraction(1.0, self._device)
        return {"peak_bytes": max(peak - self._idle, 0), "absolute_peak_bytes": peak}
