"""Spectra of one training run: the stored ones of several checkpoints, in their order."""

import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from vivit_bench.curvature.options import Curvature, Samples
from vivit_bench.errors import UsageError
from vivit_bench.problems.catalogue import find_spec, is_user_problem
from vivit_bench.spectrum.record import EXPERIMENT
from vivit_bench.spectrum.stored import clashes, command_of, is_variant
from vivit_bench.store import StoredRun, nothing_found, stored_runs

# Checkpoints differ in them on purpose.
APART = ("checkpoint", "model")

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def check_checkpoints(checkpoints: Sequence[Path]) -> None:
    """Refuse several that cannot be computed or drawn one after the other.

    Raises:
        UsageError: One is given twice.
    """
    for number, file in enumerate(checkpoints):
        if file in checkpoints[:number]:
            raise UsageError(f"--checkpoint {file} is given twice; give each once")


def stored_over_training(
    problem: str,
    results_dir: Path,
    *,
    curvature: Curvature = Curvature.EXACT,
    samples: Samples = Samples.FULL,
    mc_samples: int = 1,
    checkpoints: Sequence[Path] = (),
    any_cutoff: bool = False,
    **chosen: Any,
) -> tuple[list[StoredRun], list[str]]:
    """Find the stored spectra of a problem's checkpoints.

    Args:
        problem: DeepOBS name or ``path/to/file.py:function``.
        results_dir: Folder of all results.
        curvature: Of the approximation.
        samples: Of the approximation.
        mc_samples: M, for Monte-Carlo curvature.
        checkpoints: Which, in the order that is wanted; empty: all that are stored, in the order
            of the numbers in their names.
        any_cutoff: Whether spectra may have different cutoffs, as another is chosen.
        chosen: Settings that they must have; None: those of the only ones that are stored.

    Returns:
        A run per checkpoint, and lines on what else lies there: damaged spectra, and older ones of
        the same file with other weights.

    Raises:
        UsageError: An unknown problem, fewer than two checkpoints, one that is not stored, spectra
            that differ in more than the checkpoint, or names without an order.
    """
    check_checkpoints(checkpoints)
    runs, notes = stored_runs(results_dir, EXPERIMENT)
    wanted = {str(file) for file in checkpoints}
    fitting = [
        run
        for run in runs
        if is_variant(run, problem, mc_samples, chosen)
        and (run.settings["curvature"], run.settings["samples"]) == (curvature, samples)
        and run.settings["checkpoint"] is not None
        and (not wanted or run.settings["checkpoint"] in wanted)
    ]
    apart = (*APART, *(["cutoff"] if any_cutoff else []))
    if ways := clashes(fitting, apart):
        raise UsageError(f"{problem}: the stored spectra differ in {ways}")
    by_file, older = _newest(fitting)
    missing = [str(file) for file in checkpoints if str(file) not in by_file]
    if missing or len(by_file) < 2:
        if not fitting and not is_user_problem(problem):
            find_spec(problem)  # A misspelt name is told so, with the nearest one.
        options = {"curvature": curvature, "samples": samples, "mc_samples": mc_samples, **chosen}
        usual = {"curvature": "exact", "samples": "full", "mc_samples": 1}
        typed = {k: v for k, v in options.items() if v is not None and v != usual.get(k)}
        command = command_of(problem, results_dir, typed, "compute")
        files = [shlex.quote(file) for file in missing or ["FIRST.pt", "SECOND.pt"]]
        what = f"{curvature}, {samples} spectra"
        found = (
            f"no {what} of {', '.join(missing)}"
            if missing
            else f"{what} of {len(by_file)} checkpoints, and a figure over training needs two,"
        )
        raise nothing_found(
            f"{problem}: {found} in {results_dir / EXPERIMENT}",
            notes,
            f"make them with: {command} {' '.join(f'--checkpoint {file}' for file in files)}",
        )
    order = [str(file) for file in checkpoints] or by_numbers(list(by_file))
    return [by_file[file] for file in order], [*notes, *older]


