"""On a real Slurm of one node: the numbers of a sweep on this machine, whatever happens to jobs."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_node import SlurmNode, slurm_node
from stub_tasks import StubTask
from test_critical_batch_jobs import COMMAND, SIZES, lines, sizes

from vivit_bench.cluster import QueueJob, QueueListener, Slurm, make_request, run_in_queue

TESTS = Path(__file__).parent
MIB = 2**20
ON_SLURM = ("--executor", "slurm", "--slurm", "partition=main,time=10")
pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def node() -> Iterator[SlurmNode]:
    pytest.importorskip("submitit")
    with slurm_node() as started:
        yield started


class Command:
    """A command as a user types it; trials are real processes that do little."""

    def __init__(self, node: SlurmNode, *words: object, quick: bool = True) -> None:
        paths = [TESTS / "quick_trials"] * quick + [TESTS, TESTS.parent]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vivit_bench", *map(str, words)],
            env={
                **node.environment,
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "COLUMNS": "200",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def ends(self, seconds: float = 900.0) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=seconds)
        assert "Traceback" not in err
        return self.process.returncode, out, err

    def wait_for(self, condition: Callable[[], Any], seconds: float = 300.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.1)
        return found


def sweep(node: SlurmNode, folder: Path, *options: object) -> Command:
    return Command(node, *COMMAND, "--threads", 1, "--results-dir", folder, *options)


def running(node: SlurmNode) -> dict[str, str]:
    """Number -> name of the jobs that run."""
    rows = node.run("squeue", "-h", "--states=R", "--format=%i|%j").splitlines()
    return dict(row.split("|") for row in rows)


def under_way(node: SlurmNode, results: Path) -> list[tuple[str, str]]:
    """Number and name of the jobs that run and have stored a trial."""
    known = lines(results)
    return [
        (number, name)
        for number, name in running(node).items()
        if any(name.startswith(run[:60]) and found for run, found in known.items())
    ]


def process_of(number: str) -> int | None:
    """The process that does a job's work."""
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdecimal():
                continue
            command = (entry / "cmdline").read_bytes().split(b"\0")
            is_python = Path(os.fsdecode(command[0])).name.startswith("python")
            if is_python and b"submitit.core._submit" in command and (
                f"SLURM_JOB_ID={number}".encode() in (entry / "environ").read_bytes().split(b"\0")
            ):  # fmt: skip
                return int(entry.name)
        except OSError:
            continue  # it has ended
    return None


def tried(folder: Path) -> dict[str, set[int]]:
    return {name: {e["n"] for e in found} for name, found in lines(folder).items()}


def test_a_sweep_on_slurm_is_that_of_this_machine(node: SlurmNode, tmp_path: Path) -> None:
    code, out, err = sweep(node, tmp_path / "slurm", *ON_SLURM).ends()
    assert (code, sizes(out)) == (0, SIZES), err
    assert "each job asks for cpus=1, mem=4224M, partition=main, time=10 min" in err
    assert re.search(r"\[1/4\] .*: job \d+ runs on", err)
    assert "4 of 4 searches finished" in err
    code, out, err = sweep(node, tmp_path / "local").ends()
    assert (code, sizes(out)) == (0, SIZES), err
    there, here = (tmp_path / name / "critical_batch" for name in ("slurm", "local"))
    assert tried(there) == tried(here)
    for run in there.iterdir():
        assert {path.name for path in run.iterdir()} == {"run.json", "trials.jsonl"}
        logs = tmp_path / "slurm" / "slurm" / "critical_batch" / run.name
        (log,) = logs.glob("*_0_log.err")
        assert "N = 1 " in log.read_text()
    before = node.run("sacct", "-n", "-X").count("\n")
    code, out, err = sweep(node, tmp_path / "slurm", *ON_SLURM).ends()  # nothing is submitted
    assert (code, sizes(out)) == (0, SIZES), err
    assert node.run("sacct", "-n", "-X").count("\n") == before
    code, out, err = sweep(node, tmp_path / "slurm").ends()  # and this machine goes on with it
    assert (code, sizes(out)) == (0, SIZES), err


