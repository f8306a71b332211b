"""Runs that this process writes: opened under a lock, gone on with, finished, moved aside."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vivit_bench.errors import CertificateError, StorageError, UsageError, VivitBenchError
from vivit_bench.store.files import (
    TEMPORARY,
    remove_temporary,
    sha256,
    storage_errors,
    write_atomic,
)
from vivit_bench.store.identity import Identity, State, check_name, differences
from vivit_bench.store.journal import Journal
from vivit_bench.store.policy import Action, Decision, Found, decide
from vivit_bench.store.provenance import provenance
from vivit_bench.store.stored import (
    HEADER,
    REPLACED,
    DamagedRunError,
    StoredRun,
    exists,
    load_run,
    read_header,
)

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What ``flock`` says on a file system that has none, such as Lustre with ``noflock``."""


class Run:
    """A run that this process writes; `open_run` makes it."""

    def __init__(self, stored: StoredRun, action: Action) -> None:
        self.folder = stored.folder
        self.stored = stored
        """The header as it is on disk."""
        self.action = action
        self._journals: list[Journal] = []

    @property
    def is_returned(self) -> bool:
        """Whether the stored result is the result, and there is nothing to do."""
        return self.action is Action.RETURN

    def journal(self, name: str) -> Journal:
        """A journal of the run, open until the run is."""
        journal = Journal(self.folder / name)
        self._journals.append(journal)
        return journal

    def write(self, name: str, content: str | bytes) -> None:
        """Replace a file of the run; on disk when this returns."""
        self._check_folder()
        path = self.folder / name
        if path.parent != self.folder and path.parent.is_symlink():
            raise StorageError(f"{path.parent} is a symbolic link: nothing is written through it")
        write_atomic(path, content)

    def remove(self, name: str) -> None:
        """Remove a file of the run, if it is there."""
        self._check_folder()
        with storage_errors(self.folder / name):
            (self.folder / name).unlink(missing_ok=True)

    def update(self, **facts: Any) -> None:
        """Add facts to the results of a run that goes on."""
        self._write_header(replace(self.stored, results={**self.stored.results, **facts}))

    def finish(
        self, results: Mapping[str, Any], files: Sequence[str], *, state: State = State.FINISHED
    ) -> StoredRun:
        """Vouch for the files; a run that is finished replaces what was moved aside for it.

        Args:
            results: For the header.
            files: Names of the files that the results consist of; they exist.
            state: How it ended.

        Returns:
            The header.
        """
        self._check_folder()
        with storage_errors(self.folder):
            sums = {name: sha256((self.folder / name).read_bytes()) for name in files}
        self._write_header(replace(self.stored, state=state, results=dict(results), files=sums))
        if state is not State.FINISHED:
            return self.stored
        # The result is there, and what cannot be removed now is when the next run is finished.
        with contextlib.suppress(OSError, StorageError):
            for old in _moved_aside(self.folder):
                _remove(old, self.stored.experiment)
        return self.stored

    def close(self) -> None:
        """Close the journals."""
        for journal in self._journals:
            journal.close()
        self._journals.clear()

    def _write_header(self, stored: StoredRun) -> None:
        self._check_folder()
        write_atomic(self.folder / HEADER, stored.to_json())
        self.stored = stored

    def _check_folder(self) -> None:
        if not self.folder.is_dir() or self.folder.is_symlink():
            raise StorageError(
                f"{self.folder} was removed while the run was under way; what it measured is "
                "lost, the same command starts anew"
            )


def check_run(results_dir: Path, identity: Identity, *, fresh: bool = False) -> None:
    """Refuse what `open_run` would refuse, before other work of a series is done.

    Args:
        results_dir: Folder of all results.
        identity: Of a run that will be opened later.
        fresh: Whether it will start over.

    Raises:
        UsageError: The folder is not ours, or its run is of other conditions.
        VivitBenchError: Another process has the run, it is damaged, or it failed before.
    """
    folder = results_dir / identity.experiment / identity.address
    if not folder.parent.is_dir():
        return
    with _lock(folder):
        found, stored = _look(folder, identity, lambda _: False)
        _refuse(folder, found, decide(found, fresh), stored)


