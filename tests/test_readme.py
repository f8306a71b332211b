"""What the README and the pages of docs/ say in Python runs as it stands, and their links lead."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
]


class Net(nn.Module):
    """A small network with a head, as the README's reader has one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).relu())


def names_of_the_reader() -> dict[str, object]:
    torch.manual_seed(0)
    model, loss = Net(), nn.CrossEntropyLoss()
    inputs, targets = torch.randn(12, 5), torch.randint(3, (12,))

    def train_step(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        value: Tensor = loss(model(inputs), targets)
        value.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None

    return {
        "model": model,
        "loss": loss,
        "inputs": inputs,
        "targets": targets,
        "held_out_inputs": inputs,
        "held_out_targets": targets,
        "batches": [(inputs, targets)] * 10,
        "train_step": train_step,
    }


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_a_block_runs(page: Path, block: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = names_of_the_reader()
    exec(compile(block, str(page), "exec"), names)
    if "make" in names:  # a problem's file, which is silent
        model, loss, batch = names["make"]()  # type: ignore[operator]
        inputs, targets = batch(7, 0)
        assert loss(model(inputs), targets).isfinite()
    else:
        assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_first_page_is_one() -> None:
    assert len(README.read_text().splitlines()) <= 120
