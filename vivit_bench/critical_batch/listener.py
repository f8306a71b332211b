"""What a search tells while it runs."""

from vivit_bench.critical_batch.search import Bracket
from vivit_bench.measure import Trial


class Listener:
    """Is told what happens during a search; this one ignores it."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def started(self, n: int, bracket: Bracket) -> None:
        """A trial begins."""

    def confirming(self, n: int, reading: int, seconds: float) -> None:
        """A trial's peak is too near to the limit: it is measured again.

        Args:
            n: Batch size.
            reading: The how-manieth time, of at most `MOST_CONFIRMATIONS`.
            seconds: The trial took so far.
        """

    def finished(self, trial: Trial, from_records: bool) -> None:
        """A trial ended, or its record was used."""
