"""All cells of Table S.1: which they are, and their searches, in turn or several at a time."""

import os
from collections.abc import Container, Sequence
from typing import Any

from vivit_bench.critical_batch.jobs import SweepListener, SweepStep, run_here, run_jobs
from vivit_bench.critical_batch.settings import Cell, make_cell
from vivit_bench.critical_batch.sweep_plan import SweepPlan
from vivit_bench.critical_batch.table_s1 import SubTable
from vivit_bench.curvature.options import VARIANTS, Curvature, Samples
from vivit_bench.errors import UsageError
from vivit_bench.hardware import check_threads
from vivit_bench.peers import Quantity, get_engine


def table_cells(
    tables: Sequence[SubTable],
    problems: Sequence[str],
    engines: Sequence[str],
    *,
    gradient: bool = True,
    curvatures: Container[Curvature] = tuple(Curvature),
    samples: Container[Samples] = tuple(Samples),
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
        curvatures: Of the cells.
        samples: Of the cells.
        mc_samples: M of the Monte-Carlo cells.
        options: See `make_cell`.

    Returns:
        The cells, each once.

    Raises:
        UsageError: There are none.
    """
    variants = [each for each in VARIANTS if each[0] in curvatures and each[1] in samples]
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
                    for curvature, part in variants:
                        cell = make_cell(
                            problem,
                            quantity=table.quantity,
                            curvature=curvature,
                            samples=part,
                            mc_samples=mc_samples if curvature is Curvature.MC else 1,
                            device=table.device,
                            engine=engine,
                            **options,
                        )
                        cells[cell] = None
    if not cells:
        wanted = ", ".join(dict.fromkeys(table.quantity for table in tables))
        raise UsageError(
            f"{', '.join(engines)}: no engine has {wanted}; choose another --table or --engine"
        )
    return list(cells)


def run_sweep(plan: SweepPlan, listener: SweepListener) -> list[SweepStep]:
    """Search all cells of a plan.

    Args:
        plan: From `plan_sweep`.
        listener: Is told what happens.

    Returns:
        How each search ended, in the plan's order.

    Raises:
        VivitBenchError: No process can be started.
    """
    if plan.at_once == 1:
        return [run_here(planned.job, listener) for planned in plan.searches]
    # What is stored takes no time, and what is refused neither.
    steps = [run_here(each.job, listener) for each in plan.searches if not each.is_to_run]
    waiting = [each.job for each in plan.searches if each.is_to_run]
    steps += run_jobs(waiting, plan.at_once, listener)
    order = {planned.job: number for number, planned in enumerate(plan.searches)}
    return sorted(steps, key=lambda step: order[step.job])


def threads_of(at_once: int, threads: int | None) -> int | None:
    """CPU threads of a trial where searches share this process's CPUs.

    Args:
        at_once: Searches that run at the same time.
        threads: The user's choice; None: as many as there are CPUs for each.

    Returns:
        The choice; None, which means all CPUs, only for one search at a time.

    Raises:
        UsageError: There are too few CPUs.
    """
    check_threads(threads)
    cpus = len(os.sched_getaffinity(0))
    needed = at_once * (threads or 1)
    if at_once > 1 and needed > cpus:
        fewer = cpus // (threads or 1)
        ways = [f"--jobs {max(fewer, 1)}", *([f"--threads {cpus // at_once}"] * (at_once <= cpus))]
        raise UsageError(
            f"--jobs {at_once}: {at_once} searches with --threads {threads or 1} need {needed} "
            f"CPUs, and this process may use {cpus}; use {' or '.join(ways)}"
        )
    return threads if at_once == 1 else threads or cpus // at_once
