"""What a parent and the child that works for it tell each other.

The child is given a `Spec`. It answers over a pipe with one line of JSON a phase: `Loaded` before
its warm-up, `Ready` when its set-up is done, `Measured` when the work has ended and memory and
clocks are read, and last a `TrialReport`. A child that ends before its report is for the parent to
judge.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from vivit_bench.errors import FailureKind
from vivit_bench.measure.host_memory import MemoryReading

ENGINE = "engine"

REPORT_LOST = 113
"""Exit code of a child whose pipe is gone."""


class Outcome(StrEnum):
    """How a trial ended. Only `OUT_OF_MEMORY` means that the batch does not fit."""

    FITS = "fits"
    """It finished, with finite results, within the memory budget if there is one."""
    OUT_OF_MEMORY = "out-of-memory"
    """It needs more memory than the budget."""
    TIMEOUT = "timeout"
    """It was stopped after its seconds were over, within the budget until then."""
    LIMIT = "limit"
    """A limit that is neither memory nor data: a 32-bit size of LAPACK."""
    DATA = "data"
    """The data have fewer samples."""
    ERROR = "error"
    """Anything else: no statement about memory."""


class Reading(StrEnum):
    """What is read of a child. One run cannot give both: exact memory makes the work slower."""

    MEMORY = "memory"
    """Its peak, made to repeat: fixed addresses, an allocator that returns what is freed."""
    TIME = "time"
    """Its clocks, in the environment of any other process."""


@dataclass(frozen=True)
class Spec:
    """What a child is to do."""

    n: int
    """Batch size N."""
    threads: int
    """CPU threads of every library."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the work; plain JSON types."""
    work: str = ENGINE
    """See `vivit_bench.measure.work.load_work`."""
    reading: Reading = Reading.MEMORY
    limit_bytes: int | None = None
    """The budget over the idle process; None: none, and no limit is set."""
    device: str = "cpu"
    """Whose memory is read: ``cpu`` or ``cuda:i``."""
    whole_process: bool = False
    """Count, and limit, all of the process and its memory of the device, not what is over the idle
    process."""
    one_cpu: bool = False
    """Keep all threads on one CPU during the work, where memory is counted exactly."""
    certify: bool = False
    """Check the work by plain autograd once it is measured."""
    digest: bool = False
    """Report some numbers of the result."""
    warm_runs: int = 0
    """Times the whole work is done before it is measured, in the same time-out."""

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """Rebuild what ``to_json`` wrote."""
        values = json.loads(text)
        return cls(**{**values, "reading": Reading(values["reading"])})


@dataclass(frozen=True)
class Loaded:
    """Libraries, model and data are there; what is left of the set-up is as short as the work."""


@dataclass(frozen=True)
class Ready:
    """Libraries, model and data are loaded, and a warm-up on a few samples is done."""

    idle_bytes: int | None = None
    """Memory of the idle process (on CUDA devices allocated memory); None if not read."""
    memory: MemoryReading | None = None
    """The child's full reading of itself; None on CUDA devices."""
    other_bytes: int = 0
    """Memory of other processes that the set-up has started."""
    outside_bytes: int | None = None
    """Memory in use on a CUDA device beyond what this process's allocator has reserved: its CUDA
    context and libraries, and all that other processes have; the device tells no more."""
    certificate_error: float | None = None
    """Largest error of the warm-up's check; None where the work has none."""
    certified_samples: int | None = None
    """On how many samples it was made."""
    counted_bytes: int = 0
    """Memory of the idle process that counts as the work's, where all of the process does."""


@dataclass(frozen=True)
class Measured:
    """The work has ended, well or badly; nothing that happens later counts."""

    memory: MemoryReading | None = None
    """The child's reading of itself; None on CUDA devices and where time is taken."""
    peak_bytes: int | None = None
    """Over the idle process, on CUDA devices."""
    absolute_peak_bytes: int | None = None
    """On CUDA devices."""
    reserved_peak_bytes: int | None = None
    """Over the idle process, of what the allocator of a CUDA device has reserved, where the limit
    acts; it holds more than what is allocated."""
    refused_allocations: int | None = None
    """By the allocator of a CUDA device since "ready", also those that a library did without."""
    free_bytes: int | None = None
    """Of a CUDA device with a limit, whoever uses the rest."""
    allowed_bytes: int | None = None
    """That the limit would still have let the allocator of a CUDA device reserve."""
    other_bytes: int = 0
    """Memory of other processes that work for this one."""
    other_processes: int = 0
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    """User and system, of all threads of the child."""
    minor_faults: int | None = None
    """Pages that the child touched first, or again after it had given them back."""


@dataclass(frozen=True)
class TrialReport:
    """A child's last message."""

    failure: FailureKind | None = None
    """None if the work was done and its results are sound."""
    message: str = ""
    """Why it failed, on one line."""
    usage_error: bool = False
    """Whether that is the user's to mend: a wrong value, name, file or model."""
    available_samples: int | None = None
    """Samples there are, where there are too few."""
    digest: dict[str, Any] = field(default_factory=dict)
    """Numbers of the result, see `vivit_bench.measure.work.Work.digest`."""
    certificate_error: float | None = None
    """Largest error of the check of the work itself; None if it was not asked for or there is
    none."""
    certificate_seconds: float | None = None
    certified_samples: int | None = None


Message = Loaded | Ready | Measured | TrialReport

_PHASES: dict[str, type[Message]] = {
    "loaded": Loaded,
    "ready": Ready,
    "measured": Measured,
    "report": TrialReport,
}


def encode(message: Message) -> bytes:
    """A message as the line that `decode` reads."""
    phase = next(name for name, kind in _PHASES.items() if isinstance(message, kind))
    return json.dumps({"phase": phase, **asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Read a message.

    Raises:
        ValueError: It is none.
    """
    try:
        values = json.loads(line)
        kind = _PHASES[values.pop("phase")]
        if set(values) != {each.name for each in fields(kind)}:
            raise ValueError("fields are missing or unknown")
        if values.get("memory") is not None:
            values["memory"] = MemoryReading(**values["memory"])
        if values.get("failure") is not None:
            values["failure"] = FailureKind(values["failure"])
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError("not a message of a child") from error
    return kind(**values)
