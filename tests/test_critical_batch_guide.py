"""The search guided by a plan: few large trials, and the right number whatever the plan says."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_critical_batch_search import trial

from vivit_bench.critical_batch.guide import PlannedPeaks, predict_critical_batch_size
from vivit_bench.critical_batch.search import (
    SMALL_SIZES,
    Bracket,
    StoppedBy,
    find_critical_batch_size,
)
from vivit_bench.measure import Outcome, Trial
from vivit_bench.measure.budget import MemoryBudget
from vivit_bench.measure.planning import planned_peaks

MIB = 2**20
LIMIT = 2048 * MIB
Peak = Callable[[int], float]


class Engine:
    """Runs faster plans up to 0.92 of the limit, and the leanest where that needs more.

    Args:
        true: What the leanest plan really takes at N.
    """

    def __init__(self, true: Peak) -> None:
        self.true = true
        self.runs: list[int] = []

    def run(self, n: int, bracket: Bracket) -> Trial:
        self.runs.append(n)
        fastest = 4 * self.true(n)
        peak = int(min(fastest, max(self.true(n), 0.92 * LIMIT)))
        fits = peak <= LIMIT
        if not fits:  # it is stopped
            peak = min(peak, MemoryBudget(LIMIT).watchdog_bytes)
        outcome = Outcome.FITS if fits else Outcome.OUT_OF_MEMORY
        return replace(trial(n, outcome), peak_bytes=peak)

    @property
    def critical(self) -> int:
        low, high = 0, 2**20
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.true(middle) <= LIMIT else (low, middle)
        return low

    @property
    def large(self) -> list[int]:
        return [n for n in self.runs if n not in SMALL_SIZES]


def quadratic(a: float, b: float, c: float) -> Peak:
    return lambda n: MIB * (a + b * n + c * n * n)


def plan_of(peak: Peak) -> PlannedPeaks:
    return PlannedPeaks(tuple(planned_peaks(lambda n: int(peak(n)), LIMIT, 32_768)))


peaks = st.builds(quadratic, st.floats(1, 100), st.floats(0, 0.5), st.floats(1e-5, 1e-2))


@given(peaks, st.floats(0.95, 1.05))
def test_five_large_trials_where_the_plan_is_off_by_up_to_5_percent(
    planned: Peak, error: float
) -> None:
    engine = Engine(lambda n: error * planned(n))
    result = find_critical_batch_size(engine.run, 32_768, LIMIT, plan_of(planned))
    assert (result.critical_batch_size, result.stopped_by) == (engine.critical, StoppedBy.MEMORY)
    assert len(engine.large) <= 5


def wobbling(n: int) -> float:
    return 1 + 0.2 * ((n * 7919) % 3 - 1)


@given(
    peaks,
    st.one_of(
        st.sampled_from([0.01, 0.8, 1.25, 100.0]).map(lambda factor: lambda n: factor),
        st.just(wobbling),
    ),
    st.integers(1, 4_000),
)
def test_a_wrong_plan_costs_trials_but_never_the_number(
    true: Peak, error: Callable[[int], float], max_batch: int
) -> None:
    engine = Engine(true)
    planned = PlannedPeaks(
        tuple((n, max(int(true(n) * error(n)), 1)) for n in (1, 2, 5, 10, 100, 300, 1000, 1100))
    )
    result = find_critical_batch_size(engine.run, max_batch, LIMIT, planned)
    assert result.critical_batch_size == min(engine.critical, max_batch)
    assert len(set(engine.runs)) == len(engine.runs) <= 2 * max_batch.bit_length() + 16
    assert all(1 <= n <= max_batch for n in engine.runs)


@given(
    st.integers(0, 5_000),
    st.integers(1, 4_000),
    st.lists(st.integers(1, 2**40), min_size=1),
    st.lists(st.integers(1, 2**40), min_size=2, max_size=9),
)
def test_measured_and_planned_peaks_that_mean_nothing_never_cost_the_number(
    threshold: int, max_batch: int, measured: list[int], planned: list[int]
) -> None:
    runs: list[int] = []

    def run(n: int, bracket: Bracket) -> Trial:
        runs.append(n)
        outcome = Outcome.FITS if n <= threshold else Outcome.OUT_OF_MEMORY
        return replace(trial(n, outcome), peak_bytes=measured[n % len(measured)])

    points = PlannedPeaks(tuple((2**k, need) for k, need in enumerate(planned)))
    result = find_critical_batch_size(run, max_batch, LIMIT, points)
    assert result.critical_batch_size == min(threshold, max_batch)
    assert len(set(runs)) == len(runs) <= 2 * max_batch.bit_length() + 16


@given(peaks, st.floats(0.7, 1.3), st.data())
def test_an_interrupted_search_goes_on_at_the_same_sizes(
    planned: Peak, error: float, data: st.DataObject
) -> None:
    whole, plan = Engine(lambda n: error * planned(n)), plan_of(planned)
    expected = find_critical_batch_size(whole.run, 32_768, LIMIT, plan)
    records = {t.n: t for t in expected.trials[: data.draw(st.integers(0, len(whole.runs)))]}
    again = Engine(whole.true)

    def run(n: int, bracket: Bracket) -> Trial:
        return records.get(n) or again.run(n, bracket)

    assert find_critical_batch_size(run, 32_768, LIMIT, plan) == expected
    assert again.runs == whole.runs[len(records) :]


@given(peaks)
def test_the_prediction_is_the_plan_s_own_and_then_what_was_measured(peak: Peak) -> None:
    plan, engine = plan_of(peak), Engine(peak)
    alone = predict_critical_batch_size(plan, (), LIMIT, 32_768)
    assert abs(alone - engine.critical) <= 1 + engine.critical // 200
    measured = engine.run(alone, Bracket())
    half_again = replace(measured, peak_bytes=int(1.5 * peak(alone)), outcome=Outcome.OUT_OF_MEMORY)
    corrected = predict_critical_batch_size(plan, [half_again], LIMIT, 32_768)
    assert 1.49 * plan.at(corrected) <= LIMIT < 1.51 * plan.at(corrected + 1)
    faster = replace(measured, n=max(alone // 4, 1), peak_bytes=int(0.92 * LIMIT))
    if plan.at(faster.n) < 0.9 * LIMIT:  # its peak is that of another plan
        assert predict_critical_batch_size(plan, [faster], LIMIT, 32_768) == alone


def of_small_network(n: int) -> float:
    """A small network's, and what its plan takes it to be (`PLANNED`): the slope is half."""
    return (35.56 + (68.42 - 35.56) * (n - 7007) / (13469 - 7007)) * MIB


