"""What a trial's end is taken for: exceptions, and the parent's verdict on all evidence."""

import errno
from dataclasses import replace

import pytest
import torch

from vivit_bench.errors import (
    DeviceLowError,
    FailureKind,
    LibraryError,
    UsageError,
    classify,
    describe,
    is_out_of_memory,
)
from vivit_bench.hardware import library_errors
from vivit_bench.measure import Outcome
from vivit_bench.measure.budget import MemoryBudget
from vivit_bench.measure.protocol import REPORT_LOST, Measured, TrialReport
from vivit_bench.measure.verdict import Evidence, Kill, judge

CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
)
LAPACK = (
    "false INTERNAL ASSERT FAILED at BatchLinearAlgebra.cpp, please report a bug to PyTorch. "
    "linalg.eigh: Argument 8 has illegal value. Most certainly there is a bug in the "
    "implementation calling the backend library."
)
# Of an H100 under PyTorch 2.11: the limit was reached, and the card was full.
LIMIT_REACHED = (
    "CUDA out of memory. Tried to allocate 114.00 MiB. GPU 0 has a total capacity of 79.18 GiB of "
    "which 78.45 GiB is free. Including non-PyTorch memory, this process has 734.00 MiB memory in "
    "use. 100.00 MiB allowed; Of the allocated memory 9.02 MiB is allocated by PyTorch, and 12.98 "
    "MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try "
    "setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
CARD_FULL = (
    "CUDA out of memory. Tried to allocate 124.00 MiB. GPU 0 has a total capacity of 79.18 GiB of "
    "which 88.19 MiB is free. Including non-PyTorch memory, this process has 79.08 GiB memory in "
    "use. Of the allocated memory 78.35 GiB is allocated by PyTorch, and 20.93 MiB is reserved by "
    "PyTorch but unallocated."
)
ASYNCHRONOUS = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)
OUTSIDE = (
    "CUDA ran out of memory outside PyTorch's allocator. If this workload uses many dynamic "
    "shapes, cuDNN may need additional device memory to JIT-compile shape-specialized kernels."
)
MAPPING = (
    "expandable_segments: memory mapping failed with OOM on device 0 while trying to map 20971520 "
    "bytes (free: 20250624, total: 51043958784)"
)
ALLOCATION = MAPPING.replace("expandable_segments: memory mapping", "memory allocation")
ENGINE = "unable to find an engine to execute this computation"
NO_HANDLE = (
    "cusolver error: CUSOLVER_STATUS_NOT_INITIALIZED, when calling `cusolverDnCreate(handle)`. If "
    "you keep seeing this error, you may use `torch.backends.cuda.preferred_linalg_library()` to "
    "try linear algebra operators with other supported backends."
)
NO_BACKEND = "cuDNN Frontend error: [cudnn_frontend] Error: CUDNN_BACKEND_API_FAILED"
CAST = "cuda_int_cast: The value of lwork (2147516418) is too large to fit into a int (4 bytes)"
SYEVD = (
    "cusolver error: CUSOLVER_STATUS_INVALID_VALUE, when calling `cusolverDnXsyevd_bufferSize("
    "handle, params, jobz, uplo, n, CUDA_R_64F, A, lda, CUDA_R_64F, W, CUDA_R_64F, device, host)`"
)
ILLEGAL = f"CUDA error: an illegal memory access was encountered{ASYNCHRONOUS}"
ASSERT = f"CUDA error: device-side assert triggered{ASYNCHRONOUS}"


class AcceleratorError(RuntimeError):
    """Stands for PyTorch's, which versions before 2.8 lack."""


