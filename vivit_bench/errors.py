"""Errors a user can cause or must be told about.

The command line turns each into one line on stderr and an exit code; everything
else that escapes is a bug and keeps its traceback.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator
from enum import StrEnum


class VivitBenchError(Exception):
    """A run failed for a stated reason (exit code 1).

    The message is one line: the value, the reason, and what to do next.
    """

    exit_code = 1


class UsageError(VivitBenchError):
    """The request itself is wrong: a bad value, name, file or model (exit code 2)."""

    exit_code = 2


class CertificateError(VivitBenchError):
    """A result failed its check by plain autograd; nothing of it is returned or stored."""


class StorageError(VivitBenchError):
    """A file cannot be written, or what was written is gone."""


class FilesChangedError(VivitBenchError):
    """The user's files are not those of which a run under way records its measurements."""


class DeviceLowError(VivitBenchError):
    """A device has less free memory than a trial's limit, whoever uses the rest."""


class LibraryError(VivitBenchError):
    """A library that PyTorch calls failed, or memory ran out; the message says all of it."""


class FailureKind(StrEnum):
    """What can be said about an exception that ended a computation."""

    MEMORY = "memory"
    """Out of memory, without doubt."""
    AMBIGUOUS = "ambiguous"
    """Seen when memory runs out, but also otherwise."""
    LIMIT = "limit"
    """A size that a library does not take, whatever the memory."""
    DATA = "data"
    DEVICE = "device"
    """The device's memory ran low, whoever uses it."""
    ERROR = "error"
    """No sign of memory."""


