"""Tables of spectra: one, the variants of a sweep, two compared."""

from collections.abc import Iterable
from typing import Any

from vivit_bench.curvature.options import Precision
from vivit_bench.report.tables import Column, Table
from vivit_bench.spectrum.compare import SpectrumComparison
from vivit_bench.spectrum.record import SpectrumRecord

_SPECTRUM = (
    Column("problem", left=True),
    Column("data", left=True),
    Column("batch_size", "batch size N"),
    Column("variant", "curvature", left=True),
    Column("num_params", "parameters D", ","),
    Column("num_outputs", "outputs C", ","),
    Column("num_columns", "columns of V", ","),
    Column("largest_eigenvalue", "largest eigenvalue", ".6g"),
    Column("cutoff", "cutoff", "g"),
    Column("num_above_cutoff", "above cutoff", ","),
    Column("num_zeros", "exactly zero", ","),
    Column("trace", "trace", ".6g"),
    Column("loss", "loss", ".6g"),
    Column("dtype", "precision", left=True),
    Column("solver_dtype", "of the eigensolver", left=True),
    Column("compute_seconds", "seconds", ".2f"),
    Column("certificate_error", "check error", ".0e"),
    Column("folder", "stored", left=True),
)
_DROPPED = (
    Column("dropped_num_columns", "columns dropped", ","),
    Column("dropped_trace", "error at most", ".2e"),
)
_OF_THE_RECORD = (
    *("num_params", "num_outputs", "num_columns", "num_above_cutoff", "num_zeros"),
    *("trace", "loss", "solver_dtype", "compute_seconds", "folder"),
)
_IN_A_SWEEP = ("variant", "largest_eigenvalue", "num_above_cutoff", "num_zeros", "trace")


def spectrum_table(record: SpectrumRecord) -> Table:
    """What is worth knowing of one spectrum."""
    row = _row(record)
    if not record.dropped:
        return Table(_SPECTRUM, [row], is_record=True)
    return Table((*_SPECTRUM[:-1], *_DROPPED, _SPECTRUM[-1]), [row], is_record=True)


def sweep_table(records: Iterable[SpectrumRecord]) -> Table:
    """A row a variant; people find the folders below."""
    rows = [_row(record) for record in records]
    shown = {*_IN_A_SWEEP, "compute_seconds", "certificate_error"}
    columns = [
        Column(c.name, c.title, c.shown, c.left, is_detail=c.name not in shown) for c in _SPECTRUM
    ]
    return Table(columns, rows, notes=[str(row["folder"]) for row in rows])


def checkpoints_table(records: Iterable[SpectrumRecord]) -> Table:
    """A row a checkpoint of one approximation; people find the folders below."""
    rows = [_row(record) for record in records]
    columns = list(_SPECTRUM)
    columns.insert(0, Column("checkpoint", left=True))
    if any("dropped_trace" in row for row in rows):
        columns += _DROPPED
    shown = {"checkpoint", *_IN_A_SWEEP[1:], "loss", "certificate_error", "dropped_trace"}
    columns = [
        Column(c.name, c.title, c.shown, c.left, is_detail=c.name not in shown) for c in columns
    ]
    return Table(columns, rows, notes=[str(row["folder"]) for row in rows])


def _row(record: SpectrumRecord) -> dict[str, Any]:
    settings = record.settings
    values = record.eigenvalues.tolist()
    return {
        **settings.to_json(),
        **{name: getattr(record, name) for name in _OF_THE_RECORD},
        "variant": settings.variant,
        "largest_eigenvalue": values[0] if values else None,
        "certificate_error": max(record.certificate.get("errors", {}).values(), default=None),
        **{f"dropped_{name}": value for name, value in record.dropped.items()},
    }


def comparison_table(
    comparison: SpectrumComparison, a: SpectrumRecord, b: SpectrumRecord, cutoff: float
) -> Table:
    """The rows of a comparison; which spectra they are is below."""
    columns = (
        Column("quantity", left=True),
        Column("a", "A", _number),
        Column("b", "B", _number),
        Column("measure", left=True),
        Column("value", shown=_number),
    )
    notes = [
        *(f"{letter}: {_described(record)}" for letter, record in (("A", a), ("B", b))),
        f"Distance: mean |log10 a - log10 b| of the eigenvalues above {cutoff:g}, largest with "
        "largest; the shorter spectrum goes on at the cutoff.",
    ]
    return Table(columns, comparison.rows(), notes=notes)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}"


def _described(record: SpectrumRecord) -> str:
    settings, work = record.settings, record.settings.workload
    dtype = "" if work.dtype is Precision.FLOAT32 else f", {work.dtype}"
    weights = f", {work.checkpoint}" if work.checkpoint else ""
    return (
        f"{settings.problem}, {settings.variant}, N = {settings.batch_size}, "
        f"D = {record.num_params:,}, data {work.data}, seed {work.seed}{dtype}{weights}, "
        f"computed on {record.computed_on or 'an unknown day'}"
    )
