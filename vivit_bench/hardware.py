"""Devices and threads, as every command takes them."""

from collections.abc import Iterator
from contextlib import contextmanager

from vivit_bench.errors import (
    FailureKind,
    LibraryError,
    UsageError,
    VivitBenchError,
    classify,
    describe,
    is_library_failure,
)

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

CUDA_ENVIRONMENT = {
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # its name before PyTorch 2.9
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""Environment of a process whose peak on a CUDA device is to repeat and to be all that it reserves.

A segment that expands leaves no gaps that are too small for the next tensor. cuBLAS has one
workspace of 32 MiB on every card, and the same sums in every run.
"""
CUDA_VARIABLES = (
    "PYTORCH_NO_CUDA_MEMORY_CACHING",  # nothing is counted then, and peaks are 0
    "PYTORCH_HIP_ALLOC_CONF",
    "CUDA_LAUNCH_BLOCKING",
)
"""Variables of the user's that such a process does not have."""

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
def library_errors(work: str, advice: str) -> Iterator[None]:
    """Turn running out of memory inside the block, and failures of libraries, into one line.

    Args:
        work: What is computed and where, for the message.
        advice: What to type next where less work would do.

    Raises:
        LibraryError: The memory does not suffice, or a library fails.
    """
    try:
        yield
    except Exception as error:
        line = _line(error, work, advice)
        if line is None:
            raise
        raise LibraryError(line) from error


def _line(error: Exception, work: str, advice: str) -> str | None:
    if isinstance(error, LibraryError):
        return None  # an inner block has said it
    kind = classify(error)
    if kind is FailureKind.MEMORY:
        return f"not enough memory for {work}; {advice}"
    if isinstance(error, VivitBenchError) or not is_library_failure(error):
        return None
    said = describe(error)
    match kind:
        case FailureKind.LIMIT:
            return f"{work}: a library does not take arrays of this size ({said}); {advice}"
        case FailureKind.AMBIGUOUS:
            return f"{work}: a library failed, perhaps for want of memory ({said}); {advice}"
    return f"{work}: {said}; --device cpu computes the same without CUDA"
