"""``vivit-bench quadratic``: dampings on a noisy quadratic (Figure 3), run, plot and table."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from vivit_bench.arguments import DEFAULT_RESULTS_DIR
from vivit_bench.cli.options import (
    FormatOption,
    FreshOption,
    NameOption,
    QuietOption,
    ResultsDirOption,
    SeedOption,
    complete_stored,
    examples,
    progress_console,
)
from vivit_bench.cli.output import hand_out, say_written
from vivit_bench.errors import UsageError
from vivit_bench.quadratic.settings import OptimizerName, RouteName, Settings
from vivit_bench.report.tables import TableFormat

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    help="Dampings on a noisy quadratic (Figure 3): run, plot, table.",
)

_SECONDS_BETWEEN_LINES = 10.0


def _joined(values: tuple[object, ...]) -> str:
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is not a list of numbers: separate them by commas, e.g. 0.1,1,10"
        ) from None


def _names(text: str) -> tuple[OptimizerName, ...]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in set(OptimizerName):
            raise UsageError(
                f"--optimizers {name!r} is unknown: choose from {', '.join(OptimizerName)}, "
                "separated by commas"
            )
    return tuple(OptimizerName(name) for name in names)


def _grid(text: str) -> tuple[float, float, int]:
    try:
        low, high, points = text.split(":")
        return float(low), float(high), int(points)
    except ValueError:
        raise UsageError(
            f"--grid {text!r} is not FIRST:LAST:POINTS: give e.g. 1e-4:1e2:200"
        ) from None


RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        help="Name of a run in the results, or its folder.",
        show_default="the only one",
        autocompletion=complete_stored("quadratic"),
    ),
]
_COMMAND = "vivit-bench quadratic run"
COMPARED, DAMPING, QUADRATIC = "What is compared", "Bootstrap damping", "Noisy quadratic"


@app.command(
    epilog=examples(
        "quadratic run", "quadratic run --repeats 10 --optimizers constant,bootstrap --seed 1"
    )
)
def run(
    repeats: Annotated[
        int, typer.Option(min=1, help="Repetitions.", rich_help_panel=COMPARED)
    ] = Settings.repeats,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of an optimizer.", rich_help_panel=COMPARED)
    ] = Settings.steps,
    optimizers: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="What to compare: sgd, constant (each of --dampings), bootstrap.",
            rich_help_panel=COMPARED,
        ),
    ] = _joined(Settings.optimizers),
    dampings: Annotated[
        str,
        typer.Option(
            metavar="NUMBERS",
            help="Global dampings, one optimizer each.",
            rich_help_panel=COMPARED,
        ),
    ] = _joined(Settings.dampings),
    learning_rate: Annotated[
        float, typer.Option(help="Of SGD.", rich_help_panel=COMPARED)
    ] = Settings.learning_rate,
    grid: Annotated[
        str,
        typer.Option(
            metavar="FIRST:LAST:POINTS",
            help="Log-equidistant dampings the bootstrap chooses from.",
            rich_help_panel=DAMPING,
        ),
    ] = f"{Settings.grid_low:g}:{Settings.grid_high:g}:{Settings.grid_points}",
    resamples: Annotated[
        int, typer.Option(min=1, help="Bootstrap samples.", rich_help_panel=DAMPING)
    ] = Settings.resamples,
    percentile: Annotated[
        float,
        typer.Option(
            min=0, max=100, help="Of the bootstrap's lower bound.", rich_help_panel=DAMPING
        ),
    ] = Settings.percentile,
    curvatures: Annotated[
        str,
        typer.Option(
            metavar="NUMBERS",
            help="True curvatures, one a direction.",
            show_default="1,2,...,20",
            rich_help_panel=QUADRATIC,
        ),
    ] = _joined(Settings.curvatures),
    theta_init: Annotated[
        float, typer.Option(help="Every coordinate of the start.", rich_help_panel=QUADRATIC)
    ] = Settings.theta_init,
    gradient_variance: Annotated[
        float, typer.Option(help="Of a sample's slope.", rich_help_panel=QUADRATIC)
    ] = Settings.gradient_variance,
    curvature_variance: Annotated[
        float, typer.Option(help="Of a sample's curvature.", rich_help_panel=QUADRATIC)
    ] = Settings.curvature_variance,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Mini-batch size N.", rich_help_panel=QUADRATIC)
    ] = Settings.batch_size,
    route: Annotated[
        RouteName,
        typer.Option(
            help="Slopes and curvatures straight from the noise model, or through a network and "
            "the curvature engine: the same trajectories, but about 5 minutes a repetition at "
            "the defaults.",
            rich_help_panel=QUADRATIC,
        ),
    ] = Settings.route,
    seed: SeedOption = Settings.seed,
    name: NameOption = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    fresh: FreshOption = False,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Run SGD, global dampings and bootstrap damping on a noisy quadratic (appendix B.5).

    Every repetition is stored the moment it is done; interrupted, the same command goes on.
    There is no --device: matrices of a few dozen rows are too small to occupy a GPU.
    """
    low, high, points = _grid(grid)
    settings = Settings(
        repeats=repeats,
        steps=steps,
        optimizers=_names(optimizers),
        dampings=_numbers("--dampings", dampings),
        grid_low=low,
        grid_high=high,
        grid_points=points,
        resamples=resamples,
        percentile=percentile,
        learning_rate=learning_rate,
        curvatures=_numbers("--curvatures", curvatures),
        theta_init=theta_init,
        batch_size=batch_size,
        gradient_variance=gradient_variance,
        curvature_variance=curvature_variance,
        seed=seed,
        route=route,
    )
    from vivit_bench.quadratic.records import run_experiment
    from vivit_bench.report.quadratic import ranking

    console = progress_console(quiet)
    with _progress(repeats, console) as progress:
        results = run_experiment(
            settings,
            results_dir,
            name=name,
            fresh=fresh,
            progress=progress,
            note=lambda text: console.print(text, soft_wrap=True, markup=False),
        )
    hand_out(ranking(results), format)
    line = f"{results.seconds:.1f} s of computing; results in {results.folder}"
    console.print(line, soft_wrap=True, markup=False)


