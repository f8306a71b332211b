"""The figure of peak and seconds against N: each trial where it was, and for what it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from critical_batch_cases import add_gradient, add_search, trial
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vivit_bench.measure import Outcome, Trial
from vivit_bench.report.critical_batch_curves import (
    Curve,
    curves_of,
    growth_stem,
    unrecorded_seconds,
)
from vivit_bench.report.critical_batch_growth import draw_growth, plot_growth
from vivit_bench.report.critical_batch_selection import load_searches, select_searches

ENGINES = ("vivit-bench", "vivit-for-pytorch")
BLUE, VERMILION = "#0072B2", "#D55E00"
GIB = 2**30
PREDICTED = {"critical_batch_size": 900, "low": 800, "high": 1000}


def curves(folder: Path) -> list[list[Curve]]:
    selection = select_searches(load_searches(folder)[0], engines=ENGINES)
    return list(curves_of(selection.rows, folder))


def figure_of(folder: Path) -> Figure:
    (only,) = curves(folder)
    return draw_growth(only)


def points(panel: Axes, colour: str, *, filled: bool) -> list[tuple[float, float]]:
    """Places of the trials' markers, not of lines, arrows and bars."""
    return [
        (line.get_xdata()[0], line.get_ydata()[0])  # type: ignore[index]
        for line in panel.lines
        if line.get_marker() in ("o", "s")
        and line.get_color() == colour
        and (line.get_markerfacecolor() == colour) is filled
    ]


def marked(panel: Axes, marker: str) -> list[tuple[float, float]]:
    found = [line for line in panel.lines if line.get_marker() == marker]
    return [pair for line in found for pair in zip(line.get_xdata(), line.get_ydata(), strict=True)]  # type: ignore[arg-type]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_engines_stand_beside_each_other(tmp_path: Path) -> None:
    add_search(tmp_path, engine="vivit-for-pytorch", critical_batch_size=4, ran=[trial(4)])
    ran = [trial(16), trial(8), trial(17, Outcome.OUT_OF_MEMORY)]
    add_search(tmp_path, critical_batch_size=16, ran=ran)
    figure = figure_of(tmp_path)
    peak, seconds = figure.axes
    assert {axis.get_yscale() for axis in (peak, seconds)} == {"log"}
    assert peak.get_xscale() == "log"
    assert points(peak, BLUE, filled=True) == [(8, 8.0), (16, 16.0)]
    assert points(peak, BLUE, filled=False) == [(17, 17.0)]
    assert points(peak, VERMILION, filled=True) == [(4, 4.0)]
    assert points(seconds, BLUE, filled=True) == [(8, 0.8), (16, 1.6)]
    assert points(seconds, BLUE, filled=False) == [(17, 1.7)]
    assert marked(peak, r"$\uparrow$") == []
    for panel in figure.axes:
        verticals = {line.get_color(): line.get_xdata() for line in panel.lines[-2:]}
        assert verticals == {BLUE: [16, 16], VERMILION: [4, 4]}
        assert [text.get_text() for text in panel.texts[-2:]] == ["4", "16"]
    assert legend(figure) == [
        "vivit-bench: critical N 16",
        "vivit-for-pytorch: critical N 4",
        "did not fit, or did not end",
        "memory limit",
    ]


def test_the_limit_and_the_plan_are_lines(tmp_path: Path) -> None:
    planned = [[1, 2**20], [8, 2**21], [16, 2**22], [4096, 2**40]]
    facts = {"planned_peaks": planned, "expected_seconds": [[1, 0.5], [16, 2.5], [99, 9.0]]}
    add_search(tmp_path, ran=[trial(1), trial(16)], facts=facts)
    figure = figure_of(tmp_path)
    peak, seconds = figure.axes
    lines = {line.get_linestyle(): line for line in peak.lines if line.get_linestyle() in ":--"}
    assert list(lines[":"].get_ydata()) == [2048, 2048]
    # What is planned for N that nobody ran would only squeeze the rest.
    assert list(lines["--"].get_xdata()) == [1, 8, 16]
    assert list(lines["--"].get_ydata()) == [1, 2, 4]
    assert "2 GiB" in [text.get_text() for text in peak.texts]
    assert not [line for line in seconds.lines if line.get_linestyle() == ":"]
    (expected,) = [line for line in seconds.lines if line.get_linestyle() == "--"]
    assert (list(expected.get_xdata()), list(expected.get_ydata())) == ([1, 16], [0.5, 2.5])
    assert "expected (leanest plan, or small trials)" in legend(figure)