@pytest.fixture(autouse=True)
def _accelerator_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "AcceleratorError", AcceleratorError, raising=False)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), FailureKind.MEMORY),
        (torch.OutOfMemoryError(LIMIT_REACHED), FailureKind.MEMORY),
        (torch.OutOfMemoryError(CARD_FULL), FailureKind.MEMORY),
        (AcceleratorError(f"CUDA error: out of memory{ASYNCHRONOUS}"), FailureKind.MEMORY),
        (RuntimeError(LIMIT_REACHED), FailureKind.MEMORY),
        (RuntimeError("CUDA driver error: out of memory"), FailureKind.MEMORY),
        (RuntimeError(OUTSIDE), FailureKind.MEMORY),
        (RuntimeError(MAPPING), FailureKind.MEMORY),
        (RuntimeError(ALLOCATION), FailureKind.MEMORY),
        (RuntimeError(f"GET was {ENGINE}"), FailureKind.AMBIGUOUS),
        (RuntimeError(f"FIND was {ENGINE}"), FailureKind.AMBIGUOUS),
        (RuntimeError(ENGINE.capitalize()), FailureKind.AMBIGUOUS),
        (RuntimeError("Unable to find a valid cuDNN algorithm to run"), FailureKind.AMBIGUOUS),
        (RuntimeError(NO_HANDLE), FailureKind.AMBIGUOUS),
        (RuntimeError(NO_BACKEND), FailureKind.AMBIGUOUS),
        (RuntimeError(CAST), FailureKind.LIMIT),
        (RuntimeError(CAST.replace("a int", "a magma_int_t")), FailureKind.LIMIT),
        (RuntimeError(SYEVD), FailureKind.LIMIT),
        # Of another routine the same status says nothing about sizes.
        (RuntimeError(SYEVD.replace("syevd", "potrf")), FailureKind.ERROR),
        (RuntimeError("the dog is too large to fit into a car"), FailureKind.ERROR),
        (AcceleratorError(ILLEGAL), FailureKind.ERROR),
        (AcceleratorError(ASSERT), FailureKind.ERROR),
        (DeviceLowError("out of memory"), FailureKind.DEVICE),
        (torch.OutOfMemoryError("CUDA out of memory."), FailureKind.MEMORY),
        (RuntimeError(CPU_ALLOCATOR), FailureKind.MEMORY),
        (RuntimeError("std::bad_alloc"), FailureKind.MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), FailureKind.MEMORY),
        (OSError(errno.ENOMEM, "the fan controller"), FailureKind.AMBIGUOUS),
        (RuntimeError("CUDA error: out of memory"), FailureKind.MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), FailureKind.MEMORY),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), FailureKind.MEMORY),
        # The same words of somebody else's are no proof.
        (RuntimeError(f"my cache said: {CPU_ALLOCATOR}"), FailureKind.AMBIGUOUS),
        (ValueError(CPU_ALLOCATOR), FailureKind.AMBIGUOUS),
        (ValueError("label 'out of memory' is unknown"), FailureKind.AMBIGUOUS),
        (OSError(errno.EIO, "Cannot allocate memory"), FailureKind.AMBIGUOUS),
        (UsageError("the 32-bit workspace would overflow"), FailureKind.ERROR),
        (RuntimeError(LAPACK), FailureKind.LIMIT),
        (ValueError("Too large work array required"), FailureKind.LIMIT),
        (RuntimeError("the 32-bit workspace size would overflow"), FailureKind.LIMIT),
        (RuntimeError("could not create a primitive"), FailureKind.AMBIGUOUS),
        (RuntimeError("can't start new thread"), FailureKind.AMBIGUOUS),
        (SystemError("error return without exception set"), FailureKind.AMBIGUOUS),
        (ImportError("lib.so: failed to map segment from shared object"), FailureKind.AMBIGUOUS),
        (ImportError("no module"), FailureKind.ERROR),
        # A mistake in a program is one, whatever it says.
        (ModuleNotFoundError("No module named 'out of memory'"), FailureKind.ERROR),
        (KeyError("out of memory"), FailureKind.ERROR),
        (TypeError("Cannot allocate memory for a str"), FailureKind.ERROR),
        (RuntimeError("CUDNN_STATUS_NOT_SUPPORTED"), FailureKind.AMBIGUOUS),
        (RuntimeError("CUDA error: device-side assert triggered"), FailureKind.ERROR),
        (RuntimeError("Expected 32-bit float"), FailureKind.ERROR),
        (ValueError("module Foo is not supported"), FailureKind.ERROR),
        (OSError(errno.ENOENT, "No such file"), FailureKind.ERROR),
        (SystemExit(1), FailureKind.ERROR),
        (KeyboardInterrupt(), FailureKind.ERROR),
    ],
)
def test_exceptions_are_sorted(error: BaseException, kind: FailureKind) -> None:
    assert classify(error) is kind


