"""The user's own code in this process: what it prints, how it ends, and what it leaves changed."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from vivit_bench.errors import Stopped, UsageError, describe


@contextmanager
def users_code(problem: str) -> Iterator[None]:
    """Run code of the user's: standard output is that of results, and paths stay what they are.

    Whatever it prints, also by programs that it starts, goes to standard error. The working
    directory is that of before afterwards.

    Args:
        problem: Named in messages.

    Raises:
        UsageError: It raises what is no `Exception`; those are for the caller to tell.
    """
    folder = os.getcwd()
    streams = sys.stdout, sys.stderr
    for stream in filter(None, streams):
        with suppress(OSError, ValueError):
            stream.flush()
    kept = {number: copy for number in (1, 2) if (copy := _copy(number)) is not None}
    if len(kept) == 2:
        os.dup2(2, 1)
    sys.stdout = sys.stderr = None if sys.stderr is None else _Lent(sys.stderr)
    try:
        yield
    except (Exception, Stopped, GeneratorExit):
        raise
    except SystemExit as error:
        raise UsageError(f"{problem}: its code calls sys.exit({error.code})") from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and _is_of_keyboard():
            raise
        raise UsageError(f"{problem}: its code raised {describe(error)}") from error
    finally:
        sys.stdout, sys.stderr = streams
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
        os.chdir(folder)


class _Lent:
    """Standard error under both names, which a borrower may close as its own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def close(self) -> None:
        """Left open."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _copy(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:  # it is closed
        return None


def _is_of_keyboard() -> bool:
    """Whether SIGINT raises `KeyboardInterrupt`; the command line makes it another exception."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler
