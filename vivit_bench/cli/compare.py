"""``vivit-bench compare-engines``: time, memory and agreement, side by side."""

from pathlib import Path
from typing import Annotated

import typer

from vivit_bench.cli.options import (
    CurvatureOption,
    DataDirOption,
    McSamplesOption,
    ProblemArgument,
    SamplesOption,
    SeedOption,
)
from vivit_bench.curvature.options import Approximation, Curvature, Samples
from vivit_bench.errors import VivitBenchError
from vivit_bench.peers import Quantity, engine_names
from vivit_bench.problems.sources import DataSource


def compare_engines(
    problem: ProblemArgument,
    quantity: Annotated[Quantity, typer.Option(help="What to compute.")] = Quantity.EIGENVALUES,
    batch_size: Annotated[int, typer.Option(min=1, help="Mini-batch size N.")] = 128,
    curvature: CurvatureOption = Curvature.EXACT,
    samples: SamplesOption = Samples.FULL,
    mc_samples: McSamplesOption = 1,
    engine: Annotated[
        list[str],
        typer.Option(help=f"Engine, repeatable; the first is the base. {engine_names()}"),
    ] = ["vivit-bench", "vivit-for-pytorch"],  # noqa: B006
    repeats: Annotated[
        int, typer.Option(min=1, help="Time runs of each engine, in turn, after one for memory.")
    ] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    data: Annotated[DataSource | None, typer.Option(help="Default: synthetic, or own.")] = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds one run may take.")] = 600.0,
    floor: Annotated[
        bool, typer.Option("--floor", help="Also report the time the machine needs at best.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Write the table to this CSV file.")] = None,
) -> None:
    """Measure engines in turn, every run in a fresh process: time, memory, agreement.

    Memory is the peak over the idle process, read as in a trial of critical-batch.
    """
    from vivit_bench.comparison.compare import AGREEMENT, summarise
    from vivit_bench.comparison.compare import compare_engines as measure
    from vivit_bench.comparison.floor import measure_floor
    from vivit_bench.peers import get_engine
    from vivit_bench.problems.sources import default_source
    from vivit_bench.report.comparison import print_comparison, print_floor, save_comparison

    Approximation(curvature, samples, mc_samples, seed)
    for name in engine:
        get_engine(name)
    work = {
        "problem": problem,
        "quantity": quantity.value,
        "curvature": curvature.value,
        "samples": samples.value,
        "mc_samples": mc_samples,
        "data": (data or default_source(problem, "memory")).value,
        "data_dir": str(data_dir) if data_dir else None,
        "seed": seed,
        "checkpoint": None,
        "device": "cpu",
    }
    records = measure(
        work,
        engine,
        batch_size,
        threads=threads,
        repeats=repeats,
        timeout_seconds=timeout,
        progress=lambda line: typer.echo(line, err=True),
    )
    rows = summarise(records, comparable=curvature is Curvature.EXACT)
    print_comparison(rows)
    if output is not None:
        save_comparison(rows, {**work, "batch_size": batch_size, "threads": threads}, output)
    if floor:
        print_floor(measure_floor(work, batch_size, threads, timeout), rows[0]["wall_seconds"])
    if odd := [row for row in rows if row.get("agrees") is False]:
        named = ", ".join(f"{row['engine']} by {row['difference']:.1e}" for row in odd)
        raise VivitBenchError(
            f"engines disagree with {rows[0]['engine']}: {named} (tolerance "
            f"{AGREEMENT['eigenvalues']:.0e} for eigenvalues, {AGREEMENT['step']:.0e} for steps); "
            "one of them is wrong on this model"
        )
