"""``--executor slurm`` as a user types it, on a Slurm that runs jobs in this process."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, group_runner
from fake_scheduler import FakeScheduler
from test_critical_batch_records import FakeTrials, planning

from vivit_bench.cluster.slurm import JobState
from vivit_bench.critical_batch import jobs as jobs_module
from vivit_bench.critical_batch import make_cell, run_search
from vivit_bench.critical_batch.runner import FinishedSearch, MemoryLimit
from vivit_bench.critical_batch.settings import Cell
from vivit_bench.errors import UsageError
from vivit_bench.measure import Outcome

SWEEP = (
    *("sweep", "--table", "a", "--problem", "mnist_mlp", "--no-gradient", "--max-batch", 64),
    *("--memory-limit", "64MiB"),
)
ON_SLURM = ("--executor", "slurm", "--threads", 2, "--slurm", "partition=long")


class Cluster(FakeScheduler):
    """Whose jobs run on a machine of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._monkeypatch = monkeypatch

    def states(self, numbers: Sequence[str]) -> dict[str, JobState]:
        import sys

        module = sys.modules["vivit_bench.store.provenance"]
        facts = {**module._static_provenance(), "host": "n7.cluster.org", "cores": 999}
        with self._monkeypatch.context() as there:
            there.setattr(module, "_static_provenance", lambda: facts)
            return super().states(numbers)

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

    def search(cell: Cell, memory_limit: MemoryLimit, **options: Any) -> FinishedSearch:
        is_failing = next(failing.get(cell.variant, iter([])), False)
        trials = FakeTrials(9, {4: Outcome.ERROR} if is_failing else {})
        return run_search(cell, memory_limit, run=trials, plan=planning([]), **options)

    monkeypatch.setattr(jobs_module, "run_search", search)
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
    assert "job 5 is submitted, on n7, where it was interrupted" in again.err
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
    cluster.said = {"job5": [JobState("OUT_OF_MEMORY")]}
    failed = run(*sweep, "--executor", "slurm", "--fresh")
    assert failed.code == 1
    last = failed.err.splitlines()[-1]
    assert "1 of 4 spectra failed" in last
    assert "exact, full: job 5 was killed for its memory (mem=4160M)" in last
    assert failed.out.count("\n") == 4


def test_a_training(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = grouped("noise", tmp_path, monkeypatch, capsys)
    training = (
        *("run", "mnist_logreg", "--optimizer", "sgd", "--lr", 0.1, "--data", "mnist5k"),
        *("--epochs", 1, "--checkpoints", 2, "--monitor-batch-size", 8, *ENGINE),
    )
    cluster.said = {"job1": [JobState("PREEMPTED")]}
    lost = run(*training, "--executor", "slurm")
    assert (lost.code, lost.out) == (1, "")
    assert "vivit-bench: job 1 was preempted; the same command goes on with it" in lost.err
    told = run(*training, "--executor", "slurm")
    assert told.code == 0, told.err
    again = run(*training, "--executor", "slurm")
    assert (again.code, again.out, len(cluster.submitted)) == (0, told.out, 2)
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
