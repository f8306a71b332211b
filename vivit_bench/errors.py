"""Errors a user can cause or must be told about.

The command line turns each into one line on stderr and an exit code; everything
else that escapes is a bug and keeps its traceback.
"""

import errno
import re
import sys
from collections.abc import Iterator


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


class Stopped(BaseException):
    """A signal asks the process to end; not an `Exception`, so that nothing swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


# How PyTorch's allocators and the libraries it calls begin what they say, in a plain RuntimeError.
_ALLOCATOR_SAYS = re.compile(
    r"(\[enforce fail at \S*alloc_cpu\.cpp:\d+\] .{0,40}?)?"
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|std::bad_alloc$"
    r"|CUDA (error: )?out of memory"
    r"|CUDA error: CUBLAS_STATUS_ALLOC_FAILED"
    r"|cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"
    r"|cuDNN error: CUDNN_STATUS_ALLOC_FAILED"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or what it was raised from, means that memory ran out.

    Its type decides: ``MemoryError``, PyTorch's ``OutOfMemoryError``, ``OSError`` with ENOMEM.
    PyTorch's allocator for the CPU raises a plain ``RuntimeError`` and is known by how its
    message begins; the same words in another exception mean nothing.
    """
    return any(_is_allocation_failure(link) for link in causes(error))


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


def _is_allocation_failure(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    torch = sys.modules.get("torch")  # if it was never imported, it raised nothing
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    raised_by_torch = type(error) is RuntimeError or (
        torch is not None and isinstance(error, getattr(torch, "AcceleratorError", ()))
    )
    return raised_by_torch and _ALLOCATOR_SAYS.match(message_of(error)) is not None
