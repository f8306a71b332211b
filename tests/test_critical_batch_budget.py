"""Sizes, budgets, devices, and readings of this process's own memory."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vivit_bench.critical_batch import budget, device_memory
from vivit_bench.critical_batch.budget import MIB, MemoryBudget, default_limit
from vivit_bench.critical_batch.device_memory import DeviceMeter
from vivit_bench.critical_batch.process_memory import MemoryReading, peak_over, read_memory
from vivit_bench.critical_batch.sizes import format_size, parse_size
from vivit_bench.errors import UsageError
from vivit_bench.hardware import parse_device


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * 2**30),
        ("512 MiB", 512 * 2**20),
        ("3g", 3 * 2**30),
        ("1.5G", 3 * 2**29),
        ("2GB", 2 * 10**9),
        ("100kb", 100_000),
        ("4096", 4096),
        ("4096B", 4096),
        (" 1 TiB ", 2**40),
        (".5k", 512),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "2XB", "-2GiB", "2 GiB of RAM", "1e9", "nan", "0", "0.1"]
)
def test_what_is_not_a_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--memory-limit .*2GiB"):
        parse_size(text)


@given(st.integers(1, 2**45))
def test_a_plain_number_is_bytes(size: int) -> None:
    assert parse_size(str(size)) == size


def test_sizes_for_people() -> None:
    assert format_size(3 * 2**29) == "1.5 GiB"
    assert format_size(None) == "-"


@given(st.integers(1, 2**45))
def test_the_margins_are_outside_the_limit_in_order(limit: int) -> None:
    margins = MemoryBudget(limit)
    assert limit + 64 * MIB <= margins.watchdog_bytes <= margins.fence_bytes


@given(st.integers(0, 2**45))
def test_the_default_limit_is_half_in_steps(available: int) -> None:
    limit = default_limit(available)
    assert limit % (64 * MIB) == 0
    assert limit == 64 * MIB or available / 2 - 64 * MIB < limit <= available / 2


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 50000\n")
    assert budget._cgroup_headroom(tmp_path) == [650_000]
    (tmp_path / "memory.max").write_text("max\n")
    assert budget._cgroup_headroom(tmp_path) == []
    assert budget._cgroup_headroom(tmp_path / "nowhere") == []
    monkeypatch.setattr(budget, "_cgroup_headroom", lambda root: [1])
    assert budget.available_memory() == 1


def test_this_process_s_memory_is_read() -> None:
    before = read_memory()
    assert before is not None
    block = b"x" * (64 * MIB)
    after = read_memory()
    assert after is not None
    assert after.resident - before.resident >= 60 * MIB
    assert after.peak >= after.resident >= after.file
    assert len(block) == 64 * MIB


def test_a_process_that_has_ended_has_no_memory() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert read_memory(child.pid) is None


def test_library_pages_are_not_the_batch_s() -> None:
    idle = MemoryReading(resident=100, peak=100, file=40, data=0)
    assert peak_over(idle, MemoryReading(resident=120, peak=150, file=45, data=0)) == 45
    assert peak_over(idle, MemoryReading(resident=120, peak=150, file=30, data=0)) == 50
    assert peak_over(idle, MemoryReading(resident=90, peak=100, file=45, data=0)) == 0


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "cuda0", "", "CPU", "cuda:-1"])
def test_an_unknown_device_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"write cpu, cuda or cuda:0"):
        parse_device(text)


def test_a_missing_cuda_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device here; use --device cpu"):
        parse_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parse_device("cuda") == "cuda:0"
    assert parse_device("cuda:1") == "cuda:1"
    with pytest.raises(UsageError, match="2 devices, cuda:0 to cuda:1"):
        parse_device("cuda:2")


class FakeCuda:
    """``torch.cuda`` with a device of 1000 bytes, 100 reserved and 60 allocated when idle."""

    def __init__(self) -> None:
        self.allocated, self.peak, self.fractions = 60, 999, list[float]()

    def synchronize(self, device: str) -> None: ...

    def empty_cache(self) -> None: ...

    def reset_peak_memory_stats(self, device: str) -> None:
        self.peak = self.allocated

    def memory_allocated(self, device: str) -> int:
        return self.allocated

    def max_memory_allocated(self, device: str) -> int:
        return self.peak

    def memory_reserved(self, device: str) -> int:
        return 100

    def get_device_properties(self, device: str) -> SimpleNamespace:
        return SimpleNamespace(total_memory=1000)

    def set_per_process_memory_fraction(self, fraction: float, device: str) -> None:
        self.fractions.append(fraction)


def test_a_cuda_budget_is_a_fraction_of_the_device_over_the_idle_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeCuda()
    monkeypatch.setattr(torch, "cuda", fake)
    meter = DeviceMeter(MemoryBudget(400), "cuda:0")
    assert meter.start() == {"idle_bytes": 60}
    assert fake.fractions == [0.5]
    fake.peak = 360
    assert meter.stop() == {"peak_bytes": 300, "absolute_peak_bytes": 360}
    assert fake.fractions == [0.5, 1.0]
    DeviceMeter(MemoryBudget(10**6), "cuda:0").start()
    assert fake.fractions[-1] == 1.0


def test_a_cuda_device_s_free_memory_is_asked_in_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(stdout: str, stderr: str, code: int) -> None:
        done = subprocess.CompletedProcess([], code, stdout, stderr)
        monkeypatch.setattr(device_memory.subprocess, "run", lambda *args, **kwargs: done)

    answer("[700, 1000]\n", "", 0)
    assert device_memory.available_device_memory("cuda:0") == 700
    answer("", "Traceback\nRuntimeError: no device\n", 1)
    with pytest.raises(UsageError, match="cannot be read: RuntimeError: no device"):
        device_memory.available_device_memory("cuda:0")
