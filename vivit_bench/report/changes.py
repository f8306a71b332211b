"""What changed between two folders of results, as a table."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from vivit_bench.audit.change import QUIET, Change, Verdict
from vivit_bench.audit.changes import Changes
from vivit_bench.audit.times import LEVEL, SMALLEST
from vivit_bench.report.tables import Column, Table


def _number(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _share(value: float) -> str:
    if value == 0:
        return "0"
    return f"{100 * value:+.1f} %" if abs(value) >= 1e-3 else f"{value:+.1e}"


_COLUMNS = (
    Column("run", left=True),
    Column("number", left=True),
    Column("before", shown=_number),
    Column("after", shown=_number),
    Column("change", shown=_share),
    Column("range", left=True),
    Column("verdict", left=True),
)
_DETAILS = ("experiment", "low", "high", "tolerance", "counts", "reason", "conditions")


def changes_table(found: Changes, *, everything: bool, fail_above: float | None) -> Table:
    """A row per number; for people only those that say something, and what the rest are.

    Args:
        found: See `vivit_bench.audit.changes.compare_results`.
        everything: Also rows of numbers that are the same.
        fail_above: Relative change above which one counts as a failure; None: none does.
    """
    shown = [each for each in found.changes if everything or each.verdict not in QUIET]
    rows = [_row(each, fail_above) for each in shown]
    columns = [*_COLUMNS, *(Column(name, is_detail=True) for name in _DETAILS)]
    return Table(columns, rows, notes=list(_notes(found, fail_above)))


def _row(change: Change, fail_above: float | None) -> dict[str, Any]:
    ends = None
    if change.low is not None and change.high is not None:
        ends = f"{_share(change.low)} to {_share(change.high)}"
    return {
        **asdict(change),
        "run": f"{change.experiment}/{change.run}",
        "verdict": change.verdict.value,
        "range": ends,
        "counts": None if fail_above is None else change.fails(fail_above),
    }


def summary(changes: Sequence[Change]) -> str:
    """How many numbers there are, and what is to be said of them, on one line."""
    counts = Counter(each.verdict for each in changes)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    return f"{len(changes)} numbers: {said}."


def _notes(found: Changes, fail_above: float | None) -> Iterator[str]:
    yield summary(found.changes)
    if any(each.low is not None for each in found.changes):
        yield (
            "Changes of times are over those of a matrix product timed beside them, with the range "
            f"that holds them all with {LEVEL:.0%} probability; up to {SMALLEST:.0%} none is told."
        )
    most = math.inf if fail_above is None else fail_above
    not_found = (each for each in found.changes if each.verdict is Verdict.NO_CHANGE)
    if wide := [each.number for each in not_found if (each.high or 0.0) > most]:
        yield (
            f"Not found and not excluded, worse by more than {most:.0%}: {_some(wide)}; more "
            "--repeats make the range narrower."
        )
    if tolerances := sorted({each.tolerance for each in found.changes if each.tolerance}):
        said = ", ".join(f"{value:.0e}" for value in tolerances)
        yield f"Rounding: relative differences up to {said}, by precision and kind."
    reasons: dict[str, list[str]] = {}
    for each in found.changes:
        if each.reason:
            reasons.setdefault(each.reason, []).append(each.number)
    for reason, numbers in reasons.items():
        yield f"{_some(numbers)}: {reason}."
    conditions = Counter(each.conditions for each in found.changes if each.conditions)
    for line in conditions:
        yield f"Made under other conditions: {line}."
    yield from found.notes


def _some(names: Sequence[str], most: int = 3) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