def foresee_run(
    results_dir: Path,
    identity: Identity,
    *,
    name: str | None = None,
    fresh: bool = False,
    more_wanted: Callable[[StoredRun], bool] = lambda stored: False,
    resumable: bool = True,
) -> tuple[Action, StoredRun | None]:
    """What `open_run` would do now. Nothing is written, and the lock is not asked for.

    Args:
        results_dir: Folder of all results.
        identity: What would be run.
        name: See `open_run`.
        fresh: See `open_run`.
        more_wanted: See `open_run`.
        resumable: See `open_run`.

    Returns:
        The action, and what is stored at the address; None for nothing.

    Raises:
        UsageError: See `open_run`.
        VivitBenchError: See `open_run`.
    """
    folder = results_dir / identity.experiment / (name or identity.address)
    found, stored = _look(folder, identity, more_wanted, tidy=False)
    decision = decide(found, fresh, resumable)
    _refuse(folder, found, decision, stored)
    return decision.action, stored


@contextlib.contextmanager
def open_run(
    results_dir: Path,
    identity: Identity,
    *,
    name: str | None = None,
    fresh: bool = False,
    begun: bool = False,
    more_wanted: Callable[[StoredRun], bool] = lambda stored: False,
    resumable: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Run]:
    """The run of some settings, for this process alone: new, gone on with, or finished.

    Args:
        results_dir: Folder of all results.
        identity: What is to be run.
        name: Of the run's folder; default: the identity's address.
        fresh: Start over. The old run is moved aside, and removed when the new one is finished.
        begun: Whether this command had it open before, and is not to start over again.
        more_wanted: Whether a finished run is to go on (under a larger time-out, say).
        resumable: Whether what an interrupted run has written is worth going on with; otherwise
            the run starts again, and a finished one stays moved aside until the new one is.
        note: Told what is done with a run that is there.

    Yields:
        The run; its ``action`` is START, RESUME or RETURN. Where the block raises an error before
        anything is stored, no run is left, and what was moved aside is moved back (not where a
        `CertificateError` casts doubt on it).

    Raises:
        UsageError: The name is none, the folder is not ours, or its run is of other settings or
            conditions.
        VivitBenchError: Another process has the run, it is damaged, or it failed before.
        StorageError: The folder cannot be made.
    """
    folder = results_dir / identity.experiment / (check_name(name) if name else identity.address)
    if results_dir.exists() and not results_dir.is_dir():
        raise UsageError(f"--results-dir {results_dir}: is a file; name a folder")
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.parent.is_symlink():
        raise UsageError(f"{folder.parent} is a symbolic link: nothing is written through it")
    with _lock(folder, note):
        found, stored = _look(folder, identity, more_wanted)
        decision = decide(found, fresh and not begun, resumable)
        _refuse(folder, found, decision, stored)
        aside = _move_aside(folder) if decision.replace else None
        if aside is not None:
            note(f"{folder} is moved to {aside.name} until this run is finished")
        run = _begin(folder, identity, stored, decision)
        if run.is_returned:
            note(f"finished already: {folder} (--fresh runs it again)")
        elif run.action is Action.RESUME:
            note(f"going on with {folder}")
        try:
            yield run
        except Exception as error:
            # A result whose check failed does not come back as if nothing was known of it.
            doubtful = aside is not None and isinstance(error, CertificateError)
            if not doubtful and _undo(run, aside) and aside is not None:
                note(f"{aside.name} is moved back: nothing was stored in its place")
            raise
        except BaseException as error:
            error.add_note(_kept(run, aside, resumable, fresh))
            raise
        finally:
            run.close()


def _look(
    folder: Path,
    identity: Identity,
    more_wanted: Callable[[StoredRun], bool],
    *,
    tidy: bool = True,
) -> tuple[Found, StoredRun | None]:
    """What lies at an address; ``tidy`` removes what a kill left there."""
    if not exists(folder):
        return Found(), None
    if folder.is_symlink() or not folder.is_dir():
        return Found(foreign=True), None
    if not exists(folder / HEADER):
        # A run that was killed before its header was written leaves an empty folder.
        if tidy:
            remove_temporary(folder)
        names = [path.name for path in folder.iterdir()]
        return Found(foreign=any(not name.endswith(TEMPORARY) for name in names)), None
    try:
        stored = read_header(folder)
    except DamagedRunError as error:
        return Found(damage=str(error)), None
    if stored.experiment != identity.experiment:
        return Found(foreign=True), None
    damages = stored.damages()
    lasting = (text for name, text in damages.items() if name not in identity.mendable)
    found = Found(
        state=stored.state,
        damage=_blocked(folder, identity) or next(lasting, ""),
        settings=differences(stored.settings, identity.settings),
        environment=differences(stored.environment, identity.environment),
        more_wanted=stored.is_finished and (bool(damages) or more_wanted(stored)),
    )
    return found, stored


