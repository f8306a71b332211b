"""Devices and threads, as every command takes them."""

from collections.abc import Iterator
from contextlib import contextmanager

from vivit_bench.errors import UsageError, VivitBenchError, is_out_of_memory

OPENMP_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
"""How OpenMP's threads wait for work: they spin for some microseconds, then sleep.

Threads that spin long slow each other down on a busy machine; threads that never spin
wait for the kernel at every small operation. Eigenvalues of cifar10_3c3d at N = 128, in
seconds, for some counts:

    ======  =====  =======================
    count   quiet  beside one busy process
    ======  =====  =======================
    0       1.7    2.5
    3000    1.5    2.7
    10000   1.4    3.2
    100000  1.4    6.5
    ======  =====  =======================
"""


MOST_THREADS = 1024
"""OpenMP crashes on absurd numbers."""


def device_name(text: str) -> str:
    """Check how ``--device`` is written: ``cpu``, ``cuda`` (the first one) or ``cuda:i``.

    Whether this machine has it is not asked, so that a result of another machine can be read.

    Returns:
        ``cpu`` or ``cuda:i``.

    Raises:
        UsageError: Another word.
    """
    if text == "cpu":
        return text
    name, colon, index = text.partition(":")
    if name != "cuda" or (colon and not (index.isascii() and index.isdecimal())):
        raise UsageError(f"--device {text}: write cpu, cuda or cuda:0, cuda:1, ...")
    return f"cuda:{index.lstrip('0') or 0}"


def parse_device(text: str) -> str:
    """Check ``--device`` and that this machine has it.

    Returns:
        ``cpu`` or ``cuda:i``.

    Raises:
        UsageError: Another word, or a device this machine does not have.
    """
    name = device_name(text)
    if name == "cpu":
        return name
    import torch

    if not torch.cuda.is_available():
        raise UsageError(f"--device {text}: PyTorch sees no CUDA device here; use --device cpu")
    count = torch.cuda.device_count()
    # Compared by length first: Python refuses to convert thousands of digits.
    index = name.partition(":")[2]
    if len(index) > len(str(count)) or int(index) >= count:
        raise UsageError(f"--device {text}: there are {count} devices, cuda:0 to cuda:{count - 1}")
    return name


def check_threads(threads: int | None) -> None:
    """Refuse absurd numbers of CPU threads.

    Raises:
        UsageError: Fewer than 1, or more than `MOST_THREADS`.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: must be at least 1")
    if threads is not None and threads > MOST_THREADS:
        raise UsageError(f"--threads {threads}: more than {MOST_THREADS} make no sense")


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Run PyTorch on ``threads`` CPU threads inside the block (None: leave it alone).

    Raises:
        UsageError: Absurdly many.
    """
    import torch

    check_threads(threads)
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables of a child process that is to use some CPU threads.

    They only work if set before the libraries are loaded.
    """
    count = str(threads)
    return {
        **OPENMP_WAITING,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
    }


@contextmanager
def memory_errors(work: str, advice: str) -> Iterator[None]:
    """Turn running out of memory inside the block into one line.

    Args:
        work: What is computed and where, for the message.
        advice: What to type next.

    Raises:
        VivitBenchError: The memory does not suffice.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise VivitBenchError(f"not enough memory for {work}; {advice}") from error
