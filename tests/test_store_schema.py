"""Names and types of stored records."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NotRequired, TypedDict

import pytest

from vivit_bench.store.schema import conforms, violations


class Colour(StrEnum):
    RED = "red"


@dataclass
class Inner:
    n: int


@dataclass
class Record:
    name: str
    size: int | None
    colour: Colour
    parts: list[Inner] = field(default_factory=list)
    pair: tuple[float, ...] = ()


class Table(TypedDict):
    values: dict[str, list[float]]
    more: NotRequired[bool]


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        (1, int, True),
        (True, int, False),
        (1, bool, False),
        (1, float, True),
        (1.0, int, False),
        (float("nan"), float, True),
        (None, int | None, True),
        ("1", int | None, False),
        ([1, 2.5], list[float], True),
        ([1, "2"], list[float], False),
        ([1, 2], tuple[float, ...], True),
        ({"a": [1]}, dict[str, list[float]], True),
        ({"a": [None]}, dict[str, list[float]], False),
        ("red", Colour, True),
        ("blue", Colour, False),
        ({"n": 1}, Inner, True),
        ({"n": "1"}, Inner, False),
        ({}, Inner, False),
        (3, Any, True),
    ],
)
def test_values_of_a_type(value: object, kind: Any, fits: bool) -> None:
    assert conforms(value, kind) is fits


def test_violations_name_what_is_missing_and_what_is_of_another_type() -> None:
    good = {"name": "a", "size": None, "colour": "red", "of a later version": 1}
    assert list(violations(good, Record, "it:")) == []
    bad = {"name": 1, "colour": "blue", "parts": [{}]}
    assert list(violations(bad, Record, "it:")) == [
        "it: name is 1, not text",
        "it: has no size",
        "it: colour is 'blue', not one of red",
        "it: parts is [{}], not list[test_store_schema.Inner]",
    ]
    assert list(violations({"values": {}}, Table, "it:")) == []
    assert list(violations({"more": 1}, Table, "it:")) == [
        "it: has no values",
        "it: more is 1, not bool",
    ]
    assert list(violations([], Table, "it:")) == ["it: is [] and no object"]
