"""What a result is the result of, and where it therefore lives."""

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vivit_bench.errors import UsageError
from vivit_bench.store.files import sha256
from vivit_bench.store.same_numbers import newest

LONGEST_NAME = 200
"""Bytes of a folder's name; file systems end at 255, and moved-aside runs get an ending."""
_KEY_DIGITS = 10


class State(StrEnum):
    """How far a stored run is."""

    RUNNING = "running"
    """Under way, or interrupted."""
    FINISHED = "finished"
    FAILED = "failed"
    """It came to an end that running it again would not change (a training that diverges)."""


@dataclass(frozen=True)
class Identity:
    """A result's name, and everything that determines its numbers."""

    experiment: str
    """Folder below the results folder."""
    label: str
    """Readable start of the address, which people type."""
    settings: Mapping[str, Any]
    """What was asked for, JSON-ready: it decides the address."""
    environment: Mapping[str, Any]
    """Code, libraries, machine and data, JSON-ready: a result holds under these only."""
    owns: tuple[str, ...] = ()
    """Patterns of the files a run may write beside ``run.json``; nothing else is ever removed."""
    mendable: tuple[str, ...] = ()
    """Journals that a finished run vouches for: damaged, they lose lines, and the run goes on."""

    def __post_init__(self) -> None:
        for name in ("settings", "environment"):  # as they are read back: lists for tuples
            object.__setattr__(self, name, json.loads(canonical(getattr(self, name))))

    @property
    def key(self) -> str:
        """Hash of the settings."""
        return sha256(canonical(self.settings))[:_KEY_DIGITS]

    @property
    def address(self) -> str:
        """Name of the run's folder: two different settings never share one."""
        label = re.sub(r"[^A-Za-z0-9_.+-]+", "-", self.label).strip("-.") or "run"
        return f"{label[: LONGEST_NAME - _KEY_DIGITS - 1]}-{self.key}"


def canonical(values: Any) -> str:
    """The same text for the same values, whatever their order."""
    return json.dumps(values, sort_keys=True)


def check_name(name: str) -> str:
    """Refuse a run's name that is not one harmless component of a path.

    Returns:
        The name.

    Raises:
        UsageError: With the reason.
    """
    reason = ""
    if not name.strip() or name.startswith("."):
        reason = "must begin with a visible character that is not a dot"
    elif "/" in name or "\\" in name:
        reason = "is a path, not a name; folders are chosen with --results-dir"
    elif any(unicodedata.category(character).startswith("C") for character in name):
        reason = "has control characters"
    elif ".replaced-" in name:
        reason = "has the ending of runs that were moved aside"
    elif len(name.encode(errors="surrogateescape")) > LONGEST_NAME:
        reason = f"is longer than {LONGEST_NAME} bytes"
    if reason:
        raise UsageError(f"--name {name[:60]!r}: {reason}; give for example --name first_try")
    return name


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two flat records, on one line; empty if nothing does.

    Versions of the code that give the same numbers do not.
    """
    names = dict.fromkeys([*new, *old])
    changed = [name for name in names if old.get(name) != new.get(name)]
    if newest(old.get("code")) == newest(new.get("code")):
        changed = [name for name in changed if name != "code"]
    return ", ".join(
        f"{name} {_short(old.get(name))} -> {_short(new.get(name))}" for name in changed
    )


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