@app.command(epilog=examples("quadratic plot", "quadratic plot sampler_n128"))
def plot(run: RunArgument = None, results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR) -> None:
    """Draw Figure 3, the loss curves, and the dampings that the bootstrap chose."""
    from vivit_bench.quadratic.records import EXPERIMENT, load_results
    from vivit_bench.report.quadratic import curve_table
    from vivit_bench.report.quadratic_figures import plot_results
    from vivit_bench.store import find_run, write_output

    results = load_results(find_run(run, results_dir, EXPERIMENT, _COMMAND))
    folder = results.folder
    paths = plot_results(results, folder)
    write_output(folder / "figure_3.csv", curve_table(results).to_csv(index=False))
    for path in [*paths, folder / "figure_3.csv"]:
        typer.echo(path)
    if not len(results.dampings):
        typer.echo("note: no figure of dampings: the run had no optimizer bootstrap", err=True)


@app.command(epilog=examples("quadratic table", "quadratic table sampler_n128 --format csv"))
def table(
    run: RunArgument = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Rank the optimizers by their final loss, also as CSV, Markdown and LaTeX beside the run."""
    from vivit_bench.quadratic.records import EXPERIMENT, load_results
    from vivit_bench.report.quadratic import ranking
    from vivit_bench.report.tables import render, write_in_all_formats
    from vivit_bench.store import find_run

    results = load_results(find_run(run, results_dir, EXPERIMENT, _COMMAND))
    made = ranking(results)
    paths = write_in_all_formats(results.folder / "table", lambda style: render(made, style))
    hand_out(made, format)
    for path in paths:
        say_written(path, quiet)


@contextmanager
def _progress(total: int, console: "Console") -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's stderr; elsewhere a line now and then."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    if not console.is_terminal:
        yield _line_reporter(total, console)
        return
    columns = (TextColumn("repetitions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def _line_reporter(total: int, console: "Console") -> Callable[[int], None]:
    last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            console.print(f"{done} of {total} repetitions")

    return report
