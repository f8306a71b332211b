"""The few dense kernels that the Gram matrix is made of."""

import torch
from torch import Tensor, nn

from vivit_bench.curvature.parallel import for_each


def add_lower(gram: Tensor, v: Tensor) -> None:
    """Lower triangle of ``gram`` += v v^T, in row blocks (blocks on the diagonal whole).

    Where there are enough blocks for all CPU threads, each is computed on one core.

    Args:
        gram: [M, M].
        v: [M, d].
    """
    rows = len(gram)
    # Small blocks waste less above the diagonal, large ones run at a higher rate.
    block = min(max(rows // 8, 128), 512)

    def add(start: int) -> None:
        stop = min(start + block, rows)
        gram[start:stop, :stop].addmm_(v[start:stop], v[:stop].t())

    starts = range(0, rows, block)[::-1]  # the longest first
    if len(starts) < 4 * torch.get_num_threads():  # too few to share out evenly
        for start in starts:
            add(start)
    else:
        for_each(add, starts, gram.device)


def mirror_lower(gram: Tensor) -> None:
    """Copy the lower triangle of ``gram`` [M, M] onto the upper one, in row blocks."""
    rows = len(gram)
    for start in range(0, rows, 512):
        stop = min(start + 512, rows)
        gram[:start, start:stop] = gram[start:stop, :start].t()
        square = gram[start:stop, start:stop]
        square.copy_(square.tril() + square.tril(-1).t())


def unfold(
    z: Tensor, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, channels: slice = slice(None)
) -> Tensor:
    """Patches that a convolution sees (im2col), for any number of spatial axes.

    Args:
        z: [n, C_in, ...] layer input.
        module: The convolution (groups = 1).
        channels: Input channels to take.

    Returns:
        [n, channels * kernel, P] with P output positions.
    """
    z = z[:, channels]
    if any(module._reversed_padding_repeated_twice):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        z = nn.functional.pad(z, module._reversed_padding_repeated_twice, mode=mode)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    positions = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(z.shape[2:], kernel, stride, dilation, strict=True)
    ]
    steps = z.stride()[2:]
    patches = z.as_strided(
        (*z.shape[:2], *kernel, *positions),
        (
            *z.stride()[:2],
            *(step * d for step, d in zip(steps, dilation, strict=True)),
            *(step * s for step, s in zip(steps, stride, strict=True)),
        ),
        z.storage_offset(),
    )
    return patches.reshape(len(z), -1, int(torch.tensor(positions).prod()))
