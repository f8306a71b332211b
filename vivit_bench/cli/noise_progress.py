"""How a monitored training looks on stderr: a live bar on a terminal, else a line now and then."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vivit_bench.cli.options import progress_console
from vivit_bench.noise.training import Listener

_SECONDS_BETWEEN_LINES = 15.0
_SMOOTHING = 0.9


class TrainingProgress(Listener):
    """Shows epoch, loss and time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._began = self._last = self._stepped = time.monotonic()
        self._done = self._total = self._steps_per_epoch = 0
        self._loss: float | None = None
        self._test_loss = float("nan")

    def note(self, text: str) -> None:
        """See `Listener`."""
        self._print(text)

    def started(self, done: int, total: int, steps_per_epoch: int) -> None:
        """See `Listener`."""
        self._done, self._total, self._steps_per_epoch = done, total, steps_per_epoch
        self._began = self._last = self._stepped = time.monotonic()
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task(self._state(done), total=total, completed=done)
            self._bar.start()

    def stepped(self, step: int, loss: float) -> None:
        """See `Listener`."""
        self._stepped = time.monotonic()
        before = loss if self._loss is None else self._loss
        self._loss = _SMOOTHING * before + (1 - _SMOOTHING) * loss
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description=self._state(step))
        elif self._stepped - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = self._stepped
            left = (self._last - self._began) / (step - self._done) * (self._total - step)
            self._print(f"{self._state(step)}, about {_duration(left)} left")

    def evaluated(self, row: dict[str, Any]) -> None:
        """See `Listener`."""
        self._test_loss = row["test_loss"]

    def measured(self, row: dict[str, Any], seconds: float) -> None:
        """See `Listener`."""
        # Checkpoints are dense at first: left in, they would make the end look far away.
        self._began += time.monotonic() - self._stepped
        self._print(
            f"step {row['step']}: monitor loss {row['loss']:.4g}, K = {row['num_directions']} of "
            f"{row['num_columns']} with {row['alignment_sum']:.1%} of the gradient's squared norm "
            f"(certified to {row['certificate_error']:.0e}, {seconds:.1f} s)"
        )

    def close(self) -> None:
        """Take the live bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _state(self, step: int) -> str:
        loss = "-" if self._loss is None else f"{self._loss:.4g}"
        return (
            f"epoch {step / self._steps_per_epoch:.1f} of {self._total // self._steps_per_epoch}, "
            f"loss {loss}, test loss {self._test_loss:.4g}"
        )

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)


def log_listener() -> Listener:
    """Of a training in a job of a cluster: what happens are lines of the job's log."""
    return TrainingProgress(progress_console(quiet=False))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
