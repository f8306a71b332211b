"""What a job asks Slurm for: ``--slurm key=value,...``, CPUs from threads, memory from a budget."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vivit_bench.arguments import format_size, parse_size
from vivit_bench.errors import UsageError

OPTION = "--slurm"
_PLAIN = ("account", "constraint", "exclude", "gres", "nodelist", "partition", "qos")
"""Keys that are handed to Slurm as they are, and that submitit has names for."""
KEYS = tuple(sorted((*_PLAIN, "exclusive", "mem", "reservation", "time")))
EXAMPLE = f"{OPTION} partition=long,time=12:00:00"

MIB = 2**20
IDLE_BYTES = 4_096 * MIB
"""What a job takes beside its budget, 4 GiB.

A trial's idle process is 0.6 to 2.5 GiB, which depends on PyTorch's build; a real data set in
memory is up to 0.7 GiB more (CIFAR-10 in float32); the search's own process takes 0.6 GiB. The rest
is for pages of files, which control groups count.
"""

_DAYS = re.compile(r"(\d{1,4})-(\d{1,2})(?::(\d{1,2}))?(?::(\d{1,2}))?")
_HOURS = re.compile(r"(\d{1,6})(?::(\d{1,2}))?(?::(\d{1,2}))?")
_MOST_WARNING_SECONDS = 60


@dataclass(frozen=True)
class Request:
    """What each job of a command asks for."""

    options: Mapping[str, str]
    """Those of `KEYS` that the user gave, ``mem`` and ``time`` included."""
    cpus: int
    memory_bytes: int
    minutes: int | None
    """Longest time of a job; None for the partition's."""

    @property
    def memory(self) -> str:
        """As Slurm takes it, in MiB."""
        return f"{math.ceil(self.memory_bytes / MIB)}M"

    def parameters(self, name: str, node: str | None) -> dict[str, Any]:
        """Of one job, as `submitit.SlurmExecutor.update_parameters` takes them.

        Args:
            name: Of the job. Slurm runs no two jobs of a user that have the same name at once.
            node: Where it must run; None where that is open. The user's ``nodelist`` goes before.
        """
        others: dict[str, Any] = {"no_requeue": True}  # the same command goes on, on the same node
        if "reservation" in self.options:
            others["reservation"] = self.options["reservation"]
        found: dict[str, Any] = {key: self.options[key] for key in _PLAIN if key in self.options}
        if node is not None:
            found.setdefault("nodelist", node)
        if self.options.get("exclusive") == "yes":
            found["exclusive"] = True
        warning = _MOST_WARNING_SECONDS
        if self.minutes is not None:
            warning = min(warning, 6 * self.minutes)
        return {
            **found,
            "job_name": name,
            "dependency": "singleton",
            "time": self.minutes,
            "mem": self.memory,
            "cpus_per_task": self.cpus,
            # Slurm's srun does not take the CPUs over from the job.
            "srun_args": [f"--cpus-per-task={self.cpus}"],
            "signal_delay_s": warning,
            "additional_parameters": others,
        }

    def line(self) -> str:
        """For people: ``cpus=2 mem=5837M partition=long time=720``."""
        values = {
            **self.options,
            "cpus": str(self.cpus),
            "mem": self.memory,
            "time": "the partition's" if self.minutes is None else f"{self.minutes} min",
        }
        return ", ".join(f"{key}={value}" for key, value in sorted(values.items()))


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """Keys and values of ``--slurm``, which may be repeated.

    Args:
        texts: What the user typed, each ``key=value,key=value``.

    Returns:
        Key -> value, in the order of the keys.

    Raises:
        UsageError: An unknown key, one that is given twice, or a value that cannot be.
    """
    found: dict[str, str] = {}
    for part in (part for text in texts for part in text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise UsageError(f"{OPTION} {part[:60]!r}: write key=value, for example {EXAMPLE}")
        if key == "cpus":
            raise UsageError(f"{OPTION} {part[:60]}: CPUs are asked for by --threads {value[:9]}")
        if key not in KEYS:
            raise UsageError(f"{OPTION} {part[:60]}: {key} is no key; there are {', '.join(KEYS)}")
        if found.get(key, value) != value:
            raise UsageError(f"{OPTION} {key}={value[:60]}: it is {found[key]} already; give one")
        if any(character.isspace() for character in value):
            raise UsageError(f"{OPTION} {key}={value[:60]!r}: no value has spaces")
        found[key] = value
    if found.get("exclusive", "yes") != "yes":
        raise UsageError(f"{OPTION} exclusive={found['exclusive']}: write exclusive=yes")
    if "time" in found:
        parse_minutes(found["time"])
    if "mem" in found:
        parse_memory(found["mem"])
    return dict(sorted(found.items()))


def make_request(options: Mapping[str, str], threads: int | None, budget_bytes: int) -> Request:
    """What each job asks for.

    Args:
        options: From `parse_options`.
        threads: CPU threads of the work; None where the user named none.
        budget_bytes: That the work may take over its idle process. Without ``mem``, a job asks for
            it and for `IDLE_BYTES`.

    Raises:
        UsageError: No threads, or ``mem`` is less than the budget.
    """
    if threads is None:
        raise UsageError(
            "--executor slurm: how many CPUs a job asks for is not said, and this machine's say "
            "nothing of the cluster's; add --threads N"
        )
    asked = parse_memory(options["mem"]) if "mem" in options else budget_bytes + IDLE_BYTES
    if asked < budget_bytes:
        raise UsageError(
            f"{OPTION} mem={options['mem']}: the work may take {format_size(budget_bytes)} over "
            f"its idle process, and Slurm would kill it; ask for mem="
            f"{math.ceil((budget_bytes + IDLE_BYTES) / MIB)}M, or leave mem out"
        )
    minutes = parse_minutes(options["time"]) if "time" in options else None
    return Request(dict(options), threads, asked, minutes)


def parse_memory(text: str) -> int:
    """Bytes of ``mem=``.

    Raises:
        UsageError: It is no size.
    """
    return parse_size(text, f"{OPTION} mem=")


def parse_minutes(text: str) -> int:
    """Minutes, rounded up, of ``m``, ``m:s``, ``h:m:s``, ``d-h``, ``d-h:m`` or ``d-h:m:s``.

    Raises:
        UsageError: Another text, or no time at all.
    """
    seconds = 0
    if match := _DAYS.fullmatch(text):
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    elif match := _HOURS.fullmatch(text):
        parts = [int(part) for part in match.groups() if part is not None]
        parts = [0, *parts] if len(parts) == 2 else parts
        first, second, third = parts if len(parts) == 3 else (0, parts[0], 0)
        seconds = (first * 60 + second) * 60 + third
    if seconds < 1:
        raise UsageError(
            f"{OPTION} time={text[:40]}: write minutes, hours:minutes:seconds or days-hours, for "
            "example time=90, time=12:00:00 or time=2-0"
        )
    return math.ceil(seconds / 60)
