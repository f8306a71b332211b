"""Sizes, budgets, devices, and readings of this process's own memory."""

import gc
import mmap
import os
import resource
import subprocess
import tempfile
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vivit_bench.arguments import format_size, parse_size
from vivit_bench.curvature import available
from vivit_bench.errors import DeviceLowError, UsageError
from vivit_bench.hardware import parse_device
from vivit_bench.measure import Spec, measure, meters
from vivit_bench.measure.budget import MIB, MemoryBudget, check_ulimits, default_limit, format_peak
from vivit_bench.measure.host_memory import (
    MemoryReading,
    PeakOverIdle,
    read_all_memory,
    read_memory,
)
from vivit_bench.measure.meters import DeviceMeter
from vivit_bench.measure.protocol import Measured, Ready


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * 2**30),
        ("512 MiB", 512 * 2**20),
        ("3g", 3 * 2**30),
        ("1.5G", 3 * 2**29),
        ("2GB", 2 * 10**9),
        ("100kb", 100_000),
        ("4096B", 4096),
        (" 1 TiB ", 2**40),
        (".5k", 512),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "2XB", "-2GiB", "2 GiB of RAM", "1e9", "nan", "0B", "0.1B", f"{'9' * 400}GiB"],
)
def test_what_is_not_a_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--memory-limit .*2GiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["20", "1.5", "1000000", " 7 "])
def test_a_size_without_a_unit_is_refused(text: str) -> None:
    number = text.strip()
    with pytest.raises(UsageError, match=f"a unit is missing; write {number}GiB or {number}MiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0.0", "0GiB"])
def test_no_size_of_0_is_named_as_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"must be at least one byte, for example 2GiB$"):
        parse_size(text)


def test_sizes_for_people() -> None:
    assert format_size(3 * 2**29) == "1.5 GiB"
    assert format_size(None) == format_peak(None) == "-"
    assert format_peak(0) == format_peak(MIB - 1) == "below 1 MiB"
    assert format_peak(3 * 2**29) == "1.5 GiB"


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
    assert available._cgroup_headroom(tmp_path) == [650_000]
    (tmp_path / "memory.max").write_text("max\n")
    assert available._cgroup_headroom(tmp_path) == []
    assert available._cgroup_headroom(tmp_path / "nowhere") == []
    monkeypatch.setattr(available, "_cgroup_headroom", lambda root: [1])
    assert available.available_memory() == 1


@pytest.mark.parametrize(
    ("kind", "limits", "line"),
    [
        # 3 x 512 MiB + 64 MiB over the 100 MiB of the idle process
        (resource.RLIMIT_DATA, (-1, 1700 * MIB), ""),
        (resource.RLIMIT_DATA, (1700 * MIB, -1), ""),  # what the trial sets itself
        (resource.RLIMIT_DATA, (9, 1699 * MIB), r"^ulimit -d 1739776 \(1\.659 GiB\): .* 1\.66 GiB"),
        (resource.RLIMIT_AS, (1800 * MIB, -1), ""),
        (resource.RLIMIT_AS, (1799 * MIB, -1), r"^ulimit -v 1842176 .*type ulimit -v unlimited"),
    ],
)
def test_a_budget_that_the_shell_s_limits_would_decide_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: int, limits: tuple[int, int], line: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda each: limits if each == kind else (-1, -1))
    if not line:
        check_ulimits(512 * MIB, 100 * MIB, 200 * MIB)
        return
    with pytest.raises(UsageError, match=line):
        check_ulimits(512 * MIB, 100 * MIB, 200 * MIB)


def test_no_process_is_started_where_the_shell_allows_too_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda each: (-1, 64 * MIB))
    monkeypatch.setattr("vivit_bench.measure.parent._child", lambda spec: pytest.fail("started"))
    with pytest.raises(UsageError, match=r"^ulimit -d 65536 \(64 MiB\)"):
        measure(Spec(n=1, threads=1, limit_bytes=MIB), 60.0)


def test_this_process_s_memory_is_read() -> None:
    before = read_memory()
    assert before is not None
    block = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE)  # not from a heap with room
    block.write(b"x" * (64 * MIB))
    after = read_memory()
    assert after is not None
    assert after.resident - before.resident >= 60 * MIB
    assert after.peak >= after.resident >= after.file
    assert after.own - before.own >= 60 * MIB
    assert len(block) == 64 * MIB


@pytest.mark.parametrize("folder", [None, "/dev/shm"])
def test_a_file_in_memory_counts_once(folder: str | None) -> None:
    """As its own while nobody maps it, and else as pages of who does; not if it has a name."""

    def beside() -> int:
        return read_all_memory(os.getpid(), [])[1] - before

    before = 0
    before = beside()
    if folder is None:
        file = os.memfd_create("batch")
    else:
        file, name = tempfile.mkstemp(dir=folder)
    os.write(file, b"x" * (3 * MIB))
    if folder is not None:
        assert beside() == 0
        os.unlink(name)
    again = os.dup(file)
    assert beside() == 3 * MIB
    with mmap.mmap(file, 3 * MIB):
        assert beside() == 0
    assert beside() == 3 * MIB
    os.close(file)
    os.close(again)
    assert beside() == 0


def test_a_process_that_has_ended_has_no_memory() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert read_memory(child.pid) is None


IDLE = MemoryReading(resident=100 * MIB, peak=100 * MIB, file=40 * MIB, data=0)


def reading(own: int, file: int, peak: int) -> MemoryReading:
    return MemoryReading((own + file) * MIB, peak * MIB, file * MIB, 0)


