"""All cells of Table S.1, one search after the other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivit_bench.critical_batch.listener import Listener
from vivit_bench.critical_batch.runner import (
    FinishedSearch,
    MemoryLimit,
    choose_limit,
    run_search,
)
from vivit_bench.critical_batch.settings import Cell, check_bounds, make_cell
from vivit_bench.critical_batch.table_s1 import SubTable
from vivit_bench.curvature.options import VARIANTS, Curvature
from vivit_bench.errors import VivitBenchError
from vivit_bench.peers import Quantity, get_engine


@dataclass(frozen=True)
class SweepStep:
    """One cell of a sweep."""

    cell: Cell
    finished: FinishedSearch | None = None
    error: VivitBenchError | None = None
    """Why the search failed; the sweep goes on."""


def table_cells(
    tables: Sequence[SubTable],
    problems: Sequence[str],
    engines: Sequence[str],
    *,
    gradient: bool = True,
    mc_samples: int = 1,
    **options: Any,
) -> list[Cell]:
    """The cells of some sub-tables, the quick ones (the gradient) first.

    Args:
        tables: From `table_s1.SUB_TABLES`.
        problems: Names.
        engines: Names; a table whose quantity an engine lacks is left out for it.
        gradient: Also the gradient alone on each device, for the plots; computed by the first
            engine, as there is nothing to compare.
        mc_samples: M of the Monte-Carlo cells.
        options: See `make_cell`.

    Returns:
        The cells, each once.
    """
    cells: dict[Cell, None] = {}
    for problem in problems:
        if gradient:
            for device in dict.fromkeys(table.device for table in tables):
                cell = make_cell(
                    problem,
                    quantity=Quantity.GRADIENT,
                    device=device,
                    engine=engines[0],
                    **options,
                )
                cells[cell] = None
        for engine in engines:
            for table in tables:
                if table.quantity in get_engine(engine).quantities:
                    cells.update(
                        dict.fromkeys(_variants(table, problem, engine, mc_samples, options))
                    )
    return list(cells)


def sweep_cells(
    cells: Iterable[Cell],
    *,
    memory_limit: int | None,
    results_dir: Path,
    max_batch: int,
    trial_timeout: float,
    fresh: bool = False,
    listener: Listener | None = None,
) -> Iterator[SweepStep]:
    """Search all cells under one memory limit per device; records make finished ones quick.

    Args:
        cells: From `table_cells`.
        memory_limit: Bytes; None for a share of what is available now.
        results_dir: Folder of all results.
        max_batch: Largest batch size to run.
        trial_timeout: Seconds for the work of one trial.
        fresh: Forget the records.
        listener: Is told what happens.

    Yields:
        A step without result when a cell begins, and one with its result or error.
    """
    check_bounds(max_batch, trial_timeout)
    cells = list(cells)
    limits: dict[str, MemoryLimit] = {}
    for cell in cells:
        yield SweepStep(cell)
        try:
            if cell.device not in limits:
                limits[cell.device] = choose_limit(
                    [other for other in cells if other.device == cell.device],
                    memory_limit,
                    results_dir=results_dir,
                    fresh=fresh,
                    listener=listener,
                )
            finished = run_search(
                cell,
                limits[cell.device],
                results_dir=results_dir,
                max_batch=max_batch,
                trial_timeout=trial_timeout,
                fresh=fresh,
                listener=listener,
            )
        except VivitBenchError as error:
            yield SweepStep(cell, error=error)
        else:
            yield SweepStep(cell, finished)


def _variants(
    table: SubTable, problem: str, engine: str, mc_samples: int, options: dict[str, Any]
) -> list[Cell]:
    return [
        make_cell(
            problem,
            quantity=table.quantity,
            curvature=curvature,
            samples=samples,
            mc_samples=mc_samples if curvature is Curvature.MC else 1,
            device=table.device,
            engine=engine,
            **options,
        )
        for curvature, samples in VARIANTS
    ]
