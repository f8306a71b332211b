"""``vivit-bench compare-engines``: time, memory and agreement, side by side, and against N."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vivit_bench.arguments import DEFAULT_RESULTS_DIR, parse_batch_sizes
from vivit_bench.cli.options import (
    APPROXIMATION,
    MACHINE,
    MODEL_AND_DATA,
    OUTPUT,
    CheckpointOption,
    CurvatureOption,
    DataDirOption,
    DeviceOption,
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
from vivit_bench.cli.output import check_figure_file, check_table_file, hand_out, say_written
from vivit_bench.curvature.options import Approximation, Curvature, Precision, Samples
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.peers import Quantity
from vivit_bench.report.tables import TableFormat

if TYPE_CHECKING:
    from vivit_bench.comparison.scaling import Series

EXAMPLES = examples(
    "compare-engines cifar10_3c3d --floor",
    "compare-engines net.py:make --engine vivit-bench --engine backpack --output engines.csv",
    "compare-engines cifar10_3c3d --batch-size 32,64,128,256,512,1024 --plot scaling.pdf",
    "compare-engines cifar10_3c3d --batch-size 1024 --device cuda",
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
        str,
        typer.Option(
            metavar="N[,N...]",
            help="Mini-batch size, or several: then the cost against N.",
            rich_help_panel=MODEL_AND_DATA,
        ),
    ] = "128",
    data: MemoryDataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    engine: EnginesOption = ["vivit-bench", "vivit-for-pytorch"],  # noqa: B006
    device: DeviceOption = "cpu",
    threads: RunThreadsOption = None,
    repeats: Annotated[
        int,
        typer.Option(
            min=1,
            help="Time runs of each engine, in turn, after one for memory; from 6 on the ratios' "
            "intervals have a level of 95 %, from 9 on `vivit-bench compare` compares them.",
            rich_help_panel=MACHINE,
        ),
    ] = 9,
    timeout: TimeoutOption = 600.0,
    floor: Annotated[
        bool,
        typer.Option(
            "--floor",
            help="Also report the time the machine needs at best; of eigenvalues in float32.",
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
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also draw the cost against N: .png, .pdf or .svg.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Measure engines in turn, every run in a fresh process: time, memory, agreement.

    Memory is the peak over the idle process, read as in a trial of critical-batch; on cuda it is
    the device's, and times are those of a second run of the same N in its process. Every run is
    stored as it is made; interrupted, the same command goes on. Each of several N is a comparison
    of its own; exponents are fitted over the larger half of them, at least three.
    """
    from vivit_bench.comparison.scaling import run_series
    from vivit_bench.comparison.stored import Comparison, run_comparison, stored_rows
    from vivit_bench.critical_batch.settings import check_timeout, threads_of_a_run
    from vivit_bench.hardware import parse_device
    from vivit_bench.peers import get_engine
    from vivit_bench.problems.sources import default_source
    from vivit_bench.problems.workload import WorkloadSpec
    from vivit_bench.report.comparison import engines_table, stored_table
    from vivit_bench.store import nothing_found

    check_table_file(output)
    sizes = parse_batch_sizes(batch_size)
    check_timeout(timeout)
    if plot is not None and (stored or len(sizes) == 1):
        raise UsageError(
            f"--plot {plot}: the cost against N is drawn of a PROBLEM and several N, for example "
            "--batch-size 32,64,128 (what is stored is not measured again)"
        )
    check_figure_file(plot)
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
    place = parse_device(device)
    spec = WorkloadSpec(problem, sizes[0], source, data_dir, seed, checkpoint, dtype, place)
    approximation = Approximation(curvature, samples, mc_samples, seed)
    if floor and (quantity is not Quantity.EIGENVALUES or dtype is not Precision.FLOAT32):
        raise UsageError(
            f"--floor: the least time of eigenvalues in float32, and not of {quantity} in {dtype}; "
            "leave it out"
        )
    comparison = Comparison(spec, quantity, approximation, tuple(engine), count)
    console = progress_console(quiet)
    options: dict[str, Any] = {
        "repeats": repeats,
        "timeout_seconds": timeout,
        "floor": floor,
        "fresh": fresh,
        "note": lambda text: console.print(text, soft_wrap=True, markup=False),
    }
    if len(sizes) > 1:
        series = run_series(comparison, sizes, results_dir, **options)
        _hand_out_series(series, plot, format, output, quiet)
        _refuse_failed(series.rows)
        return
    compared = run_comparison(comparison, results_dir, **options)
    hand_out(engines_table(compared), format, output, quiet)
    _refuse_failed(compared.rows)


def _hand_out_series(
    series: "Series", plot: Path | None, format: TableFormat, output: Path | None, quiet: bool
) -> None:
    """Print and draw what there is, and fail if that is not all.

    Raises:
        VivitBenchError: There is no comparison at some N.
    """
    from vivit_bench.report.comparison import series_table
    from vivit_bench.report.comparison_figures import plot_series

    if series.rows:
        for_people = output is None and format not in (TableFormat.CSV, TableFormat.JSON)
        hand_out(series_table(series, for_people=for_people), format, output, quiet)
        if plot is not None:
            plot_series(series, plot)
            say_written(plot, quiet)
    if series.failures:
        said = "; ".join(f"N = {n}: {reason}" for n, reason in series.failures.items())
        raise VivitBenchError(f"{said}; the same command tries again")


def _refuse_failed(rows: Sequence[dict[str, Any]]) -> None:
    """Fail if an engine has failed, or has found something else than the others.

    Memory, time or samples that do not suffice are findings of a comparison, and no failures.

    Raises:
        VivitBenchError: With the reasons or the deviations.
    """
    from vivit_bench.comparison.compare import AGREEMENT
    from vivit_bench.measure import Outcome

    several = len({row.get("batch_size") for row in rows}) > 1

    def name(row: dict[str, Any]) -> str:
        return f"{row['engine']} at N = {row['batch_size']}" if several else str(row["engine"])

    said = [
        f"{name(row)} failed: {row['failure']}" for row in rows if row["outcome"] == Outcome.ERROR
    ]
    if odd := [row for row in rows if row.get("agrees") is False]:
        named = ", ".join(f"{name(row)} by {row['difference']:.1e}" for row in odd)
        said.append(
            f"engines disagree with {rows[0]['engine']}: {named} (tolerance "
            f"{AGREEMENT['eigenvalues']:.0e} for eigenvalues, {AGREEMENT['step']:.0e} for steps); "
            "one of them is wrong on this model"
        )
    if said:
        raise VivitBenchError("; ".join(said))
