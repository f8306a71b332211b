"""``vivit-bench check``: are stored results whole, and do they still hold."""

from typing import Annotated

import typer

from vivit_bench.arguments import DEFAULT_RESULTS_DIR
from vivit_bench.cli.options import (
    OUTPUT,
    DataDirOption,
    FormatOption,
    OutputOption,
    QuietOption,
    ResultsArgument,
    examples,
    progress_console,
)
from vivit_bench.cli.output import check_table_file, hand_out
from vivit_bench.errors import VivitBenchError
from vivit_bench.report.tables import TableFormat

EXAMPLES = examples("check", "check results/demo --no-data", "check --strict --format csv")


def check(
    results: ResultsArgument = DEFAULT_RESULTS_DIR,
    data: Annotated[
        bool,
        typer.Option(
            "--data/--no-data",
            help="Load the problems and data of spectra and noise runs, to see whether they are "
            "still the same; nothing is downloaded.",
        ),
    ] = True,
    data_dir: DataDirOption = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail also where something is stale, unfinished, moved aside or foreign.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    output: OutputOption = None,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Check every stored run: whole, of its schema, and made under the conditions of now.

    A row a run: damaged (not as it was written), breaking its schema (fields missing, or of
    another type), foreign, unfinished, or stale, with each field that differs from now, old ->
    new; with --quiet only of what is not ok. Exit code 1 if something is damaged or breaks its
    schema.
    """
    from vivit_bench.audit.check import FAILURES, Verdict, check_results
    from vivit_bench.audit.record import Look
    from vivit_bench.report.check import check_table, summary

    check_table_file(output)
    console = progress_console(quiet)
    findings = check_results(
        results,
        Look(data, data_dir),
        lambda name: console.print(f"checking {name}", soft_wrap=True, markup=False),
    )
    hand_out(check_table(findings, without_ok=quiet and output is None), format, output, quiet)
    sound = (Verdict.OK,) if strict else [each for each in Verdict if each not in FAILURES]
    if any(each.verdict not in sound for each in findings):
        raise VivitBenchError(f"{results}: not everything is sound: {summary(findings)}")