def test_a_cancelled_and_a_killed_job_are_named_and_gone_on_with(
    node: SlurmNode, tmp_path: Path
) -> None:
    results = tmp_path / "critical_batch"
    first = sweep(node, tmp_path, *ON_SLURM)

    cancelled, name = first.wait_for(lambda: under_way(node, results))[-1]
    node.run("scancel", cancelled)
    killed, _ = first.wait_for(
        lambda: [e for e in under_way(node, results) if e[1] != name and process_of(e[0])]
    )[-1]
    process = process_of(killed)
    assert process is not None
    os.kill(process, signal.SIGKILL)
    code, out, err = first.ends()
    assert code == 1, err
    last = err.splitlines()[-1]
    assert last.startswith("vivit-bench: 2 of 4 searches failed, the same command tries them again")
    assert re.search(rf"job {cancelled} was (cancelled|stopped by SIGTERM)", last), last
    assert f"job {killed} ended without a word (FAILED" in last, last
    assert sizes(out).items() < SIZES.items()
    kept = lines(results)
    code, out, err = sweep(node, tmp_path, *ON_SLURM).ends()
    assert (code, sizes(out)) == (0, SIZES), err
    assert err.count(f", on {node.host}, where it was begun") == 2
    now = lines(results)
    assert all(now[run][: len(found)] == found for run, found in kept.items())
    for found in now.values():  # no trial is repeated, but one that the kill made an error
        good = [entry["n"] for entry in found if entry["outcome"] != "error"]
        assert len(set(good)) == len(good)


@pytest.mark.parametrize("partition", ["main", "spare"])
def test_a_pre_empted_job_is_named_and_gone_on_with(
    partition: str, node: SlurmNode, tmp_path: Path
) -> None:
    """Whether Slurm would requeue it or cancels it; jobs that have not begun wait."""
    results = tmp_path / "critical_batch"
    on_spare = ("--executor", "slurm", "--slurm", f"partition={partition},time=10")
    first = sweep(node, tmp_path, *on_spare)
    first.wait_for(lambda: under_way(node, results))
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--cpus-per-task=2", "--mem=64M"]
    number = node.run(*urgent, f"--output={tmp_path}/urgent", "--wrap=sleep 5").strip()
    code, out, err = first.ends()
    assert code == 1, err
    last = err.splitlines()[-1]
    assert re.search(r"job \d+ was (preempted|stopped by SIGTERM)", last), last
    assert "the same command tries them again" in last
    ends = node.run("sacct", "-n", "-X", "-P", f"--jobs={number}", "--format=State")
    assert ends.strip() == "COMPLETED"
    kept = lines(results)
    code, out, err = sweep(node, tmp_path, *on_spare).ends()
    assert (code, sizes(out)) == (0, SIZES), err
    now = lines(results)
    assert all(now[run][: len(found)] == found for run, found in kept.items())
    for found in now.values():  # no trial is repeated
        assert len({entry["n"] for entry in found}) == len(found)


def test_an_interrupted_command_leaves_its_jobs_and_waits_for_them_again(
    node: SlurmNode, tmp_path: Path
) -> None:
    first = sweep(node, tmp_path, *ON_SLURM, "--jobs", 3)
    first.wait_for(lambda: running(node))
    os.killpg(first.process.pid, signal.SIGINT)
    code, out, err = first.ends()
    assert (code, out) == (130, "")
    last = err.splitlines()[-1]
    found = re.search(r"in Slurm's queue, and going on there: jobs? ([\d ]+); the same", last)
    assert found, last
    numbers = found[1].split()
    assert "not submitted: 1" in last
    live = node.run("squeue", "-h", "--format=%i").split()
    assert live
    assert set(live) <= set(numbers)
    code, out, err = sweep(node, tmp_path, *ON_SLURM).ends()
    assert (code, sizes(out)) == (0, SIZES), err
    assert "has it already, and is waited for" in err
    logs = (tmp_path / "slurm" / "critical_batch").iterdir()
    assert [len(list(folder.glob("*_submitted.pkl"))) for folder in logs] == [1] * 4


