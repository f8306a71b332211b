"""``vivit-bench critical-batch``: table, predictions, list and plot of what is stored."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vivit_bench.arguments import DEFAULT_RESULTS_DIR, parse_size, problem_slug
from vivit_bench.cli.options import (
    APPROXIMATION,
    MACHINE,
    MODEL_AND_DATA,
    OUTPUT,
    DtypeOption,
    EnginesOption,
    FormatOption,
    McSamplesOption,
    QuietOption,
    ResultsDirOption,
    complete_problem,
    examples,
)
from vivit_bench.cli.output import hand_out, say_written
from vivit_bench.critical_batch.settings import DEFAULT_ENGINE
from vivit_bench.curvature.options import Precision
from vivit_bench.errors import UsageError
from vivit_bench.report.tables import TableFormat

if TYPE_CHECKING:
    import pandas as pd

    from vivit_bench.report.critical_batch_selection import Selection

TABLE_EXAMPLES = examples(
    "critical-batch table --table a --paper", "critical-batch table --mix --format json"
)
PREDICTIONS_EXAMPLES = examples(
    "critical-batch predictions", "critical-batch predictions --format csv"
)
LIST_EXAMPLES = examples("critical-batch list", "critical-batch list --format csv")
PLOT_EXAMPLES = examples(
    "critical-batch plot",
    "critical-batch plot --kind growth --engine vivit-bench --engine vivit-for-pytorch",
)


class Letter(StrEnum):
    """One of the tables S.1a to S.1d."""

    A = "a"
    B = "b"
    C = "c"
    D = "d"


class PlotKind(StrEnum):
    """What `plot` draws."""

    SIZES = "sizes"
    """Bars of critical batch sizes."""
    GROWTH = "growth"
    """Peak memory and seconds of the trials against N."""


def problems_option(default: str) -> Any:
    """``--problem``, and what it is where it is not given."""
    return typer.Option(
        "--problem",
        metavar="PROBLEM",
        help="Problem, repeatable.",
        show_default=default,
        autocompletion=complete_problem,
        rich_help_panel=MODEL_AND_DATA,
    )


def tables_option(default: str) -> Any:
    """``--table``, and what it is where it is not given."""
    return typer.Option(
        "--table",
        help="Table, repeatable: a eigenvalues, b block-newton, c full-newton on the cpu; "
        "d full-newton on cuda.",
        show_default=default,
        rich_help_panel=APPROXIMATION,
    )


StoredProblemsOption = Annotated[list[str] | None, problems_option("all there are")]
StoredTablesOption = Annotated[list[Letter] | None, tables_option("all there are")]
StoredLimitOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Searches under this memory limit.",
        show_default="that of the newest search",
        rich_help_panel=MACHINE,
    ),
]
MixOption = Annotated[
    bool,
    typer.Option(
        "--mix",
        help="Put searches of all memory limits, machines, data, seeds and weights together.",
        rich_help_panel=MACHINE,
    ),
]


def table(
    table: StoredTablesOption = None,
    mc_samples: McSamplesOption = 1,
    problem: StoredProblemsOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    engine: EnginesOption = [DEFAULT_ENGINE],  # noqa: B006
    memory_limit: StoredLimitOption = None,
    mix: MixOption = False,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="Put the paper's numbers beside.", rich_help_panel=OUTPUT),
    ] = False,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Print stored critical batch sizes as in Table S.1, and write CSV, Markdown and LaTeX.

    One table has searches under one memory limit and of one machine, and of each problem one
    data source, seed and checkpoint: the newest. Seconds of the work at that size stand beside it;
    what else than memory ended a search is said behind >=. With --problem it is only printed.
    As CSV and JSON all tables are printed as one.
    """
    from vivit_bench.critical_batch.records import EXPERIMENT
    from vivit_bench.critical_batch.table_s1 import SUB_TABLES
    from vivit_bench.report.critical_batch_tables import as_one, make_table, write_table

    letters = [letter.value for letter in table or Letter]
    selection = _select(results_dir, engine, problem, memory_limit, mc_samples, dtype, mix)
    tables = [
        made
        for letter in letters
        for name in engine
        if (made := make_table(selection, SUB_TABLES[letter], name, paper=paper)) is not None
    ]
    if not tables:
        raise UsageError(
            f"no search of table {', '.join(letters)} is stored; "
            f"make them with: vivit-bench critical-batch sweep --table {letters[0]}"
        )
    for_programs = format in (TableFormat.CSV, TableFormat.JSON)
    for number, made in enumerate([as_one(tables)] if for_programs else tables):
        if number:
            typer.echo("")
        hand_out(made, format)
    if problem:
        return  # the files are for the whole table
    for made in tables:
        for path in write_table(made, results_dir / EXPERIMENT):
            say_written(path, quiet)


