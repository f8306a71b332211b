"""``vivit-bench critical-batch``: search, predict and sweep critical batch sizes."""

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vivit_bench.arguments import DEFAULT_RESULTS_DIR, parse_size
from vivit_bench.cli import critical_batch_stored as stored
from vivit_bench.cli.critical_batch_stored import Letter, problems_option, tables_option
from vivit_bench.cli.executor import Executor, ExecutorOption, SlurmOption, slurm_options
from vivit_bench.cli.options import (
    APPROXIMATION,
    MACHINE,
    OUTPUT,
    CheckpointOption,
    DataDirOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    EnginesOption,
    FormatOption,
    FreshOption,
    McSamplesOption,
    MemoryDataOption,
    ProblemArgument,
    QuietOption,
    ResultsDirOption,
    RunThreadsOption,
    SeedOption,
    TimeoutOption,
    examples,
    progress_console,
)
from vivit_bench.cli.output import hand_out
from vivit_bench.critical_batch.settings import (
    DEFAULT_ENGINE,
    DEFAULT_MAX_BATCH,
    DEFAULT_TRIAL_TIMEOUT,
)
from vivit_bench.curvature.options import Curvature, Precision, Samples
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.peers import OF_ENGINES, Quantity
from vivit_bench.report.tables import TableFormat

if TYPE_CHECKING:
    from vivit_bench.cli.critical_batch_progress import SearchProgress
    from vivit_bench.cli.sweep_progress import SweepProgress
    from vivit_bench.critical_batch.sweep_plan import SweepPlan

app = typer.Typer(
    no_args_is_help=True,
    help="Critical batch sizes: the largest mini-batch that fits a memory limit.",
)


class PredictedQuantity(StrEnum):
    """What `predict` can be asked for."""

    GRADIENT = "gradient"
    EIGENVALUES = "eigenvalues"
    BLOCK_NEWTON = "block-newton"
    FULL_NEWTON = "full-newton"
    STEP = "step"
    ALL = "all"


LimitOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Largest peak over the idle process, e.g. 2GiB or 512MiB; on cuda of the "
        "device's memory, as PyTorch's allocator reserves it.",
        show_default="half of the memory available now",
        rich_help_panel=MACHINE,
    ),
]
CallsOption = Annotated[
    int | None,
    typer.Option(
        help="Calls of a training step in a trial.",
        show_default="3",
        rich_help_panel=APPROXIMATION,
    ),
]
MaxBatchOption = Annotated[
    int, typer.Option(min=1, help="Largest N to run.", rich_help_panel=MACHINE)
]
ProblemsOption = Annotated[list[str] | None, problems_option("the paper's three")]
TablesOption = Annotated[
    list[Letter] | None, tables_option("a, b and c; d only where it is asked for")
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Searches at a time, each on CPUs of its own, on the cpu only; --threads is then "
        "the CPUs divided among them. Sizes are the same, seconds are not. With --executor slurm "
        "the most jobs in the queue.",
        show_default="1; with --executor slurm all",
        rich_help_panel=MACHINE,
    ),
]


def _curvature_option(default: str, repeatable: str = ", repeatable") -> Any:
    return typer.Option(
        help=f"Exact loss Hessian or its Monte-Carlo approximation{repeatable}.",
        show_default=default,
        rich_help_panel=APPROXIMATION,
    )


def _samples_option(default: str, repeatable: str = ", repeatable") -> Any:
    return typer.Option(
        help=f"Curvature of the whole mini-batch or of its first N // 8{repeatable}.",
        show_default=default,
        rich_help_panel=APPROXIMATION,
    )


