"""Running a command group as a user types it."""

import importlib
import sys
from collections.abc import Callable
from typing import NamedTuple

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
    main_module = importlib.import_module("vivit_bench.cli.main")
    module = f"vivit_bench.cli.{group.replace('-', '_')}"
    groups = {} if group == "env" or group in main_module._COMMANDS else {group: module}
    monkeypatch.setattr(main_module, "_GROUPS", groups)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(main_module.app, "registered_groups", [])
        monkeypatch.setattr(sys, "argv", ["vivit-bench", group, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main_module.main()
        return Outcome(int(stopped.value.code or 0), *capsys.readouterr())

    return run