def by_numbers(files: Sequence[str]) -> list[str]:
    """Files in the order of the numbers in their names, the first number first.

    Raises:
        UsageError: A name has none, has more or fewer than the others, or the same as another.
    """
    by_file = dict(zip(files, map(numbers_in, short_names(files)), strict=True))
    if reason := _no_order(by_file):
        raise UsageError(
            f"the names of the checkpoints say no order, as {reason}; give it with --checkpoint "
            "FIRST --checkpoint SECOND ..."
        )
    return sorted(files, key=lambda file: by_file[file])


def _no_order(by_file: Mapping[str, tuple[float, ...]]) -> str:
    """Why numbers of names put files in no order; empty if they do."""
    first, *others = by_file
    for file in others:
        if len(by_file[file]) != len(by_file[first]):
            counts = (f"{name} has {len(by_file[name])} numbers" for name in (first, file))
            return " and ".join(counts).replace(" 1 numbers", " 1 number")
    if not by_file[first]:
        return f"{first} has no number"
    seen: dict[tuple[float, ...], str] = {}
    for file, numbers in by_file.items():
        if (same := seen.setdefault(numbers, file)) != file:
            return f"{same} and {file} have the same numbers"
    return ""


def short_names(files: Sequence[str]) -> list[str]:
    """What tells files apart: their stems, or the parts of their paths that are not in common.

    >>> short_names(["run/epoch_1.pt", "run/epoch_2.pt"])
    ['epoch_1', 'epoch_2']
    >>> short_names(["run/step-10/model.bin", "run/step-20/model.bin"])
    ['step-10', 'step-20']
    """
    stems = [Path(file).stem for file in files]
    if len(set(stems)) == len(files):
        return stems
    parts = [list(Path(file).parts) for file in files]
    for end in (0, -1):
        while all(len(own) > 1 for own in parts) and len({own[end] for own in parts}) == 1:
            for own in parts:
                own.pop(end)
    return ["/".join(own) for own in parts]


def numbers_in(name: str) -> tuple[float, ...]:
    """Every number of a name, in turn."""
    return tuple(float(number) for number in _NUMBER.findall(name))


def varying_number(names: Sequence[str]) -> tuple[str, list[float]] | None:
    """What a number that grows from name to name is called, and its values.

    Returns:
        Of the first number that is not everywhere the same: the word before it (or behind it, or
        "checkpoint"), and its value in each name. None if it does not grow, or names differ in how
        many numbers they have.
    """
    rows = [numbers_in(name) for name in names]
    if len({len(row) for row in rows}) != 1:
        return None
    for place, values in enumerate(zip(*rows, strict=True)):
        if len(set(values)) > 1:
            grows = all(a < b for a, b in pairwise(values))
            return (_word(names[0], place), list(values)) if grows else None
    return None


def _word(name: str, place: int) -> str:
    """The letters beside a name's number, such as ``epoch`` in ``epoch=3-step=300``."""
    found = list(_NUMBER.finditer(name))[place]
    before = re.search(r"([A-Za-z]+)[^A-Za-z\d]*$", name[: found.start()])
    behind = re.match(r"[^A-Za-z\d]*([A-Za-z]+)", name[found.end() :])
    word = before or behind
    return word.group(1) if word else "checkpoint"


def _newest(runs: Sequence[StoredRun]) -> tuple[dict[str, StoredRun], list[str]]:
    """Checkpoint -> its newest spectrum; and a line on each older one of other weights.

    The file has been written anew since: the newest spectrum is that of what it held last.
    """
    newest: dict[str, StoredRun] = {}
    lines = []
    for run in sorted(runs, key=lambda run: str(run.provenance["started_at"]), reverse=True):
        file = run.settings["checkpoint"]
        kept = newest.setdefault(file, run)
        if kept.settings["model"] != run.settings["model"]:
            lines.append(
                f"{run.folder}: of other weights that {file} held before; {kept.folder.name} is "
                "drawn"
            )
    return newest, lines