def test_nothing_planned_is_no_line(tmp_path: Path) -> None:
    add_search(tmp_path, ran=[trial(1)], facts={"planned_peaks": []})
    assert "expected (leanest plan, or small trials)" not in legend(figure_of(tmp_path))


@pytest.mark.parametrize(
    ("peak_bytes", "seconds", "is_whole"),
    [
        (2 * GIB + 1, 3.0, True),
        (2 * GIB + 1, None, True),  # recorded before seconds were
        (3 * GIB, None, False),
        (GIB, None, False),
        (None, None, False),
    ],
)
def test_what_did_not_end_is_a_lower_bound(
    tmp_path: Path, peak_bytes: int | None, seconds: float | None, is_whole: bool
) -> None:
    small = trial(1, work_seconds=seconds)
    last = trial(9, Outcome.OUT_OF_MEMORY, peak_bytes=peak_bytes, work_seconds=seconds)
    add_search(tmp_path, ran=[small, last])
    ((curve,),) = curves(tmp_path)
    assert curve.is_whole(last) is is_whole
    peak, _ = draw_growth([curve]).axes
    arrows = 1 if peak_bytes and not is_whole else 0
    assert len(marked(peak, r"$\uparrow$")) == arrows


def test_where_seconds_are_recorded_a_trial_without_did_not_end(tmp_path: Path) -> None:
    last = trial(9, Outcome.OUT_OF_MEMORY, peak_bytes=2 * GIB + 1, work_seconds=None)
    add_search(tmp_path, ran=[trial(1), last])
    ((curve,),) = curves(tmp_path)
    assert not curve.is_whole(last)
    assert unrecorded_seconds([curve]) == ""


def test_a_time_out_is_a_lower_bound_in_both_panels(tmp_path: Path) -> None:
    slow = trial(50, Outcome.TIMEOUT, work_seconds=None)
    ran = [trial(1), slow, trial(60, Outcome.DATA), trial(70, Outcome.ERROR)]
    facts = {"predicted": PREDICTED}
    add_search(tmp_path, critical_batch_size=1, stopped_by="timeout", ran=ran, facts=facts)
    figure = figure_of(tmp_path)
    peak, seconds = figure.axes
    assert points(peak, BLUE, filled=False) == marked(peak, r"$\uparrow$") == [(50, 50)]
    assert points(seconds, BLUE, filled=False) == marked(seconds, r"$\uparrow$") == [(50, 10)]
    assert "≥ 1 (time)" in [text.get_text() for text in peak.texts]
    assert legend(figure)[0] == "vivit-bench: critical N ≥ 1 (time)"
    assert marked(peak, "*") == [(900, 2048)]
    bars = [part for part in peak.collections if hasattr(part, "get_segments")]
    assert bars[0].get_segments()[0][:, 0].tolist() == [800, 1000]


def test_a_limit_of_a_library_has_no_seconds(tmp_path: Path) -> None:
    ran = [trial(1), trial(50, Outcome.LIMIT, work_seconds=None)]
    add_search(tmp_path, critical_batch_size=1, stopped_by="limit", ran=ran)
    peak, seconds = figure_of(tmp_path).axes
    assert points(peak, BLUE, filled=False) == [(50, 50)]
    assert points(seconds, BLUE, filled=False) == []


def test_older_records_have_no_seconds_and_it_is_said(tmp_path: Path) -> None:
    add_search(tmp_path, ran=[trial(n, work_seconds=None) for n in (1, 2, 3)])
    ran = [trial(4), trial(5, Outcome.DATA, work_seconds=None)]
    add_search(tmp_path, engine="vivit-for-pytorch", ran=ran)
    (found,) = curves(tmp_path)
    missing = unrecorded_seconds(found)
    assert missing.startswith("3 of 4 trials have no seconds")
    figure = draw_growth(found)
    peak, seconds = figure.axes
    assert points(seconds, BLUE, filled=True) == []
    assert len(points(peak, BLUE, filled=True)) == 3
    assert missing in figure.get_suptitle()


