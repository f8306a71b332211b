"""``searches.csv``: one row per finished search."""

import csv
import fcntl
import io
from pathlib import Path
from typing import Any

from vivit_bench.critical_batch.search import SearchResult
from vivit_bench.critical_batch.settings import Cell
from vivit_bench.errors import UsageError
from vivit_bench.store import Provenance, write_atomic

COLUMNS = (
    "problem",
    "quantity",
    "curvature",
    "samples",
    "mc_samples",
    "device",
    "engine",
    "data",
    "memory_limit_bytes",
    "critical_batch_size",
    "stopped_by",
    "trials",
    "peak_bytes",
    "idle_bytes",
    "elapsed_seconds",
    "seed",
    "threads",
    "max_batch",
    "trial_timeout_seconds",
    "checkpoint",
    "message",
    "cpu",
    "cores",
    "ram_bytes",
    "gpu",
    "gpu_bytes",
    "host",
    "os",
    "torch",
    "backpack",
    "deepobs",
    "numpy",
    "vivit_for_pytorch",
    "vivit_bench",
    "code",
    "git_commit",
    "python",
    "ended_at",
    "key",
)
_FROM_PROVENANCE = COLUMNS[COLUMNS.index("cpu") : COLUMNS.index("ended_at")]


def searches_path(results_dir: Path) -> Path:
    """The table of all searches below a results folder."""
    return results_dir / "critical_batch" / "searches.csv"


def make_row(
    cell: Cell,
    memory_limit_bytes: int,
    result: SearchResult,
    *,
    max_batch: int,
    trial_timeout: float,
    provenance: Provenance,
    environment: dict[str, Any],
    key: str,
) -> dict[str, Any]:
    """A search's row.

    ``peak_bytes`` (over the idle process) and ``idle_bytes`` are those of the critical batch
    size, and empty if that is 0. ``elapsed_seconds`` adds up the trials, whenever they were run;
    ``ended_at`` is the end of the last one.
    """
    critical = result.critical_trial
    facts: dict[str, Any] = {
        "problem": cell.problem,
        "quantity": cell.quantity,
        "curvature": cell.curvature,
        "samples": cell.samples,
        "mc_samples": cell.mc_samples,
        "device": cell.device,
        "engine": cell.engine,
        "data": cell.data,
        "memory_limit_bytes": memory_limit_bytes,
        "critical_batch_size": result.critical_batch_size,
        "stopped_by": result.stopped_by,
        "trials": len(result.trials),
        "peak_bytes": critical.peak_bytes if critical else None,
        "idle_bytes": critical.idle_bytes if critical else None,
        "elapsed_seconds": round(sum(trial.elapsed_seconds for trial in result.trials), 1),
        "seed": cell.seed,
        "threads": cell.threads,
        "max_batch": max_batch,
        "trial_timeout_seconds": trial_timeout,
        "checkpoint": cell.checkpoint,
        "message": result.message,
    }
    machine = {name: provenance.get(name) for name in _FROM_PROVENANCE}
    ended_at = max(trial.ended_at for trial in result.trials)
    return {**facts, **machine, "code": environment["code"], "ended_at": ended_at, "key": key}


def store_row(results_dir: Path, row: dict[str, Any]) -> Path:
    """Add a row, in place of one with the same key (same settings and environment).

    Args:
        results_dir: Folder of all results.
        row: From `make_row`.

    Returns:
        The table.

    Raises:
        UsageError: The table cannot be read or written.
    """
    path = searches_path(results_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / ".searches.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = [old for old in read_rows(path) if old.get("key") != row["key"]]
            write_atomic(path, _to_csv([*kept, row]))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """All rows as text; none if there is no table.

    Raises:
        UsageError: It is not a table of searches.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if "key" not in (reader.fieldnames or ()):
        raise UsageError(f"{path}: not a table of searches (no column 'key'); move it away")
    return rows


def _to_csv(rows: list[dict[str, Any]]) -> str:
    # Columns of another version are kept behind this version's.
    others = [name for row in rows for name in row if name not in COLUMNS]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *dict.fromkeys(others)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
