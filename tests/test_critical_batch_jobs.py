"""Searches in processes of their own: signals, kills, CPUs, and the same numbers as without."""

import csv
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stub_jobs import StubJob

from vivit_bench.critical_batch import MemoryLimit, make_cell
from vivit_bench.critical_batch.jobs import (
    SearchJob,
    SweepListener,
    SweepStep,
    cpu_slots,
    run_jobs,
)
from vivit_bench.critical_batch.listener import Listener
from vivit_bench.errors import Stopped, VivitBenchError

TESTS = Path(__file__).parent
MARK = "VIVIT_BENCH_TEST_MARK"
SIZES = {"exact, full": 1, "exact, frac": 2, "mc, full": 3, "mc, frac": 4}
COMMAND = (
    *("critical-batch", "sweep", "--table", "b", "--problem", "mnist_logreg", "--no-gradient"),
    *("--memory-limit", "64MiB", "--format", "csv"),
)
pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="two searches at a time need two CPUs"
)


class Recorded(SweepListener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, tuple[Any, ...]]] = []

    def begun(self, job: SearchJob) -> Listener:
        listener = Listener()
        for name in [name for name in vars(Listener) if not name.startswith("_")]:
            setattr(listener, name, lambda *given, name=name: self.hear(name, given))
        return listener

    def ended(self, step: SweepStep) -> None:
        self.hear("ended", (step,))

    def hear(self, name: str, given: tuple[Any, ...]) -> None:
        self.told.append((name, given))


def run_stubs(
    monkeypatch: pytest.MonkeyPatch, jobs: list[Any], at_once: int, listener: SweepListener
) -> list[Any]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    return run_jobs(jobs, at_once, listener)


def test_a_job_survives_pickling(tmp_path: Path) -> None:
    cell = make_cell("mnist_mlp", threads=1)
    job = SearchJob(cell, MemoryLimit(2**30, True), tmp_path, 64, 60.0, at_once=2)
    again = pickle.loads(pickle.dumps(job))
    assert again == job
    assert again.cell.record() == cell.record()


def test_searches_at_the_same_time_share_no_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [StubJob("cpus", tmp_path)] * 2
    (a0, a1, a), (b0, b1, b) = (
        step.finished for step in run_stubs(monkeypatch, jobs, 2, SweepListener())
    )
    assert max(a0, b0) < min(a1, b1)  # they ran at the same time
    assert len(list(tmp_path.iterdir())) == 2
    assert not a & b
    assert len(a) == len(b) == len(os.sched_getaffinity(0)) // 2


def test_cpus_are_divided_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 3, 8, 9, 11, 12})
    assert cpu_slots(3) == [[1, 2], [3, 8], [9, 11]]
    assert cpu_slots(7) == [[1], [2], [3], [8], [9], [11], [12]]


def test_a_listener_hears_all_that_a_search_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded()
    (step,) = run_stubs(monkeypatch, [StubJob("tell", tmp_path)], 1, recorded)
    names = [name for name in vars(Listener) if not name.startswith("_")]
    assert {"note", "started", "confirming", "finished"} <= set(names)
    assert recorded.told == [*((n, ("told", n)) for n in names), ("ended", (step,))]
    assert (step.finished, step.error) == ("done", None)


def test_what_fails_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kinds = ["refuse", "fail", "be_killed", "print"]
    jobs = [StubJob(kind, tmp_path) for kind in kinds]
    steps = run_stubs(monkeypatch, jobs, 2, SweepListener())
    ends = {step.job.kind: step.finished or str(step.error) for step in steps}
    assert all(isinstance(step.error, VivitBenchError) for step in steps if not step.finished)
    assert ends["refuse"] == "--memory-limit 1 GiB: too much"
    assert "No space left on device" in ends["fail"]
    assert "killed by SIGKILL" in ends["be_killed"]
    assert "the same command goes on" in ends["be_killed"]
    assert ends["print"] == "done"
    told = capfd.readouterr()
    assert told.out == ""  # stdout is the result's
    assert "Traceback" not in told.err


def test_an_interruption_stops_all_and_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    class Stops(Recorded):
        def hear(self, name: str, given: tuple[Any, ...]) -> None:
            pids.append(int(given[0]))
            if len(pids) == 2:
                raise Stopped(signal.SIGTERM)

    jobs = [StubJob("wait", tmp_path / name) for name in ("first", "second", "third")]
    with pytest.raises(Stopped) as stopped:
        run_stubs(monkeypatch, jobs, 2, Stops())
    assert stopped.value.__notes__ == ["first is kept", "second is kept"]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("victim", ["worker", "starter"])