@pytest.mark.parametrize(
    ("readings", "peak"),
    [
        # own, file, peak of both
        ([reading(75, 45, 150)], 45),  # library pages are not the batch's
        ([reading(90, 30, 150)], 50),
        ([reading(45, 45, 100)], 0),
        # A file of 110 MiB was mapped and read, and is gone or still there.
        ([reading(61, 150, 211)], 1),
        ([reading(61, 150, 211), reading(61, 40, 212)], 2),
        # Memory beside the file counts, seen at its peak or not.
        ([reading(120, 150, 270), reading(61, 40, 270)], 60),
        ([reading(61, 150, 270), reading(61, 40, 270)], 60),
    ],
)
def test_one_rule_for_the_peak(readings: list[MemoryReading], peak: int) -> None:
    over_idle = PeakOverIdle(IDLE)
    for each in readings:
        assert over_idle.see(each) == each.own - 60 * MIB
    assert over_idle.bytes == peak * MIB
    assert over_idle.absolute_bytes is not None


def test_other_processes_count_over_what_they_had() -> None:
    over_idle = PeakOverIdle(IDLE, 10 * MIB)
    assert over_idle.see(reading(65, 40, 105), 30 * MIB) == 25 * MIB
    assert over_idle.bytes == 25 * MIB


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
    """``torch.cuda`` with a card of 10 GiB; the sizes are those of an idle process in MiB."""

    def __init__(self) -> None:
        self.allocated, self.peak = 60, 999
        self.reserved, self.reserved_peak = 100, 999
        self.free, self.refused = 9_640, 3
        self.fractions: list[float] = []

    def synchronize(self, device: str) -> None: ...

    def empty_cache(self) -> None: ...

    def reset_peak_memory_stats(self, device: str) -> None:
        self.peak, self.reserved_peak = self.allocated, self.reserved

    def memory_allocated(self, device: str) -> int:
        return self.allocated * MIB

    def max_memory_allocated(self, device: str) -> int:
        return self.peak * MIB

    def memory_reserved(self, device: str) -> int:
        return self.reserved * MIB

    def max_memory_reserved(self, device: str) -> int:
        return self.reserved_peak * MIB

    def memory_stats(self, device: str) -> dict[str, int]:
        return {"num_ooms": self.refused}

    def mem_get_info(self, device: str) -> tuple[int, int]:
        return self.free * MIB, 10_240 * MIB

    def set_per_process_memory_fraction(self, fraction: float, device: str) -> None:
        self.fractions.append(fraction)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(torch, "cuda", fake)
    return fake


def test_a_cuda_budget_is_a_fraction_of_the_device_over_the_idle_process(cuda: FakeCuda) -> None:
    meter = DeviceMeter(MemoryBudget(5_020 * MIB), "cuda:0")
    assert meter.start() == Ready(idle_bytes=60 * MIB, outside_bytes=500 * MIB)
    assert cuda.fractions == [0.5]
    cuda.peak, cuda.reserved_peak, cuda.reserved = 360, 420, 320
    cuda.free, cuda.refused = 9_000, 5
    assert meter.stop() == Measured(
        peak_bytes=300 * MIB,
        absolute_peak_bytes=360 * MIB,
        reserved_peak_bytes=320 * MIB,
        refused_allocations=2,
        free_bytes=9_000 * MIB,
        allowed_bytes=4_800 * MIB,
    )
    assert cuda.fractions == [0.5, 1.0]


def test_what_the_warm_up_left_in_cycles_is_gone_before_the_idle_device_is_read(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be freed at some time during the work, and the peak over it too small."""
    left = FakeCuda()
    left.__dict__["itself"] = left
    watched = weakref.ref(left)
    seen: list[object] = []
    monkeypatch.setattr(cuda, "empty_cache", lambda: seen.append(watched()))
    gc.disable()
    try:
        del left
        DeviceMeter(None, "cuda:0").start()
    finally:
        gc.enable()
    assert seen == [None]


def test_without_a_budget_a_cuda_device_is_read_and_not_limited(cuda: FakeCuda) -> None:
    cuda.free = 1
    meter = DeviceMeter(None, "cuda:0")
    assert meter.start().outside_bytes == 10_139 * MIB
    measured = meter.stop()
    assert (measured.peak_bytes, measured.free_bytes, measured.allowed_bytes) == (0, None, None)
    assert cuda.fractions == []


def test_a_card_with_less_free_than_the_limit_is_low_before_the_work(cuda: FakeCuda) -> None:
    """Beside the limit CUDA loads kernels: 256 MiB."""
    DeviceMeter(MemoryBudget((9_640 - 256) * MIB), "cuda:0").start()
    with pytest.raises(DeviceLowError, match=r"low: cuda:0 has 9\.414 GiB free .* needs 9\.415"):
        DeviceMeter(MemoryBudget((9_640 - 255) * MIB), "cuda:0").start()


def test_a_cuda_device_s_memory_is_asked_in_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(stdout: str, stderr: str, code: int) -> None:
        done = subprocess.CompletedProcess([], code, stdout, stderr)
        monkeypatch.setattr(meters.subprocess, "run", lambda *args, **kwargs: done)

    answer('[700, 1000, "H100"]\n', "", 0)
    assert meters.device_memory("cuda:0") == meters.DeviceMemory(700, 1000, "H100")
    answer("", "Traceback\nRuntimeError: no device\n", 1)
    with pytest.raises(UsageError, match="cannot be read: RuntimeError: no device"):
        meters.device_memory("cuda:0")
