"""How a running search looks on stderr: a live line on a terminal, one line a trial elsewhere."""

from rich.console import Console
from rich.status import Status

from vivit_bench.critical_batch.outcomes import Trial
from vivit_bench.critical_batch.runner import Listener
from vivit_bench.critical_batch.search import Bracket
from vivit_bench.critical_batch.sizes import format_size


class SearchProgress(Listener):
    """Prints each trial, and on a terminal what is running."""

    def __init__(self, console: Console):
        self._console = console
        self._status: Status | None = None

    def note(self, text: str) -> None:
        """See `Listener`."""
        self._print(text)

    def started(self, n: int, bracket: Bracket) -> None:
        """See `Listener`."""
        if not self._console.is_terminal:
            return
        upper = "?" if bracket.too_large is None else str(bracket.too_large)
        text = f"N = {n}   fits: {bracket.fits}, too large: {upper}"
        if self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def finished(self, trial: Trial, from_records: bool) -> None:
        """See `Listener`."""
        peak = f"peak {format_size(trial.peak_bytes)}"
        source = "recorded" if from_records else f"{trial.seconds:.1f} s"
        reason = f"  {trial.message}" if trial.message else ""
        self._print(f"N = {trial.n:<6} {trial.outcome:<13} {peak:<15} {source:<9}{reason}".rstrip())

    def close(self) -> None:
        """Take the live line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)
