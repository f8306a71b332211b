"""Sweeps: their plans, what they refuse, and how they are told."""

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, group_runner
from test_critical_batch_records import FakeTrials, planning, replace_trials

from vivit_bench.critical_batch import make_cell, run_search, sweep_plan
from vivit_bench.critical_batch.jobs import SweepListener
from vivit_bench.critical_batch.listener import Listener
from vivit_bench.critical_batch.predict import Prediction
from vivit_bench.critical_batch.runner import MemoryLimit
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
from vivit_bench.errors import Stopped, UsageError, VivitBenchError
from vivit_bench.measure import Outcome, Spec, TrialRun
from vivit_bench.measure.trial import Confirming
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
    assert replace(interrupted, spent_seconds=1e6).expected_seconds == 10.0
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

    def trials(cell: Cell) -> FakeTrials:
        searched.append(cell.workload.seed)
        return FakeTrials(9, {4: Outcome.ERROR} if cell.workload.seed == 1 else {})

    replace_trials(monkeypatch, trials)
    steps = run_sweep(plan_of(), SweepListener())
    assert searched == [0, 1, 2, 3]
    assert [step.error is None for step in steps] == [True, False, True, True]
    assert [step.finished is None for step in steps] == [False, True, False, False]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``vivit-bench critical-batch ...``, whose trials and predictions are made up."""
    monkeypatch.chdir(tmp_path)

    def trials(cell: Cell) -> FakeTrials:
        return FakeTrials(9, {4: Outcome.ERROR} if cell.label.startswith("mnist_2c2d") else {})

    def predict(cell: Cell, memories: list[int], **options: Any) -> list[Prediction]:
        if cell.label.startswith("mnist_2c2d"):
            raise VivitBenchError("N = 1: the set-up failed")
        return [predicted(search_seconds=72_000.0, step=10_800.0)]

    replace_trials(monkeypatch, trials)
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
    assert {row["expected_seconds"] for row in rows} == {72_000.0}
    assert "[4/4] mnist_mlp: eigenvalues, mc, frac" in told.err
    shown = " ".join(run(*COMMAND, "--dry-run", "--problem", "mnist_2c2d").out.split())
    assert "21 (18-25) 20 h" in shown
    assert "To run: 8 of 8 searches; expected time 80 h and that of 4 searches" in shown
    assert "# 1: its large trials are expected to take 3 h, over --timeout 1800 s: " in shown
    assert "--timeout 12000" in shown
    assert "# 5: not predicted: N = 1: the set-up failed" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_tells_its_plan_what_is_left_and_how_it_ended(run: Run, tmp_path: Path) -> None:
    first = run(*COMMAND, "--problem", "mnist_2c2d", "--format", "csv")
    assert first.code == 1
    assert first.out.count("\n") == 5  # the finished ones
    told = " ".join(first.err.split())
    assert "To run: 8 of 8 searches; expected time not known." in told
    assert "1 done, 0 running, 7 left" in told
    assert "4 of 8 searches finished, 4 failed, in " in told
    *_, last = first.err.splitlines()
    assert last.startswith("vivit-bench: 4 of 8 searches failed, the same command tries them")
    reason = "mnist_2c2d: eigenvalues, mc, frac (vivit-bench, cpu): N = 4 failed, which says"
    assert reason in last
    ahead, searches = first.err.split("To run: 8")
    for number in range(1, 9):
        assert re.search(rf"\[{number}/8\] .*, small trials$", ahead, re.MULTILINE)
        assert re.search(rf"\[{number}/8\] .*\)$", searches, re.MULTILINE)
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


POINTS = [[1, 10_000_000], [16, 50_000_000], [21, 64_000_000], [22, 68_000_000]]
"""What the engine plans; `FakeTrials` take 2 s, and the plan says 4.4 s for N = 21."""


def test_small_trials_come_first_and_tell_the_time(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, int]] = []

    class Told(FakeTrials):
        def __init__(self, cell: Cell) -> None:
            super().__init__(21)
            self.work = cell.variant

        def __call__(self, spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
            ran.append((self.work, spec.n))
            return super().__call__(spec, timeout, confirming)

    replace_trials(monkeypatch, Told, POINTS)
    told = run(*COMMAND)
    assert told.code == 0
    assert [n for _, n in ran[:4]] == [16] * 4
    assert len({work for work, _ in ran[:4]}) == 4
    assert {21, 22} <= {n for _, n in ran[4:]}
    assert 16 not in {n for _, n in ran[4:]}
    ahead, searches = told.err.split("To run: 4 of 4 searches; expected time 5 min")
    assert ahead.count("expected: N = 21 (") == 4
    assert ahead.count("begun, 1 trial  ") == 4
    assert re.search(r"searches: they took [\d.]+ s, 5 min were expected", searches)
    assert run(*COMMAND, "--fresh").code == 0
    assert ran[len(ran) // 2 :] == ran[: len(ran) // 2]  # nothing is begun twice


def test_small_trials_that_fail_cost_their_search(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FakeTrials] = []

    def trials(cell: Cell) -> FakeTrials:
        made.append(FakeTrials(21, {16: Outcome.ERROR} if "mc, full" in cell.label else {}))
        return made[-1]

    replace_trials(monkeypatch, trials, POINTS)
    told = run(*COMMAND, "--format", "csv")
    assert (told.code, told.out.count("\n")) == (1, 4)
    assert [each.runs for each in made[:4]] == [[16]] * 4
    assert len(made[4:]) == 3
    assert all({21, 22} <= set(each.runs) for each in made[4:])
    plan, after = told.err.split("To run: 3 of 4 searches; expected time 4 min")
    assert re.search(r"eigenvalues, mc, full +failed", plan)
    assert "3 of 4 searches finished, 1 failed" in after
    assert after.splitlines()[-1].startswith("vivit-bench: 1 of 4 searches failed, the same")


def test_an_interrupted_search_that_was_to_start_over_is_gone_on_with_without_fresh(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its small trials, which did start over, had ended."""
    replace_trials(monkeypatch, lambda cell: FakeTrials(21), POINTS)
    assert run(*COMMAND).code == 0

    class Interrupted(FakeTrials):
        def __call__(self, spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
            if spec.n > 21:
                raise Stopped(signal.SIGINT)
            return super().__call__(spec, timeout, confirming)

    replace_trials(monkeypatch, lambda cell: Interrupted(21), POINTS)
    interrupted = run(*COMMAND, "--fresh")
    assert interrupted.code == 130
    assert "the same command without --fresh goes on with it" in interrupted.err.splitlines()[-1]
    replace_trials(monkeypatch, lambda cell: FakeTrials(21, {16: Outcome.ERROR}), POINTS)
    assert run(*COMMAND).code == 0  # N = 16 is not run again


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
