"""Labels of measurements: those that share one are told apart by what else they differ in."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vivit_bench.report.page.parts import plain

_CONDITIONS: tuple[dict[str, str], ...] = (
    {"problem": "problem", "problem_file": "contents of its file"},
    {"checkpoint": "checkpoint", "checkpoint_file": "contents of the checkpoint"},
    {"data": "data"},
    {"seed": "seed"},
    {"dtype": "precision"},
    {"threads": "threads"},
    {"base": "over"},
    {"host": "host", "gpu": "GPU"},
)
"""What measurements may differ in, and what people call it. Of each group the first that differs is
named: the next follows from it."""


def told_apart(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[str]:
    """Labels, each with a line more for every condition in which the rows that share it differ.

    Several engines share a label, two measurements of one engine never do: where their conditions
    are the same, the names of their runs are added.

    Args:
        rows: The measurements, with their conditions, ``engine`` and ``run``.
        labels: One each, of lines parted by ``|``.
    """
    found = [plain(row) for row in rows]
    sharing: dict[str, list[dict[str, Any]]] = {}
    for row, label in zip(found, labels, strict=True):
        sharing.setdefault(label, []).append(row)
    differing = {label: list(_differing(those)) for label, those in sharing.items()}
    longer = [
        "|".join([label, *(_said(called, row.get(name)) for name, called in differing[label])])
        for row, label in zip(found, labels, strict=True)
    ]
    drawn = Counter((row["engine"], label) for row, label in zip(found, longer, strict=True))
    return [
        label if drawn[row["engine"], label] == 1 else f"{label}|{row['run']}"
        for row, label in zip(found, longer, strict=True)
    ]


def height_of(labels: Iterable[str]) -> int:
    """Pixels that the label with the most lines needs."""
    return 17 * max(label.count("|") + 1 for label in labels)


def on_one_line(label: str) -> str:
    """A label for tooltips and descriptions."""
    return label.replace("|", ", ")


def _differing(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Conditions that not all rows share, and what they are called."""
    for group in _CONDITIONS:
        for name, called in group.items():
            if len({row.get(name) for row in rows}) > 1:
                yield name, called
                break


def _said(called: str, value: Any) -> str:
    return f"no {called}" if value is None else f"{called} {value}"
