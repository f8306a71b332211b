"""Interleaved measurement of engines, run by run, and what is made of it.

Every engine has one run whose memory is read, exactly as a trial's of a critical batch size, and
several whose time is taken. What is said of an engine follows from the records of its runs alone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from statistics import median
from typing import Any

from vivit_bench.comparison import reference
from vivit_bench.comparison.intervals import median_interval
from vivit_bench.comparison.reference import Reference
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.measure import Observation, Outcome, Reading, Spec, measure
from vivit_bench.measure.budget import NOISE_BYTES
from vivit_bench.measure.verdict import Kill

AGREEMENT = {"eigenvalues": 1e-3, "step": 1e-2}
"""Largest relative deviation within which two engines agree, in float32: of the leading
eigenvalues, and of steps (LAPACK's float32 solver, which some use, is good to 2e-3)."""

EngineArguments = dict[str, Any]
"""Keywords of `vivit_bench.measure.work.EngineWork` but the engine."""


AT_A_LIMIT = frozenset({Outcome.OUT_OF_MEMORY, Outcome.TIMEOUT, Outcome.LIMIT, Outcome.DATA})
"""Endings that say something of N; `Outcome.ERROR` says something of the engine or the machine."""


class EngineFailedError(VivitBenchError):
    """The work of a batch size failed, and not because of what was typed."""


class RunKind(StrEnum):
    """What a run was for. No run gives both: exact memory makes the work slower."""

    MEMORY = "memory"
    TIME = "time"


@dataclass(frozen=True)
class Record:
    """One run of one engine."""

    engine: str
    kind: RunKind
    repeat: int
    """0, 1, ... of its kind."""
    ended_at: str
    """UTC, ISO 8601."""
    outcome: Outcome = Outcome.FITS
    """How it ended. There is no budget: out of memory means that the machine's ran out, or low."""
    failure: str = ""
    """Why it has no figures, on one line; empty if it has."""
    usage_error: bool = False
    """Whether the failure is the user's to mend."""
    wall_seconds: float | None = None
    """Of the work, after a warm-up (on a CUDA device of the same N); of time runs only, as the
    next."""
    cpu_seconds: float | None = None
    """User and system, of all threads."""
    minor_faults: int | None = None
    """Pages the work touched first, or again after it had given them back."""
    peak_bytes: int | None = None
    """Over the idle process, of the device's memory; of memory runs only, as all that follow."""
    idle_bytes: int | None = None
    other_processes: int = 0
    """Processes that the engine started and whose memory is part of the peak."""
    certificate_error: float | None = None
    """Largest error of the engine's check by plain autograd, made after the reading."""
    certificate_seconds: float | None = None
    digest: dict[str, Any] = field(default_factory=dict)
    """``eigenvalues``, the 10 leading ones; or ``step_norm`` and ``step_projections``, see
    `vivit_bench.measure.work.project`; empty for the gradient alone."""
    reference: Reference | None = None
    """Of time runs what the reference took beside the work; None in records of earlier versions,
    and where the time-out is too short for it."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**asdict(self), "kind": self.kind.value, "outcome": self.outcome.value}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Record":
        """Rebuild what ``to_json`` wrote.

        Raises:
            TypeError: A field is missing or unknown.
            ValueError: An unknown kind or outcome.
        """
        record = cls(**values)
        # Records of earlier versions do not say how a run failed.
        outcome = Outcome.ERROR if record.failure else Outcome.FITS
        outcome = Outcome(values.get("outcome", outcome))
        beside = values.get("reference")
        beside = None if beside is None else Reference.from_json(beside)
        return replace(record, kind=RunKind(record.kind), outcome=outcome, reference=beside)


def compare_engines(
    work: EngineArguments,
    engines: Sequence[str],
    n: int,
    *,
    threads: int,
    repeats: int,
    timeout_seconds: float = 600.0,
    base_may_fail: bool = False,
    done: Sequence[Record] = (),
    record: Callable[[Record], None] = lambda _: None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Record]:
    """Run the engines in turn, A B A B ..., every run in a fresh process.

    Args:
        work: What is computed.
        engines: Names; the first is the base, with which the others are compared.
        n: Mini-batch size.
        threads: CPU threads.
        repeats: Time runs of each engine; one memory run comes before.
        timeout_seconds: For the work of one run; a warm-up of the same N may take as long.
        base_may_fail: Take a base that ends at a limit of this N (`AT_A_LIMIT`) for a result,
            as any other engine; the others are measured all the same.
        done: Records of an interrupted comparison of the same; their runs are not made again,
            but the base's that failed.
        record: Is given each new record before the next run begins.
        progress: Told of each run before it starts.

    Returns:
        All records, those that were done among them. An engine that fails once is not run again.

    Raises:
        UsageError: The base cannot do the work.
        EngineFailedError: It failed.
    """

    def ends_it(each: Record) -> bool:
        accepted = base_may_fail and each.outcome in AT_A_LIMIT
        return bool(each.failure) and each.engine == engines[0] and not accepted

    records = [each for each in done if not ends_it(each)]
    for kind, repeat in [(RunKind.MEMORY, 0), *((RunKind.TIME, k) for k in range(repeats))]:
        for engine in engines:
            own = [each for each in records if each.engine == engine]
            if any(each.failure or (each.kind, each.repeat) == (kind, repeat) for each in own):
                continue
            what = f"time {repeat + 1} of {repeats}" if kind is RunKind.TIME else "memory"
            progress(f"{what}: {engine}")
            spec = _spec({**work, "engine": engine}, n, threads, kind, timeout_seconds)
            seconds = timeout_seconds * (1 + spec.warm_runs)
            made = _to_record(engine, kind, repeat, measure(spec, seconds))
            record(made)
            records.append(made)
            if ends_it(made):
                error = UsageError if made.usage_error else EngineFailedError
                raise error(f"engine {engine!r} failed: {made.failure}")
    return records


def _spec(
    arguments: dict[str, Any], n: int, threads: int, kind: RunKind, timeout_seconds: float
) -> Spec:
    common: dict[str, Any] = {
        "n": n,
        "threads": threads,
        "reading": Reading(kind.value),
        "device": arguments["device"],
        "digest": True,
    }
    if kind is RunKind.MEMORY:
        return Spec(arguments=arguments, certify=True, **common)
    # The first work of an N on a CUDA device loads its kernels and makes cuDNN's plans.
    first_is_slow = arguments["device"] != "cpu"
    return Spec(
        work=reference.NAME,
        arguments={**arguments, "most_seconds": timeout_seconds / 4},
        warm_runs=1 if first_is_slow else 0,
        **common,
    )


def _to_record(engine: str, kind: RunKind, repeat: int, seen: Observation) -> Record:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    blank = Record(engine, kind, repeat, now)
    report = seen.report
    if seen.outcome is not Outcome.FITS:
        usage = report is not None and report.usage_error
        low = seen.kill is Kill.MACHINE
        outcome = Outcome.OUT_OF_MEMORY if low else seen.outcome
        return replace(blank, outcome=outcome, failure=seen.message, usage_error=usage)
    assert report is not None
    assert seen.measured is not None
    if kind is RunKind.TIME:
        beside = report.digest.get("reference")
        return replace(
            blank,
            reference=None if beside is None else Reference.from_json(beside),
            wall_seconds=seen.measured.wall_seconds,
            cpu_seconds=seen.measured.cpu_seconds,
            minor_faults=seen.measured.minor_faults,
        )
    return replace(
        blank,
        peak_bytes=seen.peak_bytes,
        idle_bytes=seen.ready.idle_bytes if seen.ready is not None else None,
        other_processes=seen.other_processes,
        certificate_error=report.certificate_error,
        certificate_seconds=report.certificate_seconds,
        digest=report.digest,
    )


def summarise(records: Sequence[Record], *, comparable: bool) -> list[dict[str, Any]]:
    """A row per engine: medians, their ratios to the base's, agreement with it.

    ``wall_ratio`` is the median over the rounds of the engine's time over the base's in the same
    round, ``wall_ratio_low`` to ``wall_ratio_high`` its `median_interval` and ``interval_level``
    that one's level; the same for CPU time and the engine's own time. ``difference`` is the
    relative deviation of the leading eigenvalues (the largest) or of the step (an estimate, see
    `difference`), and ``agrees`` whether it is within `AGREEMENT`.

    Args:
        records: In any order of their engines; that of the first is the base.
        comparable: Whether the engines compute the same; Monte-Carlo draws differ.
    """
    by_engine: dict[str, list[Record]] = {}
    for each in records:
        by_engine.setdefault(each.engine, []).append(each)
    first = next(iter(by_engine.values()))
    # Of a base that failed there may be some figures, and they are not compared with.
    base = None if any(each.failure for each in first) else _Figures.of(first)
    rows = []
    for engine, own in by_engine.items():
        figures = _Figures.of(own)
        row: dict[str, Any] = {"engine": engine, "runs": len(figures.wall)}
        failed = next((each for each in own if each.failure), None)
        if failed is None:
            row |= figures.alone()
            if base is not None:
                row |= figures.compared_with(base, comparable, is_base=own is first)
        ending, failure = (Outcome.FITS, "") if failed is None else (failed.outcome, failed.failure)
        rows.append(row | {"outcome": ending.value, "failure": failure})
    return rows


@dataclass(frozen=True)
class _Figures:
    """The figures of one engine's records."""

    memory: Record | None
    wall: dict[int, float]
    """Round -> seconds."""
    cpu: dict[int, float]
    faults: list[int]

    @classmethod
    def of(cls, records: Iterable[Record]) -> "_Figures":
        memory, wall, cpu, faults = None, {}, {}, []
        for each in records:
            if each.kind is RunKind.MEMORY:
                memory = each
            elif each.wall_seconds is not None and each.cpu_seconds is not None:
                wall[each.repeat], cpu[each.repeat] = each.wall_seconds, each.cpu_seconds
                faults += [] if each.minor_faults is None else [each.minor_faults]
        return cls(memory, wall, cpu, faults)

    def alone(self) -> dict[str, Any]:
        row: dict[str, Any] = {}
        if self.wall:
            interval = median_interval(self.wall.values())
            row |= {
                "wall_seconds": median(self.wall.values()),
                "wall_min_seconds": min(self.wall.values()),
                "wall_max_seconds": max(self.wall.values()),
                **_ends("wall_{}_seconds", self.wall.values()),
                "interval_level": None if interval is None else interval.level,
                "cpu_seconds": median(self.cpu.values()),
                "minor_faults": median(self.faults) if self.faults else None,
            }
        if self.memory is not None:
            row |= {"peak_bytes": self.memory.peak_bytes, "idle_bytes": self.memory.idle_bytes}
            if self.memory.certificate_seconds is not None:
                row["certificate_seconds"] = self.memory.certificate_seconds
                row["certificate_error"] = self.memory.certificate_error
        return row

    def compared_with(self, base: "_Figures", comparable: bool, *, is_base: bool) -> dict[str, Any]:
        row: dict[str, Any] = {}
        if self.wall:
            for name, own, others in (("wall", self.wall, base.wall), ("cpu", self.cpu, base.cpu)):
                ratios = [own[k] / others[k] for k in own if k in others]
                row[f"{name}_ratio"] = median(ratios)
                if not is_base:
                    row |= _ends(f"{name}_ratio_{{}}", ratios)
        if self.memory is not None and base.memory is not None:
            peak, most = self.memory.peak_bytes or 0, base.memory.peak_bytes or 0
            off = difference(self.memory.digest, base.memory.digest) if comparable else None
            row |= {
                "peak_ratio": peak / most if min(peak, most) >= NOISE_BYTES else None,
                "difference": off,
                "agrees": None if off is None else off <= _tolerance(self.memory.digest),
            }
        return row


def _ends(name: str, values: Iterable[float]) -> dict[str, float | None]:
    """The ends of a median's interval, as figures called ``low`` and ``high`` in a name."""
    interval = median_interval(values)
    ends = (None, None) if interval is None else (interval.low, interval.high)
    return {name.format("low"): ends[0], name.format("high"): ends[1]}


def _tolerance(digest: dict[str, Any]) -> float:
    return AGREEMENT["eigenvalues" if "eigenvalues" in digest else "step"]


def difference(digest: dict[str, Any], base: dict[str, Any]) -> float | None:
    """Relative deviation of two results; None where there is nothing to compare.

    Of eigenvalues: the largest deviation of a leading one, over the largest eigenvalue. Of steps:
    the root mean square difference of their random projections over the base's norm. That
    estimates the relative Euclidean deviation with a standard deviation of 18 %; the exact
    difference of the norms, which is never larger, is taken where it says more.

    Args:
        digest: See `Record`.
        base: Of what it is compared with.
    """
    if "eigenvalues" in digest and "eigenvalues" in base:
        pairs = zip(digest["eigenvalues"], base["eigenvalues"], strict=False)
        largest = max(map(abs, base["eigenvalues"]), default=0.0)
        return max((abs(a - b) for a, b in pairs), default=0.0) / max(largest, 1e-300)
    if "step_projections" in digest and "step_projections" in base:
        pairs = zip(digest["step_projections"], base["step_projections"], strict=True)
        estimate = math.sqrt(sum((a - b) ** 2 for a, b in pairs) / len(base["step_projections"]))
        least = abs(digest["step_norm"] - base["step_norm"])
        return max(estimate, least) / max(base["step_norm"], 1e-300)
    return None
