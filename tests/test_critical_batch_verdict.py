"""What a trial's end is taken for: exceptions, and the parent's verdict on all evidence."""

import errno
from dataclasses import replace

import pytest
import torch

from vivit_bench.critical_batch.budget import MemoryBudget
from vivit_bench.critical_batch.failures import BatchLimitError, FailureKind, classify, describe
from vivit_bench.critical_batch.outcomes import Outcome
from vivit_bench.critical_batch.verdict import Evidence, Kill, judge
from vivit_bench.errors import UsageError

CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
)
LAPACK = (
    "false INTERNAL ASSERT FAILED at BatchLinearAlgebra.cpp, please report a bug to PyTorch. "
    "linalg.eigh: Argument 8 has illegal value. Most certainly there is a bug in the "
    "implementation calling the backend library."
)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), FailureKind.MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory."), FailureKind.MEMORY),
        (RuntimeError(CPU_ALLOCATOR), FailureKind.MEMORY),
        (RuntimeError("std::bad_alloc"), FailureKind.MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), FailureKind.MEMORY),
        (RuntimeError("CUDA error: out of memory"), FailureKind.MEMORY),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), FailureKind.MEMORY),
        (RuntimeError(LAPACK), FailureKind.LIMIT),
        (ValueError("Too large work array required"), FailureKind.LIMIT),
        (RuntimeError("the 32-bit workspace size would overflow"), FailureKind.LIMIT),
        (BatchLimitError("9 samples are more than the 5 of the data"), FailureKind.LIMIT),
        (RuntimeError("could not create a primitive"), FailureKind.AMBIGUOUS),
        (RuntimeError("can't start new thread"), FailureKind.AMBIGUOUS),
        (SystemError("error return without exception set"), FailureKind.AMBIGUOUS),
        (ImportError("no module"), FailureKind.AMBIGUOUS),
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


def test_a_description_is_one_short_line() -> None:
    assert describe(ValueError("a\n  b")) == "ValueError: a b"
    assert describe(MemoryError()) == "MemoryError"
    assert len(describe(ValueError("x" * 5_000))) < 500


READY = Evidence(budget=MemoryBudget(100), ready=True, message="why", peak_bytes=10)


@pytest.mark.parametrize(
    ("evidence", "outcome"),
    [
        # The rule: finished, and within the budget.
        (replace(READY, finished=True, peak_bytes=100), Outcome.FITS),
        (replace(READY, finished=True, peak_bytes=101), Outcome.OUT_OF_MEMORY),
        (replace(READY, failure=FailureKind.MEMORY), Outcome.OUT_OF_MEMORY),
        (replace(READY, kill=Kill.MEMORY, peak_bytes=170), Outcome.OUT_OF_MEMORY),
        # Time-outs and limits, unless the budget was exceeded on the way.
        (replace(READY, kill=Kill.TIMEOUT), Outcome.TIMEOUT),
        (replace(READY, kill=Kill.TIMEOUT, peak_bytes=101), Outcome.OUT_OF_MEMORY),
        (replace(READY, failure=FailureKind.LIMIT), Outcome.LIMIT),
        (replace(READY, failure=FailureKind.LIMIT, peak_bytes=101), Outcome.OUT_OF_MEMORY),
        # What may or may not be memory needs a peak near the budget.
        (replace(READY, failure=FailureKind.AMBIGUOUS, peak_bytes=79), Outcome.ERROR),
        (replace(READY, failure=FailureKind.AMBIGUOUS, peak_bytes=80), Outcome.OUT_OF_MEMORY),
        (replace(READY, exit_code=-9, peak_bytes=79), Outcome.ERROR),
        (replace(READY, exit_code=-9, peak_bytes=80), Outcome.OUT_OF_MEMORY),
        (replace(READY, exit_code=-11, peak_bytes=None), Outcome.ERROR),
        (replace(READY, exit_code=1, peak_bytes=95), Outcome.OUT_OF_MEMORY),
        (replace(READY, exit_code=0, peak_bytes=0), Outcome.ERROR),
        # Errors stay errors, however much memory was used.
        (replace(READY, failure=FailureKind.ERROR, peak_bytes=150), Outcome.ERROR),
        (replace(READY, kill=Kill.MACHINE, peak_bytes=150), Outcome.ERROR),
        # Nothing before "ready" is about the batch.
        (Evidence(MemoryBudget(100), failure=FailureKind.MEMORY), Outcome.ERROR),
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
        replace(READY, message="", exit_code=-11, stderr="Fatal Python error: Segmentation fault")
    )
    assert reason.startswith("killed by SIGSEGV: Fatal Python error: Segmentation fault")
    assert "no sign of memory" in reason
    _, reason = judge(Evidence(MemoryBudget(100), exit_code=3))
    assert reason == "set-up failed: ended without a result, exit code 3"
