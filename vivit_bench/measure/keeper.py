"""The process between a measurement and its child: nothing the child starts outlives either.

Run as a script, with the standard library alone: it starts in 10 ms. It starts the child, tells
its number and how it ended on stdout, and waits for one of two things: the child ends, or stdin
does, because whoever asked for the measurement is done with it or was killed. Then it kills all
processes that descend from it. What leaves its parent or its group does not escape: orphans of
the child become this process's own.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_ADDR_NO_RANDOMIZE = 0x0040000
_PATIENCE_SECONDS = 10.0
"""For processes that the kernel cannot kill at once."""


def descendants(root: int) -> list[int]:
    """Living processes that descend from one, the process itself left out."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            # The name, in parentheses, may hold anything.
            state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue  # it has ended
        if state not in "ZX":
            children.setdefault(int(parent), []).append(int(entry))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found[1:]


def main(arguments: list[str]) -> None:
    """Keep a child.

    Args:
        arguments: ``exact`` for addresses that are not random, or ``plain``; the file descriptor
            to pass on; and the command, to which this process's number is added.
    """
    kind, passed, *command = arguments
    library = ctypes.CDLL(None)
    library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if kind == "exact":
        # Random addresses change which library pages share a page fault, and so the peak.
        library.personality(library.personality(0xFFFFFFFF) | _ADDR_NO_RANDOMIZE)
    null = os.open(os.devnull, os.O_RDWR)
    quiet = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
    command = [*command, str(os.getpid())]
    os.set_inheritable(int(passed), True)
    child = os.posix_spawn(command[0], command, os.environ, file_actions=quiet, setsid=True)
    os.close(int(passed))
    _say(f"child {child}")
    ended = os.pidfd_open(child)
    select.select([ended, 0], [], [])
    if select.select([ended], [], [], 0)[0]:
        _say_how_it_ended(child)
        _kill_all()
    else:
        _kill_all()
        _say_how_it_ended(child)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(1, f"{line}\n".encode())


def _say_how_it_ended(child: int) -> None:
    _, status = os.waitpid(child, 0)
    _say(f"ended {os.waitstatus_to_exitcode(status)}")


def _kill_all() -> None:
    """Kill every descendant; again, until there is none: some may just have been started."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (found := descendants(os.getpid())) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.002)


if __name__ == "__main__":
    main(sys.argv[1:])
