"""``vivit-bench quadratic``: dampings on a noisy quadratic (Figure 3), run, plot and table."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from vivit_bench.arguments import DEFAULT_RESULTS_DIR
from vivit_bench.errors import UsageError
from vivit_bench.quadratic.settings import OptimizerName, RouteName, Settings

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


ResultsDirOption = Annotated[
    Path,
    typer.Option(help="Folder of all results; these are in its folder 'quadratic'."),
]
RunArgument = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="Name of a stored run.", show_default="the only one"),
]
_COMMAND = "vivit-bench quadratic run"


@app.command()
def run(
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions.")] = Settings.repeats,
    steps: Annotated[int, typer.Option(min=1, help="Steps of an optimizer.")] = Settings.steps,
    optimizers: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="What to compare: sgd, constant (each of --dampings), bootstrap.",
        ),
    ] = _joined(Settings.optimizers),
    dampings: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Global dampings, one optimizer each.")
    ] = _joined(Settings.dampings),
    grid: Annotated[
        str,
        typer.Option(
            metavar="FIRST:LAST:POINTS",
            help="Log-equidistant dampings the bootstrap chooses from.",
        ),
    ] = f"{Settings.grid_low:g}:{Settings.grid_high:g}:{Settings.grid_points}",
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap samples.")] = Settings.resamples,
    percentile: Annotated[
        float, typer.Option(min=0, max=100, help="Of the bootstrap's lower bound.")
    ] = Settings.percentile,
    learning_rate: Annotated[float, typer.Option(help="Of SGD.")] = Settings.learning_rate,
    curvatures: Annotated[
        str,
        typer.Option(
            metavar="NUMBERS", help="True curvatures, one a direction.", show_default="1,2,...,20"
        ),
    ] = _joined(Settings.curvatures),
    theta_init: Annotated[
        float, typer.Option(help="Every coordinate of the start.")
    ] = Settings.theta_init,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Mini-batch size N.")
    ] = Settings.batch_size,
    gradient_variance: Annotated[
        float, typer.Option(help="Of a sample's slope.")
    ] = Settings.gradient_variance,
    curvature_variance: Annotated[
        float, typer.Option(help="Of a sample's curvature.")
    ] = Settings.curvature_variance,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all noise.")] = Settings.seed,
    route: Annotated[
        RouteName,
        typer.Option(
            help="Slopes and curvatures straight from the noise model, or through a network and "
            "the curvature engine: the same trajectories, but about 5 minutes a repetition at "
            "the defaults."
        ),
    ] = Settings.route,
    name: Annotated[
        str | None,
        typer.Option(help="Of the run's folder.", show_default="made of the settings"),
    ] = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, and replace the run of these settings.")
    ] = False,
) -> None:
    """Run SGD, global dampings and bootstrap damping on a noisy quadratic (appendix B.5).

    Every repetition is stored the moment it is done; interrupted, the same command goes on.
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
    from vivit_bench.report.quadratic import final_table, format_table

    with _progress(repeats) as progress:
        results = run_experiment(
            settings,
            results_dir,
            name=name,
            fresh=fresh,
            progress=progress,
            note=lambda text: typer.echo(text, err=True),
        )
    typer.echo(format_table(final_table(results)))
    typer.echo(f"{results.seconds:.1f} s of computing; results in {results.folder}")


@app.command()
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
        typer.echo("no figure of dampings: the run had no optimizer bootstrap", err=True)


@app.command()
def table(run: RunArgument = None, results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR) -> None:
    """Rank the optimizers by their final loss; printed, and stored as CSV and Markdown."""
    from vivit_bench.quadratic.records import DIVERGED_ABOVE, EXPERIMENT, load_results
    from vivit_bench.report.quadratic import final_table, format_table
    from vivit_bench.store import find_run, write_output

    results = load_results(find_run(run, results_dir, EXPERIMENT, _COMMAND))
    folder = results.folder
    final = final_table(results)
    write_output(folder / "table.csv", final.to_csv(index=False))
    note = (
        "Loss after the last step, over the repetitions. Best in: share of repetitions in which "
        "no other optimizer ends lower. Diverged: share that ends with a loss not finite or above "
        f"{DIVERGED_ABOVE:g} times the initial one."
    )
    markdown = format_table(final, markdown=True)
    write_output(folder / "table.md", f"{markdown}\n\n{note}\n")
    typer.echo(f"{format_table(final)}\n\n{note}")
    for name in ("table.csv", "table.md"):
        typer.echo(folder / name)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's stderr; elsewhere a line now and then."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(emoji=False, stderr=True, highlight=False)
    if not console.is_terminal:
        yield _line_reporter(total)
        return
    columns = (TextColumn("repetitions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def _line_reporter(total: int) -> Callable[[int], None]:
    last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            typer.echo(f"{done} of {total} repetitions", err=True)

    return report
