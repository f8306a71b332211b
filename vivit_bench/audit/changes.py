"""What changed between two folders of results, run by run of the same settings."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vivit_bench.audit import engines, numbers
from vivit_bench.audit.change import Change, Verdict
from vivit_bench.audit.check import EXPERIMENTS
from vivit_bench.audit.times import Times, time_changes
from vivit_bench.errors import UsageError, VivitBenchError, describe
from vivit_bench.store import State, StoredRun, differences, stored_runs
from vivit_bench.store.identity import canonical

_COMPARE: dict[str, Callable[..., Iterator[Any]]] = {
    "critical_batch": numbers.critical_batch,
    "spectrum": numbers.spectrum,
    "noise": numbers.noise,
    "quadratic": numbers.quadratic,
    "comparison": engines.comparison,
}


@dataclass
class Changes:
    """What was found."""

    changes: list[Change]
    """Of all numbers of the runs that both results have."""
    warnings: list[str] = field(default_factory=list)
    """Runs that should have been compared and are not, and why; a line each."""
    notes: list[str] = field(default_factory=list)
    """Runs that only the second result has, a line each."""
    lost: list[str] = field(default_factory=list)
    """Runs that the first result has, and the second has not, or damaged or not finished."""


def compare_results(first: Path, second: Path) -> Changes:
    """Compare every number of the runs that two folders of results share.

    Runs are the same if all their settings are, whatever their folders are called; of several the
    newest counts.

    Args:
        first: Results of before, or of one machine.
        second: Results of after, or of another one.

    Raises:
        UsageError: One is no folder, or they have no run in common.
    """
    for folder in (first, second):
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder; name that of the results")
    found: list[Change | Times] = []
    warnings: list[str] = []
    notes: list[str] = []
    lost: list[str] = []
    for experiment in EXPERIMENTS:
        old, new = (_runs(folder, experiment, warnings) for folder in (first, second))
        notes += [f"only in {second}: {_name(new[key])}" for key in new if key not in old]
        lost += [_name(old[key]) for key in old if key not in new]
        for key in (key for key in old if key in new):
            found += _compared(old[key], new[key])
    warnings += [f"only in {first}: {name}" for name in lost]
    if not found:
        said = _listed([*warnings, *notes])
        raise UsageError(f"{first} and {second} have no run of the same settings: {said}")
    return Changes(_with_times(found), sorted(warnings), sorted(notes), sorted(lost))


def _name(stored: StoredRun) -> str:
    return f"{stored.experiment}/{stored.folder.name}"


def _runs(results_dir: Path, experiment: str, warnings: list[str]) -> dict[str, StoredRun]:
    """Settings -> the newest run of them whose files are as they were written."""
    runs, damaged = stored_runs(results_dir, experiment)
    warnings += damaged
    whole = {}
    for stored in runs:
        if stored.state is State.RUNNING:
            warnings.append(f"left out: {stored.folder} is not finished")
        elif damage := stored.damage():
            warnings.append(f"left out: {damage}")
        else:
            whole[canonical(stored.settings)] = stored
    return whole


def _compared(first: StoredRun, second: StoredRun) -> list[Change | Times]:
    conditions = differences(first.environment, second.environment)
    blank = functools.partial(_blank, first, conditions)
    found: list[Change | Times] = []
    if State.FAILED in (first.state, second.state):
        found.append(_endings(first, second, blank("state")))
    if first.state is not second.state:  # one has nothing to compare the other's numbers with
        return found
    try:
        return [*found, *_COMPARE[first.experiment](first, second, blank)]
    except (VivitBenchError, KeyError, TypeError, ValueError) as error:
        said = str(error) if isinstance(error, VivitBenchError) else describe(error)
        reason = f"{said}; vivit-bench check says more"
        return [*found, replace(blank("all"), verdict=Verdict.CANNOT_TELL, reason=reason)]


def _blank(first: StoredRun, conditions: str, number: str) -> Change:
    return Change(
        first.experiment, first.label, number, None, None, Verdict.SAME, conditions=conditions
    )


def _endings(first: StoredRun, second: StoredRun, blank: Change) -> Change:
    """Of runs one of which failed for good."""
    before, after = first.state.value, second.state.value
    verdict = Verdict.SAME
    if before != after:
        verdict = Verdict.WORSE if second.state is State.FAILED else Verdict.BETTER
    change = float("inf") if verdict is Verdict.WORSE else None
    return replace(blank, before=before, after=after, verdict=verdict, change=change)


def _with_times(found: list[Change | Times]) -> list[Change]:
    """Times are told together, as they are tested together."""
    told = iter(time_changes([each for each in found if isinstance(each, Times)]))
    return [next(told) if isinstance(each, Times) else each for each in found]


def _listed(notes: list[str], most: int = 4) -> str:
    more = f"; and {len(notes) - most} more" if len(notes) > most else ""
    return "; ".join(sorted(notes)[:most]) + more if notes else "there are no runs"
