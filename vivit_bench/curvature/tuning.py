"""Sizes that change time and memory, but no result beyond rounding, for each kind of device."""

from dataclasses import dataclass

import torch

MIB = 2**20


@dataclass(frozen=True)
class Tuning:
    """Sizes on one kind of device."""

    working_bytes: int
    """Memory target of one micro-batch's backpropagation, unless a caller says otherwise."""
    tile_bytes: int
    """Size of each of the sample-pair contraction's intermediates, per thread."""
    expand_bytes: int
    """What expanding cotangents into V takes beside them, unless one sample takes more."""
    pairs_weight: float
    """Time of a FLOP in the sample-pair contraction over one in a large matrix product."""
    row_block: tuple[int, int]
    """Fewest and most rows of a Gram matrix that are computed together."""


CPU = Tuning(
    working_bytes=48 * MIB,
    # conv3 of 3c3d: 0.5 MiB 0.59 s, 1 MiB 0.38 s, 2 MiB 0.33 s, 4 MiB 0.36 s
    tile_bytes=2 * MIB,
    expand_bytes=4 * MIB,
    pairs_weight=1.25,  # on the layers of 3c3d and All-CNN-C
    row_block=(128, 512),
)
# Kernels are launched one by one: work that is cut as for a CPU's caches is all launches.
CUDA = Tuning(
    working_bytes=1024 * MIB,
    # 3c3d at N = 1024 on an H100: 16 MiB 1.35 s, 64 MiB 1.34 s, 128 MiB 1.40 s, 256 MiB 1.45 s;
    # its conv3 in chunks 1.27 s, with 3 times the FLOPs of pairs.
    tile_bytes=64 * MIB,
    expand_bytes=256 * MIB,
    pairs_weight=4.5,
    row_block=(512, 2048),
)


def tuning(device: torch.device) -> Tuning:
    """The sizes on a device."""
    return CPU if device.type == "cpu" else CUDA


def default_working_bytes(device: torch.device) -> int:
    """Memory target of one micro-batch: on CUDA no more than a sixteenth of the card's.

    Of all its memory, not of what is free, so that the same call gives the same numbers.
    """
    most = tuning(device).working_bytes
    if device.type != "cuda":
        return most
    return min(most, torch.cuda.get_device_properties(device).total_memory // 16)


def tile_bytes(device: torch.device, working_bytes: int) -> int:
    """Size of a sample-pair tile; smaller where a plan makes micro-batches smaller."""
    return min(tuning(device).tile_bytes, max(working_bytes // 16, CPU.tile_bytes))


def expand_bytes(device: torch.device, working_bytes: int) -> int:
    """What expanding cotangents takes; smaller where a plan makes micro-batches smaller."""
    return min(tuning(device).expand_bytes, max(working_bytes // 4, CPU.expand_bytes))


def largest_rows(device: torch.device) -> float:
    """Rows of the largest matrix that a device's eigensolver takes; above, the CPU solves.

    cuSOLVER of CUDA 12 fails from about 25,000 rows whatever the memory (CUDALibrarySamples,
    issue 246); that of CUDA 13 was measured up to 33,000.
    """
    if device.type == "cpu":
        return float("inf")
    version = torch.version.cuda or "13"  # none: nothing is computed there
    return 33_000 if int(version.partition(".")[0]) >= 13 else 24_000
