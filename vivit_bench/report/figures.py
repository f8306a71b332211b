"""What all figures share: their style, and how they are stored."""

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from vivit_bench.store import write_output

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "vivit-bench",
}
"""For one paper column, text of about the size of a caption."""

ENDINGS: dict[str, dict[str, Any]] = {
    ".png": {},
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
}
"""Of figures' files, and what their formats must be told not to write: the time."""


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG (200 dpi) and PDF; equal figures give equal files.

    Args:
        figure: The figure.
        stem: Path of the files without their endings.

    Returns:
        Paths of the PNG and the PDF.

    Raises:
        UsageError: They cannot be written.
    """
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "pdf")]
    for path in paths:
        write_figure(figure, path)
    return paths


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its file's ending; equal figures give equal files.

    Args:
        figure: The figure.
        path: Ends in one of `ENDINGS`.

    Raises:
        UsageError: It cannot be written.
    """
    ending = path.suffix
    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(content, format=ending[1:], dpi=200, metadata=ENDINGS[ending])
    write_output(path, content.getvalue())
