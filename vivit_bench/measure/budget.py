"""The memory a trial may use.

A budget of B bytes means: *over the idle process*. A child process imports the libraries,
builds the model, reads the data set and does the whole work once with 2 samples. Its memory
then is the fixed cost, the "idle process". From there on its peak may rise by at most B. The
mini-batch of N samples is made afterwards, so it counts, as it would for a user.
"""

import os
import resource
from dataclasses import dataclass

from vivit_bench.arguments import format_size
from vivit_bench.errors import UsageError

MIB = 2**20

NOISE_BYTES = MIB
"""Peaks below this cannot be told from the idle process's own changes."""

ONE_CPU_RESOLUTION = MIB // 4
"""By which a peak that is read with all threads on one CPU may be too large: most readings there
are equal to 0.01 MiB, none is too small."""

DEFAULT_SHARE = 0.5
"""Share of the memory available now that is the budget without ``--memory-limit``."""
_DEFAULT_STEP = 64 * MIB

MACHINE_RESERVE = 256 * MIB
"""Bytes that must stay available; below, a trial is stopped and nothing concluded from it."""

DEVICE_RESERVE = 256 * MIB
"""Bytes that a CUDA device must have free beside the limit: CUDA loads more of its libraries and
kernels during the work, outside of what PyTorch's allocator counts and the limit bounds."""

BUDGET_MEANING = (
    "peak memory over the idle process (libraries, model and data set, after a 2-sample warm-up)"
)


@dataclass(frozen=True)
class MemoryBudget:
    """A limit and the margins around it, in bytes."""

    limit_bytes: int
    """Largest peak over the idle process with which a batch fits."""

    @property
    def watchdog_bytes(self) -> int:
        """Resident memory over the idle process at which the child is killed."""
        return self.limit_bytes + max(64 * MIB, self.limit_bytes // 10)

    @property
    def fence_bytes(self) -> int:
        """Data segment over the idle process at which the kernel refuses memory.

        Much wider than the watchdog's margin, because what is not touched takes no memory: a
        symmetric matrix that is solved where it lies has one triangle that is, so that of a full
        budget twice as much is allocated, beside the buffers of passes; and PyTorch's CPU
        operations allocate up to 20% more than they ever touch. A tighter fence, not the peak,
        would decide: eigenvalues under 2 GiB ask for 4.4 GiB.
        """
        return 3 * self.limit_bytes + 64 * MIB

    def resolution_bytes(self, threads: int) -> int:
        """How near to the limit one reading cannot decide.

        The kernel keeps page counts per CPU in batches of max(32, 2 CPUs) pages, for anonymous
        memory and for files; each thread's CPU may hold one back. Threads that share a CPU or
        do not also differ by up to 1 MiB in which buffers they hold at the same time.

        Args:
            threads: Of the child.
        """
        batch = max(32, 2 * (os.cpu_count() or 1)) * os.sysconf("SC_PAGESIZE")
        return max(2 * MIB, 2 * threads * batch)


def check_limit(limit_bytes: int, option: str = "--memory-limit") -> None:
    """Refuse a budget that no reading can be compared with.

    Args:
        limit_bytes: The budget.
        option: By which it was given.

    Raises:
        UsageError: It is below `NOISE_BYTES`.
    """
    if limit_bytes < NOISE_BYTES:
        raise UsageError(
            f"{option} {format_size(limit_bytes)}: below {format_size(NOISE_BYTES)}, the "
            "smallest peak that can be told from an idle process; write for example 512MiB or 2GiB"
        )


def check_ulimits(limit_bytes: int, data: int = 0, address_space: int = 0) -> None:
    """Refuse a budget where limits of the shell's, and not the budget, would decide.

    Args:
        limit_bytes: The budget.
        data: Data segment of the idle process.
        address_space: Of the idle process.

    Raises:
        UsageError: A limit is below what the idle process has and the fence of the budget.
    """
    fence = MemoryBudget(limit_bytes).fence_bytes
    # The fence is a soft limit of the data segment, which may be raised to the hard one.
    _, most_data = resource.getrlimit(resource.RLIMIT_DATA)
    most_addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    for option, most, used in (("-d", most_data, data), ("-v", most_addresses, address_space)):
        if most != resource.RLIM_INFINITY and most < used + fence:
            raise UsageError(
                f"ulimit {option} {most // 1024} ({format_size(most)}): a trial under a limit of "
                f"{format_size(limit_bytes)} needs {format_size(used + fence)}, or this would "
                f"decide instead; type ulimit {option} unlimited, in a new shell if this one may "
                "not, or use a smaller --memory-limit"
            )


def format_peak(size: int | None) -> str:
    """A peak for people; what cannot be told from nothing is ``below 1 MiB``."""
    if size is not None and size < NOISE_BYTES:
        return f"below {format_size(NOISE_BYTES)}"
    return format_size(size)


def default_limit(available: int) -> int:
    """The budget without ``--memory-limit``: `DEFAULT_SHARE`, rounded down to 64 MiB.

    Args:
        available: Bytes available now.

    Returns:
        Bytes, at least 64 MiB.
    """
    return max(int(available * DEFAULT_SHARE) // _DEFAULT_STEP, 1) * _DEFAULT_STEP
