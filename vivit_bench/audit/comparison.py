"""Stored comparisons of engines: what they must have, and what they would hold under now."""

from collections.abc import Iterator
from typing import NotRequired, TypedDict

from vivit_bench.audit.record import Audit, Look, Present, journal_problems, present_files
from vivit_bench.comparison.compare import Record, RunKind
from vivit_bench.comparison.stored import RUNS, StoredSettings
from vivit_bench.critical_batch.settings import measuring_environment
from vivit_bench.store import StoredRun, read_journal


class _Results(TypedDict):
    repeats: int
    floor: dict[str, float] | None
    failed: NotRequired[list[str]]


def _contents(stored: StoredRun) -> Iterator[str]:
    yield from journal_problems(stored, RUNS, Record)
    entries, _ = read_journal(stored.folder / RUNS)
    failed = stored.results.get("failed", [])
    wanted = stored.results["repeats"]
    for engine in stored.settings["engines"]:
        own = [entry for entry in entries if entry.get("engine") == engine]
        rounds = {entry.get("repeat") for entry in own if entry.get("kind") == RunKind.TIME}
        if engine not in failed and len(rounds) < wanted:
            yield f"{RUNS} has {len(rounds)} time runs of {engine} instead of {wanted}"


def _present(stored: StoredRun, look: Look) -> Present:
    settings = stored.settings
    files, unknown = present_files(stored)
    environment = measuring_environment(
        settings["engines"], settings["device"], settings["problem"]
    )
    return Present(environment, files, unknown)


AUDIT = Audit(StoredSettings, _Results, _contents, _present)
