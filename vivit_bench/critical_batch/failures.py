"""What an exception says about memory.

Most finders of batch sizes match a few strings: they miss some failures for memory and take
errors for others. Here only what cannot mean anything else is memory; what may or may not be
needs evidence, a peak near the budget; everything else is an error.
"""

import errno
import re
import sys
from enum import StrEnum


class FailureKind(StrEnum):
    """What a failed trial's child can say about its exception."""

    MEMORY = "memory"
    """Out of memory, without doubt."""
    AMBIGUOUS = "ambiguous"
    """Seen when memory runs out, but also otherwise."""
    LIMIT = "limit"
    """A limit that is not memory."""
    ERROR = "error"
    """No sign of memory."""


class BatchLimitError(Exception):
    """The batch cannot be had, however much memory there is: the data set ends before."""


_MEMORY = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|std::bad_alloc"
    r"|Cannot allocate memory"
    r"|CUDA out of memory|CUDA error: out of memory|cudaErrorMemoryAllocation"
    r"|(CUBLAS|CUSOLVER|CUDNN|CUSPARSE)_STATUS_ALLOC_FAILED"
)
# PyTorch issue 92141: a workspace of 2 n^2 + 6 n + 1 numbers passes 2^31 above n = 32,766, and
# LAPACK calls its argument illegal.
_LIMIT = re.compile(
    r"Argument \d+ has illegal value"
    r"|illegal value in .*argument|parameter number +\d+ had an illegal value"
    r"|Too large work array|32-bit LAPACK"
    r"|INT_MAX|int(eger)?[ _]?overflow"
    r"|(int32|32-?bit)\b.*\b(overflow|exceed|limit|large)|(overflow|exceed|too large)\b.*\b"
    r"(int32|32-?bit)|canUse32BitIndexMath",
    re.IGNORECASE | re.DOTALL,
)
_AMBIGUOUS = re.compile(
    r"could not (create|execute) a primitive|could not create a memory"
    r"|can't start new thread|Thread creation failed|Resource temporarily unavailable"
    r"|failed to map segment"
    r"|CUBLAS_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR|EXECUTION_FAILED)"
    r"|CUDNN_STATUS_(NOT_SUPPORTED|INTERNAL_ERROR|EXECUTION_FAILED)"
    r"|CUSOLVER_STATUS_(INTERNAL_ERROR|EXECUTION_FAILED)"
    r"|CUDACachingAllocator",
)


def classify(error: BaseException) -> FailureKind:
    """Sort an exception; that of its cause decides if it is a sign of memory.

    Args:
        error: What the work raised.

    Returns:
        Its kind.
    """
    kinds = [_kind(link) for link in _chain(error)]
    for kind in (FailureKind.MEMORY, FailureKind.LIMIT, FailureKind.AMBIGUOUS):
        if kind in kinds:
            return kind
    return FailureKind.ERROR


def _kind(error: BaseException) -> FailureKind:
    text = str(error)
    if isinstance(error, BatchLimitError):
        return FailureKind.LIMIT
    if isinstance(error, (MemoryError, *_torch_out_of_memory())):
        return FailureKind.MEMORY
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return FailureKind.MEMORY
    if _MEMORY.search(text):
        return FailureKind.MEMORY
    if _LIMIT.search(text):
        return FailureKind.LIMIT
    if isinstance(error, (SystemError, ImportError)) or _AMBIGUOUS.search(text):
        return FailureKind.AMBIGUOUS
    return FailureKind.ERROR


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and its explicit causes (what it was raised "from")."""
    links = [error]
    while (cause := links[-1].__cause__) is not None and cause not in links:
        links.append(cause)
    return links


def _torch_out_of_memory() -> tuple[type[BaseException], ...]:
    """PyTorch's exception, if this process uses PyTorch."""
    torch = sys.modules.get("torch")
    return (torch.OutOfMemoryError,) if torch is not None else ()


def describe(error: BaseException, longest: int = 400) -> str:
    """Type and message of an exception on one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return f"{type(error).__name__}: {text}".removesuffix(": ")
