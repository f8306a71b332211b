"""The dense kernels that Gram matrices are made of, and how they share the cores.

Matrix products too small for two threads waste the second core; two of them at a time
do not. The same holds for the uneven row blocks of a triangle. PyTorch releases the
interpreter lock inside its kernels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from vivit_bench.curvature.tuning import tuning

T = TypeVar("T")


def for_each(work: Callable[[T], None], items: Iterable[T], device: torch.device) -> None:
    """Call ``work`` on every item, on as many threads as PyTorch may use on the CPU.

    Args:
        work: Must not write where another call reads or writes.
        items: The pieces.
        device: Where the work's tensors are; only CPU work is spread.
    """
    left = deque(items)

    def drain() -> None:
        while left:
            try:
                item = left.popleft()
            except IndexError:  # another thread was faster
                return
            work(item)

    threads = torch.get_num_threads()
    if threads == 1 or device.type != "cpu":
        drain()
        return
    # How many threads PyTorch's kernels use is a property of the calling thread. This one
    # takes part: every thread more has buffers of its own in the libraries.
    with ThreadPoolExecutor(threads - 1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        others = [pool.submit(drain) for _ in range(threads - 1)]
        torch.set_num_threads(1)
        try:
            drain()
        finally:
            left.clear()
            torch.set_num_threads(threads)
        for other in others:
            other.result()


def row_block(rows: int, device: torch.device) -> int:
    """Rows of a Gram matrix that are computed together.

    Small blocks waste less above the diagonal, large ones run at a higher rate.
    """
    fewest, most = tuning(device).row_block
    return min(max(rows // 8, fewest), most)


def product_block(columns: int, device: torch.device) -> int:
    """Samples, of so many columns each, whose rows of a Gram matrix are computed together."""
    return max(tuning(device).row_block[1] // max(columns, 1), 1)


def add_lower(gram: Tensor, v: Tensor) -> None:
    """Lower triangle of ``gram`` += v v^T, in row blocks (blocks on the diagonal whole).

    Where there are enough blocks for all CPU threads, each is computed on one core.

    Args:
        gram: [M, M].
        v: [M, d].
    """
    rows = len(gram)
    block = row_block(rows, gram.device)

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


def times_lower(matrix: Tensor, vector: Tensor) -> Tensor:
    """Product of a symmetric matrix, of which the lower triangle is valid, with a vector.

    In row blocks, so that no second matrix is made; float64.
    """
    out = torch.zeros_like(vector)
    block = tuning(matrix.device).row_block[1] // 2
    for start in range(0, len(matrix), block):
        stop = min(start + block, len(matrix))
        rows = matrix[start:stop, :stop].to(torch.float64, copy=True)
        rows[:, start:] = rows[:, start:].tril()
        out[start:stop] += rows @ vector[:stop]
        rows[:, start:].diagonal().zero_()
        out[:stop] += rows.t() @ vector[start:stop]
    return out


def columns_of_lower(matrix: Tensor, columns: slice) -> Tensor:
    """Columns of a symmetric matrix, of which the lower triangle is valid, [m, width] float64."""
    start, stop = columns.start, columns.stop
    found = matrix.new_empty(len(matrix), stop - start, dtype=torch.float64)
    found[:start] = matrix[start:stop, :start].t()
    square = matrix[start:stop, start:stop].double()
    found[start:stop] = square.tril() + square.tril(-1).t()
    found[stop:] = matrix[stop:, start:stop]
    return found


def unfold(
    z: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Patches that a convolution sees (im2col), for any number of spatial axes.

    Args:
        z: [n, channels, ...] layer input.
        kernel: Its size along each spatial axis, as the following.
        stride: Steps between output positions.
        padding: Zeros on either side.
        dilation: Steps between a patch's entries.

    Returns:
        [n, channels * kernel, P] with P output positions.
    """
    if any(padding):
        z = torch.nn.functional.pad(z, [p for p in reversed(padding) for _ in range(2)])
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
    return patches.reshape(len(z), -1, prod(positions))
