"""``vivit-bench compare``: exactly, beyond rounding, beyond noise, or not to be told."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit_cases import (
    MAKERS,
    Machine,
    comparison,
    here,
    noise,
    quadratic,
    rewrite,
    search,
    spectrum,
)
from command_line import Run, group_runner

from vivit_bench.audit.change import Change, Good, Verdict, exact, peak, rounded
from vivit_bench.audit.changes import Changes, compare_results
from vivit_bench.audit.check import EXPERIMENTS
from vivit_bench.cli.compare_results import parse_percent
from vivit_bench.errors import UsageError
from vivit_bench.measure import Observation, Outcome, Spec
from vivit_bench.measure.budget import MIB
from vivit_bench.noise.records import CHECKPOINTS, COLUMNS
from vivit_bench.store import State, load_run
from vivit_bench.store.files import sha256

__all__ = ["here"]

BLANK = Change("spectrum", "run", "number", None, None, Verdict.SAME)
A, B = Path("A"), Path("B")
CHECKPOINT_COLUMNS = COLUMNS[CHECKPOINTS]


def by_number(found: Changes) -> dict[str, Change]:
    return {change.number: change for change in found.changes}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_same_results_are_the_same(here: Path, experiment: str) -> None:
    MAKERS[experiment](A)
    shutil.copytree(A, B)
    found = compare_results(A, B)
    times = [each for each in found.changes if "seconds" in each.number]
    assert {each.verdict for each in found.changes if each not in times} == {Verdict.SAME}
    assert {each.verdict for each in times} <= {Verdict.NO_CHANGE}
    assert len(times) == (2 if experiment == "comparison" else 0)
    assert len(found.changes) > 1
    assert not found.notes
    assert {each.conditions for each in found.changes} == {""}


def test_a_change_of_a_critical_batch_size_and_its_peak_is_told(here: Path) -> None:
    search(A, peak=1_000_000)
    search(B, fits=20, peak=1_200_000)
    found = by_number(compare_results(A, B))
    size, memory = found["critical_batch_size"], found["peak_bytes at N = 20"]
    assert (size.verdict, size.before, size.after) == (Verdict.WORSE, 21, 20)
    assert size.change == pytest.approx(-1 / 21)
    assert (memory.verdict, memory.before, memory.after) == (Verdict.WORSE, 20_000_000, 24_000_000)
    back = by_number(compare_results(B, A))
    assert {back[name].verdict for name in found if name != "stopped_by"} == {Verdict.BETTER}


def test_a_smaller_lower_bound_says_nothing(here: Path) -> None:
    search(A)
    stored = load_run(search(B, fits=20), "critical_batch")
    rewrite(stored, results={**stored.results, "is_lower_bound": True, "stopped_by": "timeout"})
    for pair in ((A, B), (B, A)):
        found = by_number(compare_results(*pair))
        assert found["critical_batch_size"].verdict is Verdict.CANNOT_TELL
        assert "the search ended by timeout" in found["critical_batch_size"].reason
        assert found["stopped_by"].verdict is Verdict.CHANGED
        assert not any(change.fails(0.04) for change in found.values())


Edit = Callable[[str], str]


def edited(folder: Path, experiment: str, file: str, edit: Edit) -> None:
    """Change a table as another version might have written it."""
    stored = load_run(folder, experiment)
    text = (folder / file).read_text()
    assert edit(text) != text
    (folder / file).write_text(edit(text))
    rewrite(stored, files={**stored.files, file: sha256(edit(text))})


def scaled(line: int, column: int, factor: float) -> Edit:
    """One value of a table, times a factor."""

    def edit(text: str) -> str:
        rows = [row.split(",") for row in text.splitlines()]
        rows[line][column] = repr(float(rows[line][column]) * factor)
        return "\n".join(map(",".join, rows)) + "\n"

    return edit


@pytest.mark.parametrize(
    ("make", "file", "column", "number", "tolerance"),
    [
        (spectrum, "eigenvalues.csv", 1, "eigenvalues", 1e-4),
        (noise, "curves.csv", 2, "curves train_loss", 1e-4),
        (noise, "directions.csv", 3, "directions eigenvalue", 1e-4),
        (quadratic, "losses.csv", 3, "loss of SGD", 1e-9),
    ],
)
def test_numbers_may_differ_by_rounding(
    here: Path, make: Callable[[Path], Path], file: str, column: int, number: str, tolerance: float
) -> None:
    folder = make(A)
    experiment = folder.parent.name
    for factor, verdict in ((0.5, Verdict.ROUNDING), (20.0, Verdict.CHANGED)):
        shutil.rmtree(B, ignore_errors=True)
        shutil.copytree(A, B)
        change = scaled(1, column, 1 + factor * tolerance)
        edited(B / experiment / folder.name, experiment, file, change)
        found = by_number(compare_results(A, B))
        name = next(each for each in found if each.lower() == number.lower())
        assert found.pop(name).verdict is verdict
        assert {each.verdict for each in found.values()} == {Verdict.SAME}


@pytest.mark.parametrize(
    ("before", "after", "verdict", "change"),
    [
        ([10.0, 1.0], [10.0, 1.0], Verdict.SAME, 0.0),
        ([10.0, 1.0], [10.0, 1.005], Verdict.ROUNDING, 5e-4),
        ([10.0, 1.0], [10.0, 0.9], Verdict.CHANGED, 1e-2),
        ([math.nan, math.inf, 1.0], [math.nan, math.inf, 1.0], Verdict.SAME, 0.0),
        ([1.0], [math.nan], Verdict.CHANGED, math.inf),
        ([math.inf], [1.0], Verdict.CHANGED, math.inf),
        ([0.0], [1e-9], Verdict.CHANGED, math.inf),
        ([1.0, 2.0], [1.0], Verdict.CHANGED, -0.5),
        ([], [], Verdict.SAME, 0.0),
        ([], [1.0], Verdict.CHANGED, math.inf),
    ],
)
def test_rounding(before: list[float], after: list[float], verdict: Verdict, change: float) -> None:
    found = rounded(BLANK, before, after, 1e-3)
    assert found.verdict is verdict
    assert found.change == pytest.approx(change)


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (84_037_632, Verdict.SAME),
        (85_135_360, Verdict.NO_CHANGE),  # the same work, read again
        (83_000_000, Verdict.NO_CHANGE),
        (86_500_000, Verdict.WORSE),
        (81_500_000, Verdict.BETTER),
    ],
)
def test_readings_of_a_peak_are_not_alike(after: int, verdict: Verdict) -> None:
    found = peak(BLANK, 84_037_632, after)
    assert found.verdict is verdict
    assert found.change == pytest.approx(after / 84_037_632 - 1)
    assert found.fails(0.02) == (verdict is Verdict.WORSE)


def test_what_is_neither_better_nor_worse_has_changed() -> None:
    assert exact(BLANK, 2, 3, Good.NEITHER).verdict is Verdict.CHANGED
    assert exact(BLANK, 0, 3, Good.MORE).change == math.inf
    assert exact(BLANK, 3, 2, Good.LESS).verdict is Verdict.BETTER
    assert not exact(BLANK, 3, 2, Good.LESS).fails(0.0)
    assert exact(BLANK, 100, 106, Good.LESS).fails(0.05)
    assert not exact(BLANK, 100, 105, Good.LESS).fails(0.05)


def test_times_of_two_occasions(here: Path) -> None:
    comparison(A, Machine(1))
    comparison(B, Machine(2, slower=1.1, peak=8 * MIB))
    found = by_number(compare_results(A, B))
    for kind in ("wall", "cpu"):
        time = found[f"vivit-bench {kind}_seconds"]
        assert time.verdict is Verdict.WORSE
        assert time.change == pytest.approx(0.1, abs=0.02)
        # The seconds alone say something else: the machine is another one.
        assert isinstance(time.before, float)
        assert isinstance(time.after, float)
        assert abs(math.log(time.after / time.before) - math.log(1.1)) > 0.05
    assert found["vivit-bench peak_bytes"].verdict is Verdict.WORSE
    assert found["vivit-bench results"].verdict is Verdict.SAME


def test_comparisons_of_before_have_no_reference_and_stay_readable(here: Path) -> None:
    comparison(A, Machine(1, referenced=False))
    comparison(B, Machine(2, slower=2.0))
    found = by_number(compare_results(A, B))
    assert found["vivit-bench wall_seconds"].verdict is Verdict.CANNOT_TELL
    assert "0 and 9 rounds with a reference" in found["vivit-bench wall_seconds"].reason
    assert found["vivit-bench outcome"].verdict is Verdict.SAME


def test_an_engine_that_finds_something_else_or_fails(here: Path) -> None:
    class Failing(Machine):
        def __call__(self, spec: Spec, timeout: float) -> Observation:
            seen = super().__call__(spec, timeout)
            return Observation(**{**vars(seen), "outcome": Outcome.TIMEOUT, "message": "stopped"})

    comparison(A, Machine(1))
    other = Machine(2)
    other.digest = {"eigenvalues": [2.1, 1.0]}
    comparison(B, other)
    results = by_number(compare_results(A, B))["vivit-bench results"]
    assert results.verdict is Verdict.CHANGED
    assert results.change == pytest.approx(0.05)
    shutil.rmtree(B)
    comparison(B, Failing(), base_may_fail=True)
    (ended,) = compare_results(A, B).changes
    assert (ended.before, ended.after, ended.verdict) == ("fits", "timeout", Verdict.WORSE)
    assert ended.fails(0.05)


def test_runs_are_matched_by_their_settings_and_the_others_named(here: Path) -> None:
    comparison(A, n=8)
    comparison(A, n=16)
    first = comparison(B, n=8)
    first.rename(first.with_name("of_my_own"))
    comparison(B, n=32)
    folder = quadratic(A)
    rewrite(load_run(folder, "quadratic"), state=State.RUNNING, files={})
    quadratic(B)
    found = compare_results(A, B)
    assert {change.run for change in found.changes} == {"mnist_mlp_eigenvalues_exact_full_n8"}
    assert [line.partition(":")[0] for line in found.warnings] == ["left out", "only in A"]
    assert [line.partition(":")[0] for line in found.notes] == ["only in B", "only in B"]
    assert "A/quadratic" in found.warnings[0]
    assert "is not finished" in found.warnings[0]
    shutil.rmtree(B / "comparison")
    with pytest.raises(UsageError, match="A and B have no run of the same settings: left out"):
        compare_results(A, B)
    with pytest.raises(UsageError, match="nowhere: there is no such folder"):
        compare_results(A, Path("nowhere"))


def test_a_training_that_diverged_is_worse(here: Path) -> None:
    noise(A)
    stored = load_run(noise(B), "noise")
    rewrite(stored, state=State.FAILED, environment={**stored.environment, "code": "abc"})
    (change,) = compare_results(A, B).changes
    assert (change.before, change.after, change.verdict) == ("finished", "failed", Verdict.WORSE)
    assert change.conditions == f"code {stored.environment['code']} -> abc"


def test_errors_of_the_check_are_rounding_and_not_compared(here: Path) -> None:
    folder = noise(A)
    shutil.copytree(A, B)
    column = CHECKPOINT_COLUMNS.index("certificate_error")
    edited(B / "noise" / folder.name, "noise", "checkpoints.csv", scaled(1, column, 3.0))
    found = compare_results(A, B).changes
    assert {change.verdict for change in found} == {Verdict.SAME}
    assert not any("certificate_error" in change.number for change in found)


def diverged(results: Path, step: int, **changes: Any) -> Path:
    """A training whose loss became NaN at some step, after its tables or before them."""
    stored = load_run(noise(results), "noise")
    where = {"failure": "the training diverged", "diverged_at": {"step": step, "loss": "nan"}}
    rewrite(stored, state=State.FAILED, results={**stored.results, **where}, **changes)
    return stored.folder


def test_two_trainings_that_diverged_are_compared_up_to_there(here: Path) -> None:
    folder = diverged(A, 7)
    shutil.copytree(A, B)
    found = by_number(compare_results(A, B))
    assert {change.verdict for change in found.values()} == {Verdict.SAME}
    assert {"state", "diverged_at step", "diverged_at loss", "curves train_loss"} <= set(found)
    edited(B / "noise" / folder.name, "noise", "curves.csv", scaled(1, 2, 1.5))
    found = by_number(compare_results(A, B))
    assert found.pop("curves train_loss").verdict is Verdict.CHANGED
    assert {change.verdict for change in found.values()} == {Verdict.SAME}
    shutil.rmtree(B)
    diverged(B, 0, files={})
    found = by_number(compare_results(A, B))
    assert found["state"].verdict is Verdict.SAME
    step = found["diverged_at step"]
    assert (step.before, step.after, step.verdict) == (7, 0, Verdict.CHANGED)
    assert step.fails(0.05)
    for number in ("curves train_loss", "checkpoints loss", "directions eigenvalue"):
        assert found[number].verdict is Verdict.CHANGED
        assert found[number].reason.startswith("0 values instead of ")
    shutil.rmtree(A)
    shutil.copytree(B, A)
    assert {change.verdict for change in compare_results(A, B).changes} == {Verdict.SAME}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return group_runner("compare", monkeypatch, capsys)


def test_the_command(here: Path, run: Run) -> None:
    comparison(A, Machine(1))
    comparison(B, Machine(2, slower=1.1))
    code, out, err = run(A, B)
    assert (code, err) == (0, "")
    assert out.count("worse") == 3  # two rows and the sum
    assert "vivit-bench outcome" not in out
    assert "5 numbers: 3 same, 2 worse." in out
    assert "vivit-bench outcome" in run(A, B, "--all", "--format", "markdown").out
    code, out, err = run(A, B, "--fail-above", "5%", "--format", "json")
    assert code == 1
    assert err.startswith("vivit-bench: beyond --fail-above 5%: comparison/mnist_mlp_eigenvalues")
    assert "vivit-bench wall_seconds worse, +" in err
    rows: list[dict[str, Any]] = json.loads(out)
    assert [row["counts"] for row in rows] == [False, False, False, True, True]
    assert run(B, A, "--fail-above", "5").code == 0
    assert run(A, B, "--fail-above", "20%").code == 0
    assert run(A, B, "--fail-above", "much") == (
        2,
        "",
        "vivit-bench: --fail-above much: must be a percentage, for example 5%\n",
    )
    assert run(A, "nowhere").code == 2


def test_a_run_that_is_lost_is_warned_of_and_fails_and_one_more_is_none(
    here: Path, run: Run
) -> None:
    for n in (8, 16, 32):
        comparison(A, n=n)
    comparison(B, n=8)
    damaged = comparison(B, n=16)
    (damaged / "runs.jsonl").write_text("")
    for style in ("csv", "table"):
        code, _, err = run(A, B, "--format", style)
        assert code == 0
        assert [line.partition(": ")[2].split(":")[0] for line in err.splitlines()] == [
            "left out",
            "only in A",
            "only in A",
        ]
    code, _, err = run(A, B, "--fail-above", "1%")
    assert code == 1
    line = err.splitlines()[-1]
    assert line.count("is not in B") == 2
    assert damaged.name in line
    shutil.rmtree(damaged)
    assert run(B, A, "--fail-above", "1%")[::2] == (0, "")


def test_what_is_not_found_need_not_be_excluded(here: Path, run: Run) -> None:
    comparison(A, Machine(1))
    comparison(B, Machine(2))
    said = "Not found and not excluded, worse by more than"
    assert f"{said} 0%: vivit-bench wall_seconds" in run(A, B, "--fail-above", "0").out
    assert said not in run(A, B, "--fail-above", "50").out
    assert said not in run(A, B).out


def test_what_cannot_be_told_is_said_and_fails_nothing(here: Path, run: Run) -> None:
    comparison(A, Machine(1), repeats=7)
    comparison(B, Machine(2, slower=2.0))
    code, out, err = run(A, B, "--fail-above", "5%")
    assert code == 0
    assert "cannot tell" in out
    assert "compare-engines" in out
    assert err == ("warning: 2 of 5 numbers cannot be told: neither a pass nor a failure\n")


@pytest.mark.parametrize("text", ["-1%", "nan", "inf", "", "5%%", "five"])
def test_percentages_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="must be a percentage, for example 5%"):
        parse_percent(text)


def test_percentages() -> None:
    assert parse_percent("5%") == parse_percent("5") == 0.05
    assert parse_percent(" 0.5 % ") == 0.005