def test_the_cause_of_an_exception_decides() -> None:
    error = UsageError("the user's batch function failed")
    error.__cause__ = MemoryError()
    assert classify(error) is FailureKind.MEMORY


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_an_exception_that_cannot_be_read_is_an_error() -> None:
    assert classify(UnreadableError()) is FailureKind.ERROR
    assert describe(UnreadableError()) == (
        "UnreadableError: (its message cannot be read: RuntimeError)"
    )


def test_causes_that_go_round_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert not is_out_of_memory(one)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(CPU_ALLOCATOR), "not enough memory for it; less"),
        (torch.OutOfMemoryError(CARD_FULL), "not enough memory for it; less"),
        (RuntimeError(LAPACK), "it: a library does not take arrays of this size (RuntimeError"),
        (RuntimeError(CAST), "it: a library does not take arrays of this size (RuntimeError"),
        (torch.linalg.LinAlgError(SYEVD), "it: a library does not take arrays of this size"),
        (RuntimeError(NO_HANDLE), "it: a library failed, perhaps for want of memory (RuntimeError"),
        (RuntimeError(f"GET was {ENGINE}"), "it: a library failed, perhaps for want of memory"),
        (RuntimeError("could not create a primitive"), "it: a library failed, perhaps for want"),
        (AcceleratorError(ILLEGAL), "it: AcceleratorError: CUDA error: an illegal memory access"),
        (RuntimeError(ASSERT), "it: RuntimeError: CUDA error: device-side assert triggered"),
        (AcceleratorError("no kernel image is available"), "it: AcceleratorError: no kernel image"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"), "it: RuntimeError: cuDNN error"),
        (RuntimeError("CUDA driver initialization failed"), "--device cpu computes the same"),
    ],
)
def test_every_command_tells_a_library_s_failure_in_one_line(error: Exception, said: str) -> None:
    with pytest.raises(LibraryError) as caught, library_errors("it", "less"):
        raise error
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    "error",
    [
        ValueError(CPU_ALLOCATOR),
        RuntimeError("shapes do not match"),
        ImportError("no module"),
        SystemError("error return without exception set"),
        UsageError("the 32-bit workspace would overflow"),
    ],
)
def test_what_is_no_library_s_failure_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, library_errors("it", "less"):
        raise error
    assert caught.value is error


def test_a_failure_is_told_once_by_the_block_that_knows_most() -> None:
    with (
        pytest.raises(LibraryError, match=r"^not enough memory for it at N = 8; less$"),
        library_errors("it", "other"),
        library_errors("it at N = 8", "less"),
    ):
        raise MemoryError


def test_a_description_is_one_short_line() -> None:
    assert describe(ValueError("a\n  b")) == "ValueError: a b"
    assert describe(MemoryError()) == "MemoryError"
    assert len(describe(ValueError("x" * 5_000))) < 500


def failed(kind: FailureKind) -> TrialReport:
    return TrialReport(kind, "why")


LIBGOMP = "libgomp: Thread creation failed: Resource temporarily unavailable"
READY = Evidence(budget=MemoryBudget(100), ready=True, peak_bytes=10)
UNCLEAR = failed(FailureKind.AMBIGUOUS)
DONE = replace(READY, report=TrialReport())
REFUSED = Measured(refused_allocations=2, free_bytes=500, allowed_bytes=90)
CARD_IS_FULL = replace(REFUSED, free_bytes=89)


