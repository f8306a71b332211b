"""What a run tells whoever watches it; light to import."""

from typing import Any


class Listener:
    """Ignores everything; the command line's progress display overrides it."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def started(self, done: int, total: int, steps_per_epoch: int) -> None:
        """Training goes on after ``done`` of ``total`` steps."""

    def stepped(self, step: int, loss: float) -> None:
        """An optimizer step was taken at this loss of its mini-batch."""

    def evaluated(self, row: dict[str, Any]) -> None:
        """A row of ``curves.csv``."""

    def measured(self, row: dict[str, Any], seconds: float) -> None:
        """A row of ``checkpoints.csv``, and the time of the call."""