PLANNED = ((1, 5_251_320), (256, 6_316_744), (4096, 16_669_384), (16_384, 49_797_832))


@pytest.mark.parametrize(
    ("true", "plan", "known", "most_trials"),
    [
        (of_small_network, PlannedPeaks(PLANNED), [16, 32, 64], 6),
        (of_small_network, PlannedPeaks(PLANNED, 0.0), [1024, 4096], 6),
        (lambda n: (5 + n / 150) * MIB, None, [], 14 + 3),
        (lambda n: 40.01 * (n / 5000) ** 2 * MIB, None, [], 14 + 6),
    ],
)
def test_peaks_on_both_sides_decide_what_is_run_next(
    true: Peak, plan: PlannedPeaks | None, known: list[int], most_trials: int
) -> None:
    """Where the plan is wrong, and where there is none: the trials beside doubling are few."""
    limit = 40 * MIB
    runs: list[int] = []

    def run(n: int, bracket: Bracket | None = None) -> Trial:
        runs.append(n)
        outcome = Outcome.FITS if true(n) <= limit else Outcome.OUT_OF_MEMORY
        return replace(trial(n, outcome), peak_bytes=max(int(true(n)), 1))

    small = [run(n) for n in known]
    runs.clear()
    result = find_critical_batch_size(run, 32_768, limit, plan, known=small)
    critical = result.critical_batch_size
    assert true(critical) <= limit < true(critical + 1)
    assert len(runs) <= most_trials, runs


@pytest.mark.parametrize(
    "points", [(), ((1, 5),), ((1, 5), (1, 6)), ((2, 5), (1, 6)), ((1, 0), (2, 5))]
)
def test_points_that_are_no_plan_are_refused(points: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="no planned peaks"):
        PlannedPeaks(points)


def test_the_plan_is_asked_for_no_mini_batch_beyond_twice_the_critical_size() -> None:
    asked: list[int] = []

    def need(n: int) -> int | None:
        asked.append(n)
        return 10 * n * n if n <= 300 else None

    found = planned_peaks(need, 10 * 200**2, 32_768)
    assert max(asked) == 256
    assert len(set(asked)) == len(asked) == len(found) < 30
    assert [n for n, _ in found] == sorted(asked)
    assert all(size == 10 * n * n for n, size in found)
    assert planned_peaks(need, 10 * 900**2, 32_768)[-1][0] == 256  # the data end
    assert planned_peaks(need, 5, 32_768) == [(1, 10)]


def test_two_trials_of_one_size_count_as_one() -> None:
    """As repeats make them; between them there is nothing to interpolate."""
    planned = PlannedPeaks(((1, MIB), (10_000, 10_000 * MIB)))
    ran = [
        replace(trial(n, Outcome.FITS), peak_bytes=int(n * share * MIB))
        for n, share in ((2000, 1.02), (2000, 1.0), (2001, 1.01))
    ]
    assert predict_critical_batch_size(planned, ran, LIMIT, 10_000) in (2027, 2028)
    assert predict_critical_batch_size(planned, ran[:2], 2020 * MIB, 10_000) in (1999, 2000)
