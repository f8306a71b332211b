"""Arguments that the commands of several rooms take, and their checks."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import humanize

from vivit_bench.curvature.options import Blocks
from vivit_bench.errors import UsageError

DEFAULT_CUTOFF = 1e-4
"""Eigenvalues above it count as directions (the paper's threshold)."""

DEFAULT_RESULTS_DIR = Path("results")
RESULTS_VARIABLE = "VIVIT_BENCH_RESULTS"
"""Of the environment: another folder of all results, where no option names one."""

_BINARY = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:([kmgt])?(i?b)?)\s*", re.IGNORECASE)


def parse_size(text: str, option: str = "--memory-limit") -> int:
    """Bytes of ``2GiB``, ``512 MiB``, ``3g``, ``1.5G``, ``2GB`` or ``1000000B``.

    A bare letter and ``KiB`` to ``TiB`` are powers of 1024; ``KB`` to ``TB`` of 1000.

    Args:
        text: What the user typed.
        option: Named in the message.

    Returns:
        Bytes, at least 1.

    Raises:
        UsageError: Not a size, without a unit, less than a byte or 2^63 bytes and more.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{option} {text!r}: not a size; write for example 2GiB, 512MiB or 3g")
    number, prefix, unit = match.groups()
    if not float(number):
        raise UsageError(f"{option} {text!r}: must be at least one byte, for example 2GiB")
    if not prefix and not unit:
        raise UsageError(f"{option} {text}: a unit is missing; write {number}GiB or {number}MiB")
    factors = _DECIMAL if (unit or "").lower() == "b" else _BINARY
    asked = float(number) * factors[(prefix or "").lower()]
    if asked >= 2**63:
        raise UsageError(f"{option} {text[:40]}: no machine has as much; write for example 2GiB")
    size = int(asked)
    if size < 1:
        raise UsageError(f"{option} {text!r}: must be at least one byte, for example 2GiB")
    return size


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """The N of ``128`` or ``32,64,128``, ascending.

    Raises:
        UsageError: Something else than whole numbers from 1, or one of them twice.
    """
    example = "write for example 128, or 32,64,128"
    sizes = []
    for part in text.split(","):
        digits = part.strip()
        # Python refuses to convert thousands of digits.
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= 18) or int(digits) < 1:
            raise UsageError(
                f"--batch-size {text[:60]}: {part[:20]!r} is no number from 1; {example}"
            )
        sizes.append(int(digits))
    if len(set(sizes)) < len(sizes):
        raise UsageError(f"--batch-size {text[:60]}: name each N once")
    return tuple(sorted(sizes))


def format_size(size: int | None) -> str:
    """Bytes for people, in powers of 1024: ``1.5 GiB``; a dash for None."""
    return "-" if size is None else humanize.naturalsize(size, binary=True, format="%.4g")


def format_duration(seconds: float | None) -> str:
    """Time for people: ``2.1 s``, ``45 s``, ``12 min``, ``3 h 20 min``; a dash for None."""
    if seconds is None:
        return "-"
    if 0 < seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def parse_blocks(values: Sequence[str]) -> Blocks | dict[str, list[str]]:
    """The block structure that ``--blocks`` asks for.

    Args:
        values: ``none``, ``layer``, or for each block ``NAME=PATTERN`` (repeated names add up).

    Raises:
        UsageError: Anything else.
    """
    if not values:
        return Blocks.NONE
    if len(values) == 1 and values[0] in list(Blocks):
        return Blocks(values[0])
    blocks: dict[str, list[str]] = {}
    for value in values:
        name, equals, pattern = value.partition("=")
        if not (name and equals and pattern):
            raise UsageError(
                f"--blocks {value}: write none, layer, or NAME=PATTERN for each block, for "
                "example --blocks 'head=fc.*' --blocks 'body=*'"
            )
        blocks.setdefault(name, []).append(pattern)
    return blocks


def check_cutoff(cutoff: float) -> None:
    """Refuse a cutoff that a logarithmic axis has no place for.

    Raises:
        UsageError: The cutoff is not a positive finite number.
    """
    if not (math.isfinite(cutoff) and cutoff > 0):
        raise UsageError(f"--cutoff {cutoff}: must be a positive number, for example 1e-4")


def check_drop_columns(share: float | None) -> None:
    """Refuse a share of the cutoff that dropped columns of V cannot be bounded by.

    Raises:
        UsageError: It is no number from 0 to 1.
    """
    if share is not None and not 0 <= share <= 1:
        raise UsageError(
            f"--drop-columns {share}: bounds the trace of what is dropped, as a share of the "
            "cutoff; give a number from 0 to 1, for example 0.1"
        )


def drop_trace(share: float | None, cutoff: float) -> float | None:
    """The trace that dropped columns may have; None: none is dropped."""
    return None if share is None else share * cutoff


def problem_slug(problem: str) -> str:
    """Turn a problem's name into the start of a file name.

    ``cifar10_3c3d`` stays as it is; ``nets/small.py:make`` becomes ``nets-small-make``.
    The folders are kept, so that two files of the same name do not share results.
    """
    if ":" not in problem:
        return problem
    file, function = problem.rsplit(":", 1)
    return re.sub(r"[^A-Za-z0-9_]+", "-", f"{file.removesuffix('.py')}-{function}").strip("-")
