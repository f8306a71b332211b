"""One table in five forms: exact for programs, whole names within the terminal for people."""

import csv
import io
import json
import math

import pytest

from vivit_bench.report.tables import Column, Table, TableFormat, format_seconds, render

COLUMNS = (
    Column("layer", left=True),
    Column("num_params", "D", ","),
    Column("wall_seconds", "seconds", ".2f"),
    Column("shape", shown=lambda shape: "x".join(map(str, shape))),
    Column("note", is_detail=True),
)
ROWS = [
    {"layer": "a|b_1", "num_params": 12345, "wall_seconds": 1 / 3, "shape": [2, 3], "note": "x"},
    {"layer": "head", "num_params": 7, "wall_seconds": math.nan, "shape": None},
]
TABLE = Table(COLUMNS, ROWS, totals={"layer": "all", "num_params": 12352}, notes=["a remark"])


def test_people_see_rounded_values_totals_and_notes() -> None:
    assert render(TABLE, TableFormat.TABLE, 80).splitlines() == [
        "layer       D  seconds  shape",
        "-----  ------  -------  -----",
        "a|b_1  12,345     0.33    2x3",
        "head        7        -      -",
        "-----  ------  -------  -----",
        "all    12,352",
        "",
        "a remark",
    ]


def test_csv_has_all_digits_and_nothing_for_people() -> None:
    rows = list(csv.DictReader(io.StringIO(render(TABLE, TableFormat.CSV))))
    assert list(rows[0]) == [column.name for column in COLUMNS]
    assert len(rows) == 2
    assert float(rows[0]["wall_seconds"]) == 1 / 3
    assert (rows[0]["shape"], rows[0]["note"], rows[1]["note"]) == ("2x3", "x", "")


def test_json_is_strict() -> None:
    values = [math.nan, math.inf, -math.inf, 0.1]
    table = Table([Column("value")], [{"value": value} for value in values])
    text = render(table, TableFormat.JSON)
    assert [row["value"] for row in json.loads(text)] == [None, "Infinity", "-Infinity", 0.1]
    assert json.loads(render(TABLE, TableFormat.JSON))[0]["shape"] == [2, 3]
    record = Table(COLUMNS, ROWS[:1], is_record=True)
    assert json.loads(render(record, TableFormat.JSON))["num_params"] == 12345


def test_markdown_and_latex_escape_what_would_end_a_cell() -> None:
    markdown = render(TABLE, TableFormat.MARKDOWN).splitlines()
    assert markdown[1] == "|:--|--:|--:|--:|"
    assert markdown[2] == r"| a\|b_1 | 12,345 | 0.33 | 2x3 |"
    latex = render(TABLE, TableFormat.LATEX)
    assert r"a|b\_1 & 12,345 & 0.33 & 2x3 \\" in latex
    assert latex.count("rule") == 3
    assert latex.endswith("% a remark\n")


@pytest.mark.parametrize("width", [80, 60, 30])
def test_long_names_fold_and_are_never_cut(width: int) -> None:
    name = "encoder." + "block." * 20 + "weight"
    rows = [{"layer": name, "num_params": 1, "wall_seconds": 2.0, "shape": [3]}]
    lines = render(Table(COLUMNS, rows), TableFormat.TABLE, width).splitlines()
    assert max(map(len, lines)) <= width
    # Folded beside the numbers, or in a list of quantities where these leave no room.
    start = len("seconds") + 2 if width == 30 else 0
    stop = None if width == 30 else max(len(line.split()[0]) for line in lines[1:2])
    assert name in "".join(line[start:stop].strip() for line in lines)


def test_headers_break_before_a_table_becomes_a_list() -> None:
    columns = [Column(f"q{k}", "some long header", "d") for k in range(8)]
    table = Table(columns, [{f"q{k}": k for k in range(8)}])
    lines = render(table, TableFormat.TABLE, 80).splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["some", "long", "header"]
    assert render(table, TableFormat.TABLE, 30).startswith("some long header  0\n")


def test_an_empty_table_has_its_header() -> None:
    for style in TableFormat:
        assert render(Table(COLUMNS, []), style)


def test_a_mark_stands_behind_a_value_for_people_alone() -> None:
    column = Column("size", bound="more", mark="why")
    rows = [{"size": 5, "more": True, "why": "(time;\nsoon)"}, {"size": 6}]
    table = Table([column], rows)
    assert render(table, TableFormat.TABLE, 80).splitlines() == [
        "       size",
        "-----------",
        ">= 5 (time;",
        "      soon)",
        "          6",
    ]
    assert "| >= 5 (time; soon) |" in render(table, TableFormat.MARKDOWN)
    assert render(table, TableFormat.CSV) == "size\n5\n6\n"
    assert json.loads(render(table, TableFormat.JSON)) == [{"size": 5}, {"size": 6}]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.01234, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_seconds_have_three_digits(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown
