"""How a running sweep looks on stderr."""

import time
from collections.abc import Sequence
from dataclasses import replace

import typer
from rich.console import Console

from vivit_bench.arguments import format_duration
from vivit_bench.cli.critical_batch_progress import LiveLines, SearchProgress
from vivit_bench.critical_batch.jobs import AheadJob, Job, SearchJob, SweepListener, SweepStep
from vivit_bench.critical_batch.listener import Listener
from vivit_bench.critical_batch.settings import Cell
from vivit_bench.critical_batch.sweep_plan import (
    PlannedSearch,
    SweepPlan,
    expected_seconds,
    look_up,
)
from vivit_bench.errors import VivitBenchError

_REASON = 200
"""Characters of a reason in the last line; it was told in full when the search failed."""


class SweepProgress(SweepListener):
    """Prints what begins, its trials and what is left; failures also where all else is quiet."""

    def __init__(self, console: Console, plan: SweepPlan):
        self._console, self._plan = console, plan
        self._lines = LiveLines(console)
        self._started = time.monotonic()
        self._numbers = {each.job.cell: n for n, each in enumerate(plan.searches, start=1)}
        self._running: dict[Cell, tuple[float, SearchProgress]] = {}
        self._ended: set[Cell] = set()

    def goes_on(self, plan: SweepPlan) -> None:
        """The searches follow their small trials, of which some may have failed."""
        self._plan = plan
        self._ended = {each.job.cell for each in plan.searches if each.failed is not None}
        self._lines.remove("left")

    def begun(self, job: Job) -> Listener:
        """See `SweepListener`."""
        cell = job.cell
        number = f"{self._numbers[cell]}/{len(self._plan.searches)}"
        what = ", small trials" if isinstance(job, AheadJob) else ""
        self.note(f"[{number}] {cell.label}{what}")
        name = f"[{number}] {cell.problem}: {cell.variant}" if self._plan.at_once > 1 else ""
        progress = SearchProgress(self._console, name, self._lines)
        self._running[cell] = time.monotonic(), progress
        if self._ended and self._console.is_terminal:
            self._tell_what_is_left()
        return progress

    def ended(self, step: SweepStep) -> None:
        """See `SweepListener`."""
        cell = step.job.cell
        self._running.pop(cell)[1].close()
        self._ended.add(cell)
        if step.error is not None:
            self._lines.close()
            typer.echo(f"{cell.label}: {step.error}", err=True)
        if isinstance(step.job, SearchJob) and self._search(cell).is_to_run:
            self._tell_what_is_left()

    def note(self, text: str) -> None:
        """Something the user should know."""
        self._console.print(text, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Take the live lines away."""
        self._lines.close()

    def summary(self, steps: Sequence[SweepStep]) -> str:
        """How many searches ended how, and in what time."""
        failed = sum(step.error is not None for step in steps)
        before = sum(not planned.is_to_run for planned in self._plan.searches)
        ran = [step for step in steps if self._search(step.job.cell).is_to_run and step.finished]
        parts = [f"{len(steps) - failed} of {len(steps)} searches finished"]
        parts += [f"{before} of them before"] if before and not failed else []
        parts += [f"{failed} failed"] if failed else []
        line = f"{', '.join(parts)}, in {format_duration(time.monotonic() - self._started)}"
        known = [
            (step.seconds, seconds) for step in ran if (seconds := self._expected(step)) is not None
        ]
        if not known:
            return line
        taken, expected = (format_duration(sum(values)) for values in zip(*known, strict=True))
        which = "they" if len(known) == len(ran) else f"{len(known)} that were predicted"
        return f"{line}; searches: {which} took {taken}, {expected} were expected"

    def _tell_what_is_left(self) -> None:
        begun = {cell: time.monotonic() - since for cell, (since, _) in self._running.items()}
        over = self._ended | set(begun)
        waiting = [planned for planned in self._plan.to_run if planned.job.cell not in over]
        if not begun and not waiting:
            self._lines.remove("left")
            return
        left = [_rest(self._search(cell), seconds) for cell, seconds in begun.items()]
        left += [planned.expected_seconds for planned in waiting]
        seconds, unknown = expected_seconds(left, self._plan.at_once)
        text = f"{len(self._ended)} done, {len(begun)} running, {len(waiting)} left"
        if unknown < len(left):
            more = f" and {unknown} of unknown time" if unknown else ""
            text += f", about {format_duration(seconds)}{more}"
        if self._console.is_terminal:
            self._lines.show("left", text, restart=False)
        else:
            self.note(text)

    def _search(self, cell: Cell) -> PlannedSearch:
        return self._plan.searches[self._numbers[cell] - 1]

    def _expected(self, step: SweepStep) -> float | None:
        """Of a search: what the plan said, or else what was predicted when it began."""
        planned = self._search(step.job.cell)
        if planned.prediction is None:
            planned = replace(planned, prediction=_stored(planned.job).prediction)
        return planned.expected_seconds


def failures(steps: Sequence[SweepStep]) -> VivitBenchError:
    """The error that a sweep ends with where searches failed, which it names with reasons."""
    named = [
        f"{step.job.cell.label}: {_cut(str(step.error))}"
        for step in steps
        if step.error is not None
    ]
    return VivitBenchError(
        f"{len(named)} of {len(steps)} searches failed, the same command tries them again: "
        f"{'; '.join(named)}"
    )


def _rest(planned: PlannedSearch, seconds: float) -> float | None:
    """What is left of a search that has run for some seconds."""
    expected = planned.expected_seconds
    if expected is None:  # perhaps predicted since it began
        return _stored(planned.job).expected_seconds
    return max(expected - seconds, 0.0)


def _stored(job: SearchJob) -> PlannedSearch:
    return look_up(replace(job, fresh=False))


def _cut(text: str) -> str:
    return text if len(text) <= _REASON else f"{text[: _REASON - 3]}..."
