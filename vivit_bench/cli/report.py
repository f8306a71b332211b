"""``vivit-bench report``: all results of a folder as one page of HTML."""

from pathlib import Path
from typing import Annotated

import typer

from vivit_bench.arguments import DEFAULT_RESULTS_DIR
from vivit_bench.cli.options import OUTPUT, QuietOption, ResultsArgument, examples
from vivit_bench.cli.output import check_file, say_written

EXAMPLES = examples("report", "report results/demo --output demo.html")


def report(
    results: ResultsArgument = DEFAULT_RESULTS_DIR,
    output: Annotated[
        Path,
        typer.Option(metavar="FILE.html", help="Where the page goes.", rich_help_panel=OUTPUT),
    ] = Path("report.html"),
    quiet: QuietOption = False,
) -> None:
    """Write one page with everything that is stored: tables, interactive charts, provenance.

    It loads nothing from elsewhere: it can be mailed, opened without a network and printed. What
    was not measured yet is named with the command that does it.
    """
    from vivit_bench.report.page import check_packages, collect, html_of
    from vivit_bench.store import write_output

    check_packages()
    check_file(output, ".html", "it is a page for a browser")
    page = collect(results)
    for line in page.warnings:
        typer.echo(f"warning: {line}", err=True)
    write_output(output, html_of(page))
    say_written(output, quiet)
