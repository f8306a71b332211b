"""Predictions beside what searches found: rows, and the summary of those that memory ended."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import Run, group_runner
from critical_batch_cases import add_search


def predicted(size: int, low: int, high: int) -> dict[str, object]:
    told = {
        "memory_bytes": 2**31,
        "critical_batch_size": size,
        "low": low,
        "high": high,
        "limited_by": "eigenvalues",
        "step_seconds": 2.0,
        "search_seconds": 60.0,
    }
    return {"predicted": told}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    return group_runner("critical-batch", monkeypatch, capsys)


def test_errors_intervals_and_trials_are_those_of_the_searches(run: Run, tmp_path: Path) -> None:
    results = tmp_path / "results"
    add_search(results, critical_batch_size=100, facts=predicted(110, 90, 120))
    add_search(results, critical_batch_size=200, samples="frac", facts=predicted(198, 198, 198))
    add_search(results, critical_batch_size=50, curvature="mc", stopped_by="timeout",
               facts=predicted(400, 390, 410))  # fmt: skip
    add_search(results, critical_batch_size=70, quantity="full-newton")
    done = run("predictions", "--format", "json")
    assert done.code == 0, done.err
    rows = {row["critical_batch_size"]: row for row in json.loads(done.out)}
    assert sorted(rows) == [50, 100, 200]  # without a prediction there is nothing to compare
    assert rows[100]["error_percent"] == pytest.approx(10.0)
    assert (rows[100]["within"], rows[200]["within"], rows[50]["within"]) == (True, False, None)
    assert rows[100]["width_percent"] == pytest.approx(30.0)
    assert rows[50]["error_percent"] is None
    assert rows[100]["unguided_trials"] == 14
    told = " ".join(run("predictions").out.split())
    assert "2 searches that memory ended; error 5.5 % in the median, 10.0 % at most" in told
    assert "1 within their interval" in told
    shutil.rmtree(results)
    add_search(results, critical_batch_size=100, facts=predicted(110, 90, 120))
    assert "1 search that memory ended" in " ".join(run("predictions").out.split())
    assert (results / "critical_batch" / "predictions.csv").is_file()


def test_without_predictions_it_is_said_what_makes_some(run: Run, tmp_path: Path) -> None:
    add_search(tmp_path / "results", critical_batch_size=70)
    done = run("predictions")
    assert (done.code, "critical-batch sweep" in done.err) == (2, True)
