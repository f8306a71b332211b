"""Tables of engine comparisons, at one N and against N."""

from collections.abc import Iterator, Sequence
from typing import Any

from vivit_bench.comparison.scaling import COSTS, Series
from vivit_bench.comparison.stored import Compared
from vivit_bench.curvature.options import Precision
from vivit_bench.measure import Outcome
from vivit_bench.measure.budget import MIB
from vivit_bench.report.tables import Column, Table, format_number, format_seconds

ENDINGS = {
    Outcome.OUT_OF_MEMORY: "out of memory",
    Outcome.TIMEOUT: "time-out",
    Outcome.LIMIT: "32-bit limit",
    Outcome.DATA: "too few samples",
    Outcome.ERROR: "failed",
}
"""How a run ended, in a cell or a figure."""


def _mebibytes(size: int) -> str:
    return "<1" if size < MIB else format_number(size / MIB)


def _count(value: float) -> str:
    for unit in ("", "k", "M"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}G"


_RATIO_ENDS = ("wall_ratio_low", "wall_ratio_high")
_COLUMNS = (
    Column("engine", left=True),
    Column("wall_seconds", "wall s", format_seconds),
    Column("wall_ratio", "ratio", format_number, interval=_RATIO_ENDS),
    Column("cpu_seconds", "CPU s", format_seconds),
    Column("minor_faults", "faults", _count),
    Column("peak_bytes", "peak MiB", _mebibytes),
    Column("peak_ratio", "ratio", format_number),
)
_DETAILS = (
    *("runs", "wall_min_seconds", "wall_max_seconds", "wall_low_seconds", "wall_high_seconds"),
    *(*_RATIO_ENDS, "interval_level", "cpu_ratio", "cpu_ratio_low", "cpu_ratio_high"),
    *("idle_bytes", "difference", "agrees", "certificate_seconds", "certificate_error"),
    *("outcome", "failure"),
)

_TELLING = ("mc_samples", "data", "seed", "checkpoint", "dtype", "device", "gpu", "threads", "host")
"""Settings that two comparisons of one name may differ in."""


def engines_table(compared: Compared) -> Table:
    """Medians and ratios to the first engine's; failures and checks below the table.

    As CSV and JSON with settings, machine and floor.
    """
    rows, floor = compared.whole_rows, compared.floor
    notes = list(_meaning(rows, _device(rows)))
    for row in rows:
        if row["failure"]:
            notes.append(f"{row['engine']} failed: {row['failure']}")
        notes += _agreement(row["engine"], rows[0]["engine"], [row])
        if row.get("certificate_seconds") is not None:
            notes.append(
                f"{row['engine']}: its check by plain autograd takes "
                f"{row['certificate_seconds']:.2f} s more, largest error "
                f"{row['certificate_error']:.1e}."
            )
    if floor is not None:
        wall = rows[0]["wall_seconds"]
        notes.append(
            f"Floor {floor['floor_seconds']:.2f} s = Gram products {floor['gram_seconds']:.2f} s "
            f"at {floor['gemm_gflops']:.0f} GFLOP/s + eigensolver {floor['solver_seconds']:.2f} "
            f"s; measured {wall:.2f} s, {wall / floor['floor_seconds']:.1f} times the floor (which "
            "leaves out the columns' backpropagation)."
        )
    return _all_columns([], rows, _DETAILS, notes)


def series_table(series: Series, *, for_people: bool) -> Table:
    """Costs against N, a row per N and engine; the exponents below, or as columns.

    Args:
        series: With at least one row.
        for_people: Name how an engine ended beside it, which for programs is a column.
    """
    first = Column("batch_size", "N")
    if not for_people:
        laws = {engine: dict(_law_columns(series, engine)) for engine in series.engines}
        rows = [{**row, **laws[row["engine"]]} for row in series.rows]
        return _all_columns([first], rows, [*_DETAILS, *next(iter(laws.values()))])
    rows = [{**row, "engine": _with_ending(row)} for row in series.rows]
    return Table([first, *_COLUMNS], rows, notes=_series_notes(series), title=describe(series))


def describe(series: Series) -> str:
    """What a series is of, on one line."""
    row = series.rows[0]
    draws = f" (M = {row['mc_samples']})" if row["curvature"] == "mc" else ""
    parts = [row["quantity"], f"{row['curvature']}{draws}", row["samples"], f"data {row['data']}"]
    parts += [row["dtype"]] if row["dtype"] != Precision.FLOAT32 else []
    parts += [f"checkpoint {row['checkpoint']}"] if row["checkpoint"] else []
    threads = f"{row['threads']} thread{'s' if row['threads'] != 1 else ''}"
    device = _device(series.rows)
    place = "" if device == "cpu" else f"{device} ({row.get('gpu') or 'unknown card'}), "
    return f"{row['problem']}: {', '.join(parts)}; {place}{threads}"


