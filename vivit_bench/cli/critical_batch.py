"""``vivit-bench critical-batch``: search, sweep, table and plot critical batch sizes."""

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vivit_bench.arguments import DEFAULT_RESULTS_DIR, problem_slug
from vivit_bench.cli.options import (
    CheckpointOption,
    DataDirOption,
    DeviceOption,
    FormatOption,
    ProblemArgument,
    SeedOption,
)
from vivit_bench.curvature.options import Curvature, Samples
from vivit_bench.peers import Quantity
from vivit_bench.problems.sources import DataSource
from vivit_bench.report.tables import TableFormat, render

if TYPE_CHECKING:
    from vivit_bench.cli.critical_batch_progress import SearchProgress
    from vivit_bench.report.critical_batch import Selection

app = typer.Typer(
    no_args_is_help=True,
    help="Critical batch sizes: the largest mini-batch that fits a memory limit.",
)


class Letter(StrEnum):
    """One of the tables S.1a to S.1d."""

    A = "a"
    B = "b"
    C = "c"
    D = "d"


McSamplesOption = Annotated[
    int, typer.Option(help="Label draws per sample for --curvature mc, at least 1.")
]
LimitOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Largest peak over the idle process, e.g. 2GiB or 512MiB; on cuda the device's.",
        show_default="half of the memory available now",
    ),
]
MaxBatchOption = Annotated[int, typer.Option(help="Largest N to run, at least 1.")]
DataOption = Annotated[
    DataSource | None,
    typer.Option(
        help="Where mini-batches come from.",
        show_default="synthetic; own for a problem of your own",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(help="CPU threads of a trial, at least 1.", show_default="all CPUs there are"),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="For the work of one trial. A trial that takes longer ends the search.",
    ),
]
ResultsDirOption = Annotated[Path, typer.Option(help="Folder of all results.")]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Forget the records of earlier trials and start over.")
]
EnginesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--engine", metavar="NAME", help="Engine, repeatable.", show_default="vivit-bench"
    ),
]
ProblemsOption = Annotated[
    list[str] | None,
    typer.Option("--problem", metavar="PROBLEM", help="Problem, repeatable."),
]
TablesOption = Annotated[
    list[Letter] | None,
    typer.Option(
        "--table",
        help="Table, repeatable: a eigenvalues, b block-newton, c full-newton on the cpu; "
        "d full-newton on cuda.",
        show_default="all that this machine can make",
    ),
]
StoredLimitOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Searches under this memory limit.",
        show_default="that of the newest search",
    ),
]
MixOption = Annotated[
    bool, typer.Option("--mix", help="Put searches of all memory limits and machines together.")
]


@app.command()
def search(
    problem: ProblemArgument,
    quantity: Annotated[
        Quantity, typer.Option(help="What is computed; the gradient always is.")
    ] = Quantity.EIGENVALUES,
    curvature: Annotated[
        Curvature | None,
        typer.Option(
            help="Exact loss Hessian or its Monte-Carlo approximation.",
            show_default="exact; none for the gradient",
        ),
    ] = None,
    mc_samples: McSamplesOption = 1,
    samples: Annotated[
        Samples | None,
        typer.Option(
            help="Curvature of the whole mini-batch or of its first N // 8.",
            show_default="full; none for the gradient",
        ),
    ] = None,
    device: DeviceOption = "cpu",
    memory_limit: LimitOption = None,
    max_batch: MaxBatchOption = 32_768,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="Implementation that is measured.")
    ] = "vivit-bench",
    data: DataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    trial_timeout: TimeoutOption = 1_800.0,
    checkpoint: CheckpointOption = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    fresh: FreshOption = False,
) -> None:
    """Search the largest batch size whose work fits the memory limit.

    Doubling, then bisection; every trial is a process of its own. Interrupted at any moment,
    the same command goes on where it stopped.
    """
    from vivit_bench.cli.critical_batch_result import print_search
    from vivit_bench.critical_batch import choose_limit, make_cell, run_search
    from vivit_bench.critical_batch.settings import check_bounds

    check_bounds(max_batch, trial_timeout)
    limit = _size(memory_limit)
    cell = make_cell(
        problem,
        quantity=quantity,
        curvature=curvature,
        samples=samples,
        mc_samples=mc_samples,
        device=device,
        engine=engine,
        data=data,
        seed=seed,
        threads=threads,
        checkpoint=checkpoint,
        data_dir=data_dir,
    )
    with _progress() as progress:
        chosen = choose_limit(
            [cell], limit, results_dir=results_dir, fresh=fresh, listener=progress
        )
        finished = run_search(
            cell,
            chosen,
            results_dir=results_dir,
            max_batch=max_batch,
            trial_timeout=trial_timeout,
            fresh=fresh,
            listener=progress,
        )
    print_search(finished)


