"""``vivit-bench compare-engines``: time, memory and agreement, side by side."""

from typing import Annotated

import typer

from vivit_bench.arguments import DEFAULT_RESULTS_DIR
from vivit_bench.cli.options import (
    APPROXIMATION,
    MACHINE,
    MODEL_AND_DATA,
    OUTPUT,
    CheckpointOption,
    CurvatureOption,
    DataDirOption,
    DtypeOption,
    EnginesOption,
    FormatOption,
    FreshOption,
    McSamplesOption,
    MemoryDataOption,
    OutputOption,
    QuietOption,
    ResultsDirOption,
    RunThreadsOption,
    SamplesOption,
    SeedOption,
    TimeoutOption,
    complete_problem,
    examples,
    progress_console,
)
from vivit_bench.cli.output import check_table_file, hand_out
from vivit_bench.curvature.options import Approximation, Curvature, Precision, Samples
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.peers import Quantity
from vivit_bench.report.tables import TableFormat

EXAMPLES = examples(
    "compare-engines cifar10_3c3d --floor",
    "compare-engines net.py:make --engine vivit-bench --engine backpack --output engines.csv",
    "compare-engines --stored --format json",
)


def compare_engines(
    problem: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROBLEM]",
            help="DeepOBS name, or path/to/file.py:function for your own.",
            autocompletion=complete_problem,
            show_default=False,
        ),
    ] = None,
    quantity: Annotated[
        Quantity, typer.Option(help="What is computed.", rich_help_panel=APPROXIMATION)
    ] = Quantity.EIGENVALUES,
    curvature: CurvatureOption = Curvature.EXACT,
    samples: SamplesOption = Samples.FULL,
    mc_samples: McSamplesOption = 1,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Mini-batch size N.", rich_help_panel=MODEL_AND_DATA)
    ] = 128,
    data: MemoryDataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    engine: EnginesOption = ["vivit-bench", "vivit-for-pytorch"],  # noqa: B006
    threads: RunThreadsOption = None,
    repeats: Annotated[
        int,
        typer.Option(
            min=1,
            help="Time runs of each engine, in turn, after one for memory.",
            rich_help_panel=MACHINE,
        ),
    ] = 5,
    timeout: TimeoutOption = 600.0,
    floor: Annotated[
        bool,
        typer.Option(
            "--floor",
            help="Also report the time the machine needs at best.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    stored: Annotated[
        bool,
        typer.Option(
            "--stored",
            help="Print all stored comparisons; needs no PROBLEM.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    fresh: FreshOption = False,
    output: OutputOption = None,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Measure engines in turn, every run in a fresh process: time, memory, agreement.

    Memory is the peak over the idle process, read as in a trial of critical-batch. Every run is
    stored as it is made; interrupted, the same command goes on.
    """
    from vivit_bench.comparison.compare import AGREEMENT
    from vivit_bench.comparison.stored import Comparison, run_comparison, stored_rows
    from vivit_bench.critical_batch.settings import threads_of_a_run
    from vivit_bench.peers import get_engine
    from vivit_bench.problems.sources import default_source
    from vivit_bench.problems.workload import WorkloadSpec
    from vivit_bench.report.comparison import engines_table, stored_table
    from vivit_bench.store import nothing_found

    check_table_file(output)
    if stored:
        rows, damaged = stored_rows(results_dir)
        if not rows:
            what = f"no finished comparison in {results_dir / 'comparison'}"
            raise nothing_found(what, damaged, "make one with: vivit-bench compare-engines PROBLEM")
        for line in damaged:
            typer.echo(f"warning: {line}", err=True)
        hand_out(stored_table(rows), format, output, quiet)
        return
    if problem is None:
        raise UsageError("no PROBLEM is named; --stored prints the comparisons there are")
    count = threads_of_a_run(threads)
    for name in engine:
        get_engine(name)
    if len(set(engine)) < len(engine):
        raise UsageError(f"--engine {', '.join(engine)}: name each engine once")
    source = data or default_source(problem, "memory")
    spec = WorkloadSpec(problem, batch_size, source, data_dir, seed, checkpoint, dtype)
    approximation = Approximation(curvature, samples, mc_samples, seed)
    console = progress_console(quiet)
    compared = run_comparison(
        Comparison(spec, quantity, approximation, tuple(engine), count),
        results_dir,
        repeats=repeats,
        timeout_seconds=timeout,
        floor=floor,
        fresh=fresh,
        note=lambda text: console.print(text, soft_wrap=True, markup=False),
    )
    table = engines_table(compared.rows, compared.floor)
    hand_out(table, format, output, quiet)
    if odd := [row for row in compared.rows if row.get("agrees") is False]:
        named = ", ".join(f"{row['engine']} by {row['difference']:.1e}" for row in odd)
        raise VivitBenchError(
            f"engines disagree with {compared.rows[0]['engine']}: {named} (tolerance "
            f"{AGREEMENT['eigenvalues']:.0e} for eigenvalues, {AGREEMENT['step']:.0e} for steps); "
            "one of them is wrong on this model"
        )
