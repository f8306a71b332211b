"""The numbers of two runs of the same settings, one beside the other."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from vivit_bench.audit.change import ROUNDING, Change, Good, Verdict, exact, peak, rounded
from vivit_bench.critical_batch.records import finished_records
from vivit_bench.measure import Outcome
from vivit_bench.store import State, StoredRun

Blank = Callable[[str], Change]
"""A change with everything but number and result, for a number's name."""
_NOT_COMPARED = ("step", "epoch", "direction", "certificate_error")
"""Columns of noise tables that say where a row stands, and one that is itself nothing but rounding:
beyond that nothing is stored."""


def critical_batch(first: StoredRun, second: StoredRun, blank: Blank) -> Iterator[Change]:
    """Size, what ended the search, and the peak of the largest N that fits in both."""
    old, new = first.results, second.results
    yield _size(old, new, blank("critical_batch_size"))
    yield _text(blank("stopped_by"), old["stopped_by"], new["stopped_by"])
    peaks = [_peaks(stored) for stored in (first, second)]
    if common := peaks[0].keys() & peaks[1].keys():
        n = max(common)
        yield peak(blank(f"peak_bytes at N = {n}"), peaks[0][n], peaks[1][n])


def _size(old: dict[str, Any], new: dict[str, Any], blank: Change) -> Change:
    before, after = old["critical_batch_size"], new["critical_batch_size"]
    found = exact(blank, before, after, Good.MORE)
    smaller = old if before < after else new
    if before != after and smaller["is_lower_bound"]:
        reason = f"the smaller one is a lower bound: the search ended by {smaller['stopped_by']}"
        return replace(found, verdict=Verdict.CANNOT_TELL, reason=reason)
    return found


def _peaks(stored: StoredRun) -> dict[int, int]:
    trials = finished_records(stored).trials.values()
    fit = (each for each in trials if each.outcome is Outcome.FITS and each.repeat == 0)
    return {each.n: each.peak_bytes for each in fit if each.peak_bytes is not None}


def spectrum(first: StoredRun, second: StoredRun, blank: Blank) -> Iterator[Change]:
    """Eigenvalues over the largest one, trace, loss, and how many are above the cutoff."""
    from vivit_bench.spectrum.record import load_spectrum

    old, new = load_spectrum(first), load_spectrum(second)
    tolerance = ROUNDING[str(first.settings["dtype"])]
    yield rounded(
        blank("eigenvalues"), old.eigenvalues.tolist(), new.eigenvalues.tolist(), tolerance
    )
    for name in ("trace", "loss"):
        yield rounded(blank(name), [getattr(old, name)], [getattr(new, name)], tolerance)
    counts = blank("num_above_cutoff")
    yield exact(counts, old.num_above_cutoff, new.num_above_cutoff, Good.NEITHER)


def noise(first: StoredRun, second: StoredRun, blank: Blank) -> Iterator[Change]:
    """Every column of the three tables, over its largest value; gamma without its sign.

    Of trainings that diverged also where.
    """
    from vivit_bench.noise.records import CHECKPOINTS, CURVES, DIRECTIONS

    if first.state is State.FAILED:
        old, new = (each.results["diverged_at"] for each in (first, second))
        yield exact(blank("diverged_at step"), old["step"], new["step"], Good.NEITHER)
        yield _text(blank("diverged_at loss"), old["loss"], new["loss"])
    for name in (CURVES, CHECKPOINTS, DIRECTIONS):
        tables = [_noise_table(each, name) for each in (first, second)]
        if name == DIRECTIONS:  # an eigenvector's sign is arbitrary
            tables = [table.assign(gamma=table["gamma"].abs()) for table in tables]
        named = partial(_named, blank, name.removesuffix(".csv"))
        yield from _columns(tables[0], tables[1], ROUNDING["float32"], named)


def _noise_table(stored: StoredRun, name: str) -> pd.DataFrame:
    """A table of a training; without a row where it diverged before there was one."""
    from vivit_bench.noise.records import COLUMNS

    if stored.state is State.FAILED and name not in stored.files:
        return pd.DataFrame(columns=COLUMNS[name], dtype=float)
    return pd.read_csv(io.BytesIO(stored.read(name)))


def quadratic(first: StoredRun, second: StoredRun, blank: Blank) -> Iterator[Change]:
    """The losses of every optimizer, over the largest one, and the dampings that were chosen."""
    from vivit_bench.quadratic.records import load_results

    old, new = load_results(first), load_results(second)
    for label in old.losses["optimizer"].drop_duplicates():
        before, after = (
            each.losses.loc[each.losses["optimizer"] == label, "loss"].tolist()
            for each in (old, new)
        )
        yield rounded(blank(f"loss of {label}"), before, after, ROUNDING["float64"])
    before, after = (each.dampings["damping"].tolist() for each in (old, new))
    yield rounded(blank("dampings"), before, after, ROUNDING["float64"])


def _named(blank: Blank, table: str, column: str) -> Change:
    return blank(f"{table} {column}")


def _columns(
    old: pd.DataFrame, new: pd.DataFrame, tolerance: float, blank: Blank
) -> Iterator[Change]:
    for column in old:
        if column not in _NOT_COMPARED:
            before, after = old[column].tolist(), new[column].tolist()
            yield rounded(blank(str(column)), before, after, tolerance)


def _text(blank: Change, before: str, after: str) -> Change:
    verdict = Verdict.SAME if before == after else Verdict.CHANGED
    return replace(blank, before=before, after=after, verdict=verdict)
