"""Engines side by side: runs as records, what follows from them, one notion of memory."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from vivit_bench.cli import main as cli_main
from vivit_bench.comparison import compare, stored
from vivit_bench.comparison.compare import (
    Record,
    RunKind,
    compare_engines,
    difference,
    summarise,
)
from vivit_bench.comparison.intervals import Interval, median_interval
from vivit_bench.comparison.reference import GEMM_SIZES, PRODUCTS, Reference, ReferencedWork
from vivit_bench.comparison.stored import EXPERIMENT, records_of
from vivit_bench.curvature.options import Approximation
from vivit_bench.errors import FilesChangedError, UsageError, VivitBenchError
from vivit_bench.measure import Observation, Outcome, Reading, Spec, TrialReport, run_trial
from vivit_bench.measure.budget import MIB
from vivit_bench.measure.protocol import FailureKind, Measured, Ready
from vivit_bench.measure.work import EngineWork, project
from vivit_bench.peers import Quantity
from vivit_bench.problems.sources import DataSource
from vivit_bench.problems.workload import WorkloadSpec
from vivit_bench.store import finished_runs

DIGITS = f"{Path(__file__).parent.parent / 'scripts/examples/small_cnn.py'}:digits"
WORK: dict[str, Any] = {
    "problem": "mnist_mlp",
    "quantity": "eigenvalues",
    "curvature": "exact",
    "samples": "full",
    "mc_samples": 1,
    "data": "synthetic",
    "data_dir": None,
    "seed": 0,
    "checkpoint": None,
    "device": "cpu",
}


def record(engine: str, kind: RunKind = RunKind.MEMORY, repeat: int = 0, **values: Any) -> Record:
    return Record(engine, kind, repeat, "2026-01-01T00:00:00+00:00", **values)


def records(engine: str, wall: list[float], peak: int, **memory: Any) -> list[Record]:
    return [
        record(engine, peak_bytes=peak, **memory),
        *(
            record(engine, RunKind.TIME, k, wall_seconds=seconds, cpu_seconds=1.0)
            for k, seconds in enumerate(wall)
        ),
    ]


def test_compare_engines_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "engines.csv"
    results = str(tmp_path / "results")
    monkeypatch.setattr(
        "sys.argv",
        ["vivit-bench", "compare-engines", DIGITS, "--batch-size", "8", "--repeats", "1",
         "--engine", "vivit-bench", "--engine", "backpack", "--output", str(output),
         "--floor", "--results-dir", results],
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        cli_main()
    assert ended.value.code in (0, None)
    seen = capsys.readouterr()
    assert seen.err.splitlines()[:4] == [
        "memory: vivit-bench",
        "memory: backpack",
        "time 1 of 1: vivit-bench",
        "time 1 of 1: backpack",
    ]
    rows = pd.read_csv(output)
    assert list(rows["engine"]) == ["vivit-bench", "backpack"]
    assert rows["difference"][1] < 1e-4
    assert rows["agrees"].all()
    assert rows["certificate_seconds"][0] > 0
    assert rows["certificate_error"][0] < 1e-4
    figures = ["peak_bytes", "idle_bytes", "wall_seconds", "cpu_seconds", "minor_faults"]
    assert (rows[figures] > 0).all(axis=None)
    assert rows["wall_ratio_low"].isna().all()  # one round says nothing of the median
    assert list(rows["batch_size"]) == [8, 8]
    assert list(rows["dtype"]) == ["float32", "float32"]
    assert rows["floor_seconds"][0] > 0
    assert rows["host"].notna().all()
    (run,) = finished_runs(Path(results), EXPERIMENT)[0]
    memory, timed = records_of(run)["vivit-bench"]
    assert memory.reference is None
    assert timed.reference is not None
    assert timed.reference.kind == (GEMM_SIZES["cpu"], PRODUCTS)
    for seconds in (timed.reference.wall_seconds, timed.reference.cpu_seconds):
        assert len(seconds) == 2
        assert min(seconds) > 0
    assert timed.digest == {}
    assert Record.from_json(json.loads(json.dumps(timed.to_json()))) == timed

    monkeypatch.setattr(compare, "measure", None)  # from here on nothing is measured
    with pytest.raises(SystemExit) as ended:
        cli_main()
    assert ended.value.code in (0, None)
    assert "finished already" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*sys.argv, "--quiet"])
    with pytest.raises(SystemExit):
        cli_main()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(
        "sys.argv",
        ["vivit-bench", "compare-engines", "--stored", "--format", "json", "--results-dir",
         results],
    )  # fmt: skip
    with pytest.raises(SystemExit):
        cli_main()
    found = json.loads(capsys.readouterr().out)
    assert [row["engine"] for row in found] == ["vivit-bench", "backpack"]
    assert found[1]["wall_ratio"] == pytest.approx(rows["wall_ratio"][1])
    assert {"problem", "batch_size", "threads", "cpu", "code"} <= set(found[0])


def test_a_trial_keeps_to_the_memory_that_it_was_planned_for() -> None:
    """Behind this network's widest layer four results are there at a time, and indices."""
    limit = 64 * 2**20
    given = {"problem": "cifar10_3c3d", "curvature": "mc", "memory_bytes": limit}
    arguments = {**WORK, **given, "engine": "vivit-bench"}
    trial = run_trial(Spec(n=256, threads=1, arguments=arguments, limit_bytes=limit), 120.0).trial
    assert (trial.outcome, trial.message) == (Outcome.FITS, "")