def test_no_process_outlives_a_kill(
    victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed worker costs its job and what it measured; the other one goes on, or ends."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    script = (
        "import pathlib, sys; from stub_jobs import StubJob; "
        "from vivit_bench.critical_batch.jobs import SweepListener, run_jobs; "
        "jobs = [StubJob('measure', pathlib.Path(sys.argv[1]))] * 2; "
        "run_jobs(jobs, 2, SweepListener())"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) as starter:
        deadline = time.monotonic() + 60
        while len(told := [p for p in tmp_path.iterdir() if not p.suffix]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        workers = [int(path.name) for path in told]
        measured = [[int(pid) for pid in path.read_text().split()] for path in told]
        os.kill(workers[0] if victim == "worker" else starter.pid, signal.SIGKILL)
        assert gone([workers[0], *measured[0]])
        if victim == "worker":
            assert starter.poll() is None
            assert not any(gone([pid], 0) for pid in (workers[1], *measured[1]))
            starter.terminate()  # without a handler of its own it ends at once
        assert gone([workers[1], *measured[1]])


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    """Whether some processes have ended, or do within some seconds."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists() and not zombie(pid)]:
        if time.monotonic() >= deadline:
            return False
        pids = left
        time.sleep(0.02)
    return True


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Sweep:
    """A sweep as a user runs it, whose trials are real processes that do little."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.mark = uuid.uuid4().hex
        self.results = folder / "critical_batch"
        paths = [TESTS / "quick_trials", TESTS.parent]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vivit_bench", *COMMAND, *options, "--results-dir", str(folder)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                MARK: self.mark,
                "COLUMNS": "200",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def wait_for(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)

    def wait_for_trials(self) -> None:
        """Until two searches have a trial more, and one is under way."""
        before = lines(self.results)
        self.wait_for(
            lambda: sum(len(v) > len(before.get(k, [])) for k, v in lines(self.results).items()) > 1
        )
        self.wait_for(lambda: self.measuring() and lines(self.results))

    def measuring(self) -> list[int]:
        return [pid for pid, command in self.alive() if "vivit_bench.measure.child" in command]

    def alive(self) -> Iterator[tuple[int, str]]:
        """Processes that descend from this sweep, wherever they went."""
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and f"{MARK}={self.mark}".encode() in (
                    (entry / "environ").read_bytes()
                ):
                    yield int(entry.name), (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue  # it has ended

    def ends(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        deadline = time.monotonic() + 5
        while (left := list(self.alive())) and time.monotonic() < deadline:
            select.select([], [], [], 0.05)
        assert left == []
        return self.process.returncode, out, err


def lines(results: Path) -> dict[str, list[dict[str, Any]]]:
    """Whole records of all searches."""
    return {
        path.parent.name: [
            json.loads(line)["entry"]
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
        for path in results.glob("*/trials.jsonl")
    }


def headers(results: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text())["results"] for path in results.glob("*/run.json")]


def sizes(out: str) -> dict[str, int]:
    rows = csv.DictReader(out.splitlines())
    return {
        f"{row['curvature']}, {row['samples']}": int(row["critical_batch_size"]) for row in rows
    }


def test_interrupted_at_any_time_the_same_command_ends_with_the_same_numbers(
    tmp_path: Path,
) -> None:
    """SIGTERM to the process, then SIGINT to its group as from a terminal."""
    kept: dict[str, list[dict[str, Any]]] = {}
    for number, whom in ((signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg)):
        sweep = Sweep(tmp_path / "jobs", "--jobs", "2")
        sweep.wait_for_trials()
        whom(sweep.process.pid, number)
        code, out, err = sweep.ends()
        assert out == ""
        assert "Traceback" not in err
        assert code == 128 + number
        last = err.splitlines()[-1]
        assert last.startswith(f"vivit-bench: stopped by {number.name}; ")
        assert "the same command goes on" in last
        now = lines(sweep.results)
        assert all(now[name][: len(entries)] == entries for name, entries in kept.items())
        kept = now
    code, out, err = Sweep(tmp_path / "jobs", "--jobs", "2").ends()
    assert code == 0, err
    assert sizes(out) == SIZES
    now = lines(tmp_path / "jobs" / "critical_batch")
    assert all(now[name][: len(entries)] == entries for name, entries in kept.items())
    for entries in now.values():
        assert len({entry["n"] for entry in entries}) == len(entries)  # none was repeated
    assert {header["jobs"] for header in headers(sweep.results)} == {2}
    code, out, err = Sweep(tmp_path / "alone", "--threads", "1").ends()
    assert (code, sizes(out)) == (0, SIZES), err
    assert not any("jobs" in header for header in headers(tmp_path / "alone" / "critical_batch"))
    tried = {name: {e["n"] for e in entries} for name, entries in now.items()}
    alone = lines(tmp_path / "alone" / "critical_batch")
    assert tried == {name: {e["n"] for e in entries} for name, entries in alone.items()}
