"""Sizes in bytes as people write them."""

import re

import humanize

from vivit_bench.errors import UsageError

_BINARY = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:([kmgt])?(i?b)?)\s*", re.IGNORECASE)


def parse_size(text: str, option: str = "--memory-limit") -> int:
    """Bytes of ``2GiB``, ``512 MiB``, ``3g``, ``1.5G``, ``2GB`` or ``1000000``.

    A bare letter and ``KiB`` to ``TiB`` are powers of 1024; ``KB`` to ``TB`` of 1000.

    Args:
        text: What the user typed.
        option: Named in the message.

    Returns:
        Bytes, at least 1.

    Raises:
        UsageError: Not a size, or less than a byte.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise UsageError(f"{option} {text!r}: not a size; write for example 2GiB, 512MiB or 3g")
    number, prefix, unit = match.groups()
    factors = _DECIMAL if (unit or "").lower() == "b" else _BINARY
    size = int(float(number) * factors[(prefix or "").lower()])
    if size < 1:
        raise UsageError(f"{option} {text!r}: must be at least one byte, for example 2GiB")
    return size


def format_size(size: int | None) -> str:
    """Bytes for people, in powers of 1024: ``1.5 GiB``; a dash for None."""
    return "-" if size is None else humanize.naturalsize(size, binary=True, format="%.4g")
