"""What stored searches ran, for the figure of their growth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vivit_bench.arguments import problem_slug
from vivit_bench.critical_batch.records import SearchTrials, trials_of
from vivit_bench.measure import Outcome, Trial
from vivit_bench.measure.budget import MemoryBudget
from vivit_bench.report.critical_batch_selection import suffixes_of_options

_RUN = (Outcome.FITS, Outcome.OUT_OF_MEMORY, Outcome.TIMEOUT, Outcome.LIMIT)
"""Trials that did some of their work."""
_FIGURE = ["problem", "quantity", "curvature", "samples", "mc_samples", "device"]


@dataclass(frozen=True)
class Curve:
    """One engine's search and what it ran."""

    row: dict[str, Any]
    """Of a `Selection`."""
    found: SearchTrials

    @property
    def planned(self) -> list[tuple[int, int]]:
        """(N, bytes) that were expected; empty where nothing was."""
        return self.found.planned

    @property
    def expected(self) -> list[tuple[int, float]]:
        """(N, seconds) that were expected; empty where nothing was."""
        return self.found.expected

    @property
    def run(self) -> list[Trial]:
        """Trials that did some of their work."""
        return [trial for trial in self.found.trials if trial.outcome in _RUN]

    @property
    def unrecorded(self) -> list[Trial]:
        """Trials that did all of it, before its seconds were recorded."""
        return [t for t in self.run if t.work_seconds is None and self.is_whole(t)]

    def is_whole(self, trial: Trial) -> bool:
        """Whether a trial was run to its end: else its peak is a lower bound.

        The watchdog, the kernel or a time-out may have stopped it. Where seconds are recorded they
        tell; elsewhere a peak between the limit and the watchdog was read at the end.
        """
        if trial.outcome is Outcome.FITS or trial.work_seconds is not None:
            return True
        if trial.outcome is not Outcome.OUT_OF_MEMORY or self._has_seconds:
            return False
        limit = self.row["memory_limit_bytes"]
        return limit < (trial.peak_bytes or 0) < MemoryBudget(limit).watchdog_bytes

    @property
    def _has_seconds(self) -> bool:
        return any(trial.work_seconds is not None for trial in self.found.trials)


def curves_of(rows: pd.DataFrame, results_dir: Path) -> Iterator[list[Curve]]:
    """The searches of each figure, vivit-bench's first.

    Args:
        rows: Of a `Selection`.
        results_dir: Folder of all results.

    Raises:
        VivitBenchError: A search is gone or damaged.
    """
    for _, part in rows.groupby(_FIGURE, sort=False):
        found = [
            Curve({str(k): v for k, v in row.items()}, trials_of(results_dir, row["run"]))
            for row in part.to_dict("records")
        ]
        yield sorted(found, key=lambda c: (c.row["engine"] != "vivit-bench", c.row["engine"]))


def growth_stem(curves: Sequence[Curve]) -> str:
    """Name of a figure's files without their endings."""
    row = curves[0].row
    others = suffixes_of_options(pd.DataFrame([row]))
    parts = [problem_slug(row["problem"]), row["quantity"], row["curvature"], row["samples"]]
    parts += [*others, row["device"]]
    return "_".join(["critical_batch_growth", *filter(None, parts)])


def unrecorded_seconds(curves: Sequence[Curve]) -> str:
    """How many trials are missing in the panel of seconds, and why; empty if none is."""
    missing, run = (
        sum(len(trials) for trials in found)
        for found in ([c.unrecorded for c in curves], [c.run for c in curves])
    )
    if not missing:
        return ""
    return f"{missing} of {run} trials have no seconds: they were recorded before these were"