@app.command(
    epilog=examples(
        "critical-batch search cifar10_3c3d --memory-limit 2GiB",
        "critical-batch search net.py:make --quantity full-newton --dtype float64 --quiet",
        "critical-batch search train.py:step --memory-limit 8GiB",
    )
)
def search(
    problem: ProblemArgument,
    quantity: Annotated[
        Quantity | None,
        typer.Option(
            help="What is computed; the gradient always is. step: a training step of your own, "
            "which FUNCTION returns.",
            show_default="eigenvalues, or step where FUNCTION returns one",
            rich_help_panel=APPROXIMATION,
        ),
    ] = None,
    curvature: Annotated[
        Curvature | None, _curvature_option("exact; none for the gradient", "")
    ] = None,
    samples: Annotated[Samples | None, _samples_option("full; none for the gradient", "")] = None,
    mc_samples: McSamplesOption = 1,
    data: MemoryDataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    engine: EngineOption = DEFAULT_ENGINE,
    device: DeviceOption = "cpu",
    threads: RunThreadsOption = None,
    calls: CallsOption = None,
    memory_limit: LimitOption = None,
    max_batch: MaxBatchOption = DEFAULT_MAX_BATCH,
    timeout: TimeoutOption = DEFAULT_TRIAL_TIMEOUT,
    repeats: Annotated[
        int,
        typer.Option(
            min=1,
            help="Trials of the N that fits and of the N + 1 that does not.",
            rich_help_panel=MACHINE,
        ),
    ] = 1,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    fresh: FreshOption = False,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Search the largest batch size whose work fits the memory limit.

    From where the engine's plan, or small trials, say that it is, to an N that fits beside an N + 1
    that does not; every trial is a process of its own. Interrupted at any moment, the same command
    goes on where it stopped.

    Where FUNCTION returns a callable step(n, seed), a training step of your own, a trial builds it
    anew and calls it three times, and the limit is for the whole process.
    """
    from vivit_bench.critical_batch import choose_limit, make_cell, run_search
    from vivit_bench.critical_batch.settings import check_bounds
    from vivit_bench.report.critical_batch import search_table

    check_bounds(max_batch, timeout, repeats)
    limit = _size(memory_limit)
    cell = make_cell(
        problem,
        quantity=quantity or _default_quantity(problem, seed),
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
        dtype=dtype,
        calls=calls,
    )
    with _progress(quiet) as progress:
        chosen = choose_limit(
            [cell], limit, results_dir=results_dir, fresh=fresh, listener=progress
        )
        finished = run_search(
            cell,
            chosen,
            results_dir=results_dir,
            max_batch=max_batch,
            trial_timeout=timeout,
            repeats=repeats,
            fresh=fresh,
            listener=progress,
        )
    hand_out(search_table(finished), format)


@app.command(
    epilog=examples(
        "critical-batch predict cifar10_3c3d --memory 2GiB --memory 80GiB --quantity all",
        "critical-batch predict net.py:make --memory 24GiB --curvature exact --curvature mc",
    )
)
def predict(
    problem: ProblemArgument,
    memory: Annotated[
        list[str],
        typer.Option(
            metavar="SIZE",
            help="Memory over the idle process (of a training step: of its whole process), "
            "repeatable; this machine need not have it.",
            rich_help_panel=MACHINE,
        ),
    ],
    quantity: Annotated[
        list[PredictedQuantity] | None,
        typer.Option(
            help="What is computed, repeatable; all: but step.",
            show_default="eigenvalues, or step where FUNCTION returns one",
            rich_help_panel=APPROXIMATION,
        ),
    ] = None,
    curvature: Annotated[list[Curvature] | None, _curvature_option("exact")] = None,
    samples: Annotated[list[Samples] | None, _samples_option("full")] = None,
    mc_samples: McSamplesOption = 1,
    data: MemoryDataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    engine: EngineOption = DEFAULT_ENGINE,
    device: DeviceOption = "cpu",
    threads: RunThreadsOption = None,
    calls: CallsOption = None,
    max_batch: MaxBatchOption = DEFAULT_MAX_BATCH,
    timeout: TimeoutOption = DEFAULT_TRIAL_TIMEOUT,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Predict critical batch sizes from small trials; nothing is stored.

    A minute or two each; block-diagonal steps of deep networks take several.

    The interval holds the size that a search would find with 95 % probability.
    """
    from vivit_bench.critical_batch import make_cell, predict_cell
    from vivit_bench.critical_batch.settings import check_bounds
    from vivit_bench.curvature.available import available_memory
    from vivit_bench.measure.budget import check_limit
    from vivit_bench.report.critical_batch import predictions_table

    check_bounds(max_batch, timeout)
    memories = [parse_size(size, "--memory") for size in memory]
    for size in memories:
        check_limit(size, "--memory")
    if quantity is None:
        chosen = [_default_quantity(problem, seed)]
    elif PredictedQuantity.ALL in quantity:
        chosen = [each for each in Quantity if each in OF_ENGINES]
    else:
        chosen = [Quantity(each) for each in quantity]
    curvatures = curvature or [Curvature.EXACT]
    cells = []
    for kind, part, each in product(curvatures, samples or [Samples.FULL], chosen):
        has_curvature = each not in (Quantity.GRADIENT, Quantity.STEP)
        draws = has_curvature and (kind is Curvature.MC or Curvature.MC not in curvatures)
        cell = make_cell(
            problem,
            quantity=each,
            curvature=kind if has_curvature else None,
            samples=part if has_curvature else None,
            mc_samples=mc_samples if draws else 1,
            device=device,
            engine=engine,
            data=data,
            seed=seed,
            threads=threads,
            checkpoint=checkpoint,
            data_dir=data_dir,
            dtype=dtype,
            calls=calls,
        )
        cells.append(cell)
    cells = list(dict.fromkeys(cells))
    found, failures = [], []
    with _progress(quiet) as progress:
        for cell in cells:
            progress.note(cell.label)
            try:
                predictions = predict_cell(
                    cell, memories, max_batch=max_batch, trial_timeout=timeout, listener=progress
                )
            except VivitBenchError as error:
                if len(cells) == 1:
                    raise
                failures.append(str(error))
                progress.note(f"not predicted: {error}")
                continue
            found += [(cell, prediction) for prediction in predictions]
    if found:
        available = available_memory() if device == "cpu" else None
        hand_out(predictions_table(found, available), format)
    if failures:
        raise VivitBenchError(f"{len(failures)} not predicted: {'; '.join(failures)}")


@app.command(
    epilog=examples(
        "critical-batch sweep --table a --table c --memory-limit 2GiB",
        "critical-batch sweep --problem mnist_mlp --engine vivit-bench --engine vivit-for-pytorch",
        "critical-batch sweep --memory-limit 2GiB --jobs 4 --dry-run",
        "critical-batch sweep --memory-limit 2GiB --threads 8 --executor slurm "
        "--slurm partition=long,time=12:00:00",
    )
)
def sweep(
    table: TablesOption = None,
    problem: ProblemsOption = None,
    gradient: Annotated[
        bool,
        typer.Option(
            help="Also search the gradient alone, for the plots.", rich_help_panel=APPROXIMATION
        ),
    ] = True,
    curvature: Annotated[list[Curvature] | None, _curvature_option("exact and mc")] = None,
    samples: Annotated[list[Samples] | None, _samples_option("full and frac")] = None,
    mc_samples: McSamplesOption = 1,
    data: MemoryDataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    engine: EnginesOption = [DEFAULT_ENGINE],  # noqa: B006
    threads: RunThreadsOption = None,
    memory_limit: LimitOption = None,
    max_batch: MaxBatchOption = DEFAULT_MAX_BATCH,
    timeout: TimeoutOption = DEFAULT_TRIAL_TIMEOUT,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    jobs: JobsOption = None,
    executor: ExecutorOption = Executor.LOCAL,
    slurm: SlurmOption = None,
    fresh: FreshOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the plan with predictions of what is to be run, from small trials (about "
            "a minute each), and stop: no search is run, nothing is stored. With --executor slurm "
            "without predictions, and with what each job would ask for.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Search the cells of the paper's Tables S.1a to S.1c, or some; finished ones are skipped.

    The small trials of all searches are run first, then the plan with the expected time is
    printed. Table S.1d, on a CUDA device, is searched with --table d. A cell
    that fails is named at the end, and the exit code is then 1.
    """
    from vivit_bench.cli.critical_batch_progress import log_listener
    from vivit_bench.cluster import Slurm, make_request
    from vivit_bench.critical_batch.cluster import budget_of, run_sweep_in_queue
    from vivit_bench.critical_batch.sweep import begin_sweep, run_sweep, table_cells, threads_of
    from vivit_bench.critical_batch.sweep_plan import plan_sweep
    from vivit_bench.critical_batch.table_s1 import DEFAULT_TABLES, PROBLEMS, SUB_TABLES
    from vivit_bench.report.critical_batch import sweep_table
    from vivit_bench.report.sweep_plan import plan_table
    from vivit_bench.report.tables import render

    problems = problem or PROBLEMS
    if checkpoint is not None and len(set(problems)) > 1:
        raise UsageError(f"--checkpoint {checkpoint}: of one model; name its --problem alone")
    limit = _size(memory_limit)
    tables = [SUB_TABLES[letter] for letter in table or DEFAULT_TABLES]
    options = slurm_options(executor, slurm)
    is_local = executor is Executor.LOCAL
    scheduler = None if is_local or dry_run else Slurm()
    # Threads are a setting of what is stored: they are counted here, where all CPUs are seen.
    trial_threads = threads_of(jobs or 1, threads) if is_local else threads
    cells = table_cells(
        tables,
        problems,
        engine,
        gradient=gradient,
        curvatures=curvature or tuple(Curvature),
        samples=samples or tuple(Samples),
        mc_samples=mc_samples,
        data=data,
        data_dir=data_dir,
        seed=seed,
        threads=trial_threads,
        checkpoint=checkpoint,
        dtype=dtype,
        runs_here=is_local,
    )
    with _progress(quiet) as progress:
        if trial_threads != threads:
            progress.note(f"--threads {trial_threads}: the CPUs divided among --jobs {jobs}")
        plan = plan_sweep(
            cells,
            memory_limit=limit,
            results_dir=results_dir,
            max_batch=max_batch,
            trial_timeout=timeout,
            fresh=fresh,
            at_once=jobs or (1 if is_local else len(cells)),
            elsewhere=not is_local,
            listener=progress,
        )
        request = None if is_local else make_request(options, threads, budget_of(plan))
        if request is not None:
            progress.note(f"each job asks for {request.line()}")
        if dry_run and is_local:
            plan = plan.predicted(progress)
    if dry_run:
        hand_out(plan_table(plan), format)
        return
    with _sweep_progress(quiet, plan) as shown:
        if is_local:
            plan = begin_sweep(plan, shown)
            shown.goes_on(plan)
        shown.note(render(plan_table(plan), TableFormat.TABLE).rstrip())
        if request is None or scheduler is None:
            steps = run_sweep(plan, shown)
        else:
            steps = run_sweep_in_queue(
                plan, request, scheduler, shown, make_listener=log_listener, note=shown.note
            )
        shown.note(shown.summary(steps))
    if finished := [step.finished for step in steps if step.finished is not None]:
        hand_out(sweep_table(finished), format)
    if len(finished) < len(steps):
        from vivit_bench.cli.sweep_progress import failures

        raise failures(steps)


def _default_quantity(problem: str, seed: int) -> Quantity:
    from vivit_bench.critical_batch.settings import default_quantity

    return default_quantity(problem, seed)


def _size(text: str | None) -> int | None:
    return None if text is None else parse_size(text)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator["SearchProgress"]:
    from vivit_bench.cli.critical_batch_progress import SearchProgress

    progress = SearchProgress(progress_console(quiet))
    try:
        yield progress
    finally:
        progress.close()


@contextlib.contextmanager
def _sweep_progress(quiet: bool, plan: "SweepPlan") -> Iterator["SweepProgress"]:
    from vivit_bench.cli.sweep_progress import SweepProgress

    progress = SweepProgress(progress_console(quiet), plan)
    try:
        yield progress
    finally:
        progress.close()


app.command(epilog=stored.TABLE_EXAMPLES)(stored.table)
app.command(epilog=stored.PREDICTIONS_EXAMPLES)(stored.predictions)
app.command("list", epilog=stored.LIST_EXAMPLES)(stored.list_command)
app.command(epilog=stored.PLOT_EXAMPLES)(stored.plot)
