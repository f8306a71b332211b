"""The cost against N: a series of stored comparisons, its table, its exponents, its figure."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, group_runner

from vivit_bench.arguments import parse_batch_sizes
from vivit_bench.comparison import compare, stored
from vivit_bench.comparison.scaling import PowerLaw, Series, fit_power_law
from vivit_bench.errors import Stopped, UsageError
from vivit_bench.measure import Observation, Outcome, Reading, Spec, TrialReport
from vivit_bench.measure.protocol import FailureKind, Measured, Ready
from vivit_bench.measure.verdict import Kill
from vivit_bench.report.comparison import series_table
from vivit_bench.report.comparison_figures import draw_series, plot_series
from vivit_bench.report.tables import TableFormat, render

OURS, THEIRS = "vivit-bench", "vivit-for-pytorch"
MIB = 2**20


def failure(outcome: Outcome, message: str = "the reason", **facts: Any) -> Observation:
    values: dict[str, Any] = dict.fromkeys(
        ("ready", "measured", "report", "peak_bytes", "absolute_peak_bytes")
    )
    rest = {"other_processes": 0, "stderr": ""}
    return Observation(**{"outcome": outcome, "message": message, **values, **rest, **facts})


class PowerLaws:
    """Stands in for child processes: ours takes N^1 s and N^1 MiB, theirs twice N^2."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, str, str]] = []
        self.failing: dict[tuple[int, str], Observation] = {}
        self.stop_after: int | None = None

    def __call__(self, spec: Spec, timeout_seconds: float) -> Observation:
        if len(self.runs) == self.stop_after:
            raise Stopped(15)
        engine = spec.arguments["engine"]
        self.runs.append((spec.n, engine, spec.reading.value))
        if (seen := self.failing.get((spec.n, engine))) is not None:
            return seen
        cost = spec.n if engine == OURS else 2 * spec.n**2
        memory = spec.reading is Reading.MEMORY
        return Observation(
            outcome=Outcome.FITS,
            message="",
            ready=Ready(idle_bytes=5),
            measured=Measured(wall_seconds=float(cost), cpu_seconds=2.0 * cost, minor_faults=cost),
            report=TrialReport(digest={"eigenvalues": [1.0]} if memory else {}),
            peak_bytes=cost * MIB if memory else None,
            absolute_peak_bytes=None,
            other_processes=0,
            stderr="",
        )

    @property
    def sizes(self) -> list[int]:
        return sorted({n for n, _, _ in self.runs})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> PowerLaws:
    laws = PowerLaws()
    monkeypatch.setattr(compare, "measure", laws)
    return laws


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    command = group_runner("compare-engines", monkeypatch, capsys)

    def typed(*arguments: object) -> Any:
        common = ("--repeats", 2, "--threads", 1, "--results-dir", tmp_path / "results")
        return command("mnist_mlp", *common, *arguments)

    return typed


def rows_of(text: str) -> list[dict[str, Any]]:
    found = json.loads(text)
    assert isinstance(found, list)
    return found


def test_an_exponent_is_the_slope_over_the_larger_half() -> None:
    """Over 8, 16, 32 alone: log2 costs 3, 4, 8, middle 5, slope (3 - -2) / 2."""
    costs = {1: 100.0, 2: 100.0, 4: 100.0, 8: 8.0, 16: 16.0, 32: 256.0}
    law = fit_power_law(costs)
    assert law is not None
    assert law.batch_sizes == (8, 16, 32)
    assert law.exponent == pytest.approx(2.5)
    assert law(16) == pytest.approx(2**5)


@pytest.mark.parametrize(("points", "used"), [(3, 3), (4, 3), (6, 3), (7, 4), (8, 4)])
def test_an_exponent_has_at_least_three_points(points: int, used: int) -> None:
    law = fit_power_law({2**k: 5.0 * 8**k for k in reversed(range(points))})
    assert law is not None
    assert law.batch_sizes == tuple(2**k for k in range(points - used, points))
    assert (law.exponent, law.factor) == (pytest.approx(3), pytest.approx(5))