def _device(rows: Sequence[dict[str, Any]]) -> str:
    """Where the engines worked; stored comparisons of before say nothing, of the CPU."""
    return str(rows[0].get("device", "cpu"))


def stored_table(rows: Sequence[dict[str, Any]]) -> Table:
    """All stored comparisons, a row per engine; as CSV and JSON with settings and machine.

    Of the settings that figures depend on, people see those that are not the same in all rows.
    """
    text = ("problem", "quantity", "curvature", "samples")
    several = [name for name in _TELLING if len({row.get(name) for row in rows}) > 1]
    first = [*(Column(name, left=True) for name in text), Column("batch_size", "N")]
    return _all_columns([*first, *(Column(name, left=True) for name in several)], rows, [])


def _all_columns(
    first: Sequence[Column],
    rows: Sequence[dict[str, Any]],
    details: Sequence[str],
    notes: Sequence[str] = (),
) -> Table:
    """Everything that the rows have, and some details even if they have not."""
    shown = [*first, *_COLUMNS]
    known = {column.name for column in shown}
    names = dict.fromkeys([*details, *(name for row in rows for name in row)])
    hidden = [Column(name, is_detail=True) for name in names if name not in known]
    return Table([*shown, *hidden], rows, notes=notes)


def _with_ending(row: dict[str, Any]) -> str:
    ending = ENDINGS.get(Outcome(row["outcome"]))
    return row["engine"] if ending is None else f"{row['engine']}: {ending}"


def _law_columns(series: Series, engine: str) -> Iterator[tuple[str, Any]]:
    for cost in COSTS:
        law = series.law(engine, cost)
        yield f"{cost}_exponent", None if law is None else law.exponent
        yield f"{cost}_exponent_over", None if law is None else " ".join(map(str, law.batch_sizes))


def _series_notes(series: Series) -> list[str]:
    base = series.engines[0]
    notes = [_growth(series, engine) for engine in series.engines]
    notes += _meaning(series.rows, _device(series.rows))
    for row in series.rows:
        if row["failure"]:
            notes.append(f"N = {row['batch_size']}, {row['engine']}: {row['failure']}")
    for engine in series.engines:
        own = [row for row in series.rows if row["engine"] == engine]
        notes += _agreement(engine, base, own)
    floors = [row for row in series.rows if "floor_seconds" in row and "wall_seconds" in row]
    if floors:
        times = ", ".join(
            f"{row['wall_seconds'] / row['floor_seconds']:.1f} (N = {row['batch_size']})"
            for row in floors
        )
        notes.append(f"Times the floor of Gram products and eigensolver, {base}: {times}.")
    return notes


def _growth(series: Series, engine: str) -> str:
    """An engine's exponents, and over which N they were fitted."""
    said: dict[str, list[str]] = {}
    for cost in COSTS:
        law = series.law(engine, cost)
        over = f"fitted over N = {_listed(law.batch_sizes)}" if law else "fewer than 3 N"
        growth = f"{cost} ~ N^{law.exponent:.2f}" if law else f"no exponent of {cost}"
        said.setdefault(over, []).append(growth)
    return f"{engine}: {'; '.join(', '.join([*costs, over]) for over, costs in said.items())}."


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def _meaning(rows: Sequence[dict[str, Any]], device: str) -> Iterator[str]:
    """What stands in the columns, and how sure it is."""
    base = rows[0]["engine"]
    yield f"Ratios over {base}, of times the median of each round's; faults: page faults of a run."
    if device != "cpu":
        yield (
            f"Peak: memory of {device} over the idle process. Wall: until {device} is done, of a "
            "second run of the same N in its process. CPU time and faults are the host's."
        )
    levels = {row["runs"]: row["interval_level"] for row in rows if row.get("interval_level")}
    if len({row["engine"] for row in rows}) > 1 and levels:
        said = ", ".join(f"{level:.1%} of {runs} rounds" for runs, level in sorted(levels.items()))
        yield f"In brackets: where that median lies, by order statistics; level {said}."


def _agreement(engine: str, base: str, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How far an engine's results are from the base's."""
    off = [row["difference"] for row in rows if row.get("difference") is not None]
    if any(row.get("agrees") is False for row in rows):
        yield f"{engine} DISAGREES with {base} (relative difference {max(off):.1e})."
    elif off and engine != base:
        yield f"{engine}: results differ by {max(off):.1e} from those of {base}."
