"""Comparisons on disk: a folder each, with a line per run; tables over them are made when asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from vivit_bench.arguments import problem_slug
from vivit_bench.comparison.compare import (
    EngineFailedError,
    Record,
    compare_engines,
    summarise,
)
from vivit_bench.comparison.floor import measure_floor
from vivit_bench.critical_batch.settings import measuring_environment
from vivit_bench.curvature.options import Approximation, Curvature
from vivit_bench.measure.work import work_of
from vivit_bench.peers import Quantity
from vivit_bench.problems.workload import WorkloadSpec
from vivit_bench.store import Identity, StoredRun, finished_runs, open_run, read_journal
from vivit_bench.store.schema import violations

EXPERIMENT = "comparison"
RUNS = "runs.jsonl"
_MACHINE = ("cpu", "cores", "ram_bytes", "gpu", "host", "torch", "vivit_for_pytorch", "git_commit")
_WORK = ("problem", "quantity", "curvature", "samples")

Note = Callable[[str], None]


class StoredSettings(TypedDict):
    """What a header says was compared."""

    problem: str
    batch_size: int
    data: str
    seed: int
    checkpoint: str | None
    dtype: str
    device: str
    problem_file: str | None
    checkpoint_file: str | None
    quantity: str
    curvature: str
    samples: str
    mc_samples: int
    engines: list[str]
    threads: int


@dataclass(frozen=True)
class Comparison:
    """What is to be compared."""

    workload: WorkloadSpec
    """With batch size and data source filled in."""
    quantity: Quantity
    approximation: Approximation
    engines: tuple[str, ...]
    """The first is the base."""
    threads: int

    @property
    def batch_size(self) -> int:
        """N."""
        assert self.workload.batch_size is not None
        return self.workload.batch_size

    def at(self, batch_size: int) -> "Comparison":
        """The same at another N."""
        return replace(self, workload=replace(self.workload, batch_size=batch_size))

    def work(self) -> dict[str, Any]:
        """Arguments of a measured process but the engine."""
        return work_of(self.workload, self.quantity, self.approximation)

    def identity(self) -> Identity:
        """What its figures are determined by, and under which name they are kept."""
        approximation = self.approximation
        parts = [problem_slug(self.workload.problem), self.quantity, approximation.curvature]
        place = [] if self.workload.device == "cpu" else [self.workload.device]
        return Identity(
            experiment=EXPERIMENT,
            label="_".join([*parts, approximation.samples, f"n{self.batch_size}", *place]),
            settings={
                **self.workload.record(),
                **self.workload.files(),
                "quantity": self.quantity.value,
                **approximation.record(),
                "engines": list(self.engines),
                "threads": self.threads,
            },
            environment=measuring_environment(
                self.engines, self.workload.device, self.workload.problem
            ),
            owns=(RUNS,),
            mendable=(RUNS,),
        )


@dataclass(frozen=True)
class Compared:
    """A finished comparison."""

    rows: list[dict[str, Any]]
    """See `summarise`."""
    floor: dict[str, float] | None
    """See `measure_floor`; None if nobody asked."""
    folder: Path
    about: dict[str, Any]
    """Settings, machine and folder, flat."""

    @property
    def whole_rows(self) -> list[dict[str, Any]]:
        """The rows with all of that; with the floor the first, whose engine it is of."""
        rows = [{**row, **self.about} for row in self.rows]
        rows[0].update(self.floor or {})
        return rows


def run_comparison(
    comparison: Comparison,
    results_dir: Path,
    *,
    repeats: int,
    timeout_seconds: float,
    floor: bool = False,
    fresh: bool = False,
    base_may_fail: bool = False,
    note: Note = lambda text: None,
) -> Compared:
    """Measure the engines, or return what is stored; every run is on disk before the next begins.

    Args:
        comparison: What is compared.
        results_dir: Folder of all results.
        repeats: Time runs of each engine; those there are count.
        timeout_seconds: For the work of one run.
        floor: Also measure the machine's floor.
        fresh: Measure anew.
        base_may_fail: See `compare_engines`.
        note: Told of each run.

    Raises:
        UsageError: The base cannot do the work, or a stored comparison is of other conditions.
        EngineFailedError: The base failed.
        StorageError: Something cannot be written; what is stored is kept.
    """
    base = comparison.engines[0]

    def asks_for_more(stored: StoredRun) -> bool:
        facts = stored.results
        if base in facts.get("failed", ()):  # there is nothing to compare more runs with
            return False
        return bool(repeats > facts["repeats"] or (floor and facts["floor"] is None))

    with open_run(
        results_dir,
        comparison.identity(),
        fresh=fresh,
        more_wanted=asks_for_more,
        note=note,
    ) as run:
        if not run.is_returned:
            journal = run.journal(RUNS)
            for damaged in journal.notes:
                note(damaged)
            repeats = max(repeats, int(run.stored.results.get("repeats", 0)))

            def keep(made: Record) -> None:
                what = f"a run of {made.engine}"
                header = run.stored
                comparison.workload.check_files(header.settings, header.environment, what)
                journal.append(made.to_json())

            records = compare_engines(
                comparison.work(),
                comparison.engines,
                comparison.batch_size,
                threads=comparison.threads,
                repeats=repeats,
                timeout_seconds=timeout_seconds,
                base_may_fail=base_may_fail,
                done=[Record.from_json(entry) for entry in journal.entries],
                record=keep,
                progress=note,
            )
            failed = sorted({each.engine for each in records if each.failure})
            best = run.stored.results.get("floor")
            if floor and best is None and base not in failed:
                work, size = comparison.work(), comparison.batch_size
                best = measure_floor(work, size, comparison.threads, timeout_seconds)
            run.finish({"repeats": repeats, "floor": best, "failed": failed}, [RUNS])
        compared = _load(run.stored)
    if (failure := compared.rows[0]["failure"]) and not base_may_fail:
        raise EngineFailedError(f"engine {base!r} failed: {failure} (--fresh tries again)")
    return compared


def stored_rows(results_dir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per engine of every finished comparison, and a line on each that is damaged.

    In the order of time, but that a problem's comparisons of one work stand together, by N.
    """
    runs, notes = finished_runs(results_dir, EXPERIMENT)
    rows = []
    for stored in runs:
        if wrong := next(violations(stored.settings, StoredSettings, "settings:", whole=False), ""):
            notes.append(f"left out: {stored.folder}: {wrong}; vivit-bench check says more")
        else:
            rows += _load(stored).whole_rows
    works = [tuple(row[name] for name in _WORK) for row in rows]
    first = {work: place for place, work in reversed(list(enumerate(works)))}
    order = sorted(range(len(rows)), key=lambda i: (first[works[i]], rows[i]["batch_size"]))
    return [rows[i] for i in order], notes


def _load(stored: StoredRun) -> Compared:
    records = records_of(stored)
    ordered = [each for engine in stored.settings["engines"] for each in records[engine]]
    comparable = stored.settings["curvature"] == Curvature.EXACT
    rows = summarise(ordered, comparable=comparable)
    return Compared(rows, stored.results["floor"], stored.folder, _about(stored))


def records_of(stored: StoredRun) -> dict[str, list[Record]]:
    """The runs of a stored comparison by engine, the last of each kind and round."""
    entries, _ = read_journal(stored.folder / RUNS)
    return _newest([Record.from_json(entry) for entry in entries])


def _about(stored: StoredRun) -> dict[str, Any]:
    return {
        **{name: value for name, value in stored.settings.items() if name != "engines"},
        **{name: stored.provenance.get(name) for name in _MACHINE},
        "code": stored.environment.get("code"),
        "run": stored.folder.name,
    }


def _newest(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by engine; one that failed and was made again counts no more."""
    by_engine: dict[str, dict[tuple[str, int], Record]] = {}
    for each in records:
        by_engine.setdefault(each.engine, {})[each.kind, each.repeat] = each
    return {engine: list(runs.values()) for engine, runs in by_engine.items()}
