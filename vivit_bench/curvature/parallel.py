"""Independent pieces of work side by side, each on one core.

Matrix products too small for two threads waste the second core; two of them at a time
do not. PyTorch releases the interpreter lock inside its kernels.
"""

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
    threads = torch.get_num_threads()
    if threads == 1 or device.type != "cpu":
        for item in items:
            work(item)
        return
    # The number of threads is a property of the calling thread.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(work, items):
            pass
