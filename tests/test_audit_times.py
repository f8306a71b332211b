"""Did an engine get slower: exact intervals, drift between occasions, heavy noise, many cells."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import scipy.stats

from vivit_bench.audit.change import Change, Verdict
from vivit_bench.audit.times import FEWEST_ROUNDS, Times, rounds_of, time_changes
from vivit_bench.comparison.compare import Record, RunKind
from vivit_bench.comparison.reference import Reference
from vivit_bench.comparison.shift import shift_between

BLANK = Change("comparison", "cell", "wall_seconds", None, None, Verdict.SAME)
WHEN = "2026-01-01T00:00:00+00:00"


def occasion(
    generator: random.Random, *, slower: float = 1.0, rounds: int = FEWEST_ROUNDS, noise: float
) -> list[Record]:
    """Runs of about a second on a machine of the day.

    The occasion's speed (15 %) and a random walk within it (3 % a round) are common to engine and
    reference; what a product does not share with the engine is another 0.5 % an occasion; every
    reading has noise of its own, Student's t with 4 degrees of freedom.
    """

    def jitter() -> float:
        return noise * generator.gauss(0, 1) / math.sqrt(generator.gammavariate(2, 0.5))

    speed, unshared = generator.gauss(0, 0.15), generator.gauss(0, 0.005)
    records = []
    for k in range(rounds):
        speed += generator.gauss(0, 0.03)
        engine = slower * math.exp(speed + unshared + jitter())
        beside = [0.45 * math.exp(speed + jitter()) for _ in range(2)]
        reference = Reference(2048, 3, tuple(beside), tuple(beside))
        records.append(
            Record(
                *("vivit-bench", RunKind.TIME, k, WHEN),
                wall_seconds=engine,
                cpu_seconds=engine,
                reference=reference,
            )
        )
    return records


def verdicts(first: list[Record], second: list[Record], cells: int = 1) -> list[Verdict]:
    times = [Times(BLANK, first, second, "wall_seconds", 1)] * cells
    return [change.verdict for change in time_changes(times)]


@pytest.mark.parametrize("noise", [0.005, 0.015, 0.04])
@pytest.mark.parametrize("seed", range(3))
def test_twenty_pairs_of_the_same_code_show_no_change(noise: float, seed: int) -> None:
    generator = random.Random(seed)
    pairs = [[occasion(generator, noise=noise) for _ in range(2)] for _ in range(20)]
    assert {v for pair in pairs for v in verdicts(*pair)} == {Verdict.NO_CHANGE}


@pytest.mark.parametrize(("noise", "rounds"), [(0.005, 9), (0.01, 9), (0.02, 25)])
@pytest.mark.parametrize("seed", range(3))
def test_an_engine_slowed_by_a_tenth_is_found(noise: float, rounds: int, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(20):
        before = occasion(generator, noise=noise, rounds=rounds)
        after = occasion(generator, noise=noise, rounds=rounds, slower=1.1)
        (change,) = time_changes([Times(BLANK, before, after, "wall_seconds", 1)])
        assert change.verdict is Verdict.WORSE
        assert change.change == pytest.approx(0.1, abs=0.04)
        assert change.fails(0.05)
        assert verdicts(after, before) == [Verdict.BETTER]


def test_without_the_reference_the_same_code_seems_to_change() -> None:
    """What the reference is for: these occasions alone differ by more than a tenth."""
    generator = random.Random(0)
    off = 0
    for _ in range(20):
        pair = [occasion(generator, noise=0.01) for _ in range(2)]
        logs = [[math.log(each.wall_seconds or 0) for each in runs] for runs in pair]
        off += abs(sum(logs[0]) - sum(logs[1])) / FEWEST_ROUNDS > 0.1
    assert off >= 5


def test_a_change_within_what_drift_leaves_is_not_told() -> None:
    """1.5 % more, known to 0.1 %."""
    generator = random.Random(0)
    steady = [occasion(generator, noise=1e-4) for _ in range(2)]
    for runs in steady:
        fields = [(each.reference, each.wall_seconds) for each in runs]
        assert all(reference is not None for reference, _ in fields)
    before = [rescaled(each, 1.0) for each in steady[0]]
    assert verdicts(before, [rescaled(each, 1.015) for each in steady[0]]) == [Verdict.NO_CHANGE]
    assert verdicts(before, [rescaled(each, 1.03) for each in steady[0]]) == [Verdict.WORSE]
    assert verdicts(before, [rescaled(each, 0.97) for each in steady[0]]) == [Verdict.BETTER]


def rescaled(record: Record, factor: float) -> Record:
    """An engine that takes nearly this many times the reference, in every round."""
    assert record.reference is not None
    seconds = factor * record.reference.wall_seconds[0] * (1 + 1e-5 * record.repeat)
    beside = replace(record.reference, wall_seconds=(record.reference.wall_seconds[0],) * 2)
    return replace(record, wall_seconds=seconds, reference=beside)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda runs: runs[:8], "9 and 8 rounds with a reference, 9 of each are needed"),
        (lambda runs: [*runs[:8], replace(runs[8], reference=None)], "9 and 8 rounds"),
        (lambda runs: [], "9 and 0 rounds"),
        (
            lambda runs: [replace(r, reference=replace(r.reference, products=4)) for r in runs],
            "the references are not the same piece of work",
        ),
    ],
)
def test_what_cannot_be_told_is_neither_a_pass_nor_a_failure(
    edit: Callable[[list[Record]], list[Record]], said: str
) -> None:
    generator = random.Random(0)
    before = occasion(generator, noise=0.005)
    after = edit(occasion(generator, noise=0.005, slower=2.0))
    (change,) = time_changes([Times(BLANK, before, after, "wall_seconds", 1)])
    assert change.verdict is Verdict.CANNOT_TELL
    assert said in change.reason
    assert not change.fails(0.0)


def test_rounds_in_which_others_had_the_cpus_do_not_count() -> None:
    generator = random.Random(0)
    before = occasion(generator, noise=0.005)
    after = occasion(generator, noise=0.005, rounds=10, slower=1.1)

    def taken(record: Record, factor: float) -> Record:
        assert record.reference is not None
        cpu = tuple(seconds / factor for seconds in record.reference.wall_seconds)
        return replace(record, reference=replace(record.reference, cpu_seconds=cpu))

    for factor, found in ((1.25, Verdict.WORSE), (1.4, Verdict.CANNOT_TELL)):
        busy = [*after[:8], *(taken(each, factor) for each in after[8:])]
        (change,) = time_changes([Times(BLANK, before, busy, "wall_seconds", 1)])
        assert change.verdict is found
    assert "9 and 8 rounds with a reference, beside 2 in which other" in change.reason
    # Two threads take twice the CPU time; a device of its own is not shared.
    two = [taken(each, 0.5) for each in after]
    assert time_changes([Times(BLANK, two, two, "wall_seconds", 2)])[0].low is not None
    assert time_changes([Times(BLANK, before, busy, "wall_seconds", None)])[0].low is not None


def test_many_cells_are_tested_together() -> None:
    """The more there are, the wider the ranges; of too many nothing can be told with 9 rounds."""
    generator = random.Random(0)
    before, after = occasion(generator, noise=0.02), occasion(generator, noise=0.02)
    ranges = []
    for cells in (1, 10, 100):
        change, *rest = time_changes([Times(BLANK, before, after, "wall_seconds", 1)] * cells)
        assert len(rest) == cells - 1
        assert change.low is not None
        assert change.high is not None
        ranges.append(change.high - change.low)
    assert ranges == sorted(ranges)
    assert ranges[0] < ranges[2]
    assert set(verdicts(before, after, 300)) == {Verdict.CANNOT_TELL}
    # One that cannot be told costs the others nothing.
    single = Times(BLANK, before, after, "wall_seconds", 1)
    untold = replace(single, after=[])
    assert time_changes([single, untold])[0] == time_changes([single])[0]


def test_the_last_run_of_a_round_counts_and_failures_do_not() -> None:
    runs = occasion(random.Random(0), noise=0.01, rounds=2)
    again = replace(runs[0], wall_seconds=5.0)
    memory = replace(runs[0], kind=RunKind.MEMORY, wall_seconds=None)
    failed = replace(runs[1], repeat=7, wall_seconds=None, failure="stopped")
    assert rounds_of([*runs, again, memory, failed]) == [again, runs[1]]


@pytest.mark.parametrize(("n", "m"), [(3, 4), (5, 5), (9, 9), (9, 12)])
def test_the_interval_is_where_the_exact_rank_sum_test_does_not_reject(n: int, m: int) -> None:
    """Against SciPy's test, at shifts a little inside and outside both ends."""
    generator = random.Random(n + m)
    first = [generator.gauss(0, 1) for _ in range(n)]
    second = [generator.gauss(0.5, 1) for _ in range(m)]
    found = shift_between(first, second, 0.9)
    assert found is not None
    for end, inside in ((found.low, 1e-6), (found.high, -1e-6)):
        for shift, rejected in ((end + inside, False), (end - inside, True)):
            moved = [value - shift for value in second]
            test = scipy.stats.mannwhitneyu(first, moved, method="exact")
            assert bool(test.pvalue <= 0.1) is rejected


def test_an_interval_holds_the_shift_as_often_as_it_says() -> None:
    """2,000 skewed samples of 9 and 9 at 95 %: a standard deviation of 0.5 %."""
    generator = random.Random(0)
    held = 0
    for _ in range(2000):
        first = [generator.expovariate(1) for _ in range(9)]
        second = [generator.expovariate(1) + 0.7 for _ in range(9)]
        found = shift_between(first, second, 0.95)
        assert found is not None
        held += found.low <= 0.7 <= found.high
    assert 0.95 <= held / 2000 <= 0.97  # discrete: 96.0 % is the least above


def test_too_few_values_have_no_interval() -> None:
    assert shift_between([1.0, 2.0], [3.0, 4.0], 0.9) is None
    assert shift_between([], [1.0], 0.5) is None
