"""Sweeps: their plans, what they refuse, and how they are told."""

import contextlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, group_runner
from test_critical_batch_records import FakeTrials, planning

from vivit_bench.critical_batch import jobs as jobs_module
from vivit_bench.critical_batch import make_cell, run_search, sweep_plan
from vivit_bench.critical_batch.jobs import SweepListener
from vivit_bench.critical_batch.listener import Listener
from vivit_bench.critical_batch.predict import Prediction
from vivit_bench.critical_batch.runner import FinishedSearch, MemoryLimit
from vivit_bench.critical_batch.settings import Cell
from vivit_bench.critical_batch.sweep import run_sweep, table_cells, threads_of
from vivit_bench.critical_batch.sweep_plan import (
    PlannedSearch,
    Stored,
    SweepPlan,
    expected_seconds,
    plan_sweep,
    stored_prediction,
)
from vivit_bench.critical_batch.table_s1 import SUB_TABLES
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.measure import Outcome
from vivit_bench.store import run as run_module

LIMIT = 21_500_000
"""Peaks of `FakeTrials` are 1000 bytes a sample: only its threshold decides."""


def predicted(search_seconds: float | None = 100.0, step: float | None = 10.0) -> Prediction:
    return Prediction(LIMIT, 21, 18, 25, "eigenvalues", step, search_seconds)


@pytest.fixture
def cells() -> list[Cell]:
    return [make_cell("mnist_mlp", seed=seed, threads=1) for seed in range(4)]


@pytest.fixture
def plan_of(tmp_path: Path, cells: list[Cell]) -> Callable[..., SweepPlan]:
    def plan(**options: Any) -> SweepPlan:
        given = {"memory_limit": LIMIT, "max_batch": 64, "trial_timeout": 60.0, **options}
        return plan_sweep(cells, results_dir=tmp_path, **given)

    return plan


PlanOf = Callable[..., SweepPlan]


def store(cell: Cell, folder: Path, interrupt_after: int | None = None, **facts: Any) -> None:
    """Search with trials that run nowhere; each takes 2 s."""
    trials = FakeTrials(21)
    trials.interrupt_after = interrupt_after
    options: dict[str, Any] = {"results_dir": folder, "max_batch": 64, "run": trials}
    with contextlib.suppress(KeyboardInterrupt):
        run_search(cell, MemoryLimit(LIMIT, True), plan=planning([]), **options)
    if facts:
        with run_module.open_run(folder, identity(cell)) as run:
            run.update(**facts)


