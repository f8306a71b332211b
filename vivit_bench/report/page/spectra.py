"""Spectra: their densities by approximation, and eigenvalue by eigenvalue across problems."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from vivit_bench.curvature.options import Precision
from vivit_bench.errors import VivitBenchError
from vivit_bench.report.page.parts import Charts, Heading, PageTable, Section, name_of
from vivit_bench.report.page.spectra_charts import PAPER, Spectra, densities, eigenvalues
from vivit_bench.report.spectrum import sweep_table
from vivit_bench.report.tables import Column, Table
from vivit_bench.spectrum.compare import spectral_distance
from vivit_bench.spectrum.record import EXPERIMENT, SpectrumRecord, load_spectrum
from vivit_bench.store import finished_runs

_Workload = tuple[str, str, str]
"""Title, and fingerprints of model and mini-batch."""
_DISTANCE = Column("distance", "decades from the first", ".3f")


def section(results_dir: Path) -> Section | None:
    """A chart and a table per workload, and all spectra together."""
    found = Section(
        "spectra",
        "Spectra of the GGN",
        "All non-trivial eigenvalues of one mini-batch's GGN under the approximations. Distance: "
        "the mean of |log10 a - log10 b| over the eigenvalues above the cutoff.",
    )
    groups = spectra_by_workload(results_dir, found.warnings)
    if not groups:
        return found if found.warnings else None
    found.blocks.append(eigenvalues(groups, found.data))
    for number, (title, records) in enumerate(groups.items()):
        found.blocks.append(Heading(title))
        found.blocks.append(Charts([densities(title, records, number, found.data)]))
        found.blocks.append(
            PageTable(
                spectra_table(records), name_of("spectra", number, records[0].settings.problem)
            )
        )
    return found


def spectra_by_workload(results_dir: Path, warnings: list[str]) -> dict[str, Spectra]:
    """Finished spectra that differ in the approximation alone, exact before mc, full before frac.

    Those of another model or mini-batch stand apart, also where a file of the same name was
    another one before; then their title ends in a fingerprint.

    Args:
        results_dir: Folder of all results.
        warnings: Is told what is damaged.
    """
    runs, damaged = finished_runs(results_dir, EXPERIMENT)
    warnings += damaged
    groups: dict[_Workload, Spectra] = {}
    for stored in runs:
        try:
            record = load_spectrum(stored)
        except VivitBenchError as error:
            warnings.append(f"left out: {error}")
        else:
            model, batch = stored.settings.get("model"), stored.environment.get("batch")
            groups.setdefault((_title(record), str(model), str(batch)), []).append(record)
    return {_told_apart(key, groups): sorted(groups[key], key=_place) for key in sorted(groups)}


def spectra_table(records: Spectra) -> Table:
    """The variants of a workload, with their distance from the first where it has a meaning."""
    table = sweep_table(records)
    rows = [
        {**row, "distance": _distance(records[0], record)}
        for row, record in zip(table.rows, records, strict=True)
    ]
    place = [column.name for column in table.columns].index("trace") + 1
    columns = [*table.columns[:place], _DISTANCE, *table.columns[place:]]
    return replace(table, columns=columns, rows=rows, notes=())


def _distance(first: SpectrumRecord, record: SpectrumRecord) -> float | None:
    cutoff = first.settings.cutoff
    if record.num_params != first.num_params or record.settings.cutoff != cutoff:
        return None
    return spectral_distance(first, record, cutoff)


def _told_apart(workload: _Workload, others: Iterable[_Workload]) -> str:
    """Its title, with those fingerprints in which others of the title differ."""
    title, model, batch = workload
    alike = [other for other in others if other[0] == title]
    title += f", model {model}" if len({other[1] for other in alike}) > 1 else ""
    title += f", mini-batch {batch}" if len({other[2] for other in alike}) > 1 else ""
    return title


def _title(record: SpectrumRecord) -> str:
    spec = record.settings.workload
    dtype = "" if spec.dtype is Precision.FLOAT32 else f", {spec.dtype}"
    weights = f", {spec.checkpoint}" if spec.checkpoint else ""
    return (
        f"{spec.problem}, N = {spec.batch_size}, D = {record.num_params:,}, data {spec.data}, "
        f"seed {spec.seed}{dtype}{weights}"
    )


def _place(record: SpectrumRecord) -> tuple[int, str]:
    name = record.settings.variant
    return (PAPER.index(name) if name in PAPER else len(PAPER), name)