@pytest.mark.thorough
def test_a_trial_and_a_comparison_read_the_same_peak() -> None:
    arguments = {**WORK, "engine": "vivit-bench"}
    # One thread: two are read up to 1.1 MiB apart.
    trial = run_trial(Spec(n=64, threads=1, arguments=arguments, limit_bytes=2**30), 120.0).trial
    (run,) = compare_engines(WORK, ["vivit-bench"], 64, threads=1, repeats=0)
    assert trial.outcome is Outcome.FITS
    assert trial.peak_bytes is not None
    assert run.peak_bytes == pytest.approx(trial.peak_bytes, rel=0.02)
    assert run.certificate_error is not None
    assert run.certificate_error < 1e-4


def test_the_reference_takes_its_time_beside_the_work_and_not_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One product to warm up and a reading before; a reading after, when all is measured."""
    products: list[str] = []
    real = torch.mm

    def mm(*matrices: torch.Tensor, **options: Any) -> torch.Tensor:
        products.append(phase)
        return real(*matrices, **options)

    monkeypatch.setitem(GEMM_SIZES, "cpu", 16)
    monkeypatch.setattr(torch, "mm", mm)
    phase = "warm-up"
    work = ReferencedWork(**WORK, engine="vivit-bench", most_seconds=60.0)
    assert work.warm_up() is not None  # as certified as without
    phase = "work"
    result = work.run(4)
    of_the_work = products.count("work")
    phase = "after"
    beside = Reference.from_json(json.loads(json.dumps(work.digest(result)))["reference"])
    assert products.count("warm-up") >= 1 + PRODUCTS
    assert products.count("after") == PRODUCTS
    assert beside.kind == (16, PRODUCTS)
    plain = EngineWork(**WORK, engine="vivit-bench")
    phase = "plain"
    plain.warm_up()
    assert products.count("warm-up") - products.count("plain") == 1 + PRODUCTS
    phase = "plain work"
    plain.run(4)
    assert of_the_work == products.count("plain work")


def test_a_time_out_that_is_too_short_for_a_reference_leaves_it_out(
    monkeypatch: pytest.MonkeyPatch, run: "Compare"
) -> None:
    monkeypatch.setitem(GEMM_SIZES, "cpu", 16)
    work = ReferencedWork(**WORK, engine="vivit-bench", most_seconds=0.0)
    work.warm_up()
    assert work.digest(work.run(2)) == {}
    fake = FakeMeasure()
    found = run(fake, timeout_seconds=8.0)
    assert [each.reference for each in found] == [None] * 6
    asked = [spec.arguments.get("most_seconds") for spec in fake.specs]
    assert asked == [None, None, *4 * [2.0]]


class FakeMeasure:
    """Stands in for child processes; some engines fail."""

    def __init__(self, failing: dict[str, FailureKind] | None = None):
        self.failing = failing or {}
        self.runs: list[tuple[str, str]] = []
        self.specs: list[Spec] = []
        self.interrupt_after: int | None = None

    def __call__(self, spec: Spec, timeout_seconds: float) -> Observation:
        if len(self.runs) == self.interrupt_after:
            raise KeyboardInterrupt
        engine = spec.arguments["engine"]
        self.runs.append((engine, spec.reading.value))
        self.specs.append(spec)
        failure = self.failing.get(engine)
        report = TrialReport(
            failure,
            "the reason" if failure else "",
            usage_error=failure is FailureKind.LIMIT,
            digest={"eigenvalues": [1.0]} if spec.digest else {},
        )
        memory = spec.reading is Reading.MEMORY
        return Observation(
            outcome=Outcome.ERROR if failure else Outcome.FITS,
            message=report.message,
            ready=Ready(idle_bytes=5),
            measured=Measured(wall_seconds=2.0, cpu_seconds=3.0, minor_faults=4),
            report=report,
            peak_bytes=7 if memory else None,
            absolute_peak_bytes=12 if memory else None,
            other_processes=0,
            stderr="",
        )


Compare = Callable[..., list[Record]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Compare:
    def compared(fake: FakeMeasure, engines: str = "ab", **options: Any) -> list[Record]:
        monkeypatch.setattr(compare, "measure", fake)
        return compare_engines(WORK, list(engines), 8, threads=2, repeats=2, **options)

    return compared


def test_runs_are_in_turn_and_no_time_is_taken_with_exact_memory(run: Compare) -> None:
    fake = FakeMeasure()
    found = run(fake)
    assert fake.runs == [("a", "memory"), ("b", "memory"), *2 * [("a", "time"), ("b", "time")]]
    assert [spec.certify for spec in fake.specs] == [True, True, *4 * [False]]
    assert all(spec.limit_bytes is None for spec in fake.specs)
    assert {each.wall_seconds for each in found if each.kind is RunKind.MEMORY} == {None}
    assert {each.peak_bytes for each in found if each.kind is RunKind.TIME} == {None}
    assert {each.minor_faults for each in found if each.kind is RunKind.TIME} == {4}
    assert [Record.from_json(each.to_json()) for each in found] == found


@pytest.mark.parametrize("survived", range(7))
def test_an_interrupted_comparison_repeats_no_finished_run(run: Compare, survived: int) -> None:
    first, rest, journal = FakeMeasure(), FakeMeasure(), list[Record]()
    if survived < 6:
        first.interrupt_after = survived
        with pytest.raises(KeyboardInterrupt):
            run(first, record=journal.append)
    else:
        run(first, record=journal.append)
    stored = [Record.from_json(each.to_json()) for each in journal]
    found = run(rest, done=stored)
    whole = FakeMeasure()
    run(whole)
    assert first.runs + rest.runs == whole.runs
    assert [replace(each, ended_at="") for each in found] == [
        replace(each, ended_at="") for each in run(FakeMeasure())
    ]


def test_a_file_changed_during_a_comparison_ends_it_and_its_run_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.py"
    file.write_text("def make(): ...\n")

    class Changing(FakeMeasure):
        def __call__(self, spec: Spec, timeout_seconds: float) -> Observation:
            if len(self.runs) == 1:
                file.write_text("def make(): return 1\n")
            return super().__call__(spec, timeout_seconds)

    monkeypatch.setattr(compare, "measure", Changing())
    work = WorkloadSpec(f"{file}:make", 8, DataSource.OWN)
    engines = ("vivit-bench", "backpack")
    wanted = stored.Comparison(work, Quantity.EIGENVALUES, Approximation(), engines, 2)
    with pytest.raises(FilesChangedError, match=r"net\.py"):
        stored.run_comparison(wanted, tmp_path, repeats=1, timeout_seconds=9.0)
    (journal,) = (tmp_path / EXPERIMENT).glob("*/runs.jsonl")
    assert len(journal.read_text().splitlines()) == 1


def test_an_engine_that_fails_is_not_run_again_but_the_base_is(run: Compare) -> None:
    fake, journal = FakeMeasure({"b": FailureKind.ERROR}), list[Record]()
    found = run(fake, record=journal.append)
    assert fake.runs == [("a", "memory"), ("b", "memory"), *2 * [("a", "time")]]
    assert [each.failure for each in found] == ["", "the reason", "", ""]
    failed = list[Record]()
    with pytest.raises(VivitBenchError, match="engine 'a' failed: the reason"):
        run(FakeMeasure({"a": FailureKind.ERROR}), record=failed.append)
    with pytest.raises(UsageError):
        run(FakeMeasure({"a": FailureKind.LIMIT}), done=failed)
    assert len(run(FakeMeasure(), done=failed)) == 6


def test_summary_takes_ratios_round_by_round_and_keeps_failures() -> None:
    rows = summarise(
        [
            *records("a", [1.0, 2.0, 4.0], 10 * MIB),
            *records("b", [3.0, 6.0, 12.0], 30 * MIB),
            record("c", failure="no such layer", outcome=Outcome.ERROR),
        ],
        comparable=True,
    )
    assert rows[1]["wall_ratio"] == 3.0
    assert rows[1]["peak_ratio"] == 3.0
    assert rows[2] == {"engine": "c", "runs": 0, "outcome": "error", "failure": "no such layer"}


@pytest.mark.parametrize("peaks", [(0, 30 * MIB), (MIB // 2, MIB // 4), (30 * MIB, 0)])
def test_peaks_below_what_can_be_told_have_no_ratio(peaks: tuple[int, int]) -> None:
    first, second = peaks
    rows = summarise([*records("a", [1.0], first), *records("b", [1.0], second)], comparable=True)
    assert rows[1]["peak_ratio"] is None


@pytest.mark.parametrize(
    ("count", "k", "level"),
    [
        (2, 1, 1 / 2),
        (5, 1, 1 - 2 / 32),  # below 95 %, and said so
        (6, 1, 1 - 2 / 64),
        (7, 1, 1 - 2 / 128),
        (8, 1, 1 - 2 / 256),
        (9, 2, 1 - 2 * (1 + 9) / 512),
        (15, 4, 1 - 2 * (1 + 15 + 105 + 455) / 2**15),
    ],
)
def test_an_interval_is_the_kth_smallest_and_largest(count: int, k: int, level: float) -> None:
    """P(B < k) for B ~ Binomial(n, 1/2), by hand."""
    values = [float(value) for value in range(count, 0, -1)]
    assert median_interval(values) == Interval(k, count + 1 - k, level)


def test_one_value_has_no_interval() -> None:
    assert median_interval([1.0]) is None
    assert median_interval([]) is None


def test_an_interval_holds_the_median_as_often_as_it_says() -> None:
    """Of a skewed distribution: 4,000 draws of 7, a standard deviation of 0.2 %."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(4000, 7, generator=generator).exp().pow(3)
    true = math.exp(0.5) ** 3
    found = [median_interval(row) for row in draws.tolist()]
    held = sum(each is not None and each.low <= true <= each.high for each in found)
    assert held / 4000 == pytest.approx(1 - 2 / 128, abs=0.008)