class Stopped(BaseException):
    """A signal asks the process to end; not an `Exception`, so that nothing swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


# How PyTorch's allocators and the libraries it calls begin what they say, in a plain RuntimeError.
_HOST_ALLOCATOR_SAYS = re.compile(
    r"(\[enforce fail at \S*alloc_cpu\.cpp:\d+\] .{0,40}?)?"
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|std::bad_alloc$"
)
_DEVICE_ALLOCATOR_SAYS = re.compile(
    r"CUDA ((driver )?error: |ran )?out of memory"
    r"|(\w+: )?memory (mapping|allocation) failed with OOM on device"
    r"|CUDA error: CUBLAS_STATUS_ALLOC_FAILED"
    r"|cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"
    r"|cuDNN error: CUDNN_STATUS_ALLOC_FAILED"
)
# PyTorch issue 92141: a workspace of 2 n^2 + 6 n + 1 numbers passes 2^31 above n = 32,766, and
# LAPACK calls its argument illegal. cuSOLVER's eigensolver has limits of its own.
_LIMIT = re.compile(
    r"Argument \d+ has illegal value"
    r"|illegal value in .*argument|parameter number +\d+ had an illegal value"
    r"|Too large work array|32-bit LAPACK"
    r"|too large to fit into a (int|magma_int_t)\b"
    r"|CUSOLVER_STATUS_INVALID_VALUE.*syevd"
    r"|INT_MAX|int(eger)?[ _]?overflow"
    r"|(int32|32-?bit)\b.*\b(overflow|exceed|limit|large)|(overflow|exceed|too large)\b.*\b"
    r"(int32|32-?bit)|canUse32BitIndexMath",
    re.IGNORECASE,
)
# cuDNN falls back to engines with less workspace where its memory is refused, and may find none.
_AMBIGUOUS = re.compile(
    r"could not (create|execute) a primitive|could not create a memory"
    r"|can't start new thread|Thread creation failed|Resource temporarily unavailable"
    r"|failed to map segment|Cannot allocate memory|[Oo]ut of memory"
    r"|[Mm]emory allocation (still )?failed|too many memory regions"
    r"|CUBLAS_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR|EXECUTION_FAILED)"
    r"|CUDNN_STATUS_(NOT_SUPPORTED|INTERNAL_ERROR|EXECUTION_FAILED)|CUDNN_BACKEND_API_FAILED"
    r"|[Uu]nable to find (an engine to execute|a valid cuDNN algorithm)"
    r"|CUSOLVER_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR|EXECUTION_FAILED)"
    r"|CUDACachingAllocator",
)
_MISTAKES = (
    AssertionError,
    AttributeError,
    LookupError,
    ModuleNotFoundError,
    NameError,
    SyntaxError,
    TypeError,
)
"""What a program does wrong, whatever it says of memory."""
_CUDA_SAYS = re.compile(
    r"\b(CUDA|cu(BLAS|DNN|FFT|RAND|SOLVER|SPARSE)|MAGMA)\b.{0,30}\b(error|initialization)\b"
    r"|\bCU(BLAS|DNN|SOLVER|SPARSE)_STATUS_",
    re.IGNORECASE,
)


def classify(error: BaseException) -> FailureKind:
    """Sort an exception; that of its cause decides if it is a sign of memory.

    Args:
        error: What the work raised.

    Returns:
        Its kind; never `FailureKind.DATA`, which only the work's data can tell.
    """
    if is_out_of_memory(error):
        return FailureKind.MEMORY
    kinds = [_kind(link) for link in causes(error)]
    for kind in (FailureKind.DEVICE, FailureKind.LIMIT, FailureKind.AMBIGUOUS):
        if kind in kinds:
            return kind
    return FailureKind.ERROR


def is_library_failure(error: BaseException) -> bool:
    """Whether a library that PyTorch calls failed: CUDA's in any way, others at a limit."""
    return any(_is_library_failure(link) for link in causes(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or what it was raised from, means that memory ran out.

    Its type decides: ``MemoryError``, PyTorch's ``OutOfMemoryError``, ``OSError`` with ENOMEM and
    the system's own words for it. PyTorch's allocator for the CPU raises a plain ``RuntimeError``
    and is known by how its message begins; the same words in another exception mean nothing.
    """
    return any(_is_of_host(link) or _is_of_device(link) for link in causes(error))


def is_out_of_device_memory(error: BaseException) -> bool:
    """Whether the memory that ran out is an accelerator's, and none of it the host's."""
    links = list(causes(error))
    return any(map(_is_of_device, links)) and not any(map(_is_of_host, links))


def speaks_of_memory(text: str) -> bool:
    """Whether a library says this when memory runs out, though perhaps also otherwise."""
    return _AMBIGUOUS.search(text) is not None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was explicitly raised from."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and not any(link is other for other in seen):
        yield link
        seen.append(link)
        link = link.__cause__


def message_of(error: BaseException) -> str:
    """What an exception says, on one line, even if saying it fails."""
    try:
        return " ".join(str(error).split())
    except BaseException as failure:
        return f"(its message cannot be read: {type(failure).__name__})"


def describe(error: BaseException, longest: int = 300) -> str:
    """Type and message of an exception on one line, the message cut off where it gets long."""
    text = message_of(error)
    text = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def _kind(error: BaseException) -> FailureKind:
    if isinstance(error, DeviceLowError):
        return FailureKind.DEVICE
    if isinstance(error, VivitBenchError):
        return FailureKind.ERROR  # it says what is wrong; its cause may say more
    text = message_of(error)
    if _LIMIT.search(text):
        return FailureKind.LIMIT
    if isinstance(error, _MISTAKES):
        return FailureKind.ERROR
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return FailureKind.AMBIGUOUS
    if isinstance(error, SystemError) or speaks_of_memory(text):
        return FailureKind.AMBIGUOUS
    return FailureKind.ERROR


def _is_library_failure(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError):  # what PyTorch makes of every library's failure
        return False
    known = _CUDA_SAYS.search(message_of(error)) is not None
    return known or _is_of_accelerator(error) or _kind(error) is not FailureKind.ERROR


def _is_of_host(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):  # of the system, in its own words
        return error.errno == errno.ENOMEM and error.strerror == os.strerror(errno.ENOMEM)
    return _is_of_torch(error) and _HOST_ALLOCATOR_SAYS.match(message_of(error)) is not None


def _is_of_device(error: BaseException) -> bool:
    if _is_torch_out_of_memory(error):
        return True
    return _is_of_torch(error) and _DEVICE_ALLOCATOR_SAYS.match(message_of(error)) is not None


def _is_of_torch(error: BaseException) -> bool:
    plain = type(error) is RuntimeError
    return plain or _is_torch_out_of_memory(error) or _is_of_accelerator(error)


def _is_torch_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # if it was never imported, it raised nothing
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _is_of_accelerator(error: BaseException) -> bool:
    """Whether it is PyTorch's exception for a device's runtime, a plain RuntimeError before 2.8."""
    return isinstance(error, getattr(sys.modules.get("torch"), "AcceleratorError", ()))
