"""Made-up searches for tests of tables, figures and the command line."""

from pathlib import Path
from typing import Any

from vivit_bench.critical_batch.searches import COLUMNS, store_row


def add_search(results_dir: Path, **values: Any) -> None:
    """Add a row to ``searches.csv``; by default eigenvalues, exact, full, of cifar10_3c3d."""
    row: dict[str, Any] = {
        **dict.fromkeys(COLUMNS, ""),
        "problem": "cifar10_3c3d",
        "quantity": "eigenvalues",
        "curvature": "exact",
        "samples": "full",
        "mc_samples": 1,
        "device": "cpu",
        "engine": "vivit-bench",
        "data": "synthetic",
        "memory_limit_bytes": 2**31,
        "critical_batch_size": 100,
        "stopped_by": "memory",
        "seed": 0,
        "threads": 2,
        "cpu": "Abacus",
        "cores": 2,
        "ram_bytes": 2**34,
        "host": "here",
        "code": "abc",
        "ended_at": "2026-01-01T00:00:00+00:00",
        **values,
    }
    store_row(results_dir, {**row, "key": repr(sorted(row.items()))})


def add_variants(results_dir: Path, sizes: tuple[int, int, int, int], **values: Any) -> None:
    """Add exact full, exact frac, mc full and mc frac."""
    variants = [("exact", "full"), ("exact", "frac"), ("mc", "full"), ("mc", "frac")]
    for (curvature, samples), size in zip(variants, sizes, strict=True):
        shown = {"curvature": curvature, "samples": samples, "critical_batch_size": size}
        add_search(results_dir, **{**shown, **values})


def add_gradient(results_dir: Path, size: int, **values: Any) -> None:
    """Add the gradient alone."""
    shown = {"quantity": "gradient", "curvature": "", "samples": "", "critical_batch_size": size}
    add_search(results_dir, **{**shown, **values})
