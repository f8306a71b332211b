"""What else than memory ended a search, beside its size: a lower bound says of what kind it is."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from vivit_bench.critical_batch import StoppedBy
from vivit_bench.critical_batch.predict import is_of_memory

_MARKS = {
    StoppedBy.TIMEOUT: ("time", "a trial took, or would have taken, longer than --timeout allows"),
    StoppedBy.LIMIT: ("32-bit limit", "a library takes no larger problem, whatever the memory"),
    StoppedBy.DATA: ("data", "there are no more samples"),
    StoppedBy.MAX_BATCH: ("max", "the largest N that was allowed fits; see --max-batch"),
}
_BEFORE_MEMORY = (StoppedBy.TIMEOUT, StoppedBy.LIMIT)
"""Where memory would have ended the search is worth a prediction."""

Row = Mapping[str, Any]


def mark_of(row: Row) -> str:
    """What stands after a size: ``(time)``, or with a prediction on lines of their own.

    Args:
        row: Of a search: ``critical_batch_size``, ``stopped_by``, and where there is a prediction
            ``predicted_critical_batch_size``, ``predicted_low``, ``predicted_high``.

    Returns:
        Empty if memory ended the search.
    """
    beyond = predicted_beyond(row)
    if beyond is None:
        return short_mark_of(row)
    size, low, high = beyond
    word = _MARKS[StoppedBy(row["stopped_by"])][0]
    interval = f"\n[{low:,}, {high:,}]" if low is not None and high is not None else ""
    start = "\n" if " " in word else ""  # a line is to be no wider than the interval
    return f"{start}({word};\npredicted {size:,}{interval})"


def predicted_beyond(row: Row) -> tuple[int, int | None, int | None] | None:
    """Where memory is predicted to end a search that ended before; None of other searches.

    Nor of one that has run what was predicted, and more.

    Args:
        row: See `mark_of`.

    Returns:
        The size, and its interval's ends.
    """
    size, low, high = predicted_size(row)
    if StoppedBy(row["stopped_by"]) not in _BEFORE_MEMORY or size is None:
        return None
    if size <= row["critical_batch_size"]:
        return None
    return (size, low, high) if is_predicted_of_memory(row) else None


def short_mark_of(row: Row) -> str:
    """The same without a prediction."""
    reason = StoppedBy(row["stopped_by"])
    return "" if reason is StoppedBy.MEMORY else f"({_MARKS[reason][0]})"


def predicted_size(row: Row) -> tuple[int | None, int | None, int | None]:
    """The size that was predicted, of memory or an end before it, and its interval's ends."""
    size, low, high = (
        None if pd.isna(value := row.get(f"predicted_{name}")) else int(value)
        for name in ("critical_batch_size", "low", "high")
    )
    return size, low, high


def is_predicted_of_memory(row: Row) -> bool:
    """Whether there is a prediction, and of where memory is full, not of an end before it."""
    if pd.isna(row.get("predicted_critical_batch_size")):
        return False
    by = row.get("predicted_limited_by")
    return is_of_memory("" if pd.isna(by) else str(by))


def explanations(rows: Iterable[Row]) -> list[str]:
    """A line on each mark that `mark_of` gives some searches."""
    rows = list(rows)
    reasons = {StoppedBy(row["stopped_by"]) for row in rows}
    lines = [f">= ({word}): {why}." for reason, (word, why) in _MARKS.items() if reason in reasons]
    if any("predicted" in mark_of(row) for row in rows):
        lines.append(
            "predicted: the size at which memory would end the search, and the interval that "
            "holds it with 95 % probability."
        )
    return lines