def _blocked(folder: Path, identity: Identity) -> str:
    """The first journal that is no file, so that nothing can be mended; empty if there is none."""
    for path in (folder / name for name in identity.mendable):
        if exists(path) and (path.is_symlink() or not path.is_file()):
            return f"{path} is a folder or a link, and not the file that was written"
    return ""


def _refuse(folder: Path, found: Found, decision: Decision, stored: StoredRun | None) -> None:
    if decision.action is Action.REFUSE and found.damage:
        raise DamagedRunError(decision.reason)
    if decision.action is Action.REFUSE:
        raise UsageError(f"{folder} {decision.reason}")
    if decision.action is Action.FAIL:
        assert stored is not None
        raise VivitBenchError(f"{stored.results.get('failure')} ({folder}; --fresh tries again)")


def _undo(run: Run, aside: Path | None) -> bool:
    """Take a run away that was refused before it stored anything: nothing could go on with it.

    Returns:
        Whether it was taken away, and what it was to replace is back.
    """
    folder = run.folder
    if run.stored.state is not State.RUNNING or not folder.is_dir() or folder.is_symlink():
        return False
    if aside is None and _moved_aside(folder):  # by an earlier call, to which this one belongs
        return False
    files = list(folder.iterdir())
    if any(
        path.is_symlink() or not path.is_file() or (path.name != HEADER and path.stat().st_size)
        for path in files
    ):
        return False
    with contextlib.suppress(OSError):
        for path in files:
            path.unlink()
        folder.rmdir()
        if aside is not None:
            os.rename(aside, folder)
        return True
    return False


def _kept(run: Run, aside: Path | None, resumable: bool, fresh: bool) -> str:
    """What there is of a run that is interrupted."""
    if run.stored.is_finished:
        return f"{run.folder} is finished"
    if resumable:
        command = "the same command without --fresh" if fresh else "the same command"
        return f"{run.folder} keeps what was done; {command} goes on with it"
    old = "" if aside is None else f", what was stored before is in {aside}"
    return f"{run.folder} is not finished{old}"


def _begin(folder: Path, identity: Identity, stored: StoredRun | None, decision: Decision) -> Run:
    if decision.action is not Action.START:
        assert stored is not None
        if decision.action is Action.RESUME:
            remove_temporary(folder)
            if stored.state is not State.RUNNING:  # from here on its files change
                going_on = replace(stored, state=State.RUNNING, files={})
                write_atomic(folder / HEADER, going_on.to_json())
                return Run(going_on, decision.action)
        return Run(stored, decision.action)
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
    remove_temporary(folder)
    new = StoredRun(
        folder=folder,
        experiment=identity.experiment,
        label=identity.label,
        state=State.RUNNING,
        settings=dict(identity.settings),
        environment=dict(identity.environment),
        provenance=provenance(identity.settings.get("device")),
        owns=identity.owns,
    )
    write_atomic(folder / HEADER, new.to_json())
    return Run(new, Action.START)


def _move_aside(folder: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    target = folder.with_name(f"{folder.name}{REPLACED}{stamp}")
    with storage_errors(folder):
        os.rename(folder, target)
    return target


def _moved_aside(folder: Path) -> list[Path]:
    start = f"{folder.name}{REPLACED}"
    return [path for path in folder.parent.iterdir() if path.name.startswith(start)]


def _remove(folder: Path, experiment: str) -> None:
    """Remove a run that was moved aside: its own files, and the folder if nothing else is left.

    A damaged one is kept: what is not known to be ours is never removed.
    """
    try:
        stored = load_run(folder, experiment)
    except VivitBenchError:
        return
    if folder.is_symlink():
        return
    remove_temporary(folder)
    owned = (*stored.owns, *stored.files)
    for path in sorted(folder.rglob("*"), reverse=True):
        inside = str(path.relative_to(folder))
        if path.is_symlink() or not path.is_file() or path.parent.is_symlink():
            continue
        if any(fnmatchcase(inside, pattern) for pattern in owned):
            path.unlink(missing_ok=True)
    others = [path for path in folder.rglob("*") if path != folder / HEADER and not path.is_dir()]
    if not others:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Keep other processes from a run; the lock ends with the process, however it ends.

    Where the file system keeps no locks, that is told.
    """
    path = folder.with_name(f".{folder.name}.lock")
    while True:
        with storage_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise VivitBenchError(
                f"another process is running {folder.name} (it has {path}); wait for it"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                raise StorageError(f"{path}: {error.strerror}") from error
            note(
                f"the file system of {folder.parent} keeps no locks ({error.strerror}): that no "
                "other process writes this run is left to you, or to Slurm"
            )
        # Its last holder may have removed the file after it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == path.stat().st_ino:
                break
        os.close(handle)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)
