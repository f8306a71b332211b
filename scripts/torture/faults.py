"""Failures of the file system, put under one process: the k-th write-like call fails, or kills."""

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CALLS = (
    *("write", "fsync", "replace", "rename", "open", "mkdir", "ftruncate", "unlink", "fchmod"),
)
_OF_A_FULL_DISK = {"write", "open", "mkdir", "fsync"}
"""What a disk without space refuses; the rest still works there."""


@dataclass(frozen=True)
class Fault:
    """What happens below a folder."""

    root: str
    """Calls elsewhere are let through and not counted."""
    index: int = -1
    """The call that fails, from 0; -1: none."""
    error: int = errno.ENOSPC
    sticky: bool = False
    """Whether the disk stays so until the process ends."""
    short: bool = False
    """Whether a write that fails has first written half."""
    kill: str = ""
    """``before`` or ``after`` the call: the process is killed instead."""
    log: str = ""
    """File that gets the name of every call."""


class _Injector:
    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._count = -1
        self._write = os.write
        self._log = os.open(fault.log, os.O_WRONLY | os.O_CREAT, 0o666) if fault.log else -1

    def patched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if not self._concerns(name, arguments):
                return original(*arguments, **keywords)
            self._count += 1
            if self._log >= 0:
                self._write(self._log, f"{name}\n".encode())
            if self._fault.kill and self._count == self._fault.index:
                if self._fault.kill == "after":
                    original(*arguments, **keywords)
                os.kill(os.getpid(), signal.SIGKILL)
            if self._fails(name):
                if name == "write" and self._fault.short:
                    original(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                raise OSError(self._fault.error, os.strerror(self._fault.error), *self._named(name))
            return original(*arguments, **keywords)

        return call

    def _named(self, name: str) -> list[str]:
        return ["a/file"] if name in {"open", "mkdir", "replace", "rename", "unlink"} else []

    def _fails(self, name: str) -> bool:
        fault = self._fault
        if fault.index < 0 or fault.kill or self._count < fault.index:
            return False
        if self._count == fault.index:
            return True
        return fault.sticky and (fault.error != errno.ENOSPC or name in _OF_A_FULL_DISK)

    def _concerns(self, name: str, arguments: tuple[Any, ...]) -> bool:
        if name == "open":
            flags = arguments[1]
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return False
        try:
            place = arguments[0]
            text = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else str(place)
        except OSError:
            return False
        return os.path.abspath(text).startswith(self._fault.root)


def install(fault: Fault) -> None:
    """Put the fault under this process, for good."""
    injector = _Injector(fault)
    for name in CALLS:
        setattr(os, name, injector.patched(name, getattr(os, name)))
