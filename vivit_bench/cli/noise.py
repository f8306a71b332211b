"""``vivit-bench noise``: monitored training runs, their figures and tables (Figures S.6 - S.10)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vivit_bench.arguments import DEFAULT_CUTOFF, DEFAULT_RESULTS_DIR, problem_slug
from vivit_bench.cli.options import (
    CurvatureOption,
    CutoffOption,
    DataDirOption,
    DeviceOption,
    McSamplesOption,
    ProblemArgument,
    SamplesOption,
    ThreadsOption,
)
from vivit_bench.curvature.options import Curvature, Samples
from vivit_bench.noise.settings import DEFAULT_CHECKPOINTS, OptimizerName
from vivit_bench.problems.sources import DataSource
from vivit_bench.report.table_format import TableFormat

if TYPE_CHECKING:
    from vivit_bench.noise import NoiseRun

app = typer.Typer(
    no_args_is_help=True,
    help="Gradient and curvature noise during training (Figures S.6 - S.10): run, plot, table.",
)

ResultsDirOption = Annotated[
    Path, typer.Option(help="Folder of all results; runs are in its folder 'noise'.")
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of a run in the results, or its folder.")
]


@app.command()
def run(
    problem: ProblemArgument,
    optimizer: Annotated[OptimizerName, typer.Option(help="How to train.")],
    epochs: Annotated[int | None, typer.Option(help="Epochs.", show_default="DeepOBS's")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Of training.", show_default="DeepOBS's, mostly 128")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate.", show_default="released value of Table S.2"),
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="Of sgd.", show_default="0.9")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, splits, data order and dropout.")] = 0,
    data: Annotated[
        DataSource | None,
        typer.Option(
            help="What to train on.", show_default="deepobs; own for a problem of your own"
        ),
    ] = None,
    data_dir: DataDirOption = None,
    checkpoints: Annotated[
        int | None,
        typer.Option(
            help="Number of checkpoints, log-spaced over the run, from the start to the end.",
            show_default=str(DEFAULT_CHECKPOINTS),
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="PLACES",
            help="Checkpoints by name instead, e.g. 0,100steps,5epochs,end.",
        ),
    ] = None,
    monitor_batch_size: Annotated[
        int | None,
        typer.Option(
            help="Samples held out and looked through.",
            show_default="128, or 64 with 100 classes",
        ),
    ] = None,
    curvature: CurvatureOption = Curvature.EXACT,
    samples: SamplesOption = Samples.FULL,
    mc_samples: McSamplesOption = 1,
    cutoff: CutoffOption = DEFAULT_CUTOFF,
    per_sample: Annotated[
        bool, typer.Option("--per-sample", help="Also store every sample's gamma and lambda.")
    ] = False,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    name: Annotated[
        str | None,
        typer.Option(help="Of the run's folder.", show_default="PROBLEM_OPTIMIZER"),
    ] = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, and replace whatever run is there.")
    ] = False,
) -> None:
    """Train a problem and watch one held-out mini-batch along every GGN eigenvector.

    Interrupted, the same command goes on from the last checkpoint or epoch, and ends with the
    same numbers.
    """
    from rich.console import Console

    from vivit_bench.cli.noise_progress import TrainingProgress
    from vivit_bench.hardware import cpu_threads
    from vivit_bench.noise import Choices, parse_positions, run_noise

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
        curvature=curvature,
        samples=samples,
        mc_samples=mc_samples,
        cutoff=cutoff,
        per_sample=per_sample,
        device=device,
    )
    folder = results_dir / "noise" / (name or f"{problem_slug(problem)}_{optimizer}")
    progress = TrainingProgress(Console(emoji=False, stderr=True, highlight=False))
    try:
        with cpu_threads(threads):
            finished = run_noise(choices, folder, fresh=fresh, listener=progress)
    finally:
        progress.close()
    _print_summary(finished)


@app.command()
def plot(
    run: RunArgument,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="PLACES",
            help="Checkpoints to show, e.g. 0,100steps,end.",
            show_default="first, early, last",
        ),
    ] = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
) -> None:
    """Draw slope, alignment and signal-to-noise ratios over curvature, and the training curves."""
    from vivit_bench.noise import load_run, parse_positions
    from vivit_bench.report.noise import choose_checkpoints, find_run, state_note
    from vivit_bench.report.noise_figures import plot_directions, plot_training

    positions = None if at is None else parse_positions(at)
    found = load_run(find_run(run, results_dir))
    steps = choose_checkpoints(found, positions)
    for path in [
        *plot_directions(found, steps, found.folder / "directions"),
        *plot_training(found, found.folder / "training"),
    ]:
        typer.echo(path)
    if note := state_note(found):
        typer.echo(f"note: {note}", err=True)


@app.command()
def table(
    run: RunArgument,
    format: Annotated[TableFormat, typer.Option(help="What is printed.")] = TableFormat.TERMINAL,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
) -> None:
    """Print one line per checkpoint, and write it as CSV, Markdown and LaTeX beside the run."""
    from vivit_bench.noise import load_run
    from vivit_bench.report.noise import (
        checkpoint_table,
        find_run,
        format_table,
        state_note,
        table_notes,
        write_table,
    )

    found = load_run(find_run(run, results_dir))
    made = checkpoint_table(found)
    paths = write_table(found, made)
    typer.echo(format_table(made, format), nl=False)
    if format is TableFormat.TERMINAL:
        typer.echo(f"\n{table_notes(found)}")
        for path in paths:
            typer.echo(path)
    elif note := state_note(found):
        typer.echo(f"note: {note}", err=True)


def _print_summary(run: "NoiseRun") -> None:
    from vivit_bench.noise import monitoring_cost

    settings, last = run.settings, run.curves.iloc[-1]
    accuracy = "" if last.isna()["test_accuracy"] else f", accuracy {last['test_accuracy']:.1%}"
    cost = monitoring_cost(run)
    counts = run.checkpoints[["step", "num_directions"]].to_numpy(dtype=int)
    shown = counts[sorted({0, len(counts) // 2, len(counts) - 1})]
    rows = {
        "run": f"{settings['problem']} with {settings['optimizer']}, {int(last['step']):,} steps, "
        f"{settings['epochs']} epochs",
        "test": f"loss {last['test_loss']:.4g}{accuracy}",
        "directions K": ", ".join(f"{k:,} at step {step:,}" for step, k in shown),
        "training": f"{cost['seconds_per_epoch']:.2f} s an epoch",
        "monitoring": f"{cost['calls']} calls, median {cost['seconds_per_call']:.2f} s, "
        f"{cost['call_in_epochs']:.2g} of an epoch; {cost['share']:.0%} of the run's time",
        "stored": str(run.folder),
    }
    for key, value in rows.items():
        typer.echo(f"{key:<14}{value}")
