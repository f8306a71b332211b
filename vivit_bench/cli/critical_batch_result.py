"""How a finished search looks on stdout."""

import typer

from vivit_bench.arguments import format_size
from vivit_bench.critical_batch import FinishedSearch, StoppedBy
from vivit_bench.measure.budget import BUDGET_MEANING, format_peak
from vivit_bench.report.critical_batch_tables import size_label


def summary_line(finished: FinishedSearch) -> str:
    """A finished search as one line of a sweep."""
    result = finished.result
    size = size_label(result.critical_batch_size, result.stopped_by)
    return f"{finished.cell.label}: {size} (stopped by {result.stopped_by})"


def print_search(finished: FinishedSearch) -> None:
    """Print number, reason, budget with its meaning, peak and idle process on stdout."""
    result, n = finished.result, finished.result.critical_batch_size
    critical = result.critical_trial
    meaning = (
        BUDGET_MEANING
        if finished.cell.device == "cpu"
        else "allocated device memory over model and data"
    )
    reasons = {
        StoppedBy.MEMORY: f"N = {n + 1} does not fit",
        StoppedBy.MAX_BATCH: "the largest N allowed fits; see --max-batch",
        StoppedBy.TIMEOUT: f"{result.message}; see --timeout",
        StoppedBy.LIMIT: result.message,
        StoppedBy.DATA: result.message,
    }
    peak = "not even one sample fits"
    if critical is not None:
        peak = (
            f"{format_peak(critical.peak_bytes)} at N = {n}, "
            f"over {format_size(critical.idle_bytes)} of the idle process"
        )
    checked = "the engine has none"
    errors = [t.certificate_error for t in result.trials if t.certificate_error is not None]
    if errors:
        checked = f"warm-ups certified by plain autograd, largest error {max(errors):.1e}"
    recorded = f", {finished.from_records} of them from records" if finished.from_records else ""
    seconds = sum(trial.elapsed_seconds for trial in result.trials)
    rows = {
        "search": finished.cell.label,
        "critical batch size": str(n),
        "stopped by": f"{result.stopped_by} ({reasons[result.stopped_by]})",
        "memory limit": f"{format_size(finished.memory_limit.limit_bytes)} ({meaning})",
        "peak": peak,
        "trials": f"{len(result.trials)}{recorded}, {seconds:.0f} s",
        "check": checked,
        "stored": str(finished.folder),
    }
    for key, value in rows.items():
        typer.echo(f"{key:<21}{value}")
