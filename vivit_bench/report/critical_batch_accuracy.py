"""What was predicted of searches before their first large trial, beside what they found."""

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from vivit_bench.arguments import format_size
from vivit_bench.critical_batch import StoppedBy
from vivit_bench.critical_batch.records import EXPERIMENT, PREDICTED, trials_of_searches
from vivit_bench.critical_batch.search import SMALL_SIZES
from vivit_bench.errors import UsageError
from vivit_bench.measure import Trial
from vivit_bench.report.critical_batch import work_of_row
from vivit_bench.report.tables import Column, Row, Table

_COLUMNS = (
    Column("problem", left=True),
    Column("work", left=True),
    *(Column(name, is_detail=True) for name in ("quantity", "curvature", "samples", "mc_samples")),
    Column("engine", left=True),
    *(Column(name, is_detail=True) for name in ("device", "data", "threads", "jobs")),
    Column("memory_limit_bytes", "limit", format_size),
    Column("predicted", "predicted (95 %)", interval=("low", "high")),
    *(Column(name, is_detail=True) for name in ("low", "high", "limited_by")),
    Column("critical_batch_size", "found", bound="is_lower_bound"),
    *(Column(name, is_detail=True) for name in ("is_lower_bound", "stopped_by")),
    Column("error_percent", "error %", "+.1f"),
    Column("within", is_detail=True),
    Column("width_percent", "width %", ".1f"),
    Column("small_trials", f"trials to {SMALL_SIZES[-1]}"),
    Column("large_trials", "beyond"),
    Column("unguided_trials", "by doubling"),
    Column("expected_seconds", "expected s", ".0f"),
    Column("elapsed_seconds", "took s", ".0f"),
)


def accuracy_table(results_dir: Path) -> Table:
    """Predictions and what was found, a row per search that memory stopped or that has one.

    ``error_percent`` and ``width_percent`` are relative to what was found; trials are counted to
    and beyond the largest of `SMALL_SIZES`, without repetitions; ``unguided_trials`` is what
    doubling from 1 and halving the bracket would have taken.

    Args:
        results_dir: Folder of all results.

    Raises:
        UsageError: No search has a prediction.
    """
    found = [
        _row(row, trials)
        for row, trials in trials_of_searches(results_dir)
        if row.get(PREDICTED) is not None
    ]
    if not found:
        raise UsageError(
            f"no finished search in {results_dir / EXPERIMENT} has a prediction; make some with: "
            "vivit-bench critical-batch sweep"
        )
    return Table(_COLUMNS, found, notes=_summary(found))


def _row(row: dict[str, Any], trials: Iterable[Trial]) -> Row:
    predicted = row[PREDICTED]
    size = int(row["critical_batch_size"])
    sizes = {trial.n for trial in trials}
    small = sum(n <= SMALL_SIZES[-1] for n in sizes)
    certain = row["stopped_by"] == StoppedBy.MEMORY and size > 0
    low, high = predicted["low"], predicted["high"]
    return {
        **row,
        "work": work_of_row(row),
        "predicted": predicted["critical_batch_size"],
        "low": low,
        "high": high,
        "limited_by": predicted["limited_by"],
        "error_percent": 100 * (predicted["critical_batch_size"] / size - 1) if certain else None,
        "within": low <= size <= high if certain else None,
        "width_percent": 100 * (high - low) / size if certain else None,
        "small_trials": small,
        "large_trials": len(sizes) - small,
        "unguided_trials": 2 * size.bit_length() if certain else None,
        "expected_seconds": predicted.get("search_seconds"),
    }


def _summary(rows: Iterable[Row]) -> list[str]:
    """Lines on the searches that memory ended, an engine each."""
    certain = [row for row in rows if row["error_percent"] is not None]
    lines = []
    for engine in sorted({row["engine"] for row in certain}):
        those = [row for row in certain if row["engine"] == engine]
        errors = sorted(abs(row["error_percent"]) for row in those)
        large = [row["large_trials"] for row in those]
        lines.append(
            f"{engine}: {len(those)} searches that memory ended; error {median(errors):.1f} % in "
            f"the median, {errors[-1]:.1f} % at most; {sum(row['within'] for row in those)} within "
            f"their interval, whose width is {median(r['width_percent'] for r in those):.1f} % in "
            f"the median; {median(large):g} large trials in the median, {max(large)} at most, by "
            f"doubling {median(row['unguided_trials'] for row in those):g} in all."
        )
    return lines
