"""``vivit-bench compare``: two folders of results, number by number."""

import math
from pathlib import Path
from typing import Annotated

import typer

from vivit_bench.cli.options import OUTPUT, FormatOption, OutputOption, QuietOption, examples
from vivit_bench.cli.output import check_table_file, hand_out
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.report.tables import TableFormat

EXAMPLES = examples(
    "compare results.before results",
    "compare results.before results --fail-above 5%",
    "compare /mnt/other/results results --all --format json",
)


def compare_results(
    before: Annotated[Path, typer.Argument(metavar="RESULTS_A", help="Folder of results: before.")],
    after: Annotated[Path, typer.Argument(metavar="RESULTS_B", help="Folder of results: after.")],
    fail_above: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="End with exit code 1 if something is worse, or otherwise than it should be, by "
            "more than that, such as 5%, a time only if that is beyond noise; or if a run of "
            "RESULTS_A is missing from RESULTS_B or damaged there.",
            show_default="never",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Print also what is the same (CSV and JSON have it always).",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    output: OutputOption = None,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Compare the stored runs of two machines or versions: what changed, by how much.

    Runs of the same settings are compared. Of critical batch sizes any change is told, of peaks
    from 2 MiB on; numbers of spectra, noise and quadratic may differ by rounding; times of engines
    are taken relative to a matrix product timed beside them, from 9 rounds on, and have changed
    where that is beyond noise. Less than that says neither: cannot tell.
    """
    from vivit_bench.audit.change import Verdict
    from vivit_bench.audit.changes import compare_results as compare
    from vivit_bench.report.changes import changes_table

    check_table_file(output)
    most = None if fail_above is None else parse_percent(fail_above)
    found = compare(before, after)
    whole = everything or output is not None or format in (TableFormat.CSV, TableFormat.JSON)
    hand_out(changes_table(found, everything=whole, fail_above=most), format, output, quiet)
    for line in found.warnings:
        typer.echo(f"warning: {line}", err=True)
    if most is None:
        return
    if untold := sum(each.verdict is Verdict.CANNOT_TELL for each in found.changes):
        typer.echo(
            f"warning: {untold} of {len(found.changes)} numbers cannot be told: neither a pass nor "
            "a failure",
            err=True,
        )
    missing = _some([f"{name} is not in {after}" for name in found.lost])
    failed = [each for each in found.changes if each.fails(most)]
    named = _some(
        [
            f"{each.experiment}/{each.run} {each.number} {each.verdict}, {each.change or 0.0:+.1%}"
            for each in failed
        ]
    )
    beyond = f"beyond --fail-above {fail_above}: {named}" if failed else ""
    if beyond or missing:
        raise VivitBenchError("; ".join(filter(None, [beyond, missing])))


def _some(lines: list[str], most: int = 6) -> str:
    more = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more


def parse_percent(text: str) -> float:
    """The share of ``5%`` or ``5``.

    Raises:
        UsageError: It is no percentage from 0.
    """
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        percent = math.nan
    if not 0 <= percent < math.inf:
        raise UsageError(f"--fail-above {text[:40]}: must be a percentage, for example 5%")
    return percent / 100
