"""docs/tutorial.ipynb runs from its first cell to its last, and leaves nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.ipynb"
RUNNER = ROOT / "scripts" / "run_notebook.py"
CELLS = json.loads(TUTORIAL.read_text())["cells"]


def test_it_is_short_and_committed_without_outputs() -> None:
    assert 20 <= len(CELLS) <= 30
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        assert len(cell["source"]) <= 16
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def run(notebook: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(RUNNER), str(notebook)]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.thorough
def test_every_cell_runs_and_leaves_no_file(tmp_path: Path) -> None:
    before = sorted(path.name for path in (ROOT / "docs").iterdir())
    done = run(TUTORIAL, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"cell {len(CELLS)} of {len(CELLS)}" in done.stdout
    for said in ("critical N (95 %)", "critical batch size", "certified by plain autograd"):
        assert said in done.stdout
    assert "over_training.pdf" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in (ROOT / "docs").iterdir()) == before


def test_a_cell_that_fails_is_named_and_values_are_shown(tmp_path: Path) -> None:
    sources = ["a = 20", "a + 1", "None", "a / 0", "print('never')"]
    cells = [{"cell_type": "code", "source": [source]} for source in sources]
    notebook = tmp_path / "fails.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    done = run(notebook, tmp_path)
    assert done.returncode != 0
    assert 'File "cell 4", line 1' in done.stderr
    assert "21" in done.stdout.splitlines()
    assert "None" not in done.stdout.splitlines()
    assert "never" not in done.stdout
