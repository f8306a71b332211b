"""Real child processes under real budgets: every class of failure, provoked and recognised."""

import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vivit_bench.measure import (
    Observation,
    Outcome,
    Reading,
    Spec,
    Trial,
    TrialReport,
    measure,
    run_trial,
)
from vivit_bench.measure.budget import MemoryBudget
from vivit_bench.measure.host_memory import MemoryReading
from vivit_bench.measure.parent import Watch, child_environment
from vivit_bench.measure.protocol import Loaded, Ready, encode
from vivit_bench.measure.verdict import Kill

STUBS = Path(__file__).with_name("stub_work.py")
MIB = 2**20
LIMIT = 64 * MIB
KIB_32 = 2**15


def make_spec(stub: str, n: int = 1, **arguments: Any) -> Spec:
    work = f"{STUBS}:{stub}"
    return Spec(n=n, limit_bytes=LIMIT, threads=2, arguments=arguments, work=work)


def run(stub: str, n: int = 1, timeout: float = 60.0, **arguments: Any) -> Trial:
    return run_trial(make_spec(stub, n, **arguments), timeout).trial


def test_the_budget_is_a_strict_step_over_the_idle_process() -> None:
    """0.99 MiB a sample and 64 MiB: 64 samples fit and 65 do not."""
    small, fits, too_large = (run("fill", n, mib_per_sample=0.99) for n in (10, 64, 65))
    assert (small.outcome, small.confirmed) == (Outcome.FITS, False)
    assert (fits.outcome, fits.confirmed) == (Outcome.FITS, True)
    assert (too_large.outcome, too_large.confirmed) == (Outcome.OUT_OF_MEMORY, True)
    assert fits.peak_bytes is not None
    assert 63.1 * MIB < fits.peak_bytes <= 64 * MIB
    assert fits.idle_bytes is not None
    assert fits.absolute_peak_bytes is not None
    assert fits.absolute_peak_bytes >= fits.idle_bytes + 63 * MIB


@pytest.mark.parametrize(
    ("stub", "outcome", "words"),
    [
        ("torch_memory", Outcome.OUT_OF_MEMORY, "DefaultCPUAllocator"),
        ("numpy_memory", Outcome.OUT_OF_MEMORY, "Unable to allocate"),
    ],
)
def test_libraries_that_run_out_of_memory(stub: str, outcome: Outcome, words: str) -> None:
    trial = run(stub)
    assert trial.outcome is outcome
    assert words in trial.message


@pytest.mark.parametrize(
    ("ending", "outcome", "words"),
    [
        ("memory-error", Outcome.OUT_OF_MEMORY, "MemoryError"),
        ("endless-blocks", Outcome.OUT_OF_MEMORY, ""),
        ("endless-objects", Outcome.OUT_OF_MEMORY, ""),
        ("endless-shared", Outcome.OUT_OF_MEMORY, "of a budget of 64 MiB"),
        ("lapack", Outcome.LIMIT, "Argument 8 has illegal value"),
        ("nan", Outcome.ERROR, "NaN or infinite"),
        ("sigkill", Outcome.ERROR, "killed by SIGKILL"),
        ("sigsegv", Outcome.ERROR, "killed by SIGSEGV: Fatal Python error"),
        ("sigabrt", Outcome.ERROR, "killed by SIGABRT"),
        ("exit", Outcome.ERROR, "exit code 3"),
        ("sys-exit", Outcome.ERROR, "SystemExit"),
        ("import-error", Outcome.ERROR, "a_module_that_is_missing"),
        ("primitive", Outcome.ERROR, "no sign of memory"),
        ("value-error", Outcome.ERROR, "unsupported layer Foo"),
        ("words", Outcome.ERROR, "no sign of memory"),
        ("unreadable", Outcome.ERROR, "UnreadableError: (its message cannot be read"),
        ("close-everything", Outcome.ERROR, "closed the pipe"),
        ("close-pipe", Outcome.ERROR, "closed the pipe"),
        ("reopen-pipe", Outcome.ERROR, "closed the pipe"),
        ("garbage", Outcome.ERROR, "wrote into the pipe"),
        ("flood", Outcome.ERROR, "wrote into the pipe"),
        ("false-message", Outcome.ERROR, "wrote into the pipe"),
        ("fork", Outcome.FITS, ""),
    ],
)
def test_every_ending_of_the_work(ending: str, outcome: Outcome, words: str) -> None:
    trial = run("ends", ending=ending)
    assert trial.outcome is outcome
    assert words in trial.message


