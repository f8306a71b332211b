"""What a trial of one batch size can end with."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a trial ended. Only `OUT_OF_MEMORY` means that the batch does not fit."""

    FITS = "fits"
    """It finished, with finite results, within the memory budget."""
    OUT_OF_MEMORY = "out-of-memory"
    """It needs more memory than the budget."""
    TIMEOUT = "timeout"
    """It was stopped after ``--trial-timeout`` seconds, within the budget until then."""
    LIMIT = "limit"
    """A limit that is not memory: a 32-bit size of LAPACK, the end of a data set."""
    ERROR = "error"
    """Anything else: no statement about memory."""


@dataclass(frozen=True)
class Trial:
    """One batch size that was really run."""

    n: int
    """Batch size N."""
    outcome: Outcome
    message: str
    """Why it did not fit, on one line; empty if it did."""
    peak_bytes: int | None
    """Peak memory over the idle process, of the reading that decided; None if not known."""
    idle_bytes: int | None
    """Memory of the idle process: libraries, model and data, after a 2-sample warm-up."""
    absolute_peak_bytes: int | None
    """Peak memory of the whole process, in the first reading."""
    seconds: float
    """Wall time with the start of the process. Not a benchmark: a process at its memory limit
    is slower than usual."""
    timeout_seconds: float
    """The time-out it ran under."""
    confirmed: bool
    """Whether it was measured again, on one CPU, because its peak was too near to the budget
    for the first reading to decide."""
    time: str
    """End, UTC, ISO 8601."""
    certificate_error: float | None = None
    """Largest error of the check by plain autograd of the 2-sample warm-up; None where the engine
    has no check, or it was not reached. The measured work itself is not checked."""
    certified_samples: int | None = None
    """On how many samples it was made."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**asdict(self), "outcome": self.outcome.value}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Trial":
        """Rebuild what ``to_json`` wrote.

        Raises:
            TypeError: A field is missing or unknown.
            ValueError: An unknown outcome.
        """
        trial = cls(**values)
        return cls(**{**asdict(trial), "outcome": Outcome(trial.outcome)})