def test_two_points_have_no_exponent() -> None:
    assert fit_power_law({1: 1.0, 2: 2.0}) is None
    assert fit_power_law({}) is None


def test_a_peak_that_is_none_counts_for_no_exponent() -> None:
    peaks = {1: 100, 2: MIB, 4: 4 * MIB, 8: 8 * MIB, 16: 16 * MIB}
    rows = [{"engine": "a", "batch_size": n, "peak_bytes": peak} for n, peak in peaks.items()]
    series = Series([*rows, {"engine": "a", "batch_size": 32}])
    law = series.law("a", "peak")
    assert law == PowerLaw(pytest.approx(1), pytest.approx(MIB), (4, 8, 16))  # type: ignore[arg-type]
    assert series.law("a", "time") is None


def test_every_n_is_a_comparison_and_the_table_goes_over_them(
    run: Run, fake: PowerLaws, tmp_path: Path
) -> None:
    ended = run("--batch-size", "8,2,4")
    assert ended.code == 0
    assert [line for line in ended.err.splitlines() if line.startswith("[")] == [
        "[1/3] N = 2",
        "[2/3] N = 4",
        "[3/3] N = 8",
    ]
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "mnist_mlp: eigenvalues, exact, full, data synthetic; 1 thread"
    assert [line.split()[:8] for line in lines[4:10]] == [
        ["2", OURS, "2.00", "1.00", "4.00", "2", "2.00", "1.00"],
        ["2", THEIRS, "8.00", "4.00", "(4.00-4.00)", "16.0", "8", "8.00"],
        ["4", OURS, "4.00", "1.00", "8.00", "4", "4.00", "1.00"],
        ["4", THEIRS, "32.0", "8.00", "(8.00-8.00)", "64.0", "32", "32.0"],
        ["8", OURS, "8.00", "1.00", "16.0", "8", "8.00", "1.00"],
        ["8", THEIRS, "128", "16.0", "(16.0-16.0)", "256", "128", "128"],
    ]
    text = " ".join(lines[10:])
    assert f"{OURS}: time ~ N^1.00, peak ~ N^1.00, fitted over N = 2, 4, 8." in text
    assert f"{THEIRS}: time ~ N^2.00, peak ~ N^2.00, fitted over N = 2, 4, 8." in text
    assert "level 50.0% of 2 rounds" in text
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("results/comparison/*/run.json")]
    assert sorted(each["settings"]["batch_size"] for each in runs) == [2, 4, 8]
    assert {each["state"] for each in runs} == {"finished"}

    made = len(fake.runs)
    rows = rows_of(run("--batch-size", "2,4,8", "--format", "json", "--quiet").out)
    output = tmp_path / "table.csv"
    assert run("--batch-size", "2,4,8", "--output", output).out == ""
    (alone,) = [
        row
        for row in rows_of(run("--batch-size", "4", "--format", "json").out)
        if row["engine"] == THEIRS
    ]
    assert len(fake.runs) == made  # nothing is measured again, for one N neither
    assert [(row["batch_size"], row["engine"]) for row in rows] == [
        (n, engine) for n in (2, 4, 8) for engine in (OURS, THEIRS)
    ]
    theirs = rows[3]
    assert theirs.items() >= {k: v for k, v in alone.items() if k != "batch_size"}.items()
    assert theirs["time_exponent"] == pytest.approx(2)
    assert theirs["peak_exponent_over"] == "2 4 8"
    assert (theirs["wall_ratio_low"], theirs["wall_ratio_high"]) == (8.0, 8.0)
    assert (theirs["outcome"], theirs["samples"], theirs["threads"]) == ("fits", "full", 1)
    written = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [float(row["wall_seconds"]) for row in written] == [2, 8, 4, 32, 8, 128]


