"""What was predicted of searches before their first large trial, beside what they found."""

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from vivit_bench.arguments import format_size
from vivit_bench.critical_batch import StoppedBy
from vivit_bench.critical_batch.records import EXPERIMENT, TRIALS
from vivit_bench.critical_batch.search import SMALL_SIZES
from vivit_bench.report.critical_batch import work_of_row
from vivit_bench.report.critical_batch_marks import predicted_size, short_mark_of
from vivit_bench.report.tables import Column, Row, Table
from vivit_bench.store import read_journal

_COLUMNS = (
    Column("problem", left=True),
    Column("work", left=True),
    *(Column(name, is_detail=True) for name in ("quantity", "curvature", "samples", "mc_samples")),
    Column("engine", left=True),
    *(Column(name, is_detail=True) for name in ("device", "data", "threads", "jobs")),
    Column("memory_limit_bytes", "limit", format_size),
    Column("predicted", "predicted (95 %)", interval=("low", "high")),
    *(Column(name, is_detail=True) for name in ("low", "high", "limited_by")),
    Column("critical_batch_size", "found", bound="is_lower_bound", mark="mark"),
    *(Column(name, is_detail=True) for name in ("is_lower_bound", "stopped_by")),
    Column("error_percent", "error %", "+.1f"),
    Column("within", "within", lambda value: "yes" if value else "no", left=True),
    Column("width_percent", "width %", ".1f"),
    Column("small_trials", f"trials to {SMALL_SIZES[-1]}"),
    Column("large_trials", "beyond"),
    Column("unguided_trials", "by doubling"),
    Column("expected_seconds", "expected s", ".0f"),
    Column("elapsed_seconds", "took s", ".0f"),
)


def accuracy_table(rows: pd.DataFrame, results_dir: Path) -> Table:
    """Predictions and what was found, a row per search that has one.

    ``error_percent`` and ``width_percent`` are relative to what was found, where memory ended the
    search; trials are counted to and beyond the largest of `SMALL_SIZES`, without repetitions;
    ``unguided_trials`` is what doubling from 1 and halving the bracket would have taken.

    Args:
        rows: From `load_searches`.
        results_dir: Of the same folder.
    """
    predicted = rows[rows["predicted_critical_batch_size"].notna()]
    found = [_row(row, results_dir) for row in predicted.to_dict("records")]
    return Table(_COLUMNS, found, notes=_summary(found))


def _row(row: dict[Any, Any], results_dir: Path) -> Row:
    size = int(row["critical_batch_size"])
    predicted, low, high = predicted_size(row)
    assert predicted is not None
    trials, _ = read_journal(results_dir / EXPERIMENT / row["run"] / TRIALS)
    sizes = {trial["n"] for trial in trials}
    small = sum(n <= SMALL_SIZES[-1] for n in sizes)
    certain = row["stopped_by"] == StoppedBy.MEMORY and size > 0
    judged: dict[str, Any] = {}
    if certain and low is not None and high is not None:
        judged = {
            "error_percent": 100 * (predicted / size - 1),
            "within": low <= size <= high,
            "width_percent": 100 * (high - low) / size,
            "unguided_trials": 2 * size.bit_length(),
        }
    named = {str(name): None if pd.isna(value) else value for name, value in row.items()}
    return {
        **named,
        "work": work_of_row(named),
        "predicted": predicted,
        "low": low,
        "high": high,
        "limited_by": named["predicted_limited_by"],
        "small_trials": small,
        "large_trials": len(sizes) - small,
        "expected_seconds": named["predicted_search_seconds"],
        "mark": short_mark_of(row),
        **judged,
    }


def _summary(rows: Iterable[Row]) -> list[str]:
    """Lines on the searches that memory ended, an engine each."""
    certain = [row for row in rows if "error_percent" in row]
    lines = []
    for engine in sorted({row["engine"] for row in certain}):
        those = [row for row in certain if row["engine"] == engine]
        errors = sorted(abs(row["error_percent"]) for row in those)
        large = [row["large_trials"] for row in those]
        lines.append(
            f"{engine}: {len(those)} search{'es' * (len(those) > 1)} that memory ended; error "
            f"{median(errors):.1f} % in the median, {errors[-1]:.1f} % at most; "
            f"{sum(row['within'] for row in those)} within "
            f"their interval, whose width is {median(r['width_percent'] for r in those):.1f} % in "
            f"the median; {median(large):g} large trials in the median, {max(large)} at most, by "
            f"doubling {median(row['unguided_trials'] for row in those):g} in all."
        )
    return lines
