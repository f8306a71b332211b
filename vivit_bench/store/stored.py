"""What is stored: ``run.json``, the files it vouches for, and how runs are found by name."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.store.files import sha256
from vivit_bench.store.identity import State, canonical, differences
from vivit_bench.store.provenance import rounded_ram
from vivit_bench.store.schema import violations

FORMAT = "vivit-bench run 1"
HEADER = "run.json"
REPLACED = ".replaced-"
"""What the names of runs that were moved aside have before their time."""


class _Provenance(TypedDict):
    vivit_bench: str
    code: str
    git_commit: str | None
    python: str
    torch: str | None
    host: str
    cpu: str
    cores: int | None
    ram_bytes: int
    started_at: str


class _Environment(TypedDict):
    code: str
    python: str
    torch: str | None
    host: str
    cpu: str


CONDITIONS: dict[str, type] = {"environment": _Environment, "provenance": _Provenance}
"""Parts of a header -> what every experiment has in them."""


@dataclass(frozen=True)
class StoredRun:
    """What ``run.json`` says of a run."""

    folder: Path
    experiment: str
    label: str
    state: State
    settings: dict[str, Any]
    environment: dict[str, Any]
    provenance: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    """Of a finished or failed run: what the experiment wants to tell, JSON-ready."""
    files: dict[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of the files that the results consist of."""
    owns: tuple[str, ...] = ()
    """Patterns of the files the run may write."""

    @property
    def is_finished(self) -> bool:
        """Whether the results are whole."""
        return self.state is State.FINISHED

    def read(self, name: str) -> bytes:
        """A file of the run, checked against its checksum.

        Raises:
            VivitBenchError: It is missing or not the one that the header describes.
        """
        content, damage = self._look_at(name)
        if damage:
            raise VivitBenchError(f"{damage}; run it again with --fresh")
        return content

    def damages(self) -> dict[str, str]:
        """Files that are not as the header describes them, each with a line on that."""
        found = ((name, self._look_at(name)[1]) for name in self.files)
        return {name: damage for name, damage in found if damage}

    def damage(self) -> str:
        """The line on the first damaged file; empty if there is none."""
        return next(iter(self.damages().values()), "")

    def _look_at(self, name: str) -> tuple[bytes, str]:
        """A file's content, and what is wrong with it."""
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            return b"", f"{path} cannot be read ({error.strerror or error})"
        if name in self.files and sha256(content) != self.files[name]:
            return b"", f"{path} is not the file that {HEADER} describes (edited or cut short)"
        return content, ""

    def to_json(self) -> str:
        """The content of ``run.json``, with a checksum of its own."""
        values = {
            "format": FORMAT,
            **{name: value for name, value in asdict(self).items() if name != "folder"},
        }
        text = json.dumps({**values, "check": sha256(canonical(values))}, indent=2)
        return text + "\n"


class DamagedRunError(VivitBenchError):
    """``run.json`` is there, and is not what was written."""


def load_run(folder: Path, experiment: str) -> StoredRun:
    """Read a run's header, in whatever state it is.

    Raises:
        UsageError: There is none.
        DamagedRunError: It is not what was written.
    """
    try:
        stored = read_header(folder)
    except DamagedRunError as error:
        raise DamagedRunError(f"{error}; run it again with --fresh") from error
    if stored.experiment != experiment:
        raise UsageError(f"{folder} holds a run of {stored.experiment}, not of {experiment}")
    return stored


def load_sound_run(folder: Path, experiment: str) -> StoredRun:
    """`load_run` for a reader, which counts on the types of what is there.

    Raises:
        UsageError: There is none.
        DamagedRunError: It is not what was written, or was written by something else.
    """
    stored = load_run(folder, experiment)
    for part, kind in CONDITIONS.items():
        wrong = violations(getattr(stored, part), kind, f"{part}:", whole=False)
        if line := next(wrong, ""):
            raise DamagedRunError(f"{folder / HEADER}: {line}; vivit-bench check says more")
    return stored


