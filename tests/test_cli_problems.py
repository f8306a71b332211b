"""``vivit-bench problems``: readable at 80 columns, and exact as CSV and JSON."""

import csv
import io
import json

import pytest
from typer.testing import CliRunner

from vivit_bench.cli.problems import app
from vivit_bench.errors import UsageError
from vivit_bench.problems.catalogue import PROBLEMS


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_list_fits_80_columns_with_every_name_whole(tmp_path):
    lines = run("list", "--data-dir", str(tmp_path)).splitlines()
    table = lines[: lines.index("")]
    assert max(map(len, table)) <= 80
    assert [line.split()[0] for line in table[2:]] == list(PROBLEMS)
    assert "1,387,108" in next(line for line in table if "allcnnc" in line)
    assert str(tmp_path) in "\n".join(lines)  # on one line, however long


def test_list_as_csv_and_json_agree(tmp_path):
    rows = list(
        csv.DictReader(io.StringIO(run("list", "--format", "csv", "--data-dir", str(tmp_path))))
    )
    records = json.loads(run("list", "--format", "json", "--data-dir", str(tmp_path)))
    assert [row["name"] for row in rows] == [row["name"] for row in records] == list(PROBLEMS)
    for row, record in zip(rows, records, strict=True):
        assert row["input_shape"] == "x".join(map(str, record["input_shape"]))
        assert int(row["num_params"]) == record["num_params"]
        assert row["data_present"] == str(record["data_present"])


def test_show_counts_every_parameter_once():
    record = json.loads(run("show", "cifar10_3c3d", "--format", "json"))
    assert sum(layer["num_params"] for layer in record["layers"]) == record["num_params"] == 895_210
    assert record["layers"][0] == {
        "layer": "conv1.0",
        "type": "Conv2d",
        "output_shape": [64, 28, 28],
        "num_params": 4864,
    }
    assert record["sources"] == ["deepobs", "synthetic"]


def test_show_counts_tied_weights_once(tmp_path):
    file = tmp_path / "tied.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n"
        "    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))\n"
        "    model[1].weight = model[0].weight\n"
        "    return model, nn.MSELoss(), (torch.ones(4, 3), torch.ones(4, 3))\n"
    )
    record = json.loads(run("show", f"{file}:make", "--format", "json"))
    assert record["num_params"] == 15
    assert [layer["num_params"] for layer in record["layers"]] == [12, 3]


def test_show_works_for_a_problem_of_ones_own():
    text = run("show", "scripts/examples/small_cnn.py:digits")
    assert "own tensors, 1797 samples" in text
    assert "3,818" in text
    assert max(map(len, text.splitlines())) <= 80


def test_show_says_what_to_type_for_a_wrong_name():
    with pytest.raises(UsageError, match="did you mean 'cifar10_3c3d'"):
        run("show", "cifar10_3c3")
