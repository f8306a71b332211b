"""What a check of stored results found, as a table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from vivit_bench.audit.check import Finding, Verdict
from vivit_bench.report.tables import Column, Table

_COLUMNS = (
    Column("experiment", left=True),
    Column("name", left=True),
    Column("state", left=True),
    Column("verdict", left=True),
    Column("reason", left=True),
)


def check_table(findings: Sequence[Finding], *, without_ok: bool = False) -> Table:
    """A row per folder, or per one that is not ok; below it how many there are of each kind."""
    rows = [
        {**asdict(each), "verdict": each.verdict.value, "state": each.state and each.state.value}
        for each in findings
        if not (without_ok and each.verdict is Verdict.OK)
    ]
    return Table(_COLUMNS, rows, notes=[summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """How many runs there are, and what is to be said of them, on one line."""
    counts = Counter(each.verdict for each in findings)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    return f"{len(findings)} runs: {said}." if findings else "No runs."
