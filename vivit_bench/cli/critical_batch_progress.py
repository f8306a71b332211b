"""How a running search looks on stderr: a live line on a terminal, one line a trial elsewhere."""

from collections.abc import Hashable

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from vivit_bench.cli.options import progress_console
from vivit_bench.critical_batch.listener import Listener
from vivit_bench.critical_batch.search import Bracket
from vivit_bench.measure.budget import format_peak
from vivit_bench.measure.trial import MOST_CONFIRMATIONS, Trial
from vivit_bench.measure.verdict import count_processes


class LiveLines:
    """Lines at the end of a terminal, each with a clock; elsewhere there are none."""

    def __init__(self, console: Console):
        self._console = console
        self._live: Progress | None = None
        self._tasks: dict[Hashable, TaskID] = {}

    def show(self, key: Hashable, text: str, *, restart: bool = True) -> None:
        """Put a text on a line; its clock starts anew, or goes on."""
        if not self._console.is_terminal:
            return
        if self._live is None:
            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._live.start()
        if key not in self._tasks:
            self._tasks[key] = self._live.add_task(text, total=None)
        elif restart:
            self._live.reset(self._tasks[key], total=None)
        self._live.update(self._tasks[key], description=text)

    def remove(self, key: Hashable) -> None:
        """Take a line away, if it is there."""
        if self._live is not None and key in self._tasks:
            self._live.remove_task(self._tasks.pop(key))

    def close(self) -> None:
        """Take all lines away."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._tasks.clear()


class SearchProgress(Listener):
    """Prints each trial, and on a terminal what is running and for how long.

    Args:
        console: Where.
        name: Of the search, before each line; empty where there is one at a time.
        lines: Those of all searches that are under way.
    """

    def __init__(self, console: Console, name: str = "", lines: LiveLines | None = None):
        self._console = console
        self._name = f"{name}: " if name else ""
        self._lines = lines or LiveLines(console)
        self._are_shared = lines is not None

    def note(self, text: str) -> None:
        """See `Listener`."""
        self._print(text)

    def started(self, n: int, bracket: Bracket) -> None:
        """See `Listener`."""
        upper = "?" if bracket.too_large is None else str(bracket.too_large)
        self._show(f"N = {n}   fits: {bracket.fits}, too large: {upper}")

    def confirming(self, n: int, reading: int, seconds: float) -> None:
        """See `Listener`."""
        text = f"confirming N = {n}, {reading} of at most {MOST_CONFIRMATIONS}"
        if self._console.is_terminal:
            self._show(text, restart=False)
        else:
            self._print(f"{text} ({seconds:.1f} s so far): its peak is near the limit")

    def finished(self, trial: Trial, from_records: bool) -> None:
        """See `Listener`."""
        peak = f"peak {format_peak(trial.peak_bytes)}"
        source = "recorded" if from_records else f"{trial.elapsed_seconds:.1f} s"
        notes = [trial.message]
        if trial.other_processes and not trial.message:
            notes = [f"memory of {count_processes(trial.other_processes)} counted"]
        reason = "".join(f"  {note}" for note in notes if note)
        self._print(f"N = {trial.n:<6} {trial.outcome:<13} {peak:<15} {source:<9}{reason}".rstrip())

    def close(self) -> None:
        """Take the live line away."""
        if self._are_shared:
            self._lines.remove(self)
        else:
            self._lines.close()

    def _show(self, text: str, restart: bool = True) -> None:
        self._lines.show(self, f"{self._name}{text}", restart=restart)

    def _print(self, text: str) -> None:
        self._console.print(f"{self._name}{text}", soft_wrap=True, markup=False)


def log_listener() -> Listener:
    """Of a search in a job of a cluster: its trials are lines of the job's log."""
    return SearchProgress(progress_console(quiet=False))
