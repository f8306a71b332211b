"""What a user's file imports from beside it counts as its code."""

from pathlib import Path

import pytest
from command_line import group_runner

from vivit_bench.critical_batch import make_cell
from vivit_bench.imported import IMPORTED, imported_files

MAIN = """
import math, torch
from layers import Net
from blocks.deep import norm

def make():
    import data
    return Net(), torch.nn.CrossEntropyLoss(), data.batch
"""
FILES = {
    "layers.py": """
import torch
from torch import nn
from blocks import width

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, width)

    def forward(self, x):
        return torch.relu(self.layer(x))
""",
    "data.py": """
import torch

def batch(n, seed):
    torch.manual_seed(seed)
    return torch.randn(n, 3), torch.randint(2, (n,))
""",
    "blocks/__init__.py": "width = 2\n",
    "blocks/deep.py": "from . import sizes\nfrom .sizes import one\nnorm = 2\n",
    "blocks/sizes.py": "import layers  # a circle\none = 1\n",
}


@pytest.fixture
def problem(tmp_path: Path) -> str:
    for name, text in {"net.py": MAIN, "unused.py": "", **FILES}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return f"{tmp_path / 'net.py'}:make"


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_is_imported_counts(problem: str, tmp_path: Path, name: str) -> None:
    before = imported_files(problem)
    assert before == imported_files(problem)
    assert set(before) == {IMPORTED}
    (tmp_path / "unused.py").write_text("x = 1\n")
    assert imported_files(problem) == before
    (tmp_path / name).write_text(FILES[name] + "# changed\n")
    assert imported_files(problem) != before


def test_names_and_files_without_imports_have_none(tmp_path: Path) -> None:
    assert imported_files("mnist_mlp") == {}
    assert imported_files(f"{tmp_path / 'none.py'}:make") == {}
    (tmp_path / "net.py").write_text("import torch\n")
    assert imported_files(f"{tmp_path / 'net.py'}:make") == {}
    (tmp_path / "net.py").write_text("import broken\n")
    (tmp_path / "broken.py").write_text("def (\n")
    assert set(imported_files(f"{tmp_path / 'net.py'}:make")) == {IMPORTED}


def test_a_spectrum_of_other_imported_code_is_not_returned(
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The layer's forward is neither in its representation nor in its parameters."""
    spectrum = group_runner("spectrum", monkeypatch, capsys)
    command = ("compute", problem, "--batch-size", "4", "--results-dir", str(tmp_path / "results"))
    assert spectrum(*command).code == 0
    assert "finished already" in spectrum(*command).err
    cell = make_cell(problem, threads=1)
    before = cell.environment()
    (tmp_path / "layers.py").write_text(FILES["layers.py"].replace("relu", "tanh"))
    refused = spectrum(*command)
    assert refused.code == 2
    assert f"{IMPORTED} " in refused.err
    assert cell.environment() != before
