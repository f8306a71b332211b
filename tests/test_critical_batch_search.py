"""The search as a pure function: thresholds, maxima, interruption points, every ending."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vivit_bench.critical_batch.guide import PlannedPeaks
from vivit_bench.critical_batch.search import (
    Bracket,
    SearchResult,
    StoppedBy,
    TrialError,
    find_critical_batch_size,
)
from vivit_bench.measure import Outcome, Trial

maxima = st.integers(1, 40_000)
thresholds = st.integers(0, 50_000)


def trial(n: int, outcome: Outcome, message: str = "") -> Trial:
    return Trial(
        n=n,
        outcome=outcome,
        message=message,
        peak_bytes=n,
        idle_bytes=0,
        absolute_peak_bytes=n,
        elapsed_seconds=1.0,
        timeout_seconds=60.0,
        confirmed=False,
        ended_at="2026-01-01T00:00:00+00:00",
    )


class Machine:
    """Batches up to ``threshold`` fit; from ``stop_at`` on something else ends a trial."""

    def __init__(self, threshold: int, stop_at: int | None = None, ending: Outcome | None = None):
        self.threshold = threshold
        self.stop_at = stop_at
        self.ending = ending
        self.runs: list[int] = []

    def run(self, n: int, bracket: Bracket) -> Trial:
        self.runs.append(n)
        if self.stop_at is not None and n >= self.stop_at:
            assert self.ending is not None
            return trial(n, self.ending, "the reason")
        return trial(n, Outcome.FITS if n <= self.threshold else Outcome.OUT_OF_MEMORY)

    def search(self, max_batch: int) -> SearchResult:
        return find_critical_batch_size(self.run, max_batch)


@given(thresholds, maxima)
def test_the_number_is_exact_and_both_sides_were_run(threshold: int, max_batch: int) -> None:
    machine = Machine(threshold)
    result = machine.search(max_batch)

    assert result.critical_batch_size == min(threshold, max_batch)
    if threshold >= max_batch:
        assert result.stopped_by is StoppedBy.MAX_BATCH
        assert max_batch in machine.runs
    else:
        assert result.stopped_by is StoppedBy.MEMORY
        assert {threshold, threshold + 1} - {0} <= set(machine.runs)
    assert [each.n for each in result.trials] == machine.runs


@given(thresholds, maxima)
def test_no_batch_size_is_run_twice_or_beyond_the_maximum(threshold: int, max_batch: int) -> None:
    machine = Machine(threshold)
    machine.search(max_batch)
    assert len(set(machine.runs)) == len(machine.runs) <= 2 * max_batch.bit_length() + 2
    assert all(1 <= n <= max_batch for n in machine.runs)


@given(thresholds, maxima, st.data())
def test_an_interrupted_search_goes_on_from_its_records(
    threshold: int, max_batch: int, data: st.DataObject
) -> None:
    """Whatever has finished before the interruption is not run again; the result is the same."""
    undisturbed = Machine(threshold).search(max_batch)
    survived = data.draw(st.integers(0, len(undisturbed.trials)))
    records = {each.n: each for each in undisturbed.trials[:survived]}
    again = Machine(threshold)

    def run(n: int, bracket: Bracket) -> Trial:
        return records.get(n) or again.run(n, bracket)

    assert find_critical_batch_size(run, max_batch) == undisturbed
    assert not set(again.runs) & set(records)
    assert len(again.runs) == len(undisturbed.trials) - survived


@given(thresholds, maxima, st.integers(1, 50_000), st.sampled_from(["timeout", "limit"]))
def test_a_timeout_or_limit_ends_the_search_at_the_largest_size_known_to_fit(
    threshold: int, max_batch: int, stop_at: int, ending: str
) -> None:
    machine = Machine(threshold, stop_at, Outcome(ending))
    result = machine.search(max_batch)

    met = [n for n in machine.runs if n >= stop_at]
    fitted = [n for n in machine.runs if n < stop_at and n <= threshold]
    assert result.critical_batch_size == max(fitted, default=0)
    if met:
        assert met == [machine.runs[-1]]
        assert result.stopped_by is StoppedBy(ending)
        assert result.message == f"N = {met[0]}: the reason"
    else:
        assert result.stopped_by in (StoppedBy.MEMORY, StoppedBy.MAX_BATCH)


@given(thresholds, maxima, st.integers(1, 50_000))
def test_all_samples_there_are_are_tried(threshold: int, max_batch: int, samples: int) -> None:
    """The end of the data is a bound like the largest batch size allowed, met on the way."""
    machine = Machine(threshold)

    def run(n: int, bracket: Bracket) -> Trial:
        if n > samples:
            machine.runs.append(n)
            return replace(trial(n, Outcome.DATA, "the reason"), available_samples=samples)
        return machine.run(n, bracket)

    result = find_critical_batch_size(run, max_batch)
    assert result.critical_batch_size == min(threshold, max_batch, samples)
    assert len(set(machine.runs)) == len(machine.runs)
    if threshold < min(samples, max_batch):
        assert result.stopped_by is StoppedBy.MEMORY
    elif samples < max_batch:
        assert result.stopped_by is StoppedBy.DATA
        assert result.message == f"the data end at {samples} samples"
    else:
        assert result.stopped_by is StoppedBy.MAX_BATCH


def test_data_that_contradict_themselves_end_the_search() -> None:
    """A function that gives 8 samples of 8 and then has 5 of 16."""

    def run(n: int, bracket: Bracket) -> Trial:
        if n > 8:
            return replace(trial(n, Outcome.DATA), available_samples=5)
        return trial(n, Outcome.FITS)

    result = find_critical_batch_size(run, 64)
    assert (result.critical_batch_size, result.stopped_by) == (8, StoppedBy.DATA)


def test_a_timeout_during_bisection_ends_the_search_too() -> None:
    outcomes = {
        1: Outcome.FITS,
        2: Outcome.FITS,
        4: Outcome.FITS,
        8: Outcome.OUT_OF_MEMORY,
        6: Outcome.TIMEOUT,
    }
    result = find_critical_batch_size(lambda n, bracket: trial(n, outcomes[n]), 64)
    assert (result.critical_batch_size, result.stopped_by) == (4, StoppedBy.TIMEOUT)


@given(thresholds, maxima, st.integers(1, 50_000))
def test_an_error_aborts_with_its_message_and_is_never_a_size(
    threshold: int, max_batch: int, stop_at: int
) -> None:
    machine = Machine(threshold, stop_at, Outcome.ERROR)
    needed = Machine(threshold).search(max_batch).trials
    met = [each.n for each in needed if each.n >= stop_at]
    if not met:
        assert machine.search(max_batch).critical_batch_size == min(threshold, max_batch)
        return
    with pytest.raises(TrialError) as caught:
        machine.search(max_batch)
    assert str(caught.value) == f"N = {met[0]} failed, which says nothing of its memory: the reason"
    assert machine.runs[-1] == met[0]


def test_not_even_one_sample_fits() -> None:
    result = Machine(0).search(32_768)
    assert (result.critical_batch_size, result.stopped_by) == (0, StoppedBy.MEMORY)
    assert result.critical_trial is None
    assert [each.n for each in result.trials] == [1]


def test_a_failed_set_up_is_not_blamed_on_the_batch_size() -> None:
    failed = trial(1, Outcome.ERROR, "set-up failed: no such file")
    with pytest.raises(TrialError, match=r"^set-up failed: no such file$"):
        find_critical_batch_size(lambda n, bracket: failed, 8)


def test_nothing_larger_than_a_known_limit_is_run_before_it() -> None:
    """The size that a library takes is the result, and the next one is its proof."""
    machine = Machine(10**6, stop_at=301, ending=Outcome.LIMIT)
    result = find_critical_batch_size(machine.run, 10_000, largest=300)
    assert machine.runs[-3:] == [256, 300, 301]
    assert (result.critical_batch_size, result.stopped_by) == (300, StoppedBy.LIMIT)
    mistaken = Machine(400)
    assert find_critical_batch_size(mistaken.run, 10_000, largest=300).critical_batch_size == 400


def test_what_trials_took_corrects_what_is_expected_of_larger_ones() -> None:
    """Expected is three times too much: the largest affordable size is run, and tells."""
    machine, recorded = Machine(2000), {1, 2, 4, 8, 16, 32, 64}

    def run(n: int, bracket: Bracket) -> Trial:
        return replace(machine.run(n, bracket), work_seconds=n / 60)

    result = find_critical_batch_size(
        run,
        10_000,
        expected=lambda n: n / 20,
        recorded=lambda n: n in recorded,
        timeout_seconds=60,
    )
    assert result.critical_batch_size == 2000
    # What was run before the search tells nothing of time: its threads shared one CPU.
    known = [replace(trial(1000, Outcome.FITS), work_seconds=1.0)]
    result = find_critical_batch_size(
        run, 10_000, known=known, expected=lambda n: n / 2, timeout_seconds=60
    )
    assert (result.critical_batch_size, result.stopped_by) == (1000, StoppedBy.TIMEOUT)


def test_after_a_trial_that_was_stopped_time_is_not_expected_to_fall_faster_than_n() -> None:
    """Expected as N^3, which holds near the limit; in truth it is as N, and forty times as much."""
    machine = Machine(10**6)

    def run(n: int, bracket: Bracket) -> Trial:
        done = replace(machine.run(n, bracket), work_seconds=n / 50)
        late = n > 64 and n / 50 > 60
        return replace(done, outcome=Outcome.TIMEOUT, message="stopped") if late else done

    result = find_critical_batch_size(
        run,
        10**6,
        limit_bytes=10**5,
        planned=PlannedPeaks(((1, 1), (10**6, 10**6))),
        expected=lambda n: 60 * (n / 10_000) ** 3,
        recorded=lambda n: n <= 64,
        timeout_seconds=60,
    )
    stopped, smaller = machine.runs[-2:]
    assert smaller == stopped // 3
    assert (result.critical_batch_size, result.stopped_by) == (smaller, StoppedBy.TIMEOUT)


@pytest.mark.parametrize(
    ("threshold", "seconds_per_sample", "found", "stopped_by", "message"),
    [
        (10**6, 1 / 30, 1333, StoppedBy.TIMEOUT, "N = 4000: stopped after 60 s"),
        (10**6, 1 / 10, 64, StoppedBy.TIMEOUT, "N = 1333: stopped after 60 s"),
        (1000, 1 / 30, 1000, StoppedBy.MEMORY, ""),
    ],
)
def test_after_a_trial_that_was_stopped_one_smaller_one_gives_a_better_bound(
    threshold: int, seconds_per_sample: float, found: int, stopped_by: StoppedBy, message: str
) -> None:
    machine, small = Machine(threshold), [1, 16, 32, 64]

    def run(n: int, bracket: Bracket) -> Trial:
        done = replace(machine.run(n, bracket), work_seconds=n * seconds_per_sample)
        if n > 64 and n * seconds_per_sample > 60:
            return replace(done, outcome=Outcome.TIMEOUT, message="stopped after 60 s")
        return done

    result = find_critical_batch_size(
        run,
        4000,
        limit_bytes=4000,
        planned=PlannedPeaks(((1, 1), (100_000, 1_000))),
        expected=lambda n: n / 60,
        recorded=lambda n: n in small,
        timeout_seconds=60,
    )
    assert machine.runs[:6] == [*small, 4000, 1333]
    assert len(machine.runs) == 6 or stopped_by is StoppedBy.MEMORY
    assert (result.critical_batch_size, result.stopped_by) == (found, stopped_by)
    assert result.message == message


def test_a_repeated_trial_that_is_stopped_proves_nothing() -> None:
    machine = Machine(5)
    result = find_critical_batch_size(
        machine.run,
        64,
        again=lambda n, bracket, number: trial(n, Outcome.TIMEOUT, "stopped"),
        repeats=2,
        expected=lambda n: 1.0,
        timeout_seconds=60,
    )
    assert (result.critical_batch_size, result.stopped_by) == (5, StoppedBy.TIMEOUT)
    assert result.message == "N = 5: stopped"