def test_a_summary_has_the_interval_of_the_rounds_ratios_and_medians_of_what_they_took() -> None:
    def round_(engine: str, k: int, wall: float, faults: int | None) -> Record:
        figures = {"wall_seconds": wall, "cpu_seconds": 2 * wall, "minor_faults": faults}
        return record(engine, RunKind.TIME, k, **figures)

    walls = [1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 1.0]
    factors = [3.0, 2.0, 5.0, 4.0, 6.0, 2.5, 3.5]
    base = [round_("a", k, wall, 10 * (k + 1)) for k, wall in enumerate(walls)]
    other = [
        round_("b", k, wall * factor, None)
        for k, (wall, factor) in enumerate(zip(walls, factors, strict=True))
    ]
    first, second = summarise([*base, *other], comparable=True)
    names = ("wall_ratio", "wall_ratio_low", "wall_ratio_high", "cpu_ratio_low", "cpu_ratio_high")
    assert [second[name] for name in names] == [3.5, 2.0, 6.0, 2.0, 6.0]
    assert second["interval_level"] == 1 - 2 / 128
    assert (first["wall_low_seconds"], first["wall_high_seconds"]) == (1.0, 4.0)
    assert (first["cpu_seconds"], first["minor_faults"]) == (4.0, 40)
    assert second["minor_faults"] is None
    assert "wall_ratio_low" not in first