def test_a_series_goes_on_where_it_was_stopped(run: Run, fake: PowerLaws) -> None:
    fake.stop_after = 9  # six runs an N
    stopped = run("--batch-size", "2,4,8")
    assert stopped.code == 143
    assert "N = 8 not reached" in stopped.err.splitlines()[-1]
    assert "keeps what was done" in stopped.err
    fake.stop_after = None
    ended = run("--batch-size", "2,4,8", "--format", "json")
    assert ended.code == 0
    whole = PowerLaws()
    for n in (2, 4, 8):
        for reading in ("memory", "time", "time"):
            whole.runs += [(n, OURS, reading), (n, THEIRS, reading)]
    assert fake.runs == whole.runs
    assert len(rows_of(ended.out)) == 6
    assert "finished already" in ended.err
    run("--batch-size", "2,4,16")
    assert fake.runs[18:] == [(16, engine, reading) for _, engine, reading in whole.runs[:6]]
    fake.runs.clear()
    assert run("--batch-size", "4,8", "--fresh").code == 0
    assert fake.sizes == [4, 8]
    run("--batch-size", "2,4", "--repeats", "3")
    assert fake.runs[12:] == [(n, e, "time") for n in (2, 4) for e in (OURS, THEIRS)]


def test_stopping_a_fresh_series_says_what_is_kept(run: Run, fake: PowerLaws) -> None:
    run("--batch-size", "2,4")
    fake.stop_after = len(fake.runs) + 1
    last = run("--batch-size", "2,4", "--fresh").err.splitlines()[-1]
    assert "N = 4 not reached, where what was stored before is kept" in last


LOW = "stopped because the machine's memory ran low"


@pytest.mark.parametrize(
    ("seen", "outcome", "shown"),
    [
        (failure(Outcome.OUT_OF_MEMORY), "out-of-memory", "out of memory"),
        (failure(Outcome.ERROR, LOW, kill=Kill.MACHINE), "out-of-memory", "out of memory"),
        (failure(Outcome.TIMEOUT, "stopped after 5 s"), "timeout", "time-out"),
        (failure(Outcome.LIMIT), "limit", "32-bit limit"),
        (failure(Outcome.ERROR), "error", "failed"),
    ],
)
def test_an_engine_that_fails_at_some_n_is_shown_and_the_series_goes_on(
    run: Run, fake: PowerLaws, seen: Observation, outcome: str, shown: str
) -> None:
    fake.failing = {(8, THEIRS): seen, (16, THEIRS): seen}
    ended = run("--batch-size", "1,2,4,8,16", "--format", "markdown")
    assert ended.code == (outcome == "error")
    assert fake.sizes == [1, 2, 4, 8, 16]
    text = " ".join(ended.out.split())
    assert f"| 8 | {THEIRS}: {shown} | - |" in text
    assert f"N = 8, {THEIRS}: {seen.message}" in text
    # The exponents are over what there is of each engine.
    assert f"{OURS}: time ~ N^1.00, peak ~ N^1.00, fitted over N = 4, 8, 16." in text
    assert f"{THEIRS}: time ~ N^2.00, peak ~ N^2.00, fitted over N = 1, 2, 4." in text
    rows = rows_of(run("--batch-size", "8,16", "--format", "json").out)
    assert [row["outcome"] for row in rows] == ["fits", outcome, "fits", outcome]
    assert [row["time_exponent"] for row in rows] == [None] * 4
    assert [row["wall_seconds"] for row in rows] == [8.0, None, 16.0, None]


def test_a_base_at_its_limit_is_a_result_and_the_others_are_measured(
    run: Run, fake: PowerLaws
) -> None:
    fake.failing = {(8, THEIRS): failure(Outcome.TIMEOUT, "stopped after 5 s")}
    command = ("--engine", THEIRS, "--engine", OURS, "--format", "json")
    ended = run("--batch-size", "4,8", *command)
    assert ended.code == 0
    rows = rows_of(ended.out)
    assert [row["outcome"] for row in rows] == ["fits", "fits", "timeout", "fits"]
    assert (rows[3]["wall_seconds"], rows[3]["wall_ratio"]) == (8.0, None)
    made = len(fake.runs)
    assert rows_of(run("--batch-size", "4,8", *command).out) == rows
    # Alone, there is nothing to compare with, as it is when it is measured alone.
    alone = run("--batch-size", "8", *command)
    assert alone.code == 1
    assert f"engine '{THEIRS}' failed: stopped after 5 s (--fresh tries again)" in alone.err
    assert len(fake.runs) == made