@pytest.mark.parametrize(
    ("evidence", "outcome"),
    [
        # The rule: finished, and within the budget.
        (replace(DONE, peak_bytes=100), Outcome.FITS),
        (replace(DONE, peak_bytes=101), Outcome.OUT_OF_MEMORY),
        (replace(READY, report=failed(FailureKind.MEMORY)), Outcome.OUT_OF_MEMORY),
        (replace(READY, kill=Kill.MEMORY, peak_bytes=170), Outcome.OUT_OF_MEMORY),
        # Time-outs and limits, unless the budget was exceeded on the way.
        (replace(READY, kill=Kill.TIMEOUT), Outcome.TIMEOUT),
        (replace(READY, kill=Kill.TIMEOUT, peak_bytes=101), Outcome.OUT_OF_MEMORY),
        (replace(READY, report=failed(FailureKind.LIMIT)), Outcome.LIMIT),
        (replace(READY, report=failed(FailureKind.LIMIT), peak_bytes=101), Outcome.OUT_OF_MEMORY),
        # What may or may not be memory needs a peak near the budget.
        (replace(READY, report=UNCLEAR, peak_bytes=79), Outcome.ERROR),
        (
            replace(READY, report=UNCLEAR, peak_bytes=80),
            Outcome.OUT_OF_MEMORY,
        ),
        (replace(READY, exit_code=-9, peak_bytes=79), Outcome.ERROR),
        (replace(READY, exit_code=-9, peak_bytes=80), Outcome.OUT_OF_MEMORY),
        (replace(READY, exit_code=-11, peak_bytes=None), Outcome.ERROR),
        (replace(READY, exit_code=-7, peak_bytes=95), Outcome.OUT_OF_MEMORY),
        (replace(READY, exit_code=0, peak_bytes=0), Outcome.ERROR),
        # An exit code or a signal that a program chose is none, unless its last words are.
        (replace(READY, exit_code=1, peak_bytes=95), Outcome.ERROR),
        (replace(READY, exit_code=-15, peak_bytes=95), Outcome.ERROR),
        (replace(READY, exit_code=1, peak_bytes=95, stderr=LIBGOMP), Outcome.OUT_OF_MEMORY),
        (replace(READY, exit_code=1, peak_bytes=79, stderr=LIBGOMP), Outcome.ERROR),
        # What the process held before its work is no sign, even if the budget is for it, too.
        (replace(READY, exit_code=-11, peak_bytes=95, counted_bytes=90), Outcome.ERROR),
        (replace(READY, report=UNCLEAR, peak_bytes=97, counted_bytes=90), Outcome.ERROR),
        (replace(READY, report=UNCLEAR, peak_bytes=98, counted_bytes=90), Outcome.OUT_OF_MEMORY),
        (replace(READY, exit_code=-11, peak_bytes=120, counted_bytes=110), Outcome.OUT_OF_MEMORY),
        # A device's allocator tells what it refused, wherever the peak is.
        (replace(READY, report=UNCLEAR, measured=REFUSED), Outcome.OUT_OF_MEMORY),
        (
            replace(READY, report=UNCLEAR, measured=replace(REFUSED, refused_allocations=0)),
            Outcome.ERROR,
        ),
        (
            replace(READY, report=failed(FailureKind.MEMORY), measured=REFUSED),
            Outcome.OUT_OF_MEMORY,
        ),
        # Memory that it did not refuse, the host's say, is not the device's.
        (
            replace(
                READY, report=failed(FailureKind.MEMORY), measured=Measured(refused_allocations=0)
            ),
            Outcome.ERROR,
        ),
        # The device had less than the limit allowed: others use it.
        (replace(READY, report=failed(FailureKind.MEMORY), measured=CARD_IS_FULL), Outcome.ERROR),
        (replace(READY, report=UNCLEAR, measured=CARD_IS_FULL), Outcome.ERROR),
        (
            replace(
                READY, report=failed(FailureKind.MEMORY), measured=CARD_IS_FULL, peak_bytes=101
            ),
            Outcome.OUT_OF_MEMORY,
        ),
        (replace(DONE, measured=CARD_IS_FULL), Outcome.FITS),
        (replace(READY, report=failed(FailureKind.ERROR), measured=REFUSED), Outcome.ERROR),
        # What was not read is not within the budget.
        (replace(DONE, peak_bytes=None), Outcome.ERROR),
        (replace(DONE, peak_bytes=None, budget=None), Outcome.FITS),
        # Errors stay errors, however much memory was used.
        (replace(READY, report=failed(FailureKind.ERROR), peak_bytes=150), Outcome.ERROR),
        (replace(READY, kill=Kill.MACHINE, peak_bytes=150), Outcome.ERROR),
        (replace(READY, report=failed(FailureKind.DATA), peak_bytes=150), Outcome.DATA),
        # A child whose pipe is broken proves nothing, wherever its peak is.
        (replace(READY, kill=Kill.GARBLED, peak_bytes=95), Outcome.ERROR),
        (replace(READY, exit_code=REPORT_LOST, peak_bytes=95), Outcome.ERROR),
        # Without a budget nothing is above it.
        (replace(DONE, budget=None, peak_bytes=10**12), Outcome.FITS),
        (replace(READY, budget=None, exit_code=-9, peak_bytes=10**12), Outcome.ERROR),
        (replace(READY, budget=None, report=UNCLEAR), Outcome.ERROR),
        (replace(READY, budget=None, report=failed(FailureKind.MEMORY)), Outcome.OUT_OF_MEMORY),
        # Nothing before "ready" is about the batch.
        (Evidence(MemoryBudget(100), report=failed(FailureKind.MEMORY)), Outcome.ERROR),
        (Evidence(MemoryBudget(100), exit_code=-9), Outcome.ERROR),
        (Evidence(MemoryBudget(100), kill=Kill.SETUP_TIMEOUT), Outcome.ERROR),
        (Evidence(MemoryBudget(100), kill=Kill.MACHINE), Outcome.ERROR),
    ],
)
def test_verdicts(evidence: Evidence, outcome: Outcome) -> None:
    found, reason = judge(evidence)
    assert found is outcome
    assert bool(reason) is (outcome is not Outcome.FITS)
    assert "\n" not in reason


