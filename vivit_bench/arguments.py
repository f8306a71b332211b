"""Arguments that the commands of several rooms take, and their checks."""

import math
import re
from pathlib import Path

from vivit_bench.curvature.options import Curvature
from vivit_bench.errors import UsageError

DEFAULT_CUTOFF = 1e-4
"""Eigenvalues above it count as directions (the paper's threshold)."""

DEFAULT_RESULTS_DIR = Path("results")


def check_mc_samples(curvature: Curvature, mc_samples: int) -> None:
    """Refuse a number of Monte-Carlo samples that is invalid or would be ignored.

    Raises:
        UsageError: ``mc_samples`` is below 1, or given for exact curvature.
    """
    if mc_samples < 1:
        raise UsageError(f"--mc-samples {mc_samples}: must be at least 1")
    if curvature is Curvature.EXACT and mc_samples != 1:
        raise UsageError(
            f"--mc-samples {mc_samples}: exact curvature draws no samples; "
            "leave the option out or add --curvature mc"
        )


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
