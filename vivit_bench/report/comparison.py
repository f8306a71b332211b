"""Tables of engine comparisons."""

from collections.abc import Sequence
from typing import Any

from vivit_bench.measure.budget import format_peak
from vivit_bench.report.tables import Column, Table

_COLUMNS = (
    Column("engine", left=True),
    Column("wall_seconds", "wall s", ".2f"),
    Column("wall_ratio", "ratio", ".2f"),
    Column("cpu_seconds", "CPU s", ".2f"),
    Column("peak_bytes", "peak", format_peak),
    Column("peak_ratio", "ratio", ".2f"),
    Column("difference", "difference", ".1e"),
)
_DETAILS = (
    *("runs", "wall_min_seconds", "wall_max_seconds", "cpu_ratio", "idle_bytes", "agrees"),
    *("certificate_seconds", "certificate_error", "failure"),
)


def engines_table(rows: Sequence[dict[str, Any]], floor: dict[str, float] | None) -> Table:
    """Medians and ratios to the first engine's; failures and checks below the table."""
    notes = [f"Ratios over {rows[0]['engine']}, of times the median of each round's."]
    for row in rows:
        if row["failure"]:
            notes.append(f"{row['engine']} failed: {row['failure']}")
        if row.get("agrees") is False:
            notes.append(f"{row['engine']} DISAGREES with {rows[0]['engine']}.")
        if row.get("certificate_seconds") is not None:
            notes.append(
                f"{row['engine']}: its check by plain autograd takes "
                f"{row['certificate_seconds']:.2f} s more, largest error "
                f"{row['certificate_error']:.1e}."
            )
    if floor is not None:
        wall = rows[0]["wall_seconds"]
        notes.append(
            f"Floor {floor['floor_seconds']:.2f} s = Gram products {floor['gram_seconds']:.2f} s "
            f"at {floor['gemm_gflops']:.0f} GFLOP/s + eigensolver {floor['solver_seconds']:.2f} "
            f"s; measured {wall:.2f} s, {wall / floor['floor_seconds']:.1f} times the floor (which "
            "leaves out the columns' backpropagation)."
        )
    details = [Column(name, is_detail=True) for name in _DETAILS]
    return Table([*_COLUMNS, *details], rows, notes=notes)


def stored_table(rows: Sequence[dict[str, Any]]) -> Table:
    """All stored comparisons, a row per engine; as CSV and JSON with settings and machine."""
    names = dict.fromkeys(name for row in rows for name in row)
    shown = {column.name: column for column in _COLUMNS}
    first = [Column("problem", left=True), Column("quantity", left=True), Column("batch_size", "N")]
    known = {column.name for column in first} | set(shown)
    details = [Column(name, is_detail=True) for name in names if name not in known]
    return Table([*first, *shown.values(), *details], rows)