def test_a_base_that_fails_costs_its_n_alone_and_is_tried_again(
    run: Run, fake: PowerLaws, tmp_path: Path
) -> None:
    fake.failing = {(4, OURS): failure(Outcome.ERROR, "killed by SIGSEGV")}
    figure = tmp_path / "figure.svg"
    ended = run("--batch-size", "2,4,8", "--format", "json", "--plot", figure)
    assert ended.code == 1
    assert [row["batch_size"] for row in rows_of(ended.out)] == [2, 2, 8, 8]
    last = ended.err.splitlines()[-1]
    assert f"N = 4: engine '{OURS}' failed: killed by SIGSEGV; the same command tries" in last
    assert f"wrote {figure}" in ended.err
    assert figure.is_file()
    fake.failing = {}
    assert len(rows_of(run("--batch-size", "2,4,8", "--format", "json").out)) == 6
    fake.failing = {(1, OURS): failure(Outcome.ERROR), (3, OURS): failure(Outcome.ERROR)}
    nothing = run("--batch-size", "1,3")
    assert (nothing.code, nothing.out) == (1, "")


def test_what_no_n_can_mend_ends_the_series(run: Run, fake: PowerLaws) -> None:
    report = TrialReport(FailureKind.ERROR, "unsupported layer", usage_error=True)
    fake.failing = {(2, OURS): failure(Outcome.ERROR, "unsupported layer", report=report)}
    ended = run("--batch-size", "2,4,8")
    assert ended.code == 2
    assert fake.sizes == [2]


def test_a_refusal_at_a_large_n_comes_before_anything_is_measured(
    run: Run, fake: PowerLaws, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("--batch-size", "8")
    before = len(fake.runs)
    known = stored.measuring_environment([OURS, THEIRS], "cpu", "mnist_mlp")
    monkeypatch.setattr(stored, "measuring_environment", lambda *_: {**known, "code": "other"})
    ended = run("--batch-size", "2,4,8")
    assert ended.code == 2
    assert "made under other conditions (code" in ended.err
    assert len(fake.runs) == before
    assert run("--batch-size", "2,8", "--fresh").code == 0


def test_what_two_comparisons_differ_in_is_shown(run: Run, fake: PowerLaws) -> None:
    run("--batch-size", "4")
    assert "dtype" not in run("--stored").out
    run("--batch-size", "4", "--dtype", "float64")
    told = run("--stored").out
    assert "dtype" in told
    assert "threads" not in told
    assert "float64" in run("--batch-size", "4,6", "--dtype", "float64").out


def test_the_floor_is_told_for_every_n(
    run: Run, fake: PowerLaws, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor = {"gemm_gflops": 1.0, "gram_seconds": 1.0, "solver_seconds": 1.0, "floor_seconds": 2.0}
    monkeypatch.setattr(stored, "measure_floor", lambda *_: floor)
    fake.failing = {(8, OURS): failure(Outcome.TIMEOUT)}
    ended = run("--batch-size", "4,6,8", "--floor")
    assert f"{OURS}: 2.0 (N = 4), 3.0 (N = 6)." in " ".join(ended.out.split())
    assert "[3/3]" in ended.err
    again = run("--batch-size", "4,6,8", "--floor")
    assert again.err.count("finished already") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batch-size", "32,x"), "--batch-size 32,x: 'x' is no number from 1"),
        (("--batch-size", "32,,64"), "'' is no number from 1"),
        (("--batch-size", "0"), "'0' is no number from 1"),
        (("--batch-size", "4,-2"), "'-2' is no number from 1"),
        (("--batch-size", "4,4"), "name each N once"),
        (("--batch-size", "4,99999999999"), "make no sense"),
        (("--batch-size", "4", "--plot", "a.png"), "several N"),
        (("--batch-size", "4,8", "--plot", "a.txt"), "must end in .png, .pdf, .svg"),
        (("--batch-size", "4,8", "--plot", f"{__file__}/b.png"), "b.png: "),
        (("--stored", "--plot", "a.png"), "several N"),
        (
            ("--batch-size", "4", "--floor", "--dtype", "float64"),
            "not of eigenvalues in float64",
        ),
        (("--floor", "--quantity", "full-newton"), "not of full-newton in float32"),
        (("--batch-size", "4,8", "--timeout", "0"), "--timeout 0"),
        (("--batch-size", "4,8", "--timeout", "nan"), "--timeout nan"),
    ],
)
def test_what_is_typed_wrongly_is_one_line(
    run: Run, fake: PowerLaws, arguments: tuple[str, ...], said: str
) -> None:
    ended = run(*arguments)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert said in ended.err
    assert not fake.runs