def identity(cell: Cell) -> Any:
    return sweep_plan.identity_of(cell, LIMIT)


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_plan_says_what_is_stored_and_writes_nothing(
    plan_of: PlanOf, cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(cells[0], tmp_path)
    store(cells[1], tmp_path, 3, predicted=asdict(predicted()))
    store(cells[2], tmp_path, 2)
    (damaged,) = tmp_path.glob(f"*/{identity(cells[2]).address}/run.json")
    damaged.write_text("{}")
    before = files_of(tmp_path)
    monkeypatch.setattr(sweep_plan, "predict_cell", None)  # not asked
    plan = plan_of()
    assert [each.stored for each in plan.searches] == [
        Stored.FINISHED,
        Stored.INTERRUPTED,
        Stored.REFUSED,
        Stored.NEW,
    ]
    finished, interrupted, refused, new = plan.searches
    assert finished.facts["critical_batch_size"] == 21
    assert (interrupted.trials, interrupted.spent_seconds) == (3, 6.0)
    assert interrupted.prediction == predicted()
    assert interrupted.expected_seconds == 94.0
    assert "run.json" in refused.reason
    assert (new.expected_seconds, new.trials) == (None, 0)
    assert [each.is_to_run for each in plan.searches] == [False, True, False, True]
    assert plan.at_once == 1
    fresh = plan_of(fresh=True)
    assert {each.stored for each in fresh.searches} == {Stored.NEW}
    assert plan_of(max_batch=128).searches[0].stored is Stored.FINISHED  # memory stopped it
    assert files_of(tmp_path) == before


def test_a_plan_of_a_folder_that_is_not_there_makes_none(plan_of: PlanOf, tmp_path: Path) -> None:
    assert {each.stored for each in plan_of().searches} == {Stored.NEW}
    assert list(tmp_path.iterdir()) == []


def test_what_others_left_in_a_folder_is_not_taken_for_nothing(
    plan_of: PlanOf, cells: list[Cell], tmp_path: Path
) -> None:
    folder = tmp_path / "critical_batch" / identity(cells[0]).address
    folder.mkdir(parents=True)
    (folder / ".x.vivit-bench-tmp").touch()  # of a run that was killed at its beginning
    assert plan_of().searches[0].stored is Stored.NEW
    (folder / "thesis.tex").touch()
    assert plan_of().searches[0].stored is Stored.REFUSED
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("facts", [{}, {"predicted": None}, {"predicted": {"low": 3}}])
def test_a_header_may_say_nothing_of_a_prediction(facts: dict[str, Any]) -> None:
    assert stored_prediction(facts) is None


def test_one_prediction_that_fails_costs_its_row(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(cell: Cell, memories: list[int], **options: Any) -> list[Prediction]:
        if cell.workload.seed == 1:
            raise VivitBenchError("N = 1: the set-up failed")
        assert (memories, options["max_batch"], options["trial_timeout"]) == ([LIMIT], 64, 60.0)
        return [predicted()]

    monkeypatch.setattr(sweep_plan, "predict_cell", predict)
    plan = plan_of().predicted(Listener())
    assert [each.expected_seconds for each in plan.searches] == [100.0, None, 100.0, 100.0]
    assert plan.searches[1].reason == "N = 1: the set-up failed"


@pytest.mark.parametrize(
    ("seconds", "at_once", "total"),
    [
        ([10.0, 20.0, 30.0], 1, (60.0, 0)),
        ([10.0, 20.0, 30.0], 2, (40.0, 0)),
        ([30.0, 10.0, 10.0, 10.0], 2, (30.0, 0)),
        ([10.0, None, 5.0], 2, (10.0, 1)),
        ([], 2, (0.0, 0)),
    ],
)
def test_the_time_of_searches_that_follow_each_other(
    seconds: list[float | None], at_once: int, total: tuple[float, int]
) -> None:
    assert expected_seconds(seconds, at_once) == total


@pytest.mark.parametrize(
    ("step", "timeout", "longer"),
    [(10_800.0, 1800.0, 12_000.0), (61.0, 60.0, 68.0), (59.0, 60.0, None), (None, 60.0, None)],
)
def test_a_time_out_that_is_too_short_is_named_with_one_that_is_not(
    plan_of: PlanOf, step: float | None, timeout: float, longer: float | None
) -> None:
    job = plan_of(trial_timeout=timeout).searches[0].job
    planned = PlannedSearch(job, Stored.NEW, {}, prediction=predicted(step=step))
    assert planned.longer_timeout == (None if longer is None else pytest.approx(longer))


def test_threads_are_the_cpus_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(10, 17)))
    assert threads_of(1, None) is None
    assert threads_of(1, 100) == 100
    assert [threads_of(n, None) for n in (2, 3, 7)] == [3, 2, 1]
    assert threads_of(3, 1) == 1
    with pytest.raises(UsageError, match=r"--jobs 8: .* need 8 CPUs, .* use 7; use --jobs 7$"):
        threads_of(8, None)
    words = r"--jobs 2: 2 searches with --threads 4 need 8 CPUs.*use --jobs 1 or --threads 3$"
    with pytest.raises(UsageError, match=words):
        threads_of(2, 4)


