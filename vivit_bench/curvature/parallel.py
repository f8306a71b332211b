"""Independent pieces of work side by side, each on one core.

Matrix products too small for two threads waste the second core; two of them at a time
do not. The same holds for the uneven row blocks of a triangle. PyTorch releases the
interpreter lock inside its kernels.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

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
