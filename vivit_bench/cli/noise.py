"""``vivit-bench noise``: monitored training runs, their figures and tables (Figures S.6 - S.10)."""

from pathlib import Path
from typing import Annotated

import typer

from vivit_bench.arguments import DEFAULT_CUTOFF, DEFAULT_RESULTS_DIR
from vivit_bench.cli.executor import (
    Executor,
    ExecutorOption,
    SlurmOption,
    engine_request,
    slurm_options,
)
from vivit_bench.cli.options import (
    OUTPUT,
    CurvatureOption,
    CutoffOption,
    DataDirOption,
    DataOption,
    DeviceOption,
    DropColumnsOption,
    EngineMemoryOption,
    FormatOption,
    FreshOption,
    McSamplesOption,
    ProblemArgument,
    QuietOption,
    ResultsDirOption,
    SamplesOption,
    SeedOption,
    ThreadsOption,
    complete_stored,
    engine_on,
    examples,
    parse_engine_memory,
    progress_console,
)
from vivit_bench.cli.output import check_tensor_file, hand_out, say_written
from vivit_bench.curvature.options import Approximation, Curvature, Samples
from vivit_bench.noise.settings import DEFAULT_CHECKPOINTS, OptimizerName
from vivit_bench.report.tables import TableFormat

app = typer.Typer(
    no_args_is_help=True,
    help="Gradient and curvature noise during training (Figures S.6 - S.10): run, plot, table.",
)

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Name of a run in the results, or its folder.",
        autocompletion=complete_stored("noise"),
    ),
]


TRAINING, MONITOR = "Training", "Monitor"


@app.command(
    epilog=examples(
        "noise run mnist_2c2d --optimizer sgd --data mnist5k --epochs 60",
        "noise run net.py:make --optimizer adam --lr 1e-3 --epochs 5 --at 0,100steps,end",
    )
)
def run(
    problem: ProblemArgument,
    optimizer: Annotated[
        OptimizerName, typer.Option(help="How to train.", rich_help_panel=TRAINING)
    ],
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs.", show_default="DeepOBS's", rich_help_panel=TRAINING),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Mini-batch size of the training.",
            show_default="DeepOBS's, mostly 128",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate.",
            show_default="released value of Table S.2",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    momentum: Annotated[
        float | None,
        typer.Option(help="Of sgd.", show_default="0.9", rich_help_panel=TRAINING),
    ] = None,
    checkpoints: Annotated[
        int | None,
        typer.Option(
            help="Number of checkpoints, log-spaced over the run, from the start to the end.",
            show_default=str(DEFAULT_CHECKPOINTS),
            rich_help_panel=MONITOR,
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="PLACES",
            help="Checkpoints by name instead, e.g. 0,100steps,5epochs,end.",
            rich_help_panel=MONITOR,
        ),
    ] = None,
    monitor_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples held out and looked through.",
            show_default="128, or 64 with 100 classes",
            rich_help_panel=MONITOR,
        ),
    ] = None,
    per_sample: Annotated[
        bool,
        typer.Option(
            "--per-sample",
            help="Also store every sample's gamma and lambda.",
            rich_help_panel=MONITOR,
        ),
    ] = False,
    curvature: CurvatureOption = Curvature.EXACT,
    samples: SamplesOption = Samples.FULL,
    mc_samples: McSamplesOption = 1,
    cutoff: CutoffOption = DEFAULT_CUTOFF,
    drop_columns: DropColumnsOption = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    engine_memory: EngineMemoryOption = None,
    executor: ExecutorOption = Executor.LOCAL,
    slurm: SlurmOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Of the run's folder.",
            show_default="PROBLEM_OPTIMIZER-HASH",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    fresh: FreshOption = False,
    save_model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.pt",
            help="Also write the last weights, for --checkpoint of other commands.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Train a problem and watch one held-out mini-batch along every GGN eigenvector.

    Interrupted, the same command goes on from the last checkpoint or epoch, and ends with the
    same numbers.
    """
    from vivit_bench.cli.noise_progress import TrainingProgress, log_listener
    from vivit_bench.noise import Choices, parse_positions, run_noise
    from vivit_bench.report.noise import run_table

    options = slurm_options(executor, slurm)
    memory, request = parse_engine_memory(engine_memory), None
    if executor is Executor.SLURM:
        request, memory = engine_request(options, threads, memory)
    choices = Choices(
        problem=problem,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        seed=seed,
        data=data,
        data_dir=data_dir,
        checkpoints=checkpoints,
        at=None if at is None else parse_positions(at),
        monitor_batch_size=monitor_batch_size,
        approximation=Approximation(curvature, samples, mc_samples, seed),
        cutoff=cutoff,
        per_sample=per_sample,
        device=device,
        drop_columns=drop_columns,
        memory=memory,
    )
    check_tensor_file(save_model)
    progress = TrainingProgress(progress_console(quiet))
    if request is not None:
        from vivit_bench.cluster import Slurm
        from vivit_bench.noise.cluster import run_noise_in_queue

        scheduler = Slurm()
        progress.note(f"the job asks for {request.line()}")
        finished = run_noise_in_queue(
            choices,
            results_dir,
            request,
            scheduler,
            name=name,
            fresh=fresh,
            save_model=save_model,
            make_listener=log_listener,
            note=progress.note,
        )
        hand_out(run_table(finished), format)
        return
    with engine_on(problem, device, threads):
        try:
            finished = run_noise(
                choices,
                results_dir,
                name=name,
                fresh=fresh,
                listener=progress,
                save_model=save_model,
            )
        finally:
            progress.close()
    hand_out(run_table(finished), format)


@app.command(
    epilog=examples("noise plot mnist_2c2d_sgd", "noise plot mnist_2c2d_sgd --at 0,5epochs,end")
)
def plot(
    run: RunArgument,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="PLACES",
            help="Checkpoints to show, e.g. 0,100steps,end.",
            show_default="first, early, last",
            rich_help_panel=MONITOR,
        ),
    ] = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
) -> None:
    """Draw slope, alignment and signal-to-noise ratios over curvature, and the training curves."""
    from vivit_bench.noise import find_run, parse_positions
    from vivit_bench.report.noise import choose_checkpoints, state_note
    from vivit_bench.report.noise_figures import plot_directions, plot_training

    positions = None if at is None else parse_positions(at)
    found = find_run(run, results_dir)
    steps = choose_checkpoints(found, positions)
    for path in [
        *plot_directions(found, steps, found.folder / "directions"),
        *plot_training(found, found.folder / "training"),
    ]:
        typer.echo(path)
    if note := state_note(found):
        typer.echo(f"note: {note}", err=True)


@app.command(epilog=examples("noise table mnist_2c2d_sgd", "noise table RUN --format csv"))
def table(
    run: RunArgument,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Print one line per checkpoint, and write it as CSV, Markdown and LaTeX beside the run."""
    from vivit_bench.noise import find_run
    from vivit_bench.report.noise import checkpoint_table, state_note
    from vivit_bench.report.tables import render, write_in_all_formats

    found = find_run(run, results_dir)
    made = checkpoint_table(found)
    paths = write_in_all_formats(found.folder / "table", lambda style: render(made, style))
    hand_out(made, format)
    for path in paths:
        say_written(path, quiet)
    if note := state_note(found):
        typer.echo(f"note: {note}", err=True)
