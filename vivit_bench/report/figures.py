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
}
"""For one paper column, text of about the size of a caption."""


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
    paths = []
    for ending, metadata in (("png", {}), ("pdf", {"CreationDate": None})):
        content = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(content, format=ending, dpi=200, metadata=metadata)
        path = stem.with_name(f"{stem.name}.{ending}")
        write_output(path, content.getvalue())
        paths.append(path)
    return paths
