"""``--executor slurm`` as a user types it, on a Slurm that runs jobs in this process."""

import contextlib
import csv
import io
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, group_runner
from fake_scheduler import FakeScheduler, run_in_process
from test_critical_batch_records import FakeTrials, replace_trials

from vivit_bench.cluster.slurm import JobState
from vivit_bench.cluster.task import Outcome
from vivit_bench.critical_batch import make_cell
from vivit_bench.critical_batch.settings import Cell
from vivit_bench.errors import Stopped, UsageError
from vivit_bench.measure import Outcome as TrialOutcome
from vivit_bench.store import load_run, write_atomic

SWEEP = (
    *("sweep", "--table", "a", "--problem", "mnist_mlp", "--no-gradient", "--max-batch", 64),
    *("--memory-limit", "64MiB"),
)
ON_SLURM = ("--executor", "slurm", "--threads", 2, "--slurm", "partition=long")


class Cluster(FakeScheduler):
    """Whose jobs run on machines of its own: the one that a job asks for, or ``free``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.free = "n7"
        self.is_interrupted = False
        """Whether Ctrl-C is pressed before any job runs."""
        self._monkeypatch = monkeypatch

    def states(self, numbers: Sequence[str]) -> dict[str, JobState]:
        if self.is_interrupted:
            raise Stopped(signal.SIGINT)
        found = {}
        for number in numbers:
            with self._on(self.submitted[number][1].get("nodelist", self.free)):
                found |= super().states([number])
        return found

    def again(self, number: str) -> Outcome:
        """What comes of a job's work once more, on the free machine."""
        with self._on(self.free):
            return run_in_process(self.tasks[number])

    @contextlib.contextmanager
    def _on(self, node: str) -> Iterator[None]:
        module = sys.modules["vivit_bench.store.provenance"]
        facts = {**module._static_provenance(), "host": f"{node}.cluster.org", "cores": 999}
        with self._monkeypatch.context() as there:
            there.setattr(module, "_static_provenance", lambda: facts)
            yield

    def parameters(self) -> list[Mapping[str, Any]]:
        return [parameters for _, parameters in self.submitted.values()]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(monkeypatch)
    monkeypatch.setattr("vivit_bench.cluster.Slurm", lambda: made)
    for name, value in (("held._ASK", (0.0, 0.0)), ("queue._LOOK", 0.001), ("held._LATE", 0.0)):
        monkeypatch.setattr(f"vivit_bench.cluster.{name}_SECONDS", value)
    return made


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``vivit-bench critical-batch ...``, whose trials are made up; mc, frac fails at first."""
    monkeypatch.chdir(tmp_path)
    failing = {"eigenvalues, mc, frac": iter([True])}

    def trials(cell: Cell) -> FakeTrials:
        is_failing = next(failing.get(cell.variant, iter([])), False)
        return FakeTrials(9, {4: TrialOutcome.ERROR} if is_failing else {})

    replace_trials(monkeypatch, trials)
    monkeypatch.setenv("COLUMNS", "120")
    return group_runner("critical-batch", monkeypatch, capsys)


def test_a_sweep_on_other_machines(run: Run, cluster: Cluster, tmp_path: Path) -> None:
    """What nodes have made is found, and interrupted searches go on on their own node."""
    first = run(*SWEEP, *ON_SLURM, "--format", "csv")
    assert first.code == 1
    assert first.out.count("\n") == 4  # the finished ones
    assert "each job asks for cpus=2, mem=4224M, partition=long" in first.err
    assert "[1/4] mnist_mlp: eigenvalues, exact, full: job 1 runs on n1" in first.err
    assert "3 of 4 searches finished, 1 failed" in first.err
    last = first.err.splitlines()[-1]
    assert "N = 4 failed" in last
    assert "(job 4, log results/slurm/critical_batch/" in last
    assert [each["cpus_per_task"] for each in cluster.parameters()] == [2] * 4
    assert not any("nodelist" in each for each in cluster.parameters())
    again = run(*SWEEP, *ON_SLURM, "--format", "csv")
    assert (again.code, again.out.count("\n")) == (0, 5)
    assert "job 5 is submitted, on n7, where it was begun" in again.err
    assert cluster.parameters()[4]["nodelist"] == "n7"
    third = run(*SWEEP, *ON_SLURM)
    assert third.code == 0
    assert len(cluster.submitted) == 5  # nothing is left to submit
    here = run(*SWEEP, "--threads", 2)
    assert here.code == 1  # this machine does not go on with what another one made
    assert "host n7.cluster.org -> " in here.err
    fresh = run(*SWEEP, *ON_SLURM, "--fresh")
    assert fresh.code == 0
    assert len(cluster.submitted) == 9


SMALL = tuple(8 if word == 64 else word for word in SWEEP)
"""The sweep under a --max-batch at which its searches end."""
CSV = ("--format", "csv")


def sizes(out: str) -> set[str]:
    return {row["critical_batch_size"] for row in csv.DictReader(io.StringIO(out))}


@pytest.fixture
def all_succeed(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """No trial fails."""
    replace_trials(monkeypatch, lambda cell: FakeTrials(9))


@pytest.mark.usefixtures("all_succeed")
def test_what_is_finished_goes_further_on_its_own_node(
    run: Run, cluster: Cluster, tmp_path: Path
) -> None:
    """Under wider bounds, and where its journal has lost a line."""
    first = run(*SMALL, *ON_SLURM, *CSV)
    assert (first.code, sizes(first.out)) == (0, {"8"}), first.err
    cluster.free = "n1"
    further = run(*SWEEP, *ON_SLURM, *CSV)
    assert (further.code, sizes(further.out)) == (0, {"9"}), further.err
    assert "job 5 is submitted, on n7, where it was begun" in further.err
    journal = sorted(tmp_path.glob("results/critical_batch/*/trials.jsonl"))[0]
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    mended = run(*SWEEP, *ON_SLURM, *CSV)
    assert (mended.code, sizes(mended.out)) == (0, {"9"}), mended.err
    asked = [each.get("nodelist") for each in cluster.parameters()]
    assert asked == [None] * 4 + ["n7"] * 5


@pytest.mark.usefixtures("all_succeed")
def test_jobs_of_a_command_that_asked_for_less_are_followed_by_others(
    run: Run, cluster: Cluster
) -> None:
    cluster.is_interrupted = True
    assert run(*SMALL, *ON_SLURM).code == 130
    cluster.is_interrupted = False
    told = run(*SWEEP, *ON_SLURM, *CSV)
    assert (told.code, sizes(told.out)) == (0, {"9"}), told.err
    assert "job 1 has it already, and is waited for" in told.err
    assert "job 1 has done less than is asked for now" in told.err
    assert [each.get("nodelist") for each in cluster.parameters()] == [None] * 4 + ["n7"] * 4


@pytest.mark.usefixtures("all_succeed")
def test_a_search_that_another_node_has_finished_is_returned(run: Run, cluster: Cluster) -> None:
    """Two commands have submitted it at once; the second job runs where it could not go on."""
    assert run(*SWEEP, *ON_SLURM).code == 0
    cluster.free = "n1"
    outcome = cluster.again("1")
    assert outcome.failed == ""
    assert outcome.value.result.critical_batch_size == 9


def test_a_dry_run_says_what_is_asked_for(run: Run, tmp_path: Path) -> None:
    told = run(*SWEEP, *ON_SLURM, "--slurm", "time=1:00:00", "--dry-run", "--format", "csv")
    assert (told.code, told.out.count("\n")) == (0, 5)
    assert "each job asks for cpus=2, mem=4224M, partition=long, time=60 min" in told.err
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_here_is_the_nodes(
    cluster: Cluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = UsageError("--device cuda: PyTorch sees no CUDA device here")

    def refuse(text: str) -> str:
        raise gone

    monkeypatch.setattr("vivit_bench.critical_batch.settings.parse_device", refuse)
    with pytest.raises(UsageError):
        make_cell("mnist_mlp", device="cuda", threads=1)
    monkeypatch.setattr("vivit_bench.critical_batch.cluster.parse_device", refuse)
    table_d = [word if word != "a" else "d" for word in SWEEP]
    told = run(*table_d, *ON_SLURM, "--slurm", "gres=gpu:1")
    assert told.code == 1  # of the node, which has none either
    assert "4 of 4 searches failed" in told.err
    assert "sees no CUDA device here (job 1, log" in told.err
    assert [each["gres"] for each in cluster.parameters()] == ["gpu:1"] * 4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--slurm", "partition=long"), "--slurm partition=long: for Slurm; add --executor slurm"),
        (("--executor", "slurm"), "--executor slurm: how many CPUs a job asks for is not said"),
        ((*ON_SLURM, "--slurm", "queue=x"), "--slurm queue=x: queue is no key; there are account"),
        ((*ON_SLURM, "--slurm", "mem=64MiB"), "the work may take 128 MiB over its idle process"),
        (("--executor", "cloud"), "--executor"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: tuple[object, ...], line: str, run: Run, cluster: Cluster, tmp_path: Path
) -> None:
    told = run(*SWEEP, *words)
    assert (told.code, told.out) == (2, "")
    assert line in told.err
    assert told.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_share_of_this_machines_memory_is_none_of_the_clusters(
    run: Run, cluster: Cluster
) -> None:
    told = run(*SWEEP[:-2], *ON_SLURM)
    assert told.code == 2
    assert "add --memory-limit SIZE" in told.err


ENGINE = ("--threads", 1, "--engine-memory", "64MiB", "--format", "csv")


TRAINING = (
    *("run", "mnist_logreg", "--lr", 0.1, "--data", "mnist5k", "--epochs", 1, "--checkpoints", 2),
    *("--monitor-batch-size", 8, *ENGINE),
)


def checked_less(folder: Path) -> None:
    """Take the check from a stored spectrum."""
    stored = load_run(folder, "spectrum")
    results = {**stored.results, "certificate": {**stored.results["certificate"], "samples": []}}
    write_atomic(folder / "run.json", replace(stored, results=results).to_json())


def grouped(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    return group_runner(group, monkeypatch, capsys)


def test_spectra(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = grouped("spectrum", tmp_path, monkeypatch, capsys)
    sweep = ("sweep", "mnist_logreg", "--data", "synthetic", "--batch-size", 8, *ENGINE)
    told = run(*sweep, "--executor", "slurm")
    assert (told.code, told.out.count("\n")) == (0, 5), told.err
    assert "each job asks for cpus=1, mem=4160M" in told.err
    assert "mnist_logreg mc, frac: stored (" in told.err
    again = run(*sweep, "--executor", "slurm")
    assert (again.code, len(cluster.submitted)) == (0, 4)
    assert again.err.count("finished already: ") == 4
    here = run(*sweep, "--results-dir", "here")
    assert here.code == 0
    there = sorted(tmp_path.glob("results/spectrum/*/*.csv"))
    assert len(there) == 4
    for table in there:
        same = tmp_path / "here" / "spectrum" / table.parent.name / table.name
        assert same.read_bytes() == table.read_bytes()
    cluster.free = "n1"  # a second job of the same spectrum, on another node
    folder = cluster.again("1").value.folder
    checked_less(folder)
    checked = run(*sweep, "--executor", "slurm")
    assert (checked.code, len(cluster.submitted)) == (0, 5), checked.err
    assert cluster.parameters()[-1]["nodelist"] == "n7"
    cluster.said = {"job6": [JobState("OUT_OF_MEMORY")]}
    failed = run(*sweep, "--executor", "slurm", "--fresh")
    assert failed.code == 1
    last = failed.err.splitlines()[-1]
    assert "1 of 4 spectra failed" in last
    assert "exact, full: job 6 was killed for its memory (mem=4160M)" in last
    assert failed.out.count("\n") == 4


def test_a_training(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = grouped("noise", tmp_path, monkeypatch, capsys)
    training = (*TRAINING, "--optimizer", "sgd")
    cluster.said = {"job1": [JobState("PREEMPTED")]}
    lost = run(*training, "--executor", "slurm")
    assert (lost.code, lost.out) == (1, "")
    assert "vivit-bench: job 1 was preempted; the same command goes on with it" in lost.err
    told = run(*training, "--executor", "slurm")
    assert told.code == 0, told.err
    again = run(*training, "--executor", "slurm")
    assert (again.code, again.out, len(cluster.submitted)) == (0, told.out, 2)
    cluster.free = "n1"  # a second job of the same training, on another node
    assert cluster.again("2").value.stored.is_finished
    wanted = run(*training, "--executor", "slurm", "--save-model", "last.pt")
    assert (wanted.code, len(cluster.submitted)) == (2, 2)
    assert "--fresh trains again" in wanted.err
    here = run(*training, "--results-dir", "here")
    assert here.code == 0
    there = sorted(tmp_path.glob("results/noise/*/*.csv"))
    assert there
    for table in there:
        same = tmp_path / "here" / "noise" / table.parent.name / table.name
        assert same.read_bytes() == table.read_bytes()


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        (
            ("--optimizer", "sgd"),
            ("--optimizer", "sgd", "--save-model", "last.pt"),
            "its weights are not in this file nor anywhere else",
        ),
        (
            ("--name", "first", "--optimizer", "sgd"),
            ("--name", "first", "--optimizer", "adam"),
            "optimizer sgd -> adam); --fresh computes it again",
        ),
    ],
)
def test_a_training_of_a_command_that_asked_for_something_else_is_refused(
    first: tuple[str, ...],
    second: tuple[str, ...],
    line: str,
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = grouped("noise", tmp_path, monkeypatch, capsys)
    cluster.is_interrupted = True
    assert run(*TRAINING, *first, "--executor", "slurm").code == 130
    cluster.is_interrupted = False
    told = run(*TRAINING, *second, "--executor", "slurm")
    assert (told.code, told.out, len(cluster.submitted)) == (2, "", 1)
    assert "job 1 has it already, and is waited for" in told.err
    assert line in told.err.splitlines()[-1]
    assert "--fresh" in told.err.splitlines()[-1]
