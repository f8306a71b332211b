"""Arguments and options of the commands: one name, one default and one meaning everywhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vivit_bench.arguments import DEFAULT_RESULTS_DIR, RESULTS_VARIABLE, parse_size
from vivit_bench.curvature.options import Curvature, Method, Precision, Samples
from vivit_bench.problems.sources import DataSource
from vivit_bench.report.tables import TableFormat

if TYPE_CHECKING:
    from rich.console import Console

    from vivit_bench.curvature import Certificate, Dropped, LeadingEigenvalues, NewtonStep
    from vivit_bench.curvature.certificate import Certify

# Groups of options in a command's help.
APPROXIMATION = "Approximation"
MODEL_AND_DATA = "Model and data"
MACHINE = "Machine"
OUTPUT = "Results"


class Check(StrEnum):
    """Samples on which a result is compared with plain autograd."""

    TWO = "two"
    ALL = "all"
    NONE = "none"

    @property
    def certify(self) -> "Certify":
        """As the engine takes it."""
        return "all" if self is Check.ALL else self is Check.TWO


def examples(*lines: str) -> str:
    """The end of a command's help: what one may type, a line each."""
    return "\n\n".join(["Examples:", *(f"vivit-bench {line}" for line in lines)])


def print_certificate(certificate: "Certificate | None", quiet: bool = False) -> None:
    """What was checked, in one line on stderr."""
    if not quiet:
        typer.echo("not certified" if certificate is None else certificate.line(), err=True)


def print_dropped(dropped: "Dropped | None", num_columns: int, quiet: bool = False) -> None:
    """What was left out, in one line on stderr; nothing where it was not asked for."""
    if dropped is not None and not quiet:
        typer.echo(dropped.line(num_columns), err=True)


def print_method(result: "LeadingEigenvalues | NewtonStep", quiet: bool) -> None:
    """From what a result was computed and why, and its iterations, on stderr."""
    for told in (result.choice, result.iterations):
        if told is not None and not quiet:
            typer.echo(told.line(), err=True)


def parse_engine_memory(text: str | None) -> int | None:
    """Bytes that ``--engine-memory`` stands for.

    Raises:
        UsageError: It is no size.
    """
    return None if text is None else parse_size(text, "--engine-memory")


def progress_console(quiet: bool) -> "Console":
    """Where a command tells what it is doing: stderr, or nowhere."""
    from rich.console import Console

    return Console(emoji=False, stderr=True, highlight=False, quiet=quiet)


@contextmanager
def engine_on(problem: str, device: str, threads: int | None) -> Iterator[None]:
    """Run the engine inside: its threads, and one line where memory runs out or a library fails.

    Raises:
        UsageError: Too many threads, or the user's own code ends the process.
        LibraryError: The memory does not suffice, or a library fails.
    """
    from vivit_bench.hardware import cpu_threads, library_errors
    from vivit_bench.problems.guest import users_code

    advice = "try a smaller --batch-size, or --samples frac"
    work = f"{problem} on {device}"
    with cpu_threads(threads), library_errors(work, advice), users_code(problem):
        yield


def complete_problem(incomplete: str) -> list[str]:
    """Names of DeepOBS's problems, for the shell."""
    from vivit_bench.problems.catalogue import PROBLEMS

    return [name for name in PROBLEMS if name.startswith(incomplete)]


def complete_engine(incomplete: str) -> list[str]:
    """Names of engines, for the shell."""
    from vivit_bench.peers import engine_names

    return [name for name in engine_names() if name.startswith(incomplete)]