@pytest.mark.parametrize("ending", ["sigkill", "sigsegv", "exit-of-a-library", "primitive"])
def test_an_ambiguous_ending_near_the_budget_is_memory(ending: str) -> None:
    assert run("fill_then", n=56, ending=ending).outcome is Outcome.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [
        ("value-error", "error"),
        ("import-error", "error"),
        ("exit", "error"),
        ("lapack", "limit"),
        # Not even if the child cannot say what it was.
        ("unreadable", "error"),
        ("close-everything", "error"),
    ],
)
def test_a_clear_ending_near_the_budget_stays_what_it_is(ending: str, outcome: str) -> None:
    assert run("fill_then", n=56, ending=ending).outcome is Outcome(outcome)


def test_a_large_process_is_no_sign_of_memory_where_all_of_it_counts() -> None:
    """Of 256 MiB 200 are taken before the work, which then takes nothing, or most of the rest."""
    spec = make_spec("holds_then", mib=200, ending="sigsegv")
    spec = replace(spec, whole_process=True, limit_bytes=256 * MIB)
    small, large = (run_trial(replace(spec, n=n), 60.0).trial for n in (1, 44))
    assert small.outcome is Outcome.ERROR
    assert small.peak_bytes is not None
    assert small.peak_bytes > 201 * MIB
    assert large.outcome is Outcome.OUT_OF_MEMORY


@pytest.mark.parametrize("ending", ["wait", "spin"])
def test_a_time_out(ending: str) -> None:
    trial = run("ends", timeout=0.2, ending=ending)
    assert (trial.outcome, trial.message) == (Outcome.TIMEOUT, "stopped after 0.2 s")


@pytest.mark.parametrize(
    ("timeout", "loading", "warm_up"), [(0.2, 900, 60), (100.0, 900, 100), (1800.0, 1800, 1800)]
)
def test_a_warm_up_may_take_what_the_work_may_and_downloads_more(
    monkeypatch: pytest.MonkeyPatch, timeout: float, loading: float, warm_up: float
) -> None:
    watch = Watch(make_spec("fill"), timeout, keeper=os.getpid())
    now = time.monotonic()
    monkeypatch.setattr("vivit_bench.measure.parent.time.monotonic", lambda: now)
    for least in (loading, warm_up):
        now += least - 1
        assert watch.look(None) is None
        now += 2
        assert watch.look(None) is Kill.SETUP_TIMEOUT
        watch.hear(encode(Loaded()))


def test_a_time_out_above_the_budget_is_memory() -> None:
    assert run("fill_then", n=70, timeout=1.0, ending="wait").outcome is Outcome.OUT_OF_MEMORY


@pytest.mark.parametrize("ending", ["import-error", "memory-error", "sigsegv", "exit", "sys-exit"])
@pytest.mark.parametrize("stub", ["fails_in_set_up", "FailsInWarmUp"])
def test_a_failed_set_up_is_an_error_and_never_memory(stub: str, ending: str) -> None:
    trial = run(stub, ending=ending)
    assert trial.outcome is Outcome.ERROR
    assert trial.message.startswith("set-up failed: ")


def test_a_set_up_above_the_budget_does_not_count() -> None:
    """DeepOBS's initialisers take a GiB that is gone before the work begins."""
    assert run("spiky_set_up", n=10, mib=200).outcome is Outcome.FITS


def test_memory_the_set_up_has_freed_is_not_free_for_the_batch() -> None:
    trial = run("leaves_free_memory", n=30, mib=200)
    assert trial.peak_bytes is not None
    assert 29 * MIB < trial.peak_bytes < 32 * MIB


def test_pages_of_files_are_not_the_batch_s() -> None:
    """Neither to the watchdog, which would kill above 128 MiB, nor in the peak."""
    trial = run("maps_a_file", mib=150)
    assert trial.outcome is Outcome.FITS
    assert trial.peak_bytes is not None
    assert trial.peak_bytes < 4 * MIB


