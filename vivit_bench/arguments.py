"""Arguments that the commands of several rooms take, and their checks."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from vivit_bench.curvature.options import Blocks
from vivit_bench.errors import UsageError

DEFAULT_CUTOFF = 1e-4
"""Eigenvalues above it count as directions (the paper's threshold)."""

DEFAULT_RESULTS_DIR = Path("results")


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


def problem_slug(problem: str) -> str:
    """Turn a problem's name into the start of a file name.

    ``cifar10_3c3d`` stays as it is; ``nets/small.py:make`` becomes ``nets-small-make``.
    The folders are kept, so that two files of the same name do not share results.
    """
    if ":" not in problem:
        return problem
    file, function = problem.rsplit(":", 1)
    return re.sub(r"[^A-Za-z0-9_]+", "-", f"{file.removesuffix('.py')}-{function}").strip("-")
