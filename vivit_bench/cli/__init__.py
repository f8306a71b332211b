"""The command line: thin Typer commands that parse, call a plain function and print."""

from vivit_bench.cli.main import main

__all__ = ["main"]
