"""When to monitor: the grammar of ``--at`` and the log-spaced schedule (pure)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vivit_bench.errors import UsageError

_GRAMMAR = "write e.g. 0,100steps,5epochs,end"
_POSITION = re.compile(r"(\d+(?:\.\d+)?)\s*(steps?|epochs?)")


@dataclass(frozen=True)
class Position:
    """A place in a training run, as the user wrote it."""

    text: str
    amount: float
    unit: str
    """``steps``, ``epochs`` or ``end``."""

    def step(self, steps_per_epoch: int, total_steps: int) -> int:
        """The number of optimizer steps taken there; fractions of an epoch are rounded."""
        if self.unit == "end":
            return total_steps
        return round(self.amount * (steps_per_epoch if self.unit == "epochs" else 1))


def parse_positions(text: str) -> list[Position]:
    """Parse ``0,100steps,5epochs,end``.

    Args:
        text: Positions separated by commas: ``0``, ``Nsteps``, ``Nepochs`` (also ``0.5epochs``)
            or ``end``.

    Returns:
        The positions in the order given.

    Raises:
        UsageError: With the part that is not understood.
    """
    positions = [_parse(part.strip()) for part in text.split(",") if part.strip()]
    if not positions:
        raise UsageError(f"--at {text!r} names no checkpoint: {_GRAMMAR}")
    return positions


def _parse(part: str) -> Position:
    if part == "end":
        return Position(part, 0, "end")
    if part.isdecimal() and int(part) == 0:
        return Position(part, 0, "steps")
    if part.isdecimal():
        raise UsageError(f"--at {part!r} has no unit: write {part}steps or {part}epochs")
    match = _POSITION.fullmatch(part)
    if match is None:
        raise UsageError(f"--at {part!r} is not understood: {_GRAMMAR}")
    amount, unit = float(match[1]), match[2].rstrip("s") + "s"
    if unit == "steps" and not amount.is_integer():
        raise UsageError(f"--at {part!r} is no whole number of steps: {_GRAMMAR}")
    return Position(part, amount, unit)


def resolve_positions(
    positions: Sequence[Position], steps_per_epoch: int, total_steps: int
) -> tuple[int, ...]:
    """Step numbers of positions, ascending and without repetition.

    Args:
        positions: From `parse_positions`.
        steps_per_epoch: Optimizer steps in an epoch.
        total_steps: Of the run.

    Raises:
        UsageError: A position lies after the end of the run.
    """
    steps = set()
    for position in positions:
        step = position.step(steps_per_epoch, total_steps)
        if step > total_steps:
            raise UsageError(
                f"--at {position.text} is step {step}, after the last step {total_steps} of the "
                f"run ({steps_per_epoch} steps an epoch): train longer with --epochs, or name an "
                "earlier checkpoint"
            )
        steps.add(step)
    return tuple(sorted(steps))


def log_spaced(total_steps: int, count: int) -> tuple[int, ...]:
    """Step 0 and ``count - 1`` steps from 1 to the last, evenly spaced on a log axis.

    Where whole numbers are too coarse (the first few), neighbours are one step apart.

    Args:
        total_steps: Of the run.
        count: Number of checkpoints, at least 2.

    Returns:
        ``count`` ascending step numbers, the first 0 and the last ``total_steps``.

    Raises:
        UsageError: Fewer than 2, or more than there are steps.
    """
    if count < 2:
        raise UsageError(f"--checkpoints {count}: give at least 2, the start and the end")
    if count > total_steps + 1:
        raise UsageError(
            f"--checkpoints {count} is more than the start and the {total_steps} steps of the "
            f"run: give at most {total_steps + 1}"
        )
    steps = [0]
    for i in range(count - 1):
        exponent = i / (count - 2) if count > 2 else 1.0
        steps.append(max(steps[-1] + 1, round(total_steps**exponent)))
    return tuple(steps)