def test_files_in_memory_that_nobody_maps_count() -> None:
    small, large = (run("fills_a_file_in_memory", n) for n in (50, 100))
    assert (small.outcome, large.outcome) == (Outcome.FITS, Outcome.OUT_OF_MEMORY)
    assert small.peak_bytes is not None
    assert 49 * MIB < small.peak_bytes < 53 * MIB


@pytest.mark.parametrize("way", ["fork", "start"])
def test_memory_of_other_processes_counts(way: str) -> None:
    fits, too_large = (run("works_elsewhere", n, way=way) for n in (40, 100))
    assert (fits.outcome, fits.other_processes) == (Outcome.FITS, 1)
    assert fits.peak_bytes is not None
    assert 40 * MIB < fits.peak_bytes < 60 * MIB
    assert (too_large.outcome, too_large.other_processes) == (Outcome.OUT_OF_MEMORY, 1)
    assert "with 1 other process" in too_large.message


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [("memory-error", Outcome.OUT_OF_MEMORY), ("value-error", Outcome.ERROR)],
)
def test_a_thread_that_fails_fails_the_trial(ending: str, outcome: Outcome) -> None:
    assert run("in_a_thread", ending=ending).outcome is outcome
    assert run("in_a_thread", ending="finish").outcome is Outcome.FITS


def test_what_comes_after_the_work_is_not_its_peak() -> None:
    trial = run("ChecksMuch")
    assert trial.outcome is Outcome.FITS
    assert trial.peak_bytes is not None
    assert trial.peak_bytes < 2 * MIB


def test_without_a_limit_memory_is_read_and_nothing_is_stopped() -> None:
    spec = replace(make_spec("fill", 300), limit_bytes=None)
    seen = measure(spec, 60.0)
    assert seen.outcome is Outcome.FITS
    assert seen.peak_bytes is not None
    assert 299 * MIB < seen.peak_bytes < 302 * MIB


def test_where_time_is_taken_no_memory_is_read() -> None:
    spec = replace(make_spec("ChecksMuch"), limit_bytes=None, reading=Reading.TIME, digest=True)
    seen = measure(spec, 60.0)
    assert seen.outcome is Outcome.FITS
    assert seen.peak_bytes is None
    assert seen.measured is not None
    assert seen.measured.wall_seconds is not None
    assert seen.measured.cpu_seconds is not None
    assert seen.report is not None
    assert seen.report.digest == {"threads": "2", "malloc": False}


def test_the_faults_and_seconds_are_the_work_s_own() -> None:
    """The set-up touches 25,600 pages, the work 4,096."""
    spec = replace(make_spec("spiky_set_up", 16, mib=100), limit_bytes=None, reading=Reading.TIME)
    measured = measure(spec, 60.0).measured
    assert measured is not None
    assert measured.minor_faults is not None
    assert 4_096 <= measured.minor_faults < 4_500


def test_a_machine_short_of_memory_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vivit_bench.measure.parent.available_memory", lambda: 0)
    assert measure(make_spec("ends", ending="wait"), 60.0).kill is Kill.MACHINE
    assert run("ends", ending="wait").outcome is Outcome.ERROR


def test_the_child_s_environment() -> None:
    environment = child_environment(replace(make_spec("fill"), threads=3))
    assert environment["MALLOC_MMAP_THRESHOLD_"] == "65536"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment["GOMP_SPINCOUNT"] == "10000"
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"


def on_device(n: int = 1, limit: int = LIMIT, **arguments: Any) -> Spec:
    return replace(make_spec("OnDevice", n, **arguments), device="cuda:0", limit_bytes=limit)


