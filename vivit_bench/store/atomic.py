"""Files that are either the old or the new version, never half of one."""

import os
import tempfile
from pathlib import Path

from vivit_bench.errors import UsageError


def check_writable(path: Path) -> None:
    """Make the folder of a file that is to be written after a long computation.

    Raises:
        UsageError: ``path`` is a folder, or no file can be written there.
    """
    if path.is_dir():
        raise UsageError(f"output {path}: this is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: its folder is read-only; name another one")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` durably (write aside, fsync, rename, fsync folder).

    Args:
        path: The file; missing parent folders are made.
        content: Text (written as UTF-8) or bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
