"""Made-up searches for tests of tables, figures and the command line."""

from pathlib import Path
from typing import Any

from vivit_bench.critical_batch.records import EXPERIMENT, TRIALS
from vivit_bench.measure import Outcome, Trial
from vivit_bench.store import Identity, open_run
from vivit_bench.store import run as run_module

_RESULTS = ("critical_batch_size", "stopped_by", "ended_at", "is_lower_bound")
_MACHINE = ("cpu", "cores", "ram_bytes", "host", "gpu")


def add_search(results_dir: Path, **values: Any) -> None:
    """Store a finished search; by default eigenvalues, exact, full, of cifar10_3c3d.

    ``facts`` are further results, ``ran`` are the trials.
    """
    more: dict[str, Any] = values.pop("facts", {})
    ran: list[Trial] = values.pop("ran", [])
    row: dict[str, Any] = {
        "problem": "cifar10_3c3d",
        "quantity": "eigenvalues",
        "curvature": "exact",
        "samples": "full",
        "mc_samples": 1,
        "device": "cpu",
        "engine": "vivit-bench",
        "data": "synthetic",
        "dtype": "float32",
        "memory_limit_bytes": 2**31,
        "critical_batch_size": 100,
        "stopped_by": "memory",
        "seed": 0,
        "threads": 2,
        "cpu": "Abacus",
        "cores": 2,
        "ram_bytes": 2**34,
        "host": "here",
        "gpu": None,
        "code": "abc",
        "ended_at": "2026-01-01T00:00:00+00:00",
        **values,
    }
    row["is_lower_bound"] = row["stopped_by"] != "memory"
    facts = {name: row.pop(name) for name in (*_RESULTS, *_MACHINE)}
    code = row.pop("code")
    identity = Identity(EXPERIMENT, "search", {**row, **facts}, {"code": code})
    before = run_module.provenance
    run_module.provenance = lambda device: {
        **before(device),
        **{name: facts[name] for name in _MACHINE},
    }
    try:
        with open_run(results_dir, identity) as run:
            journal = run.journal(TRIALS)
            for done in ran:
                journal.append(done.to_json())
            run.finish({name: facts[name] for name in _RESULTS} | more, [TRIALS])
    finally:
        run_module.provenance = before


def add_variants(results_dir: Path, sizes: tuple[int, int, int, int], **values: Any) -> None:
    """Add exact full, exact frac, mc full and mc frac."""
    variants = [("exact", "full"), ("exact", "frac"), ("mc", "full"), ("mc", "frac")]
    for (curvature, samples), size in zip(variants, sizes, strict=True):
        shown = {"curvature": curvature, "samples": samples, "critical_batch_size": size}
        add_search(results_dir, **{**shown, **values})


def add_gradient(results_dir: Path, size: int, **values: Any) -> None:
    """Add the gradient alone."""
    shown = {
        "quantity": "gradient",
        "curvature": None,
        "samples": None,
        "critical_batch_size": size,
    }
    add_search(results_dir, **{**shown, **values})


def trial(n: int, outcome: Outcome = Outcome.FITS, **values: Any) -> Trial:
    """A trial with a peak of N MiB and N / 10 seconds of work, out of 10 seconds allowed."""
    made: dict[str, Any] = {
        "n": n,
        "outcome": outcome,
        "message": "",
        "peak_bytes": n * 2**20,
        "idle_bytes": 5,
        "absolute_peak_bytes": None,
        "elapsed_seconds": 5.0,
        "timeout_seconds": 10.0,
        "confirmed": False,
        "ended_at": "2026-01-01",
        "work_seconds": n / 10,
    }
    return Trial(**{**made, **values})