def test_batch_sizes_are_read_as_numbers() -> None:
    assert parse_batch_sizes(" 64, 8,128 ") == (8, 64, 128)
    for text in ("", "1e3", "²", "9" * 5000):
        with pytest.raises(UsageError, match="is no number from 1"):
            parse_batch_sizes(text)


def made_up_series() -> Series:
    """Ours quadratic with intervals, theirs cubic until its memory runs out."""
    about = {"problem": "net", "quantity": "eigenvalues", "curvature": "mc", "mc_samples": 2}
    about |= {"data": "own", "dtype": "float32", "checkpoint": None}
    about |= {"samples": "full", "threads": 2, "failure": "", "outcome": "fits", "runs": 7}
    rows: list[dict[str, Any]] = []
    for n in (8, 16, 32, 64):
        for engine, exponent in ((OURS, 2), (THEIRS, 3)):
            row = {"engine": engine, "batch_size": n, **about}
            if engine == THEIRS and n == 64:
                rows.append(row | {"failure": "no", "outcome": "out-of-memory"})
                continue
            seconds = 1e-3 * n**exponent
            ends = {"wall_low_seconds": seconds / 1.5, "wall_high_seconds": seconds * 2}
            rows.append(row | ends | {"wall_seconds": seconds, "peak_bytes": MIB * n**exponent})
    return Series(rows)


def test_the_figure_has_medians_intervals_slopes_and_failures(tmp_path: Path) -> None:
    figure = draw_series(made_up_series())
    time, peak = figure.axes
    for panel in (time, peak):
        assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
        legend = panel.get_legend()
        assert legend is not None
        names = [text.get_text() for text in legend.get_texts()]
        assert names == [f"{OURS}: $N^{{2.00}}$", f"{THEIRS}: $N^{{3.00}}$"]
    ours, theirs = time.containers
    assert list(ours[0].get_xdata()) == [8, 16, 32, 64]
    assert list(theirs[0].get_xdata()) == [8, 16, 32]
    assert list(theirs[0].get_ydata()) == pytest.approx([0.512, 4.096, 32.768])
    (bars,) = ours[2]
    assert bars.get_segments()[0].tolist() == [
        [8, pytest.approx(0.064 / 1.5)],
        [8, pytest.approx(0.128)],
    ]
    assert not peak.containers[0].has_yerr
    crosses = [line for line in time.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[64]]
    assert [text.get_text() for text in time.texts] == ["out of memory"]
    dashed = [line for line in peak.lines if line.get_linestyle() == "--"]
    assert [list(line.get_xdata()) for line in dashed] == [[16, 64], [8, 32]]
    assert list(dashed[0].get_ydata()) == pytest.approx([16**2, 64**2])


@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_equal_figures_give_equal_files(tmp_path: Path, ending: str, start: bytes) -> None:
    first, second = (tmp_path / f"{name}.{ending}" for name in "ab")
    for path in (first, second):
        plot_series(made_up_series(), path)
    assert first.read_bytes().startswith(start)
    assert first.read_bytes() == second.read_bytes()


def test_a_table_of_monte_carlo_curvature_says_how_many_draws() -> None:
    series = made_up_series()
    text = render(series_table(series, for_people=True), TableFormat.TABLE, 100)
    assert "net: eigenvalues, mc (M = 2), full, data own; 2 threads" in text
    assert f"{THEIRS}: out of memory" in text
    exact = fit_power_law({n: float(n) for n in (8, 16, 32)})
    assert exact is not None
    assert math.isclose(exact.exponent, 1)