@app.command()
def sweep(
    table: TablesOption = None,
    problem: ProblemsOption = None,
    engine: EnginesOption = None,
    gradient: Annotated[
        bool, typer.Option(help="Also search the gradient alone, for the plots.")
    ] = True,
    mc_samples: McSamplesOption = 1,
    memory_limit: LimitOption = None,
    max_batch: MaxBatchOption = 32_768,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    trial_timeout: TimeoutOption = 1_800.0,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    fresh: FreshOption = False,
) -> None:
    """Search all cells of the paper's Table S.1, or some; finished ones are skipped.

    A cell that fails is named at the end, and the exit code is then 1.
    """
    from vivit_bench.cli.critical_batch_result import summary_line
    from vivit_bench.critical_batch.sweep import default_tables, sweep_cells, table_cells
    from vivit_bench.critical_batch.table_s1 import PROBLEMS, SUB_TABLES
    from vivit_bench.errors import VivitBenchError

    limit = _size(memory_limit)
    tables = [SUB_TABLES[letter] for letter in table] if table else default_tables()
    cells = table_cells(
        tables,
        problem or PROBLEMS,
        engine or ["vivit-bench"],
        gradient=gradient,
        mc_samples=mc_samples,
        data=data,
        data_dir=data_dir,
        seed=seed,
        threads=threads,
    )
    failed = []
    with _progress() as progress:
        left_out = sorted(set(SUB_TABLES) - {sub_table.letter for sub_table in tables})
        if not table and left_out:
            progress.note(f"no CUDA device here: table {', '.join(left_out)} is left out")
        done = 0
        for step in sweep_cells(
            cells,
            memory_limit=limit,
            results_dir=results_dir,
            max_batch=max_batch,
            trial_timeout=trial_timeout,
            fresh=fresh,
            listener=progress,
        ):
            if step.error is not None:
                failed.append(step.cell.label)
                progress.note(f"{step.cell.label}: {step.error}")
            elif step.finished is None:
                done += 1
                progress.note(f"[{done}/{len(cells)}] {step.cell.label}")
            else:
                progress.close()
                typer.echo(summary_line(step.finished))
    if failed:
        raise VivitBenchError(
            f"{len(failed)} of {len(cells)} searches failed: {'; '.join(failed)}; "
            "the same command tries them again"
        )


@app.command()
def table(
    table: TablesOption = None,
    problem: ProblemsOption = None,
    engine: EnginesOption = None,
    memory_limit: StoredLimitOption = None,
    mc_samples: McSamplesOption = 1,
    paper: Annotated[bool, typer.Option("--paper", help="Put the paper's numbers beside.")] = False,
    format: FormatOption = TableFormat.TABLE,
    mix: MixOption = False,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
) -> None:
    """Print stored critical batch sizes as in Table S.1, and write CSV, Markdown and LaTeX.

    One table has searches under one memory limit and of one machine: the newest. With
    --problem it is only printed.
    """
    from vivit_bench.critical_batch.records import EXPERIMENT
    from vivit_bench.critical_batch.table_s1 import SUB_TABLES
    from vivit_bench.errors import UsageError
    from vivit_bench.report.critical_batch_tables import (
        format_table,
        make_table,
        write_table,
    )

    letters = [letter.value for letter in table or Letter]
    engines = engine or ["vivit-bench"]
    selection = _select(results_dir, engines, problem, memory_limit, mc_samples, mix)
    tables = [
        made
        for letter in letters
        for name in engines
        if (made := make_table(selection, SUB_TABLES[letter], name, paper=paper)) is not None
    ]
    if not tables:
        raise UsageError(
            f"no search of table {', '.join(letters)} is stored; "
            f"make them with: vivit-bench critical-batch sweep --table {letters[0]}"
        )
    for made in tables:
        typer.echo(format_table(made, format))
        if problem:
            continue  # the files are for the whole table
        for path in write_table(made, results_dir / EXPERIMENT):
            typer.echo(str(path), err=True)


@app.command("list")
def list_command(
    format: FormatOption = TableFormat.TABLE,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
) -> None:
    """Print all finished searches, a row each; as CSV or JSON with machine and libraries."""
    from vivit_bench.report.critical_batch import load_searches, searches_table

    searches, damaged = load_searches(results_dir)
    for note in damaged:
        typer.echo(f"warning: {note}", err=True)
    typer.echo(render(searches_table(searches), format), nl=False)


@app.command()
def plot(
    problem: ProblemsOption = None,
    engine: EnginesOption = None,
    memory_limit: StoredLimitOption = None,
    mc_samples: McSamplesOption = 1,
    mix: MixOption = False,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
) -> None:
    """Draw stored critical batch sizes as bars (Figures 1b, S.4b, S.5b), PNG and PDF.

    One figure per problem and kind of device, the gradient beside the approximations.
    """
    from vivit_bench.critical_batch.records import EXPERIMENT
    from vivit_bench.report.critical_batch_figures import plot_critical_batch_sizes
    from vivit_bench.report.critical_batch_tables import in_paper_order

    engines = engine or ["vivit-bench"]
    rows = _select(results_dir, engines, problem, memory_limit, mc_samples, mix).rows
    folder = results_dir / EXPERIMENT
    for name in in_paper_order(rows["problem"]):
        for device, part in rows[rows["problem"] == name].groupby("device"):
            stem = folder / f"critical_batch_{problem_slug(name)}_{device}"
            for path in plot_critical_batch_sizes(part, stem):
                typer.echo(path)


def _select(
    results_dir: Path,
    engines: list[str],
    problems: list[str] | None,
    memory_limit: str | None,
    mc_samples: int,
    mix: bool,
) -> "Selection":
    """Comparable stored searches; what is left out is told on stderr."""
    from vivit_bench.report.critical_batch import load_searches, select_searches

    searches, damaged = load_searches(results_dir)
    selection = select_searches(
        searches,
        engines=engines,
        problems=problems or (),
        memory_limit=_size(memory_limit),
        mc_samples=mc_samples,
        mix=mix,
    )
    for note in [*damaged, *selection.notes]:
        typer.echo(f"warning: {note}", err=True)
    return selection


def _size(text: str | None) -> int | None:
    from vivit_bench.arguments import parse_size

    return None if text is None else parse_size(text)


@contextlib.contextmanager
def _progress() -> Iterator["SearchProgress"]:
    from rich.console import Console

    from vivit_bench.cli.critical_batch_progress import SearchProgress

    progress = SearchProgress(Console(emoji=False, stderr=True, highlight=False))
    try:
        yield progress
    finally:
        progress.close()