def test_memory_for_all_at_once_or_none(
    plan_of: PlanOf, cells: list[Cell], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sweep_plan, "available_memory", lambda: 9 * 2**30)
    assert plan_of(memory_limit=2**32, at_once=1).at_once == 1
    assert plan_of(memory_limit=2**32, at_once=2).at_once == 2  # 2 x 4.4 GiB
    words = r"under 4 GiB may take 13.2 GiB .* 9 GiB are available now; use --jobs 2 or "
    with pytest.raises(UsageError, match=words + "--memory-limit 2752MiB$"):
        plan_of(memory_limit=2**32, at_once=3)
    assert plan_of(memory_limit=2752 * 2**20, at_once=3).at_once == 3
    for cell in cells:
        store(cell, tmp_path)
    monkeypatch.setattr(sweep_plan, "available_memory", lambda: 0)
    assert plan_of(at_once=3).at_once == 1  # records alone need none


def test_searches_on_a_device_run_alone(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vivit_bench.critical_batch.settings.parse_device", lambda text: "cuda:0")
    on_device = make_cell("mnist_mlp", device="cuda", threads=1)
    options: dict[str, Any] = {"memory_limit": LIMIT, "max_batch": 64, "trial_timeout": 60.0}
    with pytest.raises(UsageError, match=r"--jobs 2: searches on cuda:0 .* use --jobs 1$"):
        plan_sweep([*cells, on_device], results_dir=tmp_path, at_once=2, **options)


def test_no_more_searches_at_a_time_are_stored_than_there_are(
    plan_of: PlanOf, cells: list[Cell], tmp_path: Path
) -> None:
    for cell in cells[:2]:
        store(cell, tmp_path)
    plan = plan_of(at_once=3)
    assert plan.at_once == 2
    assert {each.job.at_once for each in plan.searches} == {2}


def test_a_sweep_goes_on_after_a_failed_cell(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []

    def run(cell: Cell, memory_limit: MemoryLimit, **options: Any) -> FinishedSearch:
        ending = {4: Outcome.ERROR} if cell.workload.seed == 1 else {}
        searched.append(cell.workload.seed)
        trials = FakeTrials(9, ending)
        return run_search(cell, memory_limit, run=trials, plan=planning([]), **options)

    monkeypatch.setattr(jobs_module, "run_search", run)
    steps = run_sweep(plan_of(), SweepListener())
    assert searched == [0, 1, 2, 3]
    assert [step.error is None for step in steps] == [True, False, True, True]
    assert [step.finished is None for step in steps] == [False, True, False, False]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``vivit-bench critical-batch ...``, whose trials and predictions are made up."""
    monkeypatch.chdir(tmp_path)

    def search(cell: Cell, memory_limit: MemoryLimit, **options: Any) -> FinishedSearch:
        ending = {4: Outcome.ERROR} if cell.label.startswith("mnist_2c2d") else {}
        trials = FakeTrials(9, ending)
        return run_search(cell, memory_limit, run=trials, plan=planning([]), **options)

    def predict(cell: Cell, memories: list[int], **options: Any) -> list[Prediction]:
        if cell.label.startswith("mnist_2c2d"):
            raise VivitBenchError("N = 1: the set-up failed")
        return [predicted(search_seconds=7_200.0, step=10_800.0)]

    monkeypatch.setattr(jobs_module, "run_search", search)
    monkeypatch.setattr(sweep_plan, "predict_cell", predict)
    monkeypatch.setenv("COLUMNS", "120")
    return group_runner("critical-batch", monkeypatch, capsys)


COMMAND = (
    *("sweep", "--table", "a", "--problem", "mnist_mlp", "--no-gradient", "--threads", 1),
    *("--memory-limit", "64MiB", "--max-batch", 64),
)


def test_a_dry_run_prints_the_plan_and_does_nothing(run: Run, tmp_path: Path) -> None:
    told = run(*COMMAND, "--dry-run", "--format", "json")
    assert (told.code, list(tmp_path.iterdir())) == (0, [])
    rows = json.loads(told.out)
    assert [row["work"] for row in rows] == [
        f"eigenvalues, {variant}"
        for variant in ("exact, full", "exact, frac", "mc, full", "mc, frac")
    ]
    assert {row["stored"] for row in rows} == {"new"}
    assert {(row["predicted"], row["low"], row["high"]) for row in rows} == {(21, 18, 25)}
    assert {row["expected_seconds"] for row in rows} == {7_200.0}
    assert "[4/4] mnist_mlp: eigenvalues, mc, frac" in told.err
    shown = " ".join(run(*COMMAND, "--dry-run", "--problem", "mnist_2c2d").out.split())
    assert "21 (18-25) 2 h" in shown
    assert "To run: 8 of 8 searches; expected time 8 h and that of 4 searches" in shown
    assert "# 1: its large trials are expected to take 3 h, over --timeout 1800 s: " in shown
    assert "--timeout 12000" in shown
    assert "# 5: not predicted: N = 1: the set-up failed" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_tells_its_plan_what_is_left_and_how_it_ended(run: Run, tmp_path: Path) -> None:
    first = run(*COMMAND, "--problem", "mnist_2c2d", "--format", "csv")
    assert first.code == 1
    assert first.out.count("\n") == 5  # the finished ones
    told = " ".join(first.err.split())
    assert "To run: 8 of 8 searches; expected time not known (--dry-run" in told
    assert "1 done, 0 running, 7 left" in told
    assert "4 of 8 searches finished, 4 failed, in " in told
    *_, last = first.err.splitlines()
    assert last.startswith("vivit-bench: 4 of 8 searches failed, the same command tries them")
    reason = "mnist_2c2d: eigenvalues, mc, frac (vivit-bench, cpu): N = 4 failed, which says"
    assert reason in last
    assert first.err.index("To run: 8") < first.err.index("[1/8] mnist_mlp")
    again = run(*COMMAND, "--format", "csv")
    assert (again.code, again.out.count("\n")) == (0, 5)
    assert "Nothing is to be run." in again.err
    assert "4 of 4 searches finished, 4 of them before" in again.err
    for header in tmp_path.glob("results/*/*2c2d*/run.json"):
        assert '"running"' in header.read_text()
    shown = " ".join(run(*COMMAND, "--problem", "mnist_2c2d", "--dry-run").out.split())
    assert "interrupted, 3 trials" in shown
    quiet = run(*COMMAND, "--quiet")
    assert (quiet.code, quiet.err) == (0, "")


def test_time_taken_is_compared_with_what_was_expected(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a search whose header says what was predicted when it began."""

    def search(cell: Cell, limit: MemoryLimit, **options: Any) -> FinishedSearch:
        fails = {1: Outcome.ERROR} if next(sittings) == 0 else {}
        return run_search(cell, limit, run=FakeTrials(9, fails), plan=planning([]), **options)

    sittings = iter([0, 1, 1, 1, 1, 1, 1, 1])
    monkeypatch.setattr(jobs_module, "run_search", search)
    assert run(*COMMAND).code == 1
    (header,) = (
        path for path in Path("results").glob("*/*/run.json") if "running" in path.read_text()
    )
    stored = run_module.read_header(header.parent)
    stored.results["predicted"] = asdict(predicted())
    run_module.write_atomic(header, stored.to_json())
    told = run(*COMMAND)
    assert told.code == 0
    assert "expected time 98 s" in " ".join(told.err.split())
    assert re.search(r"searches: they took \d+ s, 98 s were expected", told.err)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--jobs", 0), "--jobs"),
        (("--jobs", 1000), "--jobs 1000: 1000 searches with --threads 1 need 1000 CPUs"),
        (("--memory-limit", "20kB"), "below 1 MiB"),
        (("--timeout", 0), "--timeout 0: must be"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line(
    run: Run, options: tuple[object, ...], line: str, tmp_path: Path
) -> None:
    outcome = run(*COMMAND, *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert line in outcome.err
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_tables_that_no_engine_has_are_said() -> None:
    words = "curvlinops: no engine has block-newton; choose another --table or --engine"
    with pytest.raises(UsageError, match=words):
        table_cells([SUB_TABLES["b"]], ["mnist_mlp"], ["curvlinops"], gradient=False, threads=1)