def test_a_base_that_failed_is_compared_with_nothing() -> None:
    failed = record("a", RunKind.TIME, 1, failure="stopped", outcome=Outcome.TIMEOUT)
    rows = summarise([*records("a", [1.0], 10), failed, *records("b", [3.0], 30)], comparable=True)
    assert rows[0] == {"engine": "a", "runs": 1, "outcome": "timeout", "failure": "stopped"}
    assert (rows[1]["wall_seconds"], rows[1]["peak_bytes"]) == (3.0, 30)
    assert not {"wall_ratio", "peak_ratio", "difference"} & set(rows[1])


def test_records_of_before_are_read() -> None:
    """They say neither how a run ended nor how many pages it took."""
    new = record("a", failure="no such layer", outcome=Outcome.ERROR)
    old = {
        k: v for k, v in new.to_json().items() if k not in ("outcome", "minor_faults", "reference")
    }
    assert Record.from_json(old) == new


def test_engines_that_disagree_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        each
        for name, value in (("vivit-bench", 2.0), ("backpack", 2.0001), ("curvlinops", 2.2))
        for each in records(name, [1.0], 1, digest={"eigenvalues": [value, 1.0]})
    ]
    rows = summarise(runs, comparable=True)
    assert [row["agrees"] for row in rows] == [True, True, False]
    # Monte-Carlo draws differ between engines, and that is no disagreement.
    assert [row["agrees"] for row in summarise(runs, comparable=False)] == [None] * 3

    def measured(*_: Any, record: Callable[[Record], None], **__: Any) -> list[Record]:
        for each in runs:
            record(each)
        return runs

    monkeypatch.setattr(stored, "compare_engines", measured)
    engines = [part for name in ("backpack", "curvlinops") for part in ("--engine", name)]
    command = ["compare-engines", DIGITS, "--engine", "vivit-bench", *engines]
    monkeypatch.setattr("sys.argv", ["vivit-bench", *command, "--results-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli_main()
    assert ended.value.code == 1
    seen = capsys.readouterr()
    assert "DISAGREES" in seen.out
    assert "engines disagree with vivit-bench: curvlinops by 1.0e-01" in seen.err


@pytest.mark.parametrize(
    ("outcome", "code"), [(Outcome.ERROR, 1), (Outcome.OUT_OF_MEMORY, 0), (Outcome.TIMEOUT, 0)]
)
def test_an_engine_that_fails_fails_the_command_and_one_that_is_too_large_does_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: Outcome,
    code: int,
) -> None:
    runs = [
        *records("vivit-bench", [1.0], 1, digest={"eigenvalues": [2.0]}),
        record("backpack", outcome=outcome, failure="the reason"),
    ]

    def measured(*_: Any, record: Callable[[Record], None], **__: Any) -> list[Record]:
        for each in runs:
            record(each)
        return runs

    monkeypatch.setattr(stored, "compare_engines", measured)
    command = ["compare-engines", DIGITS, "--engine", "vivit-bench", "--engine", "backpack"]
    monkeypatch.setattr("sys.argv", ["vivit-bench", *command, "--results-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli_main()
    seen = capsys.readouterr()
    assert (ended.value.code or 0) == code
    assert "backpack failed: the reason" in seen.out
    assert ("vivit-bench: backpack failed: the reason" in seen.err) == bool(code)


@pytest.mark.parametrize("deviation", [1e-3, 3e-2, 1.0])
def test_the_deviation_of_steps_is_estimated_from_their_projections(deviation: float) -> None:
    """Within four standard deviations of 18 %, also where a step is longer than one block."""
    generator = torch.Generator().manual_seed(1)
    step, noise = torch.randn(2, 2**20 + 5, generator=generator)
    other = step + deviation * noise * step.norm() / noise.norm()
    found = difference(project(other), project(step))
    assert found == pytest.approx(deviation, rel=0.72)
    assert difference(project(step), project(step)) == 0.0


def test_a_scaled_step_is_never_underestimated() -> None:
    step = torch.arange(1.0, 100.0)
    found = difference(project(1.5 * step), project(step))
    assert found is not None
    assert found >= 0.5 - 1e-9


def test_results_of_different_kinds_are_not_compared() -> None:
    assert difference({"eigenvalues": [1.0]}, project(torch.ones(3))) is None
    assert difference({}, {}) is None