class Blind(Slurm):
    """Of a second command that looked into the queue before the first one submitted."""

    def live(self, names: object) -> dict[str, str]:
        return {}


def test_jobs_of_one_run_never_run_at_once(
    node: SlurmNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any lock of a file system; jobs of other runs do run beside them."""
    enter(node, monkeypatch)
    same = QueueJob(tmp_path / "results" / "x" / "run", "run", StubTask("w", tmp_path, 3.0))
    other = QueueJob(tmp_path / "results" / "x" / "other", "other", same.task)
    asked = make_request({"partition": "main", "mem": "64M"}, 1, MIB)
    ended = run_in_queue(Blind(), [same, other, same, same], asked, QueueListener())
    assert [each.value for each in ended] == ["done"] * 4
    times = {
        each.number: tuple(map(float, (tmp_path / str(each.number)).read_text().split()))
        for each in ended
    }
    spans = sorted(times[each.number] for each in ended if each.job == same)
    assert len(spans) == 3
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    (begin, end) = next(times[each.number] for each in ended if each.job == other)
    assert any(begin < b and a < end for a, b in spans)


def test_two_commands_at_once_share_the_work(node: SlurmNode, tmp_path: Path) -> None:
    commands = [sweep(node, tmp_path, *ON_SLURM) for _ in range(2)]
    for command in commands:
        code, out, err = command.ends()
        assert (code, sizes(out)) == (0, SIZES), err
    for found in lines(tmp_path / "critical_batch").values():
        assert len({entry["n"] for entry in found}) == len(found)


def test_a_job_that_comes_to_the_end_of_its_time_says_so(
    node: SlurmNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(node, monkeypatch)
    job = QueueJob(tmp_path / "results" / "x" / "run", "run", StubTask("w", tmp_path, 300.0))
    asked = make_request({"partition": "main", "mem": "64M", "time": "1"}, 1, MIB)
    (ended,) = run_in_queue(Slurm(), [job], asked, QueueListener())
    said = str(ended.error)
    assert "came to the end of its time (1 min; --slurm time=2 asks for more)" in said
    assert "half of it is kept" in said


def test_what_slurm_does_not_have_is_one_line(node: SlurmNode, tmp_path: Path) -> None:
    command = sweep(node, tmp_path, "--executor", "slurm", "--slurm", "partition=nope")
    code, out, err = command.ends()
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("vivit-bench: Slurm refuses the job: invalid partition specified: nope")
    assert "partition=nope" in last


SPECTRA = (
    *("spectrum", "sweep", "mnist_logreg", "--data", "synthetic", "--batch-size", 16),
    *("--threads", 1, "--engine-memory", "64MiB", "--format", "csv", "--results-dir"),
)
NOISE = (
    *("noise", "run", "mnist_logreg", "--optimizer", "sgd", "--lr", 0.1, "--data", "mnist5k"),
    *("--epochs", 1, "--checkpoints", 3, "--monitor-batch-size", 16, "--threads", 1),
    *("--engine-memory", "64MiB", "--format", "csv", "--results-dir"),
)


@pytest.mark.parametrize(("words", "tables"), [(SPECTRA, 4), (NOISE, 3)])
def test_other_runs_have_the_same_bytes(
    words: tuple[object, ...], tables: int, node: SlurmNode, tmp_path: Path
) -> None:
    for name, options in (("slurm", ON_SLURM), ("local", ())):
        code, out, err = Command(node, *words, tmp_path / name, *options, quick=False).ends()
        assert code == 0, err
        assert out.count("\n") > 1
    made = [
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).glob(f"{words[0]}/*/*.csv")
        }
        for name in ("slurm", "local")
    ]
    assert made[0] == made[1]
    assert len(made[0]) == tables


def enter(node: SlurmNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's commands and jobs of this process are the node's, and jobs find the stubs."""
    monkeypatch.setenv("SLURM_CONF", str(node.configuration))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
