"""Tables of engine comparisons."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from vivit_bench.errors import UsageError
from vivit_bench.measure.budget import format_peak
from vivit_bench.store import provenance, write_atomic


def print_comparison(rows: Sequence[dict[str, Any]]) -> None:
    """Print medians and ratios to the first engine's on stdout."""
    table = Table(caption=f"ratios over {rows[0]['engine']}, the median of each round's")
    for name in ("engine", "wall", "ratio", "CPU", "peak", "ratio", "difference"):
        table.add_column(name, justify="left" if name == "engine" else "right", no_wrap=True)
    for row in rows:
        if row["failure"]:
            table.add_row(row["engine"], f"failed: {row['failure']}")
            continue
        difference = "-" if row["difference"] is None else f"{row['difference']:.1e}"
        table.add_row(
            row["engine"],
            f"{row['wall_seconds']:.2f} s",
            f"{row['wall_ratio']:.2f}",
            f"{row['cpu_seconds']:.2f} s",
            format_peak(row["peak_bytes"]),
            f"{row['peak_ratio']:.2f}",
            difference,
        )
    console = Console(emoji=False)
    console.print(table)
    for row in rows:
        if row.get("agrees") is False:
            console.print(f"{row['engine']} DISAGREES with {rows[0]['engine']}", highlight=False)
        if "certificate_seconds" in row:
            console.print(
                f"{row['engine']}: its check by plain autograd takes "
                f"{row['certificate_seconds']:.2f} s more, largest error "
                f"{row['certificate_error']:.1e}",
                highlight=False,
            )


def save_comparison(rows: Sequence[dict[str, Any]], settings: dict[str, Any], output: Path) -> None:
    """Append the rows with settings and provenance to a CSV file, atomically.

    Raises:
        UsageError: The file cannot be written, or holds something else.
    """
    about = provenance()
    frame = pd.DataFrame([{**settings, **row, **about} for row in rows])
    try:
        if output.exists():
            stored = pd.read_csv(output)
            if "wall_min_seconds" not in stored:
                raise UsageError(
                    f"{output} is no table of comparisons of this version; name another file"
                )
            frame = pd.concat([stored, frame], ignore_index=True)
        write_atomic(output, frame.to_csv(index=False))
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UsageError(f"cannot write {output}: {error}") from error


def print_floor(floor: dict[str, float], wall_seconds: float) -> None:
    """Print how far a run is from the Gram products at the GEMM rate plus the eigensolver."""
    Console(emoji=False).print(
        f"floor {floor['floor_seconds']:.2f} s = Gram products {floor['gram_seconds']:.2f} s "
        f"at {floor['gemm_gflops']:.0f} GFLOP/s + eigensolver {floor['solver_seconds']:.2f} s; "
        f"measured {wall_seconds:.2f} s, {wall_seconds / floor['floor_seconds']:.1f} times the "
        "floor (which leaves out the columns' backpropagation)",
        highlight=False,
    )
