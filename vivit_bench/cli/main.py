"""The ``vivit-bench`` command and the one place where errors become exit codes."""

import errno
import importlib
import io
import os
import sys
import warnings
from typing import NoReturn

import typer
from rich.console import Console

from vivit_bench import __version__
from vivit_bench.errors import VivitBenchError
from vivit_bench.hardware import OPENMP_WAITING

app = typer.Typer(
    name="vivit-bench",
    help="Benchmarks of the ViViT curvature model: critical batch sizes and GGN spectra.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# One module per command group, each with an ``app``; the order is that of --help.
_GROUPS = {
    "critical-batch": "vivit_bench.cli.critical_batch",
    "spectrum": "vivit_bench.cli.spectrum",
    "curvature": "vivit_bench.cli.curvature",
    "quadratic": "vivit_bench.cli.quadratic",
    "noise": "vivit_bench.cli.noise",
    "problems": "vivit_bench.cli.problems",
}

_WRONG_NAME = {
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EINVAL,
}
"""Failures of the system that another name avoids."""
_LONGEST_NAME = 200


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        typer.echo(f"vivit-bench {__version__}")
        raise typer.Exit()


@app.command()
def env() -> None:
    """Print what is recorded with every result: machine, libraries, code."""
    import json

    from vivit_bench.store import provenance

    typer.echo(json.dumps(provenance(), indent=2))


def main() -> None:
    """Run the command line; errors of the user are one line on stderr."""
    if not OPENMP_WAITING.keys() & os.environ.keys():
        os.environ.update(OPENMP_WAITING)  # read when the libraries are loaded
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
    for name, module in _GROUPS.items():
        app.add_typer(importlib.import_module(module).app, name=name)
    app.command("compare-engines")(
        importlib.import_module("vivit_bench.cli.compare").compare_engines
    )
    # A name that is not UTF-8 is shown with escapes, as stderr does by itself.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except VivitBenchError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        name = f"{error.filename!r}: " if error.filename else ""
        code = 2 if error.errno in _WRONG_NAME else 1
        _fail(f"{name[:_LONGEST_NAME]}{error.strerror or error}", code)
    except UnicodeEncodeError as error:
        _fail(f"a name is not UTF-8, and cannot be stored: {error.object[:_LONGEST_NAME]!r}", 2)


def _fail(message: str, code: int) -> NoReturn:
    Console(emoji=False, stderr=True, soft_wrap=True, highlight=False).print(
        f"vivit-bench: {message}", markup=False
    )
    sys.exit(code)