def find_run(name: str | None, results_dir: Path, experiment: str, command: str) -> StoredRun:
    """A stored run by its folder, its name or the readable start of its name.

    Args:
        name: What the user typed; None: the only run there is.
        results_dir: Folder of all results.
        experiment: Whose runs.
        command: What makes one, for messages.

    Raises:
        UsageError: No run is called so, or several are.
        DamagedRunError: It is damaged.
    """
    root = results_dir / experiment
    if name is not None:
        for folder in (root / name, Path(name)):
            if exists(folder / HEADER):
                return load_sound_run(folder, experiment)
    stored, damaged = stored_runs(results_dir, experiment)
    if name is None:
        if not stored:
            raise nothing_found(f"no run in {root}", damaged, f"make one with: {command}")
        same = stored
        name = "no RUN is named"
    else:
        same = [run for run in stored if name and name in (run.label, run.folder.name[: len(name)])]
    if len(exact := [run for run in same if run.label == name]) == 1:
        same = exact
    if len(same) == 1:
        return same[0]
    if same:
        listed = "; ".join(
            f"{run.folder.name} ({differences(same[0].settings, run.settings) or 'the first'})"
            for run in same[:6]
        )
        raise UsageError(f"{name}: there are several, name one: {listed}")
    labels = [run.label for run in stored]
    names = [run.folder.name if labels.count(run.label) > 1 else run.label for run in stored]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
    hint = f"there are {', '.join(near)}" if near else f"make one with: {command}"
    what = f"{name[:100]}: no run of this name in {root}"
    raise nothing_found(what, damaged, hint, str(root / name))


def nothing_found(what: str, damaged: Sequence[str], hint: str, start: str = "") -> VivitBenchError:
    """No stored result is what was asked for; where one is damaged, that may be why.

    Args:
        what: What was not found.
        damaged: A line on each result that cannot be read.
        hint: What to do.
        start: Of the path that was looked for; damage elsewhere is no reason.
    """
    kind = DamagedRunError if any(start in line for line in damaged) else UsageError
    return kind("; ".join([what, *damaged, hint]))


def stored_runs(results_dir: Path, experiment: str) -> tuple[list[StoredRun], list[str]]:
    """All runs of an experiment, the newest last, and a line on each that is damaged."""
    runs, notes = [], []
    for folder in sorted((results_dir / experiment).glob("*")):
        if REPLACED in folder.name or not exists(folder / HEADER):
            continue
        try:
            runs.append(load_sound_run(folder, experiment))
        except VivitBenchError as error:
            notes.append(f"left out: {error}")
    return sorted(runs, key=lambda run: str(run.provenance.get("started_at"))), notes


def finished_runs(results_dir: Path, experiment: str) -> tuple[list[StoredRun], list[str]]:
    """The finished runs whose files are as they were written, and a line on each damaged run."""
    runs, notes = stored_runs(results_dir, experiment)
    whole = []
    for stored in runs:
        if damage := stored.damage() if stored.is_finished else "":
            notes.append(f"left out: {damage}")
        elif stored.is_finished:
            whole.append(stored)
    return whole, notes


def read_header(folder: Path) -> StoredRun:
    """A run's header; `load_run` also says what to type.

    Raises:
        UsageError: There is none.
        DamagedRunError: It is not what was written.
    """
    path = folder / HEADER
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if exists(path):
            raise DamagedRunError(f"{path} is a symbolic link to nothing") from error
        raise UsageError(f"no run in {folder}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DamagedRunError(f"{path} cannot be read ({reason})") from error
    try:
        values = json.loads(content)
        check = values.pop("check")
        if values["format"] != FORMAT:
            raise DamagedRunError(f"{path} is of format {values['format']!r}, not {FORMAT!r}")
        if sha256(canonical(values)) != check:
            raise DamagedRunError(f"{path} was edited or cut short")
        values.pop("format")
        values |= {"state": State(values["state"]), "owns": tuple(values["owns"])}
        for conditions in (values["environment"], values["provenance"]):
            if "ram_bytes" in conditions:
                conditions["ram_bytes"] = rounded_ram(conditions["ram_bytes"])
        return StoredRun(folder=folder, **values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedRunError(f"{path} is no header of a run") from error


def exists(path: Path) -> bool:
    """Whether something is there, a broken link too; names no file can have do not exist."""
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True
