"""Two comparisons of engines of the same settings, one beside the other."""

from collections.abc import Iterator
from dataclasses import replace

from vivit_bench.audit.change import Change, Verdict, peak
from vivit_bench.audit.numbers import Blank
from vivit_bench.audit.times import Times, rounds_of
from vivit_bench.comparison.compare import AGREEMENT, Record, RunKind, difference
from vivit_bench.comparison.stored import records_of
from vivit_bench.curvature.options import Curvature
from vivit_bench.measure import Outcome
from vivit_bench.store import StoredRun


def comparison(first: StoredRun, second: StoredRun, blank: Blank) -> Iterator[Change | Times]:
    """Of every engine how it ended, its peak, its results and its times.

    Times are told together with those of all other comparisons, see `time_changes`.
    """
    old, new = records_of(first), records_of(second)
    on_cpu = first.settings["device"] == "cpu"
    kinds = ["wall_seconds", *(["cpu_seconds"] if on_cpu else [])]
    threads = first.settings["threads"] if on_cpu else None
    for engine in first.settings["engines"]:
        before, after = old.get(engine, []), new.get(engine, [])
        ended = _outcome(blank(f"{engine} outcome"), before, after)
        yield ended
        if {ended.before, ended.after} != {Outcome.FITS.value}:
            continue
        yield from _memory(before, after, engine, first, blank)
        rounds = rounds_of(before), rounds_of(after)
        yield from (Times(blank(f"{engine} {kind}"), *rounds, kind, threads) for kind in kinds)


def _outcome(blank: Change, before: list[Record], after: list[Record]) -> Change:
    old, new = _ending(before), _ending(after)
    found = replace(blank, before=old.value, after=new.value, verdict=Verdict.SAME)
    if old is new:
        return found
    if new is Outcome.FITS:
        return replace(found, verdict=Verdict.BETTER)
    if old is Outcome.FITS:
        return replace(found, verdict=Verdict.WORSE, change=float("inf"))
    return replace(found, verdict=Verdict.CHANGED)


def _ending(records: list[Record]) -> Outcome:
    return next((each.outcome for each in records if each.failure), Outcome.FITS)


def _memory(
    before: list[Record], after: list[Record], engine: str, run: StoredRun, blank: Blank
) -> Iterator[Change]:
    """What the memory runs tell: the peak, and the results."""
    found = [
        next((each for each in records if each.kind is RunKind.MEMORY), None)
        for records in (before, after)
    ]
    if (old := found[0]) is None or (new := found[1]) is None:
        return
    if old.peak_bytes is not None and new.peak_bytes is not None:
        yield peak(blank(f"{engine} peak_bytes"), old.peak_bytes, new.peak_bytes)
    off = difference(new.digest, old.digest)
    if off is None or run.settings["curvature"] != Curvature.EXACT:  # draws may differ
        return
    tolerance = AGREEMENT["eigenvalues" if "eigenvalues" in old.digest else "step"]
    verdict = Verdict.SAME if off == 0 else Verdict.ROUNDING
    if off > tolerance:
        verdict = Verdict.CHANGED
    yield replace(blank(f"{engine} results"), verdict=verdict, change=off, tolerance=tolerance)
