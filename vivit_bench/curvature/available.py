"""The memory that is left; of this machine without torch, for processes that do without it."""

from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch


def available_memory() -> int:
    """Bytes of memory a new process can use now, under the control group's limit if any."""
    return min([psutil.virtual_memory().available, *_cgroup_headroom(Path("/sys/fs/cgroup"))])


def available_device_memory(device: "torch.device") -> int:
    """Bytes of a CUDA device that this process can use now, those its allocator keeps included."""
    import torch

    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _cgroup_headroom(root: Path) -> list[int]:
    """Limit minus use of the container, for both versions of control groups."""
    headroom = []
    for folder, limit, usage, cache in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = int((folder / limit).read_text())
            used = int((folder / usage).read_text())
            stat = (folder / "memory.stat").read_text().split()
        except (OSError, ValueError):  # no such file, or "max"
            continue
        reclaimable = int(stat[stat.index(cache) + 1]) if cache in stat else 0
        headroom.append(max(most - used + reclaimable, 0))
    return headroom