def test_a_crash_is_described_by_its_signal_and_last_words() -> None:
    _, reason = judge(
        replace(READY, exit_code=-11, stderr="Fatal Python error: Segmentation fault")
    )
    assert reason.startswith("killed by SIGSEGV: Fatal Python error: Segmentation fault")
    assert "no sign of memory" in reason
    _, reason = judge(Evidence(MemoryBudget(100), exit_code=3))
    assert reason == "set-up failed: ended without a result, exit code 3"


def test_a_device_that_others_use_is_named_and_no_statement_about_the_batch() -> None:
    memory = failed(FailureKind.MEMORY)
    _, reason = judge(replace(READY, report=memory, measured=CARD_IS_FULL))
    assert reason == (
        "the device's memory ran low before the limit was reached (why): the limit allowed "
        "90 Bytes more, and 89 Bytes were free; free some that other processes use, or use a "
        "smaller --memory-limit"
    )
    _, reason = judge(replace(READY, report=memory, measured=REFUSED))
    assert reason == "why (peak below 1 MiB of a budget of below 1 MiB, 2 allocations refused)"
    before = Evidence(MemoryBudget(100), report=failed(FailureKind.DEVICE))
    assert judge(before) == (Outcome.ERROR, "why")


def test_a_set_up_that_is_late_is_told_from_a_trial_that_is() -> None:
    late = Evidence(MemoryBudget(100), kill=Kill.SETUP_TIMEOUT, timeout_seconds=60)
    _, reason = judge(late)
    assert reason == (
        "set-up failed: its libraries, model and data were not there after 60 s; "
        "a longer --timeout gives it more"
    )
    _, reason = judge(replace(late, loaded=True))
    assert reason.startswith("set-up failed: its warm-up on 2 samples was not done after 60 s; ")
