"""What an experiment tells of its stored runs, so that they can be checked."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vivit_bench.store import State, StoredRun, read_journal
from vivit_bench.store.files import sha256
from vivit_bench.store.schema import violations
from vivit_bench.store.stored import CONDITIONS

_T = TypeVar("_T")


@dataclass(frozen=True)
class Present:
    """What a run's conditions would be if it were made now, here."""

    environment: Mapping[str, Any]
    """Code, libraries, machine and, where it can be had, data."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that follow from files or models: their hashes."""
    unknown: tuple[str, ...] = ()
    """Why some of it cannot be told, a line each."""


@dataclass(frozen=True)
class Look:
    """How closely the present is looked at."""

    data: bool = True
    """Load problems and their data for their fingerprints."""
    data_dir: Path | None = None
    """Folder of the data sets."""
    seen: dict[Any, Any] = field(default_factory=dict)
    """What was looked at last and what was found: runs of one workload follow each other."""

    def once(self, key: Hashable, look: Callable[[], _T]) -> _T:
        """What a look gives, or the last one of the same key gave."""
        if key not in self.seen:
            self.seen.clear()
            self.seen[key] = look()
        found: _T = self.seen[key]
        return found


_DIGITS = 12
"""Of a file's hash, see `WorkloadSpec.files`."""
NOT_ASKED = "model and data are not compared (--no-data)"


@dataclass(frozen=True)
class Audit:
    """How the runs of one experiment are checked."""

    settings: type
    """Schema of the settings."""
    results: type
    """Schema of the results of a finished run."""
    contents: Callable[[StoredRun], Iterator[str]]
    """What is wrong with a finished run's files, which are as they were written; a line each."""
    present: Callable[[StoredRun, Look], Present]
    """See `Present`."""
    failed_results: type | None = None
    """Schema of the results of a run that failed for good, where there is such a thing."""


def header_problems(stored: StoredRun, audit: Audit) -> Iterator[str]:
    """What is not as it should be in a header, a line each."""
    yield from violations(stored.settings, audit.settings, "settings:")
    for part, kind in CONDITIONS.items():
        yield from violations(getattr(stored, part), kind, f"{part}:")
    schema = audit.results if stored.is_finished else audit.failed_results
    if stored.state is not State.RUNNING and schema is not None:
        yield from violations(stored.results, schema, "results:")


def journal_problems(stored: StoredRun, name: str, schema: type) -> Iterator[str]:
    """Damaged lines of a journal, and records that break their schema."""
    entries, notes = read_journal(stored.folder / name)
    yield from notes
    for number, entry in enumerate(entries, start=1):
        yield from violations(entry, schema, f"{name}, record {number}:")


def present_files(stored: StoredRun) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The user's files that a run's settings have the hashes of, as they are now.

    Returns:
        The hashes, and a line on each file that is not there.
    """
    found: dict[str, Any] = {}
    unknown = []
    settings = stored.settings
    problem, checkpoint = settings["problem"], settings["checkpoint"]
    file = problem.rpartition(":")[0] if ":" in problem else None
    for name, path in (("problem_file", file), ("checkpoint_file", checkpoint)):
        if path is None:
            continue
        if not Path(path).is_file():
            unknown.append(f"{name} cannot be compared: there is no file {path} here")
            continue
        found[name] = sha256(Path(path).read_bytes())[:_DIGITS]
    return found, tuple(unknown)
