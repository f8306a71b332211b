"""The lines of docs/results.md open every stored table with pandas, and miss none."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from critical_batch_cases import add_search, trial
from noise_cases import CHOICES, write_tiny
from spectrum_cases import make_record, store_record

from vivit_bench.measure import Outcome
from vivit_bench.noise import run_noise
from vivit_bench.quadratic import Settings, run_experiment

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text()
LINES = re.findall(r"^    (pd\..*)$", PAGE, re.MULTILINE)
VALUES = (1 / 3, 0.1, 1e-6)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stored run of every experiment."""
    folder = tmp_path_factory.mktemp("all")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_tiny(folder)
        run_noise(CHOICES, Path("results"))
        store_record(Path("results"), make_record(VALUES))
        add_search(Path("results"), ran=[trial(64), trial(65, Outcome.OUT_OF_MEMORY)])
        small = Settings(repeats=2, steps=3, curvatures=(5.0, 9.0), batch_size=6, resamples=10)
        run_experiment(small, Path("results"))
    stored = sorted((ROOT / "results" / "comparison").iterdir())[0]
    shutil.copytree(stored, folder / "results" / "comparison" / stored.name)
    return folder


def opened(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)
    (root,) = re.findall(r"results/\w+", line)
    (run,) = [path.parent.name for path in Path(root).glob("*/run.json")]
    return eval(line.replace("RUN", run), {"pd": pd})


@pytest.mark.parametrize("line", LINES)
def test_a_line_opens_its_table(line: str, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = opened(line, results, monkeypatch)
    assert len(table) >= 1
    if isinstance(table, pd.DataFrame):
        assert len(table.columns) >= 2
        assert not any(str(name).startswith("Unnamed") for name in table.columns)
        # Infinite ratios and missing values leave a column one of numbers.
        numbers = [name for name in table if str(name).startswith(("snr_", "eigen", "gamma"))]
        assert all(pd.api.types.is_numeric_dtype(table[name]) for name in numbers)


def test_no_stored_table_is_missed(results: Path) -> None:
    named = {re.sub(r".*?(results/\w+)/RUN/([\w.]+)\".*", r"\1 \2", line) for line in LINES}
    found = {
        f"{path.parent.parent.relative_to(results)} {path.name}"
        for pattern in ("*.csv", "*.jsonl")
        for path in results.glob(f"results/*/*/{pattern}")
    }
    assert len(found) >= 8
    assert found <= named


def test_values_are_those_that_were_stored(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_file = {line.split("/")[3].split('"')[0]: line for line in LINES[:7]}
    exact = by_file["eigenvalues.csv"].replace('")', '", float_precision="round_trip")')
    assert opened(exact, results, monkeypatch)["eigenvalue"].tolist() == list(VALUES)
    (trials,) = [line for line in LINES if "trials.jsonl" in line]
    assert opened(trials, results, monkeypatch)["n"].tolist() == [64, 65]
    (found,) = [line for line in LINES if line.endswith('["results"]')]
    assert opened(found, results, monkeypatch)["num_eigenvalues"] == 3
    (saved,) = results.glob("results/noise/*/per_sample/step_00000000.npz")
    assert "step_00000000.npz" in PAGE
    assert set(np.load(saved)) == {"gammas", "lambdas"}
