"""The process of one search of a sweep: a pickled job on stdin, what happens on a pipe.

Whoever started it keeps stdin open; its end, as any signal, stops the search in order.
"""

import contextlib
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from vivit_bench.errors import Stopped, VivitBenchError, describe

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Send = Callable[[tuple[str, Any]], None]


def main(arguments: list[str]) -> None:
    """Run the job.

    Args:
        arguments: Descriptor of the pipe to tell events on; CPUs, separated by commas.
    """
    descriptor, cpus = arguments
    for number in _SIGNALS:
        signal.signal(number, _stop)
    os.set_inheritable(int(descriptor), False)
    os.sched_setaffinity(0, set(map(int, cpus.split(","))))
    with Connection(int(descriptor), readable=False) as events:
        try:
            job = pickle.load(sys.stdin.buffer)
            threading.Thread(target=_wait_for_the_end_of_stdin, daemon=True).start()
            finished = job.run(_telling(events.send))
            _ignore_signals()  # from here on there is nothing to stop
            events.send(("done", finished))
        except Stopped as stopped:
            with contextlib.suppress(OSError):  # nobody listens any more
                for note in getattr(stopped, "__notes__", []):
                    events.send(("kept", note))
            sys.exit(128 + stopped.number)
        except Exception as error:
            _ignore_signals()
            if not isinstance(error, (VivitBenchError, OSError)):
                traceback.print_exc()
            said = str(error) if isinstance(error, VivitBenchError) else describe(error)
            with contextlib.suppress(OSError):
                events.send(("failed", said))
            sys.exit(VivitBenchError.exit_code)


def _telling(send: Send) -> Any:
    """A `Listener` that sends whatever it is told."""
    from vivit_bench.critical_batch.listener import Listener

    listener = Listener()
    for name in vars(Listener):
        if not name.startswith("_"):
            setattr(listener, name, partial(_tell, send, name))
    return listener


def _tell(send: Send, name: str, *arguments: Any) -> None:
    send((name, arguments))


def _stop(number: int, _: object) -> NoReturn:
    """End in order at the first signal; others change nothing."""
    _ignore_signals()
    raise Stopped(number)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _wait_for_the_end_of_stdin() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
