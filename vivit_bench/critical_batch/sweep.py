"""All cells of Table S.1: which they are, and their searches, in turn or several at a time."""

import os
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

from vivit_bench.critical_batch.jobs import (
    AheadJob,
    Job,
    SweepListener,
    SweepStep,
    run_here,
    run_jobs,
)
from vivit_bench.critical_batch.settings import Cell, make_cell
from vivit_bench.critical_batch.sweep_plan import SweepPlan, in_order, look_up
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


def begin_sweep(plan: SweepPlan, listener: SweepListener) -> SweepPlan:
    """Run the small trials of all that is to be searched, which say what is expected of it.

    Args:
        plan: From `plan_sweep`.
        listener: Is told what happens.

    Returns:
        The plan with what is known then.

    Raises:
        VivitBenchError: No process can be started.
    """
    ahead = {each.job.cell: AheadJob(each.job) for each in plan.searches if each.is_to_begin}
    ended = {step.job.cell: step for step in _run(list(ahead.values()), plan.at_once, listener)}
    searches = []
    for planned in plan.searches:
        if (step := ended.get(planned.job.cell)) is not None:
            if step.error is not None:
                planned = replace(planned, failed=step)
            else:
                planned = look_up(replace(planned.job, begun=True))
        searches.append(planned)
    return replace(plan, searches=searches)


def run_sweep(plan: SweepPlan, listener: SweepListener) -> list[SweepStep]:
    """Search all cells of a plan.

    Args:
        plan: From `plan_sweep` or `begin_sweep`.
        listener: Is told what happens.

    Returns:
        How each search ended, in the plan's order.

    Raises:
        VivitBenchError: No process can be started.
    """
    steps = [each.failed for each in plan.searches if each.failed is not None]
    waiting = [each for each in plan.searches if each.failed is None]
    if plan.at_once > 1:  # what is stored takes no time, and what is refused neither
        steps += [run_here(each.job, listener) for each in waiting if not each.is_to_run]
        waiting = [each for each in waiting if each.is_to_run]
    steps += _run([each.job for each in waiting], plan.at_once, listener)
    return in_order(plan, steps)


def _run(jobs: Sequence[Job], at_once: int, listener: SweepListener) -> list[SweepStep]:
    if at_once == 1:
        return [run_here(job, listener) for job in jobs]
    return run_jobs(jobs, at_once, listener)


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
