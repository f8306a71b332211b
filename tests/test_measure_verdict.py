"""What a trial's end is taken for: exceptions, and the parent's verdict on all evidence."""

import errno
from dataclasses import replace

import pytest
import torch

from vivit_bench.errors import UsageError, VivitBenchError, describe, is_out_of_memory
from vivit_bench.hardware import memory_errors
from vivit_bench.measure import Outcome
from vivit_bench.measure.budget import MemoryBudget
from vivit_bench.measure.protocol import REPORT_LOST, FailureKind, TrialReport
from vivit_bench.measure.verdict import Evidence, Kill, classify, judge

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


def test_every_command_knows_memory_by_the_same_rule() -> None:
    with (
        pytest.raises(VivitBenchError, match="not enough memory for it; less"),
        memory_errors("it", "less"),
    ):
        raise RuntimeError(CPU_ALLOCATOR)
    with pytest.raises(ValueError, match="allocate"), memory_errors("it", "less"):
        raise ValueError(CPU_ALLOCATOR)


def test_a_description_is_one_short_line() -> None:
    assert describe(ValueError("a\n  b")) == "ValueError: a b"
    assert describe(MemoryError()) == "MemoryError"
    assert len(describe(ValueError("x" * 5_000))) < 500


def failed(kind: FailureKind) -> TrialReport:
    return TrialReport(kind, "why")


READY = Evidence(budget=MemoryBudget(100), ready=True, peak_bytes=10)
UNCLEAR = failed(FailureKind.AMBIGUOUS)
DONE = replace(READY, report=TrialReport())


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
        (replace(READY, exit_code=1, peak_bytes=95), Outcome.OUT_OF_MEMORY),
        (replace(READY, exit_code=0, peak_bytes=0), Outcome.ERROR),
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
