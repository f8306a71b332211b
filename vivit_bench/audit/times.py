"""Whether an engine got faster or slower between two occasions: beyond noise, or cannot be told.

Machines drift by more than 10 % between occasions. What is compared is therefore, round by round,
the logarithm of the engine's time over the reference's (`vivit_bench.comparison.reference`), taken
in the same process a moment before and after. The rounds of either occasion are a sample, and the
shift between the two has an exact interval of the rank-sum test, at a level that holds for all
times of a comparison of results together (Bonferroni). A time has changed if the whole interval
lies beyond `SMALLEST` on one side: what drift leaves of the ratio to a matrix product is below.

Rounds in which other processes took the CPUs do not count: what they leave, of caches and memory
bandwidth too, is not the same for a matrix product and for an engine. The reference tells, as its
threads never wait: its wall time is then longer than its CPU time a thread.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from vivit_bench.audit.change import Change, Verdict
from vivit_bench.comparison.compare import Record, RunKind
from vivit_bench.comparison.reference import Reference
from vivit_bench.comparison.shift import shift_between

FEWEST_ROUNDS = 9
"""With a reference, on either occasion."""
LEVEL = 0.99
"""Probability that no time is said to have changed where none did."""
BUSY = 1.3
"""Times the CPU time of the reference's threads that it may take: beyond, others had the CPUs."""
SMALLEST = 0.02
"""Relative changes up to it are never told."""


@dataclass(frozen=True)
class Times:
    """An engine's times of one kind, on both occasions."""

    blank: Change
    """With everything but the result."""
    before: Sequence[Record]
    """Time runs, in any order."""
    after: Sequence[Record]
    kind: str
    """``wall_seconds`` or ``cpu_seconds``."""
    threads: int | None
    """Of a run; None on a device of its own."""

    def logs(self, records: Iterable[Record]) -> list[float]:
        """Of every quiet round that has a reference, log of the time over the reference's."""
        return [
            math.log(getattr(each, self.kind) / fmean(getattr(each.reference, self.kind)))
            for each in records
            if each.reference is not None
            and getattr(each, self.kind)
            and not _is_busy(each.reference, self.threads)
        ]

    @property
    def obstacle(self) -> str:
        """Why nothing can be told; empty if something can."""
        rounds = [len(self.logs(records)) for records in (self.before, self.after)]
        if min(rounds) < FEWEST_ROUNDS:
            return (
                f"{rounds[0]} and {rounds[1]} rounds with a reference{self._busy}, "
                f"{FEWEST_ROUNDS} of each are needed: compare-engines --repeats {FEWEST_ROUNDS} or "
                "more"
            )
        records = [*self.before, *self.after]
        kinds = {each.reference.kind for each in records if each.reference is not None}
        return "" if len(kinds) == 1 else "the references are not the same piece of work"

    @property
    def _busy(self) -> str:
        """How many rounds do not count because other processes had the CPUs."""
        references = [each.reference for each in (*self.before, *self.after)]
        busy = sum(each is not None and _is_busy(each, self.threads) for each in references)
        return f", beside {busy} in which other processes took the CPUs" if busy else ""


def _is_busy(reference: Reference, threads: int | None) -> bool:
    if threads is None:
        return False
    return sum(reference.wall_seconds) * threads > BUSY * sum(reference.cpu_seconds)


def time_changes(times: Sequence[Times]) -> list[Change]:
    """What is to be said of all times of two results, in their order."""
    told = sum(not each.obstacle for each in times)
    return [_change(each, told) for each in times]


def rounds_of(records: Iterable[Record]) -> list[Record]:
    """The time runs that came to an end, the last of each round."""
    last = {each.repeat: each for each in records if each.kind is RunKind.TIME}
    return [each for each in last.values() if each.wall_seconds is not None]


def _change(times: Times, told: int) -> Change:
    medians = [
        median([getattr(each, times.kind) for each in records]) if records else None
        for records in (times.before, times.after)
    ]
    blank = replace(times.blank, before=medians[0], after=medians[1])
    if obstacle := times.obstacle:
        return replace(blank, verdict=Verdict.CANNOT_TELL, reason=obstacle)
    before, after = times.logs(times.before), times.logs(times.after)
    shift = shift_between(before, after, 1 - (1 - LEVEL) / told)
    if shift is None:
        reason = f"{told} times are too many for {len(before)} and {len(after)} rounds: give more"
        return replace(blank, verdict=Verdict.CANNOT_TELL, reason=f"{reason} --repeats")
    verdict = Verdict.NO_CHANGE
    if shift.low > math.log1p(SMALLEST):
        verdict = Verdict.WORSE
    elif shift.high < -math.log1p(SMALLEST):
        verdict = Verdict.BETTER
    ends = (math.expm1(value) for value in (shift.estimate, shift.low, shift.high))
    change, low, high = ends
    return replace(blank, verdict=verdict, change=change, low=low, high=high)