@pytest.mark.parametrize(
    ("arguments", "outcome", "words"),
    [
        ({"ending": "finish"}, Outcome.FITS, ""),
        ({"ending": "finish", "n": 65}, Outcome.OUT_OF_MEMORY, "peak 65 MiB of a budget of 64"),
        # After a sticky error the meter fails too; the report is there all the same.
        ({"ending": "illegal-access", "broken": True}, Outcome.ERROR, "illegal memory access"),
        ({"ending": "finish", "broken": True}, Outcome.ERROR, "memory could not be read"),
        # cuDNN does without the workspace it is refused, until no engine is left.
        ({"ending": "cudnn-engine", "refused": 3}, Outcome.OUT_OF_MEMORY, "3 allocations refused"),
        ({"ending": "cudnn-engine"}, Outcome.ERROR, "no sign of memory"),
        ({"ending": "finish", "refused": 3}, Outcome.FITS, ""),
        ({"ending": "cuda-memory", "refused": 1}, Outcome.OUT_OF_MEMORY, "1 allocation refused"),
        ({"ending": "cuda-memory", "refused": 1, "free": 9}, Outcome.ERROR, "memory ran low"),
        # Before the work.
        ({"ending": "finish", "limit": 2**31}, Outcome.ERROR, "the device ran low: cuda:0 has 2"),
    ],
)
@pytest.mark.one_in(3)
def test_every_ending_on_a_device(arguments: dict[str, Any], outcome: Outcome, words: str) -> None:
    done = run_trial(on_device(**arguments), 60.0)
    assert done.trial.outcome is outcome
    assert words in done.trial.message
    assert "\n" not in done.trial.message
    if done.trial.outcome is Outcome.FITS:
        assert done.trial.reserved_peak_bytes == done.trial.peak_bytes == MIB
        assert done.trial.outside_bytes == 1024 * MIB
    if "illegal" in words:
        assert "Traceback" in done.stderr


