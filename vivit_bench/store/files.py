"""Files that are either the old or the new version, never half of one."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vivit_bench.errors import StorageError, UsageError

TEMPORARY = ".vivit-bench-tmp"
"""Ending of files that are being written; what a kill leaves of them is removed later."""


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` durably (write aside, fsync, rename, fsync folder).

    A symbolic link of that name is replaced, not followed.

    Args:
        path: The file; missing parent folders are made.
        content: Text (written as UTF-8) or bytes.

    Raises:
        StorageError: It cannot be written; the old version is intact.
    """
    data = content.encode() if isinstance(content, str) else content
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=TEMPORARY, dir=path.parent)
        try:
            try:
                write_all(descriptor, data)
                os.fchmod(descriptor, 0o666 & ~_umask())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        sync_folder(path.parent)


def write_output(path: Path, content: str | bytes) -> None:
    """Write a table, figure or tensor file where the user wants it (atomically).

    Raises:
        UsageError: ``path`` is a folder.
        StorageError: It cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"output {path}: this is a folder; name a file in it")
    write_atomic(path, content)


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written after a long computation.

    Raises:
        UsageError: ``path`` is a folder or in none, or no file can be written there.
    """
    try:
        if not path.parent.exists():
            raise UsageError(
                f"cannot write {path}: there is no folder {path.parent}; make it, or name another"
            )
        if path.is_dir():
            raise UsageError(f"output {path}: this is a folder; name a file in it")
        # Only an attempt tells: permissions do not bind root, nor do they know full disks.
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=TEMPORARY, dir=path.parent)
        os.close(descriptor)
        os.unlink(name)
        path.lstat()
    except FileNotFoundError:
        pass  # the usual case: the file is not there yet
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot write {path}: {reason}; name another file") from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything; the system may take less at a time.

    Raises:
        OSError: It does not fit.
    """
    view = memoryview(data)
    while view:
        written = os.write(descriptor, view)
        if written <= 0:
            raise OSError(f"only {len(data) - len(view)} of {len(data)} bytes were written")
        view = view[written:]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary(folder: Path) -> None:
    """Remove what a killed `write_atomic` left in a folder that this process has locked.

    Raises:
        StorageError: The file system refuses.
    """
    with storage_errors(folder):
        for path in folder.rglob(f".*{TEMPORARY}"):
            if not path.parent.is_symlink():
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """One line for whatever the file system refuses inside the block."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"cannot write {path}: {reason}; what was stored before is intact, and the same "
            "command goes on with it"
        ) from error


def sha256(content: str | bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
