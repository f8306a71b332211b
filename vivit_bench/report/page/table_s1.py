"""Table S.1 with all engines and the paper side by side."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vivit_bench.critical_batch.table_s1 import SUB_TABLES, SubTable
from vivit_bench.report.critical_batch import searches_table
from vivit_bench.report.critical_batch_tables import make_table
from vivit_bench.report.page.parts import Heading, PageTable, Section, name_of
from vivit_bench.report.page.searches import Group, Searches
from vivit_bench.report.tables import Column, Table, format_seconds

_SAMPLES = {"full": "full: the whole mini-batch", "frac": "frac: its first N // 8"}
_PAPER = "paper"


def section(searches: Searches) -> Section:
    """Sub-tables of every group, then all searches."""
    found = Section(
        "table-s1",
        "Table S.1: critical batch sizes",
        "The largest mini-batch that fits: N fits and N + 1 does not, both really run. Our "
        "engine, its peers and the paper stand side by side; the paper's numbers come from "
        "another machine with another memory limit. Below a size, the seconds of its work.",
        warnings=list(searches.damaged),
    )
    for group in searches.groups:
        tables = list(_tables(group))
        if tables:
            found.blocks.append(Heading(group.title))
            found.blocks += tables
        found.warnings += group.selection.notes
    found.blocks.append(
        PageTable(searches_table(searches.rows), "searches", "All finished searches")
    )
    return found


def side_by_side(group: Group, sub_table: SubTable) -> Table | None:
    """A sub-table with a column per engine and one of the paper, for each choice of samples.

    Args:
        group: Comparable searches.
        sub_table: Which one.

    Returns:
        Rows and facts as `make_table` has them, under names that end in the engine's; None if no
        search belongs to it.
    """
    made = {
        engine: table
        for engine in group.engines
        if (table := make_table(group.selection, sub_table, engine, paper=True)) is not None
    }
    if not made:
        return None
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for engine, table in made.items():
        for line in table.rows:
            names = {name: line[name] for name in ("problem", "curvature")}
            row = rows.setdefault((line["problem"], line["curvature"]), {})
            row |= names
            row |= {f"{name}_{engine}": v for name, v in line.items() if name not in names}
            for samples in _SAMPLES:
                row[f"{samples}_{_PAPER}"] = line.get(f"{samples}_paper")
                row[f"{samples}_below_{engine}"] = _below(line, samples)
    notes = dict.fromkeys(note for table in made.values() for note in table.notes)
    title = next(iter(made.values())).title.rpartition(" (")[0]
    return Table(list(_columns(made)), list(rows.values()), notes=list(notes), title=title)


def _tables(group: Group) -> Iterator[PageTable]:
    for letter, sub_table in SUB_TABLES.items():
        table = side_by_side(group, sub_table)
        if table is not None:
            over = (sum(not c.is_detail for c in table.columns) - 2) // len(_SAMPLES)
            groups = [("", 2), *((title, over) for title in _SAMPLES.values())]
            name = name_of(f"table_s1{letter}", group.number or "")
            yield PageTable(table, name, table.title, groups)


def _columns(made: dict[str, Table]) -> Iterator[Column]:
    yield Column("problem", left=True)
    yield Column("curvature", left=True)
    for samples in _SAMPLES:
        for engine in made:
            yield Column(
                f"{samples}_{engine}",
                engine,
                ",",
                bound=f"{samples}_is_lower_bound_{engine}",
                mark=f"{samples}_below_{engine}",
            )
        yield Column(f"{samples}_{_PAPER}", _PAPER, ",")
    for engine, table in made.items():
        for name in _facts(table.columns):
            yield Column(f"{name}_{engine}", is_detail=True)


def _facts(columns: Sequence[Column]) -> Iterator[str]:
    """What a program finds beside the sizes."""
    shown = {"problem", "curvature", "table", "engine", *_SAMPLES}
    yield from (c.name for c in columns if c.name not in shown and not c.name.endswith("_paper"))


def _below(line: Mapping[str, Any], samples: str) -> str:
    """What stands after and below a size: what ended the search, and the seconds."""
    mark = str(line.get(f"{samples}_mark") or "")
    seconds = line.get(f"{samples}_seconds")
    if seconds is None:
        return mark
    one_cpu = str(line.get(f"{samples}_seconds_mark") or "").strip()
    return f"{mark}\n{format_seconds(seconds)} s {one_cpu}".rstrip()