def test_a_device_s_trial_has_an_allocator_and_a_cudnn_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:cudaMallocAsync")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    spec = replace(on_device(ending="finish"), digest=True)
    report = measure(spec, 60.0).report
    assert report is not None
    assert report.digest == {
        "cudnn": [True, False],
        "environment": ["expandable_segments:True", "expandable_segments:True", None],
    }
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING" not in child_environment(spec)
    assert child_environment(spec)["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    for other in (replace(spec, device="cpu"), replace(spec, reading=Reading.TIME)):
        assert child_environment(other)["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
        assert child_environment(other)["PYTORCH_CUDA_ALLOC_CONF"] == "backend:cudaMallocAsync"
        assert "CUBLAS_WORKSPACE_CONFIG" not in child_environment(other)


def test_a_child_volunteers_to_be_killed_and_has_its_fence() -> None:
    stderr = run_trial(make_spec("tells_limits"), 60.0).stderr
    score, limit, data = (int(line) for line in stderr.split()[-3:])
    assert score == 1000
    # VmData at "ready" plus the fence; the work itself has grown by little since.
    fence = MemoryBudget(LIMIT).fence_bytes
    assert data + fence - LIMIT <= limit <= data + fence


def test_an_interrupted_parent_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C: the child and what it started are gone when the interruption gets out."""
    note = tmp_path / "pids"
    look = Watch.look

    def look_and_interrupt(self: Watch, reading: MemoryReading | None) -> Kill | None:
        if note.exists():
            raise KeyboardInterrupt
        return look(self, reading)

    monkeypatch.setattr(Watch, "look", look_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure(make_spec("writes_pid", path=str(note)), 60.0)
    pids = [int(pid) for pid in note.read_text().split()]
    assert [pid for pid in pids if alive(pid)] == []


@pytest.mark.parametrize("victim", ["parent", "keeper"])
def test_who_is_killed_takes_others_along(tmp_path: Path, victim: str) -> None:
    """kill -9 leaves the parent no time to clean up; what has left its group is found too."""
    note = tmp_path / "pids"
    code = (
        "import sys; from vivit_bench.measure import Spec, measure; "
        "measure(Spec.from_json(sys.argv[1]), 600.0)"
    )
    spec = make_spec("writes_pid", path=str(note)).to_json()
    with subprocess.Popen([sys.executable, "-c", code, spec]) as parent:
        for _ in range(6_000):
            if note.exists() or parent.poll() is not None:
                break
            select.select([], [], [], 0.01)
        pids = [int(pid) for pid in note.read_text().split()]
        os.kill(parent.pid if victim == "parent" else parent_of(pids[0]), signal.SIGKILL)
        parent.wait()
    left = [pid for pid in pids if not ended(pid, 2.0 if victim == "parent" else 0.2)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    # Without the keeper nobody knows the descendants, but the child itself dies with it.
    assert left == ([] if victim == "parent" else pids[1:])


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ended(pid: int, seconds: float) -> bool:
    """Wait for a process that is not ours to end."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("peaks", "decisive", "readings"),
    [
        ([10, 40, 20, 30, 50], 20, 4),  # over the budget by that much; the smallest decides
        ([10, 40, -5, 30, 50], -5, 2),  # the first that fits ends it
        ([-10, 40, 30, 20, 60], 20, 4),
        ([10, 40, 30, 30, 60], 30, 3),  # two that agree end it
    ],
)
def test_the_smallest_of_at_most_four_readings_on_one_cpu_decides(
    monkeypatch: pytest.MonkeyPatch, peaks: list[int], decisive: int, readings: int
) -> None:
    limit, specs, told = 2**30, [], []

    def seen(spec: Spec, timeout_seconds: float) -> Observation:
        peak = limit + KIB_32 * peaks[len(specs)]
        specs.append((spec.one_cpu, timeout_seconds))
        fits = Outcome.FITS if peak <= limit else Outcome.OUT_OF_MEMORY
        ready, report = Ready(5), TrialReport()
        return Observation(fits, "", ready, None, report, peak, peak + 5, 0, "")

    monkeypatch.setattr("vivit_bench.measure.trial.measure", seen)
    spec = Spec(n=7, threads=3, limit_bytes=limit)
    trial = run_trial(spec, 10.0, lambda reading, seconds: told.append(reading)).trial
    assert trial.confirmed
    assert trial.peak_bytes == limit + KIB_32 * decisive
    assert trial.outcome is (Outcome.FITS if decisive <= 0 else Outcome.OUT_OF_MEMORY)
    assert specs == [(False, 10.0), *[(True, 30.0)] * readings]
    assert told == list(range(1, readings + 1))


@pytest.mark.parametrize(
    ("peaks", "decisive", "readings"),
    [
        ([1, 50], 1, 0),  # it fits, and that is exact
        ([10, 50], 10, 0),  # so is that it does not
        ([4, 4, 50], 4, 1),  # unless it was interrupted; it was not
        ([4, 0, 50], 0, 1),
    ],
)
def test_a_trial_of_one_thread_is_on_one_cpu_from_the_first(
    monkeypatch: pytest.MonkeyPatch, peaks: list[int], decisive: int, readings: int
) -> None:
    """The limit is 1 in these units."""
    limit, specs, told = 2**30, [], []

    def seen(spec: Spec, timeout_seconds: float) -> Observation:
        peak = limit + KIB_32 * (peaks[len(specs)] - 1)
        specs.append(spec)
        fits = Outcome.FITS if peak <= limit else Outcome.OUT_OF_MEMORY
        return Observation(fits, "", Ready(5), None, TrialReport(), peak, peak + 5, 0, "")

    monkeypatch.setattr("vivit_bench.measure.trial.measure", seen)
    spec = Spec(n=7, threads=1, limit_bytes=limit)
    trial = run_trial(spec, 10.0, lambda reading, seconds: told.append(reading)).trial
    assert trial.peak_bytes == limit + KIB_32 * (decisive - 1)
    assert trial.confirmed is (readings > 0)
    assert all(spec.one_cpu for spec in specs)
    assert len(specs) == 1 + readings == 1 + len(told)


def test_a_warm_up_of_the_same_work_is_not_measured() -> None:
    spec = replace(make_spec("SlowAtFirst"), limit_bytes=None, reading=Reading.TIME, digest=True)
    for warm_runs in (0, 1):
        seen = measure(replace(spec, warm_runs=warm_runs), 60.0)
        assert seen.outcome is Outcome.FITS
        assert seen.report is not None
        assert seen.report.digest == {"runs": 1 + warm_runs}
        assert seen.measured is not None
        assert seen.measured.wall_seconds is not None
        assert (seen.measured.wall_seconds < 0.4) is (warm_runs == 1)


def test_what_fails_in_the_warm_up_of_the_same_work_is_no_failure_of_the_set_up() -> None:
    spec = replace(make_spec("torch_memory"), limit_bytes=None, reading=Reading.TIME, warm_runs=1)
    assert measure(spec, 60.0).outcome is Outcome.OUT_OF_MEMORY