def test_a_panel_without_any_seconds_is_drawn(tmp_path: Path) -> None:
    add_search(tmp_path, ran=[trial(n, work_seconds=None) for n in (1, 2)])
    (found,) = curves(tmp_path)
    assert all(path.stat().st_size > 1_000 for path in plot_growth(found, tmp_path / "old"))


@pytest.mark.parametrize(("threads", "bars"), [(2, [(7, 0.7), (9, 0.9)]), (1, [])])
def test_trials_on_one_cpu_are_told_from_the_others(
    tmp_path: Path, threads: int, bars: list[Any]
) -> None:
    ran, facts = [trial(7), trial(8), trial(9, confirmed=True)], {"small_sizes": [7]}
    add_search(tmp_path, threads=threads, ran=ran, facts=facts)
    figure = figure_of(tmp_path)
    _, seconds = figure.axes
    assert marked(seconds, "_") == bars
    assert ("all threads on one CPU (small, or near the limit)" in legend(figure)) == bool(bars)
    joined = [len(np.atleast_1d(line.get_xdata())) for line in seconds.lines]
    assert max(joined[:-1]) == (2 if bars else 3)


def test_there_is_a_figure_for_each_cell_and_device(tmp_path: Path) -> None:
    ran = [trial(1)]
    add_search(tmp_path, ran=ran)
    add_search(tmp_path, samples="frac", ran=ran)
    add_search(tmp_path, curvature="mc", ran=ran)
    add_search(tmp_path, quantity="full-newton", problem="nets/a.py:net", ran=ran)
    add_search(tmp_path, device="cuda:0", gpu="G", ran=ran)
    add_gradient(tmp_path, 5, ran=ran)
    names = {growth_stem(found) for found in curves(tmp_path)}
    assert names == {
        "critical_batch_growth_cifar10_3c3d_eigenvalues_exact_full_cpu",
        "critical_batch_growth_cifar10_3c3d_eigenvalues_exact_frac_cpu",
        "critical_batch_growth_cifar10_3c3d_eigenvalues_mc_full_cpu",
        "critical_batch_growth_nets-a-net_full-newton_exact_full_cpu",
        "critical_batch_growth_cifar10_3c3d_eigenvalues_exact_full_cuda",
        "critical_batch_growth_cifar10_3c3d_gradient_cpu",
    }


def test_the_last_record_of_each_repeat_counts(tmp_path: Path) -> None:
    first: Trial = trial(4, peak_bytes=2**20)
    again = replace(first, peak_bytes=2**22, repeat=1)
    add_search(tmp_path, ran=[first, again, replace(first, peak_bytes=2**21)])
    peak, _ = figure_of(tmp_path).axes
    assert points(peak, BLUE, filled=True) == [(4, 2.0), (4, 4.0)]


def test_a_step_is_of_the_whole_process(tmp_path: Path) -> None:
    add_search(tmp_path, ran=[trial(1)])
    assert figure_of(tmp_path).axes[0].get_ylabel() == "peak over the idle process (MiB)"
    step = {"quantity": "step", "curvature": None, "samples": None, "mc_samples": None}
    add_search(tmp_path / "other", engine="vivit-bench", ran=[trial(1)], **step)
    assert figure_of(tmp_path / "other").axes[0].get_ylabel() == "peak of the process (MiB)"


def test_a_figure_is_written_the_same_each_time(tmp_path: Path) -> None:
    add_search(tmp_path, ran=[trial(1), trial(2)])
    (found,) = curves(tmp_path)
    paths = plot_growth(found, tmp_path / "growth")
    first = [path.read_bytes() for path in paths]
    assert [path.name for path in paths] == ["growth.png", "growth.pdf"]
    assert [path.read_bytes() for path in plot_growth(found, tmp_path / "growth")] == first
