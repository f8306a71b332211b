"""What was measured, on which machines, with which code; and what was not."""

import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivit_bench.arguments import DEFAULT_RESULTS_DIR, format_size
from vivit_bench.critical_batch.records import JOBS
from vivit_bench.report.page.parts import Heading, PageTable, Section
from vivit_bench.report.tables import Column, Table
from vivit_bench.store import StoredRun, stored_runs

EXPERIMENTS = {
    "critical_batch": ("critical batch sizes", "critical-batch sweep"),
    "comparison": ("engines compared", "compare-engines cifar10_3c3d"),
    "spectrum": ("spectra", "spectrum sweep mnist_2c2d --data mnist5k"),
    "noise": ("noise over training", "noise run mnist_2c2d --optimizer sgd --data mnist5k"),
    "quadratic": ("noisy quadratic (Figure 3)", "quadratic run"),
}
"""Folder -> what it is, and the command that makes a first result."""

_STORED = (
    Column("experiment", left=True),
    Column("finished"),
    Column("not_finished", "not finished"),
    Column("problems", left=True),
    Column("first", "from", left=True),
    Column("last", "to", left=True),
)
_MACHINE = ("host", "cpu", "cores", "ram_bytes", "gpu", "os")
_CODE = ("vivit_bench", "git_commit", "code", "python", "torch", "numpy", "vivit_for_pytorch")
_MACHINES = (
    Column("host", left=True),
    Column("cpu", left=True),
    Column("cores"),
    Column("ram_bytes", "memory", format_size),
    Column("gpu", "GPU", left=True),
    Column("os", left=True, is_detail=True),
    Column("results"),
)
_CODES = (
    Column("vivit_bench", "vivit-bench", left=True),
    Column("git_commit", "commit", lambda value: str(value)[:12], left=True),
    Column("code", "fingerprint", left=True),
    Column("python", left=True),
    Column("torch", left=True),
    Column("numpy", left=True),
    Column("vivit_for_pytorch", "vivit-for-pytorch", left=True),
    Column("results"),
)
_FIRST = ("experiment", "run", "state", "started_at", "host", "git_commit", "code")


@dataclass(frozen=True)
class Stored:
    """All runs of a results folder."""

    results_dir: Path
    runs: dict[str, list[StoredRun]]
    """By experiment, the newest last."""
    damaged: list[str]

    def all(self) -> Iterable[StoredRun]:
        """Of every experiment."""
        return (run for runs in self.runs.values() for run in runs)

    @property
    def count(self) -> int:
        """Finished ones."""
        return sum(run.is_finished for run in self.all())


def look(results_dir: Path) -> Stored:
    """Read the headers of all runs."""
    found = {name: stored_runs(results_dir, name) for name in EXPERIMENTS}
    return Stored(
        results_dir,
        {name: runs for name, (runs, _) in found.items()},
        [note for _, notes in found.values() for note in notes],
    )


def section(stored: Stored) -> Section:
    """Numbers of results, machines and versions of the code."""
    found = Section(
        "measured",
        "What was measured",
        "Every number on this page is read from a finished, checksummed result of the folder; each "
        "table can be downloaded with all its digits.",
    )
    found.blocks.append(PageTable(stored_table(stored), "stored"))
    if stored.count:
        found.blocks += [
            Heading("Machines"),
            PageTable(Table(_MACHINES, _counted(stored, _MACHINE)), "machines"),
            Heading("Code"),
            PageTable(Table(_CODES, _counted(stored, _CODE)), "code"),
        ]
    return found


def missing(stored: Stored, absent: Iterable[str] = ()) -> list[tuple[str, str]]:
    """What there is none of, and the command that makes it.

    Args:
        stored: The folder.
        absent: Letters of the sub-tables of Table S.1 without a search.
    """
    root = stored.results_dir
    place = "" if root == DEFAULT_RESULTS_DIR else f" --results-dir {shlex.quote(str(root))}"
    found = [
        (what, f"vivit-bench {command}{place}")
        for name, (what, command) in EXPERIMENTS.items()
        if not any(run.is_finished for run in stored.runs[name])
    ]
    found += [
        (f"Table S.1{letter}", f"vivit-bench critical-batch sweep --table {letter}{place}")
        for letter in absent
    ]
    return found


def stored_table(stored: Stored) -> Table:
    """A row per experiment."""
    rows = []
    for name, runs in stored.runs.items():
        finished = [run for run in runs if run.is_finished]
        days = sorted(str(run.provenance.get("started_at"))[:10] for run in finished)
        problems = sorted({str(p) for run in finished if (p := run.settings.get("problem"))})
        rows.append(
            {
                "experiment": EXPERIMENTS[name][0],
                "finished": len(finished),
                "not_finished": len(runs) - len(finished),
                "problems": ", ".join(problems) or None,
                "first": days[0] if days else None,
                "last": days[-1] if days else None,
            }
        )
    return Table(_STORED, rows)


def provenance_table(stored: Stored) -> Table:
    """A row per run, in whatever state, with all that was recorded of its making."""
    rows: list[dict[str, Any]] = [
        {
            "experiment": name,
            "run": run.folder.name,
            "state": run.state.value,
            **run.provenance,
            JOBS: run.results.get(JOBS),
        }
        for name, runs in stored.runs.items()
        for run in runs
    ]
    others = dict.fromkeys(key for row in rows for key in row if key not in _FIRST)
    columns = [
        *(Column(name, name.replace("_", " "), left=True) for name in _FIRST),
        *(Column(name, is_detail=True) for name in others),
    ]
    return Table(columns, rows)


def _counted(stored: Stored, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Different values of some facts of the finished runs, and how many have them."""
    counts = Counter(
        tuple(run.provenance.get(name) for name in names) for run in stored.all() if run.is_finished
    )
    return [
        {**dict(zip(names, values, strict=True)), "results": count}
        for values, count in counts.most_common()
    ]
