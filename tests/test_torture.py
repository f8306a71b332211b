"""A short form of each series of ``scripts/torture``: a few cases of every kind."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "torture"))

import command_lines
import damage
import failures
import full_disk
import kills
import two_at_once
from common import Series

pytestmark = pytest.mark.thorough


def check(series: Series, least: int) -> None:
    assert series.attempted >= least
    assert series.lines == []


@pytest.mark.parametrize("name", ["quadratic", "spectrum"])
def test_killed_at_a_call(name: str) -> None:
    check(kills.series(2, 1, 1, [name], share=0.0), 2)


def test_damaged_files() -> None:
    check(damage.series(5, 1, 1, ["comparison"]), 5)


def test_bad_command_lines() -> None:
    check(command_lines.series(6, 1, 1), 6)


def test_a_disk_that_fails() -> None:
    check(full_disk.series(5, 1, 1, ["quadratic"]), 5)


def test_works_that_fail() -> None:
    check(failures.series(4, 1, 2, own=False), 5)


def test_two_at_once() -> None:
    check(two_at_once.series(3, 1, 1, ["comparison"]), 3)
