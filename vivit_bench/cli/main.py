"""The ``vivit-bench`` command and the one place where errors become exit codes."""

import errno
import importlib
import io
import os
import re
import signal
import sys
import warnings
from typing import Any, NoReturn

import typer
from rich.console import Console

from vivit_bench import __version__
from vivit_bench.cli.options import FormatOption, examples
from vivit_bench.cli.output import hand_out
from vivit_bench.errors import Stopped, UsageError, VivitBenchError
from vivit_bench.hardware import OPENMP_WAITING
from vivit_bench.report.tables import Column, Table, TableFormat

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# One module per command group, each with an ``app``; the order is that of --help.
_GROUPS = {
    "critical-batch": "vivit_bench.cli.critical_batch",
    "spectrum": "vivit_bench.cli.spectrum",
    "curvature": "vivit_bench.cli.curvature",
    "quadratic": "vivit_bench.cli.quadratic",
    "noise": "vivit_bench.cli.noise",
    "problems": "vivit_bench.cli.problems",
}

# Commands of their own: module and function.
_COMMANDS = {
    "compare-engines": ("vivit_bench.cli.compare", "compare_engines"),
    "compare": ("vivit_bench.cli.compare_results", "compare_results"),
    "check": ("vivit_bench.cli.check", "check"),
    "report": ("vivit_bench.cli.report", "report"),
}

_KEPT = "finished results are kept, and the same command goes on"
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
_LONGEST_LINE = 1500

# Typer brings a click of its own, whose errors it does not hand out by name.
_CommandLineError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def command_line() -> typer.Typer:
    """All commands and groups."""
    app = typer.Typer(
        name="vivit-bench",
        help="Benchmarks of the ViViT curvature model: critical batch sizes and GGN spectra.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    app.command(epilog=examples("env", "env --format table"))(env)
    for name, module in _GROUPS.items():
        app.add_typer(importlib.import_module(module).app, name=name)
    for name, (module, function) in _COMMANDS.items():
        found = importlib.import_module(module)
        app.command(name, epilog=found.EXAMPLES)(getattr(found, function))
    return app


def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        typer.echo(f"vivit-bench {__version__}")
        raise typer.Exit()


def env(format: FormatOption = TableFormat.JSON) -> None:
    """Print what is recorded with every result: machine, libraries, code."""
    from vivit_bench.store import provenance

    facts = provenance()
    hand_out(Table([Column(name) for name in facts], [facts], is_record=True), format)


def main() -> None:
    """Run the command line; whatever a user can cause is one line on stderr and an exit code.

    2 for what was typed, 1 for what failed, 128 + the signal's number for signals.
    """
    if not OPENMP_WAITING.keys() & os.environ.keys():
        os.environ.update(OPENMP_WAITING)  # read when the libraries are loaded
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        _end("standard output is closed; send it to a file, or to /dev/null", UsageError.exit_code)
    if sys.stderr is None:  # the next file that is opened would be taken for it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    app = command_line()
    before = {number: signal.signal(number, _stop) for number in _SIGNALS}
    try:
        code = app(prog_name="vivit-bench", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except VivitBenchError as error:
        _end(str(error), error.exit_code)
    except _CommandLineError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
            sys.exit(UsageError.exit_code)
        _end(_what_to_type(error), UsageError.exit_code)
    except typer.Abort:
        _end("the input has ended", VivitBenchError.exit_code)
    except Stopped as stopped:
        _end(f"stopped by {_name(stopped)}; {'; '.join(_notes(stopped))}", 128 + stopped.number)
    except MemoryError:
        _end("not enough memory; try a smaller --batch-size", VivitBenchError.exit_code)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(VivitBenchError.exit_code)
    except OSError as error:
        name = f"{error.filename!r}: " if error.filename else ""
        code = UsageError.exit_code if error.errno in _WRONG_NAME else VivitBenchError.exit_code
        _end(f"{name[:_LONGEST_NAME]}{error.strerror or error}", code)
    except UnicodeEncodeError as error:
        name = repr(error.object[:_LONGEST_NAME])
        _end(f"a name is not UTF-8, and cannot be stored: {name}", UsageError.exit_code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _what_to_type(error: Any) -> str:
    """An error of the command line, in this program's words, with where to look it up."""
    said = error.format_message().rstrip(".").replace("Value error, ", "")
    said = re.sub(r"^Invalid value for '([^']*)'", r"\1", said)
    if hasattr(error.__cause__, "errors"):  # pydantic's, which leaves out what was typed
        typed = str(error.__cause__.errors()[0]["input"])[:_LONGEST_NAME]
        said = said.replace(": Input should be", f" {typed}: must be", 1).partition(", unable")[0]
    # What click says of it, under older versions of typer.
    said = re.sub(r"^(\S+): (\S+) is not in the range ", r"\1 \2: must be in the range ", said)
    valid = r"^(\S+): '(.*)' is not a valid (integer|float)( range)?$"
    said = re.sub(valid, lambda m: f"{m[1]} {m[2][:_LONGEST_NAME]}: must be a valid {m[3]}", said)
    said = re.sub(r"^\S+ ([\d.]+)%: must be a valid (?:float|number)$", _without_percent, said)
    said = re.sub(r"^No such option '(\S+)'", r"No such option: \1", said)
    command = "vivit-bench" if error.ctx is None else error.ctx.command_path
    return f"{said[:1].lower()}{said[1:]} (see {command} --help)"


def _without_percent(match: re.Match[str]) -> str:
    try:
        return f"{match[0]}, for example {float(match[1]) / 100:g}"
    except ValueError:
        return match[0]


def _stop(number: int, _: object) -> None:
    """End in order at the first signal; a second one ends at once."""
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)


def _name(stopped: Stopped) -> str:
    return signal.Signals(stopped.number).name


def _notes(stopped: Stopped) -> list[str]:
    """What is kept, from whoever was at work; innermost first."""
    return list(dict.fromkeys(getattr(stopped, "__notes__", []))) or [_KEPT]


def _end(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    line = line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 3]}..."
    Console(emoji=False, stderr=True, soft_wrap=True, highlight=False).print(
        f"vivit-bench: {line}", markup=False
    )
    sys.exit(code)
