"""Is what is stored whole, and does it still hold: a finding for every folder of results."""

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from vivit_bench.audit.record import Audit, Look, Present, header_problems
from vivit_bench.cluster.jobs import LOGS
from vivit_bench.errors import UsageError, VivitBenchError, describe
from vivit_bench.store import DamagedRunError, State, StoredRun, differences, load_run, read_journal
from vivit_bench.store.same_numbers import newest
from vivit_bench.store.stored import HEADER, REPLACED, exists

EXPERIMENTS = ("critical_batch", "spectrum", "noise", "quadratic", "comparison")


class Verdict(StrEnum):
    """What is to be said of a stored run."""

    OK = "ok"
    STALE = "stale"
    """Whole, and made under other conditions than those of now."""
    UNFINISHED = "unfinished"
    ASIDE = "moved aside"
    """By ``--fresh``, until the run that replaces it is finished."""
    FOREIGN = "foreign"
    """No run of vivit-bench."""
    DAMAGED = "damaged"
    """Not as it was written."""
    BROKEN = "breaks its schema"
    """As it was written, and not what a run of its experiment has."""


FAILURES = (Verdict.DAMAGED, Verdict.BROKEN)


@dataclass(frozen=True)
class Finding:
    """What is to be said of one folder."""

    experiment: str
    name: str
    """Of the folder, or its path where it is no run."""
    verdict: Verdict
    state: State | None = None
    """None where that cannot be read."""
    reason: str = ""
    """Why it is not ok, and what could not be compared; several reasons are separated by ``;``."""


def check_results(
    results_dir: Path, look: Look, note: Callable[[str], None] = lambda text: None
) -> list[Finding]:
    """Look at every run of every experiment. Nothing is written, downloaded or locked.

    Args:
        results_dir: Folder of all results.
        look: How closely the present is looked at.
        note: Told of each run before it is looked at.

    Raises:
        UsageError: There is no such folder.
    """
    if not results_dir.is_dir():
        raise UsageError(f"{results_dir}: there is no such folder; name that of the results")
    if results_dir.resolve().name in EXPERIMENTS:
        raise UsageError(
            f"{results_dir} holds the runs of one experiment; name the folder of all results, "
            f"{results_dir.resolve().parent}"
        )
    findings = [
        _check_folder(folder, experiment, look, note)
        for experiment in EXPERIMENTS
        for folder in _folders(results_dir / experiment)
    ]
    return [*findings, *_strangers(results_dir)]


def audit_of(experiment: str) -> Audit:
    """How the runs of an experiment are checked."""
    audit: Audit = importlib.import_module(f"vivit_bench.audit.{experiment}").AUDIT
    return audit


def _folders(parent: Path) -> list[Path]:
    """Folders and broken links of an experiment; figures and tables are files, locks are hidden."""
    if not parent.is_dir():
        return []
    visible = (path for path in sorted(parent.iterdir()) if not path.name.startswith("."))
    return [path for path in visible if path.is_dir() or path.is_symlink()]


def _strangers(results_dir: Path) -> Iterator[Finding]:
    """Folders that are of no experiment."""
    for folder in _folders(results_dir):
        if folder.name in EXPERIMENTS or _is_of_jobs(folder):
            continue
        reason = "is no experiment of vivit-bench"
        if any((folder / experiment).is_dir() for experiment in EXPERIMENTS):
            reason = f"has results of its own: vivit-bench check {folder}"
        yield Finding("", folder.name, Verdict.FOREIGN, reason=reason)


def _is_of_jobs(folder: Path) -> bool:
    """Whether it is that of the jobs' logs, and not somebody's results under the same name."""
    if folder.name != LOGS or folder.is_symlink():
        return False
    return not any(folder.glob(f"*/*/{HEADER}"))


def _check_folder(
    folder: Path, experiment: str, look: Look, note: Callable[[str], None]
) -> Finding:
    found = functools.partial(Finding, experiment, folder.name)
    if folder.is_symlink() or not exists(folder / HEADER):
        reason = "is a symbolic link" if folder.is_symlink() else f"has no {HEADER}"
        return found(Verdict.FOREIGN, reason=reason)
    note(f"{experiment}/{folder.name}")
    try:
        stored = load_run(folder, experiment)
    except DamagedRunError as error:
        return found(Verdict.DAMAGED, reason=str(error))
    except UsageError as error:
        return found(Verdict.FOREIGN, reason=str(error))
    told = functools.partial(found, state=stored.state)
    if REPLACED in folder.name:
        return told(Verdict.ASIDE, reason="by --fresh, until what replaces it is finished")
    if damages := stored.damages():
        return told(Verdict.DAMAGED, reason="; ".join(damages.values()))
    audit = audit_of(experiment)
    problems = list(header_problems(stored, audit))
    if not problems and stored.is_finished:
        problems = list(audit.contents(stored))
    if problems:
        return told(Verdict.BROKEN, reason="; ".join(problems))
    stale, unknown = _staleness(stored, audit, look)
    if stored.state is State.RUNNING:
        reasons = ["is under way or was interrupted: the same command goes on with it"]
        reasons += _journal_notes(stored)
        reasons += [f"no longer: {stale}, and --fresh starts over"] if stale else []
        return told(Verdict.UNFINISHED, reason="; ".join([*reasons, *unknown]))
    verdict = Verdict.STALE if stale else Verdict.OK
    return told(verdict, reason="; ".join(filter(None, [stale, *unknown])))


def _journal_notes(stored: StoredRun) -> Iterator[str]:
    """Of the records of a run under way, which lines are damaged: they cost themselves."""
    for name in stored.owns:
        if name.endswith(".jsonl"):
            yield from read_journal(stored.folder / name)[1]


def _staleness(stored: StoredRun, audit: Audit, look: Look) -> tuple[str, tuple[str, ...]]:
    """What differs between a run's conditions and those of now, and what cannot be told."""
    try:
        present = audit.present(stored, look)
    except (VivitBenchError, KeyError, TypeError, ValueError) as error:
        said = str(error) if isinstance(error, VivitBenchError) else describe(error)
        return "", (f"what it would hold under now cannot be told: {said}",)
    return _differences(stored, present), present.unknown


def _differences(stored: StoredRun, present: Present) -> str:
    settings = {name: stored.settings.get(name) for name in present.settings}
    before: dict[str, Any] = dict(stored.environment)
    if present.unknown:  # of data that cannot be had nothing is said
        before = {name: value for name, value in before.items() if name in present.environment}
    changed = [differences(settings, present.settings), differences(before, present.environment)]
    if newest(before.get("code")) != newest(present.environment.get("code")):
        commit = stored.provenance.get("git_commit") or "unknown"
        changed.append(f"its code is that of commit {commit}")
    return ", ".join(filter(None, changed))