def complete_stored(experiment: str) -> Callable[[typer.Context, str], list[str]]:
    """Names of an experiment's stored runs, for the shell."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        root = Path(context.params.get("results_dir") or DEFAULT_RESULTS_DIR) / experiment
        names = {path.parent.name for path in root.glob("*/run.json")}
        # Runs that --fresh has moved aside are no results.
        shown = (name for name in names if ".replaced-" not in name)
        return sorted(name for name in shown if name.startswith(incomplete))

    return complete


ProblemArgument = Annotated[
    str,
    typer.Argument(
        metavar="PROBLEM",
        help="DeepOBS name, or path/to/file.py:function for your own.",
        autocompletion=complete_problem,
    ),
]

CurvatureOption = Annotated[
    Curvature,
    typer.Option(
        help="Exact loss Hessian or its Monte-Carlo approximation.", rich_help_panel=APPROXIMATION
    ),
]
SamplesOption = Annotated[
    Samples,
    typer.Option(
        help="Curvature of the whole mini-batch or of its first N // 8.",
        rich_help_panel=APPROXIMATION,
    ),
]
McSamplesOption = Annotated[
    int,
    typer.Option(
        min=1, help="Label draws per sample for --curvature mc.", rich_help_panel=APPROXIMATION
    ),
]
BlocksOption = Annotated[
    list[str] | None,
    typer.Option(
        help="none: the full GGN. layer: its diagonal blocks, one a layer. NAME=PATTERN, "
        "repeatable: blocks by parameter names, such as 'head=fc.*'.",
        show_default="none",
        rich_help_panel=APPROXIMATION,
    ),
]
ParamsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Names of the parameters that count, such as 'layer4.*'; repeatable.",
        show_default="all trainable ones",
        rich_help_panel=APPROXIMATION,
    ),
]
CutoffOption = Annotated[
    float,
    typer.Option(
        help="Eigenvalues above it are counted as directions.", rich_help_panel=APPROXIMATION
    ),
]
DropColumnsOption = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Leave out the smallest columns of V, as many as have no more than this share of the "
        "cutoff as their trace: no eigenvalue changes by more, and a trained network's take a "
        "fraction of the time. For example 0.1.",
        show_default="none is left out",
        rich_help_panel=APPROXIMATION,
    ),
]
CertifyOption = Annotated[
    Check,
    typer.Option(
        help="Samples on which the result is compared with plain autograd.",
        rich_help_panel=APPROXIMATION,
    ),
]

BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Mini-batch size N.",
        show_default="the problem's, mostly 128",
        rich_help_panel=MODEL_AND_DATA,
    ),
]
DataOption = Annotated[
    DataSource | None,
    typer.Option(
        help="Where samples come from.",
        show_default="deepobs; own for a problem of your own",
        rich_help_panel=MODEL_AND_DATA,
    ),
]
MemoryDataOption = Annotated[
    DataSource | None,
    typer.Option(
        help="Where samples come from.",
        show_default="synthetic; own for a problem of your own",
        rich_help_panel=MODEL_AND_DATA,
    ),
]
"""Of commands whose results do not depend on the values of the data."""
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the data sets.",
        show_default="$VIVIT_BENCH_DATA or the user's cache",
        rich_help_panel=MODEL_AND_DATA,
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        help="Of everything random: parameters, data, draws; 0 .. 2^63 - 1.",
        rich_help_panel=MODEL_AND_DATA,
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        help="Parameters of a trained model.",
        show_default="initial parameters",
        rich_help_panel=MODEL_AND_DATA,
    ),
]
DtypeOption = Annotated[
    Precision,
    typer.Option(help="Precision of model and matrix products.", rich_help_panel=MODEL_AND_DATA),
]

DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:i.", rich_help_panel=MACHINE)]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="CPU threads.", show_default="PyTorch's choice", rich_help_panel=MACHINE
    ),
]
EngineMemoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory that the computation may take over what the process holds, such as 2GiB: "
        "where it presses, time is traded for it; what cannot keep to it is refused.",
        show_default="as much as the fastest way takes",
        rich_help_panel=MACHINE,
    ),
]
MethodOption = Annotated[
    Method,
    typer.Option(
        help="From the Gram matrix, or matrix-free by Lanczos iterations. auto: gram where it "
        "fits into --engine-memory (into the memory available now, without it).",
        rich_help_panel=MACHINE,
    ),
]
ToleranceOption = Annotated[
    float | None,
    typer.Option(
        help="Of the iterations' residuals.",
        show_default="1e-5, 1e-8 in float64",
        rich_help_panel=MACHINE,
    ),
]
MaxProductsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Products with the GGN that iterations may use.",
        show_default="2000",
        rich_help_panel=MACHINE,
    ),
]
RunThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="CPU threads of a measured process.",
        show_default="all CPUs there are",
        rich_help_panel=MACHINE,
    ),
]
"""Of commands that measure in processes of their own."""
TimeoutOption = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="Longest time of one run in a process of its own.",
        rich_help_panel=MACHINE,
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Implementation that is measured.",
        autocompletion=complete_engine,
        rich_help_panel=MACHINE,
    ),
]
EnginesOption = Annotated[
    list[str],
    typer.Option(
        "--engine",
        metavar="NAME",
        help="Implementation that is measured, repeatable.",
        autocompletion=complete_engine,
        rich_help_panel=MACHINE,
    ),
]

ResultsArgument = Annotated[
    Path,
    typer.Argument(envvar=RESULTS_VARIABLE, metavar="[RESULTS]", help="Folder of all results."),
]
ResultsDirOption = Annotated[
    Path,
    typer.Option(envvar=RESULTS_VARIABLE, help="Folder of all results.", rich_help_panel=OUTPUT),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.csv",
        help="Write the table there instead of printing it.",
        show_default="standard output",
        rich_help_panel=OUTPUT,
    ),
]
FormatOption = Annotated[
    TableFormat, typer.Option("--format", help="What is printed.", rich_help_panel=OUTPUT)
]
NameOption = Annotated[
    str | None,
    typer.Option(
        help="Of the run's folder.", show_default="made of the settings", rich_help_panel=OUTPUT
    ),
]
FreshOption = Annotated[
    bool,
    typer.Option("--fresh", help="Start over, without what is stored.", rich_help_panel=OUTPUT),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Only results, warnings and errors.", rich_help_panel=OUTPUT
    ),
]
