"""Running a command group as a user types it."""

import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def refuse(outcome: Outcome) -> str:
    """Check for a usage error of one line without output, and return the line."""
    assert outcome.code == 2
    assert not outcome.out
    (line,) = outcome.err.splitlines()
    return line


def group_runner(
    group: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """A function that runs ``vivit-bench GROUP ...`` through ``main``, that group alone loaded."""
    main_module, everything = _main()

    def run(*arguments: object) -> Outcome:
        for name, known in everything.items():
            only = {each: where for each, where in known.items() if each == group}
            monkeypatch.setattr(main_module, name, only)
        monkeypatch.setattr(sys, "argv", ["vivit-bench", group, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main_module.main()
        return Outcome(int(stopped.value.code or 0), *capsys.readouterr())

    return run


@cache
def _main() -> tuple[Any, dict[str, dict[str, Any]]]:
    """The module of ``main``, and the groups and commands that it knows."""
    module = importlib.import_module("vivit_bench.cli.main")
    return module, {name: getattr(module, name) for name in ("_GROUPS", "_COMMANDS")}
