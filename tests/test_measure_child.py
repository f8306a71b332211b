"""What a child says of its work: the end of the data, errors of the user's, progress."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from vivit_bench.cli.critical_batch_progress import SearchProgress
from vivit_bench.errors import FailureKind, UsageError
from vivit_bench.measure import Outcome, TrialReport
from vivit_bench.measure.child import _failure
from vivit_bench.measure.host_memory import MemoryReading
from vivit_bench.measure.protocol import Loaded, Measured, Ready, decode, encode
from vivit_bench.measure.trial import Trial
from vivit_bench.measure.work import EngineWork

PROBLEM = """
import torch
from torch import nn

X, Y = torch.randn(50, 3), torch.arange(50) % 2


def raises(n, seed):
    if n > 2:
        raise ValueError("the server is down")
    return X[:n], Y[:n]


def unusable(n, seed):
    return (X[:n], Y[:n].float()) if n > 2 else (X[:n], Y[:n])


def fifty(n, seed):
    return X[:n], Y[:n]


def hungry(n, seed):
    if n > 2:
        raise ValueError("too much") from MemoryError()
    return X[:n], Y[:n]


one = X[:1], Y[:1]
"""


@pytest.fixture
def problem(tmp_path: Path) -> Any:
    def make(data: str) -> EngineWork:
        function = f"def net():\n    return nn.Linear(3, 2), nn.CrossEntropyLoss(), {data}\n"
        file = tmp_path / "nets.py"
        file.write_text(f"{PROBLEM}\n\n{function}")
        return EngineWork(
            problem=f"{file}:net",
            quantity="gradient",
            curvature="exact",
            samples="full",
            mc_samples=1,
            engine="vivit-bench",
            data=None,
            data_dir=None,
            seed=0,
            checkpoint=None,
            device="cpu",
        )

    return make


@pytest.mark.parametrize(
    ("data", "n", "kind", "available"),
    [
        ("fifty", 64, FailureKind.DATA, 50),
        ("(X, Y)", 64, FailureKind.DATA, 50),
        ("raises", 64, FailureKind.ERROR, None),
        ("unusable", 40, FailureKind.ERROR, None),
        ("hungry", 64, FailureKind.MEMORY, None),
    ],
)
def test_only_too_few_samples_are_the_end_of_the_data(
    problem: Any, data: str, n: int, kind: FailureKind, available: int | None
) -> None:
    """A batch function that fails says nothing about how many samples there are."""
    work = problem(data)
    work.load()
    work.warm_up()
    with pytest.raises(UsageError) as caught:
        work.run(n)
    report = _failure(caught.value, "cpu")
    assert (report.failure, report.available_samples) == (kind, available)
    assert report.usage_error


@pytest.mark.parametrize(
    ("error", "on_cpu"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), FailureKind.ERROR),
        (RuntimeError("CUDA out of memory is what my scheduler said"), FailureKind.ERROR),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), FailureKind.ERROR),
        (torch.OutOfMemoryError("DefaultCPUAllocator: not enough memory"), FailureKind.MEMORY),
        (MemoryError(), FailureKind.MEMORY),
    ],
)
def test_a_device_s_memory_says_nothing_of_the_cpu_s(
    error: BaseException, on_cpu: FailureKind
) -> None:
    report = _failure(error, "cpu")
    assert report.failure is on_cpu
    assert ("--device cuda" in report.message) is (on_cpu is FailureKind.ERROR)
    assert _failure(error, "cuda:0").failure is FailureKind.MEMORY


def test_a_single_sample_is_enough_for_a_warm_up(problem: Any) -> None:
    work = problem("one")
    work.load()
    work.warm_up()
    assert work.check(work.run(1)) == ""


@pytest.mark.parametrize(
    "message",
    [
        Loaded(),
        Ready(5, MemoryReading(1, 2, 3, 4), 6, 1e-7, 2),
        Measured(wall_seconds=0.5, other_processes=1),
        TrialReport(FailureKind.DATA, "why", True, 50, {"step_norm": 1.0}),
    ],
)
def test_messages_come_back_as_they_were(message: Any) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"7",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'{"phase": []}',
        b'{"phase": "report"}',
        encode(TrialReport()).replace(b'"message"', b'"massage"'),
        encode(TrialReport()).replace(b'"failure": null', b'"failure": "boredom"'),
        encode(Ready()).replace(b'"memory": null', b'"memory": 5'),
        encode(Ready()).replace(b'"memory": null', b'"memory": {"resident": 5}'),
    ],
)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a message"):
        decode(line)


def trial(**values: Any) -> Trial:
    known = {"message": "", "idle_bytes": 5, "absolute_peak_bytes": 9, "confirmed": False}
    when = {"elapsed_seconds": 2.0, "timeout_seconds": 60.0, "ended_at": "2026-01-01T00:00:00"}
    return Trial(**{"n": 56, "outcome": Outcome.FITS, **known, **when, **values})


def test_progress_without_a_terminal_is_a_line_a_trial() -> None:
    text = io.StringIO()
    progress = SearchProgress(Console(file=text, width=200))
    progress.confirming(56, 2, 8.04)
    progress.finished(trial(peak_bytes=900), False)
    progress.finished(trial(peak_bytes=3 * 2**20, other_processes=2), True)
    assert text.getvalue().splitlines() == [
        "confirming N = 56, 2 of at most 4 (8.0 s so far): its peak is near the limit",
        "N = 56     fits          peak below 1 MiB 2.0 s",
        "N = 56     fits          peak 3 MiB      recorded   memory of 2 other processes counted",
    ]


def test_progress_on_a_terminal_shows_what_runs_and_for_how_long() -> None:
    text = io.StringIO()
    progress = SearchProgress(Console(file=text, width=80, force_terminal=True))
    progress.confirming(56, 2, 8.0)
    progress.close()
    assert "confirming N = 56, 2 of at most 4" in text.getvalue()
    assert "0:00:0" in text.getvalue()


def test_a_child_loads_no_library_before_its_work_does() -> None:
    code = "import sys, vivit_bench.measure.child; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "vivit_bench.measure.work" in loaded
    assert not {"torch", "numpy", "pandas", "rich"} & set(loaded)
