"""Whether a number of a stored run changed: exactly, beyond rounding, or beyond noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

ROUNDING = {"float32": 1e-4, "float64": 1e-9}
"""Relative differences up to it are those of rounding, as in certificates."""

READING_BYTES = 2 * 2**20
"""Peaks of the same work of two threads were read up to 1.1 MiB apart."""


class Verdict(StrEnum):
    """What is to be said of a number in two results."""

    SAME = "same"
    ROUNDING = "rounding"
    """It differs by no more than other machines and plans round."""
    NO_CHANGE = "no change found"
    """A time or a peak whose change is not beyond noise."""
    CHANGED = "changed"
    """It is neither better nor worse, and should have been the same."""
    BETTER = "better"
    WORSE = "worse"
    CANNOT_TELL = "cannot tell"
    """Neither found nor excluded; the reason says what is missing."""


QUIET = (Verdict.SAME, Verdict.ROUNDING)


class Good(StrEnum):
    """What is better."""

    MORE = "more"
    LESS = "less"
    NEITHER = "neither"


@dataclass(frozen=True)
class Change:
    """One number of one run, in both results."""

    experiment: str
    run: str
    """The run's label."""
    number: str
    """What it is."""
    before: float | str | None
    """In the first result; of a table, where the two differ most."""
    after: float | str | None
    verdict: Verdict
    change: float | None = None
    """Relative; 0.1 is 10 % more. Of spectra and tables over the largest value of their kind."""
    low: float | None = None
    """Of a time, the ends of its interval; of the other numbers None."""
    high: float | None = None
    tolerance: float | None = None
    """Largest relative difference that is called rounding; None where any change is told."""
    reason: str = ""
    conditions: str = ""
    """Code, libraries, machine and data that differ."""

    def fails(self, most: float) -> bool:
        """Whether it counts and is worse, or otherwise than it should be, by more than that."""
        counts = self.verdict in (Verdict.WORSE, Verdict.CHANGED)
        return counts and self.change is not None and abs(self.change) > most


def exact(blank: Change, before: float, after: float, good: Good) -> Change:
    """A number of which any change is told."""
    change = _relative(after - before, before)
    if before == after:
        return replace(blank, before=before, after=after, change=0.0, verdict=Verdict.SAME)
    if good is Good.NEITHER:
        verdict = Verdict.CHANGED
    else:
        verdict = Verdict.BETTER if (after > before) is (good is Good.MORE) else Verdict.WORSE
    return replace(blank, before=before, after=after, change=change, verdict=verdict)


def peak(blank: Change, before: int, after: int) -> Change:
    """Memory, of which no two readings are alike."""
    found = exact(blank, before, after, Good.LESS)
    if before == after or abs(after - before) > READING_BYTES:
        return found
    return replace(found, verdict=Verdict.NO_CHANGE, tolerance=_relative(READING_BYTES, before))


def rounded(
    blank: Change, before: Sequence[float], after: Sequence[float], tolerance: float
) -> Change:
    """Numbers that rounding may change by a share of the largest of them."""
    if len(before) != len(after):
        reason = f"{len(after)} values instead of {len(before)}"
        share = _relative(len(after) - len(before), len(before))
        return replace(blank, verdict=Verdict.CHANGED, change=share, reason=reason)
    if not len(before):
        return replace(blank, verdict=Verdict.SAME, change=0.0, tolerance=tolerance)
    old, new = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    equal = (old == new) | (np.isnan(old) & np.isnan(new))
    with np.errstate(invalid="ignore"):
        off = np.where(equal, 0.0, np.abs(new - old))
    off = np.where(np.isnan(off), np.inf, off)  # a number became NaN, or was
    place = int(off.argmax())
    finite = np.abs(old[np.isfinite(old)])
    change = _relative(float(off[place]), float(finite.max(initial=0.0)))
    verdict = Verdict.SAME if change == 0 else Verdict.ROUNDING
    if change > tolerance:
        verdict = Verdict.CHANGED
    return replace(
        blank,
        before=float(old[place]),
        after=float(new[place]),
        verdict=verdict,
        change=change,
        tolerance=tolerance,
    )


def _relative(difference: float, base: float) -> float:
    if difference == 0:
        return 0.0
    return difference / abs(base) if base else math.copysign(math.inf, difference)
