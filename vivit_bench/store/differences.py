"""What tells two records apart, for the user to read."""

from typing import Any


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two flat records, on one line; empty if nothing does."""
    names = dict.fromkeys([*new, *old])
    changed = [name for name in names if old.get(name) != new.get(name)]
    return ", ".join(
        f"{name} {_short(old.get(name))} -> {_short(new.get(name))}" for name in changed
    )


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
