"""What happens to a result that is stored already: one rule for all experiments (pure)."""

from dataclasses import dataclass
from enum import StrEnum

from vivit_bench.store.identity import State


class Action(StrEnum):
    """What to do."""

    START = "start"
    RESUME = "resume"
    RETURN = "return"
    """The stored result is the result."""
    FAIL = "fail"
    """The stored failure is the result."""
    REFUSE = "refuse"


@dataclass(frozen=True)
class Found:
    """What lies at an address."""

    state: State | None = None
    """None: nothing is there."""
    foreign: bool = False
    """A folder, file or link that no run of this experiment has written."""
    damage: str = ""
    """What is not as it was written; empty if everything is."""
    settings: str = ""
    """Settings that differ from those asked for (under a name the user chose)."""
    environment: str = ""
    """Differences in code, libraries, machine or data."""
    more_wanted: bool = False
    """A finished run is asked to go further than it went."""


@dataclass(frozen=True)
class Decision:
    """What to do, and why not what was hoped for."""

    action: Action
    replace: bool = False
    """Whether what lies there is first moved aside."""
    reason: str = ""


def decide(found: Found, fresh: bool, resumable: bool = True) -> Decision:
    """The policy.

    Finished and valid: returned. Unfinished and valid: resumed. Made under other settings or
    conditions, or damaged: named and kept, until ``--fresh`` moves it aside. What is not ours is
    never touched.

    Args:
        found: What lies at the address.
        fresh: Whether the user wants to start over.
        resumable: Whether a run is made of parts. One that is not starts again where it would be
            resumed: an unfinished one has nothing yet, a finished one is kept until the new one is.
    """
    if found.foreign:
        return Decision(
            Action.REFUSE, reason="is no run of vivit-bench and is left alone: choose another name"
        )
    if fresh and (found.state is not None or found.damage):
        return Decision(Action.START, replace=True)
    if found.damage:
        return Decision(Action.REFUSE, reason=f"{found.damage}; --fresh computes it again")
    if found.state is None or (found.state is State.RUNNING and not resumable):
        return Decision(Action.START)
    remedy = "--fresh computes it again, another --results-dir keeps both"
    if found.settings:
        return Decision(
            Action.REFUSE, reason=f"holds a run of other settings ({found.settings}); {remedy}"
        )
    if found.environment:
        return Decision(
            Action.REFUSE,
            reason=f"holds a run made under other conditions ({found.environment}), whose numbers "
            f"would not go together with new ones; {remedy}",
        )
    if found.more_wanted and not resumable:
        return Decision(Action.START, replace=True)
    if found.state is State.RUNNING or found.more_wanted:
        return Decision(Action.RESUME)
    return Decision(Action.RETURN if found.state is State.FINISHED else Action.FAIL)
