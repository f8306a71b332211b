"""What a child is told to do."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from vivit_bench.critical_batch.workloads import ENGINE


@dataclass(frozen=True)
class TrialSpec:
    """One run of one batch size."""

    n: int
    """Batch size N."""
    limit_bytes: int
    """The budget, over the idle process."""
    threads: int
    """CPU threads of every library."""
    work: dict[str, Any] = field(default_factory=dict)
    """Arguments of the workload."""
    workload: str = ENGINE
    """See `load_workload`."""
    device: str = "cpu"
    """Whose memory is limited: ``cpu`` or ``cuda:i``."""
    one_cpu: bool = False
    """Keep all threads on one CPU during the work, where memory is counted exactly."""
    parent: int = 0
    """Process the child must not outlive."""

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "TrialSpec":
        """Rebuild what ``to_json`` wrote."""
        return cls(**json.loads(text))