def predictions(
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Print what was predicted of stored searches, beside what they found; write CSV and Markdown.

    Predictions are those made before a search's first large trial.
    """
    from vivit_bench.critical_batch.records import EXPERIMENT
    from vivit_bench.report.critical_batch_accuracy import accuracy_table
    from vivit_bench.report.tables import render, write_in_all_formats

    made = accuracy_table(_load(results_dir), results_dir)
    if not made.rows:
        raise UsageError(
            f"no finished search in {results_dir / EXPERIMENT} has a prediction; make some with: "
            "vivit-bench critical-batch sweep"
        )
    hand_out(made, format)
    stem = results_dir / EXPERIMENT / "predictions"
    for path in write_in_all_formats(stem, lambda style: render(made, style)):
        say_written(path, quiet)


def list_command(
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Print all finished searches, a row each; as CSV or JSON with machine and libraries."""
    from vivit_bench.report.critical_batch import searches_table

    hand_out(searches_table(_load(results_dir)), format)


def plot(
    kind: Annotated[
        PlotKind,
        typer.Option(
            help="sizes: bars of critical batch sizes (Figures 1b, S.4b, S.5b), a figure per "
            "problem and kind of device. growth: peak memory and seconds of the trials against "
            "N, a figure per cell with the engines beside each other.",
            rich_help_panel=OUTPUT,
        ),
    ] = PlotKind.SIZES,
    mc_samples: McSamplesOption = 1,
    problem: StoredProblemsOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    engine: EnginesOption = [DEFAULT_ENGINE],  # noqa: B006
    memory_limit: StoredLimitOption = None,
    mix: MixOption = False,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    quiet: QuietOption = False,
) -> None:
    """Draw stored critical batch sizes, or what their trials took, PNG and PDF.

    Prints the paths of the figures. They have the searches that table has; the gradient
    stands beside the approximations.
    """
    selection = _select(results_dir, engine, problem, memory_limit, mc_samples, dtype, mix)
    draw = _draw_growth if kind is PlotKind.GROWTH else _draw_sizes
    for path, note in draw(selection, results_dir):
        typer.echo(path)
        if note and not quiet:
            typer.echo(f"note: {path.stem}: {note}", err=True)


Drawn = Iterator[tuple[Path, str]]
"""Files of figures, and what there is to know of them."""


def _draw_sizes(selection: "Selection", results_dir: Path) -> Drawn:
    from vivit_bench.critical_batch.records import EXPERIMENT
    from vivit_bench.report.critical_batch_figures import plot_critical_batch_sizes
    from vivit_bench.report.critical_batch_selection import suffixes_of_options
    from vivit_bench.report.critical_batch_tables import in_paper_order

    rows, folder = selection.rows, results_dir / EXPERIMENT
    for name in in_paper_order(rows["problem"]):
        for device, part in rows[rows["problem"] == name].groupby("device"):
            parts = ["critical_batch", problem_slug(name), *suffixes_of_options(part), device]
            stem = folder / "_".join(map(str, parts))
            yield from ((path, "") for path in plot_critical_batch_sizes(part, stem))


def _draw_growth(selection: "Selection", results_dir: Path) -> Drawn:
    from vivit_bench.critical_batch.records import EXPERIMENT
    from vivit_bench.report.critical_batch_curves import curves_of, growth_stem, unrecorded_seconds
    from vivit_bench.report.critical_batch_growth import plot_growth

    for curves in curves_of(selection.rows, results_dir):
        stem = results_dir / EXPERIMENT / growth_stem(curves)
        png, pdf = plot_growth(curves, stem)
        missing = unrecorded_seconds(curves)
        yield png, ""
        yield pdf, missing and f"{missing}; search --fresh measures them"


def _load(results_dir: Path) -> "pd.DataFrame":
    """All stored searches; damaged ones are told on stderr."""
    from vivit_bench.report.critical_batch_selection import load_searches

    searches, damaged = load_searches(results_dir)
    for note in damaged:
        typer.echo(f"warning: {note}", err=True)
    return searches


def _select(
    results_dir: Path,
    engines: list[str],
    problems: list[str] | None,
    memory_limit: str | None,
    mc_samples: int,
    dtype: Precision,
    mix: bool,
) -> "Selection":
    """Comparable stored searches; what is left out is told on stderr."""
    from vivit_bench.report.critical_batch_selection import load_searches, select_searches

    searches, damaged = load_searches(results_dir)
    selection = select_searches(
        searches,
        engines=engines,
        problems=problems or (),
        memory_limit=None if memory_limit is None else parse_size(memory_limit),
        mc_samples=mc_samples,
        dtype=dtype,
        mix=mix,
    )
    for note in [*damaged, *selection.notes]:
        typer.echo(f"warning: {note}", err=True)
    return selection
