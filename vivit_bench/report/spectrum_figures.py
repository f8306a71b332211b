"""Histograms of GGN spectra (Figures S.4a and S.5a)."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from vivit_bench.curvature.options import Curvature, Precision
from vivit_bench.errors import UsageError
from vivit_bench.report.figures import STYLE, save_figure
from vivit_bench.spectrum.record import SpectrumRecord

BINS_PER_DECADE = 6

# Okabe and Ito's palette, distinguishable with colour-blindness and in grey.
_COLOURS = {Curvature.EXACT: "#0072B2", Curvature.MC: "#D55E00"}
_CUTOFF_COLOUR = "#9A9A9A"
COLUMN_INCHES = 3.4
"""One paper column; text of about the size of a caption."""


def plot_spectra(
    records: Sequence[SpectrumRecord], stem: Path, *, cutoff: float | None = None
) -> list[Path]:
    """Draw one panel per spectrum with shared axes, as PNG (200 dpi) and PDF.

    Args:
        records: The spectra, in the order of the panels.
        stem: Path of the files without their endings.
        cutoff: Left end of the eigenvalue axis; None for the one the spectra were made with.

    Returns:
        Paths of the PNG and the PDF.

    Raises:
        UsageError: No cutoff is given and the spectra have different ones.
    """
    return save_figure(
        draw_spectra(records, cutoff=common_cutoff(records) if cutoff is None else cutoff), stem
    )


def draw_spectra(records: Sequence[SpectrumRecord], *, cutoff: float) -> Figure:
    """Draw the histograms of ``plot_spectra`` without storing them."""
    edges = histogram_edges([record.eigenvalues for record in records], cutoff)
    columns = min(len(records), 2)
    rows = math.ceil(len(records) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_INCHES, 0.7 + 1.3 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        common, titles = _titles(records, line_length=56 // columns)
        for panel, record, title in zip(axes, records, titles, strict=False):
            _draw_panel(panel, record, edges)
            count = int((record.eigenvalues > cutoff).sum())
            panel.set_title(f"{title}\n{count:,} above cutoff", pad=3, fontsize=7)
        for unused in axes[len(records) :]:
            unused.set_axis_off()
        # With an odd number of panels the last of the right column has none below it.
        for panel in list(axes)[len(records) - columns : len(records)]:
            panel.tick_params(labelbottom=True)
        _scale_axes(axes[0], edges, max(record.num_params for record in records))
        figure.suptitle(common, fontsize=8)
        figure.supxlabel("GGN eigenvalue", fontsize=8)
        figure.supylabel("density", fontsize=8)
    return figure


def histogram_edges(spectra: Sequence[NDArray[np.float64]], cutoff: float) -> NDArray[np.float64]:
    """Bin edges for several spectra: equal widths on the log axis.

    Returns:
        [bins + 1] ascending. The first bin ends at ``cutoff`` and is for everything that is
        not above it; the last contains the largest finite eigenvalue.
    """
    finite = np.concatenate(spectra)
    top = max(finite[np.isfinite(finite)].max(initial=cutoff), 10 * cutoff)
    # The margin covers the rounding of the power below.
    bins = math.ceil((math.log10(top) - math.log10(cutoff)) * BINS_PER_DECADE + 1e-9)
    edges = cutoff * 10 ** (np.arange(-1, bins + 1) / BINS_PER_DECADE)
    edges[1] = cutoff
    return edges


def spectral_density(record: SpectrumRecord, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of all D eigenvalues in each bin.

    Eigenvalues are clipped into the bins: exact zeros, small, negative and undefined ones
    lie in the first, infinite ones in the last.

    Args:
        record: The spectrum.
        edges: [bins + 1], from ``histogram_edges``.

    Returns:
        [bins], summing to 1.
    """
    cutoff = edges[1]
    above = record.eigenvalues[record.eigenvalues > cutoff]
    counts, _ = np.histogram(np.minimum(above, edges[-1]), edges[1:])
    at_cutoff = record.num_params - len(above)
    return np.concatenate([[at_cutoff], counts]) / record.num_params


def common_cutoff(records: Sequence[SpectrumRecord]) -> float:
    """Cutoff the spectra were made with.

    Raises:
        UsageError: They have different ones.
    """
    cutoffs = sorted({record.settings.cutoff for record in records})
    if len(cutoffs) > 1:
        raise UsageError(
            f"the spectra have different cutoffs ({', '.join(map(str, cutoffs))}); "
            "choose one with --cutoff"
        )
    return cutoffs[0]


def _draw_panel(panel: Axes, record: SpectrumRecord, edges: NDArray[np.float64]) -> None:
    density = spectral_density(record, edges)
    colours = [_CUTOFF_COLOUR] + [_COLOURS[record.settings.curvature]] * (len(density) - 1)
    panel.bar(
        edges[:-1],
        density,
        width=np.diff(edges),
        align="edge",
        color=colours,
        edgecolor="white",
        linewidth=0.3,
    )


def _scale_axes(panel: Axes, edges: NDArray[np.float64], num_params: int) -> None:
    """Set limits and ticks of the shared axes."""
    cutoff = float(edges[1])
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(edges[0], edges[-1])
    # A bar of one eigenvalue, 1 / D, must be visible above the axis.
    panel.set_ylim(0.4 / num_params, 2.5)
    panel.xaxis.set_major_locator(FixedLocator(_decades(cutoff, float(edges[-1]))))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick_label(value, cutoff)))
    panel.yaxis.set_major_locator(LogLocator(base=10, numticks=5))
    # Small ticks at the powers of ten without a label; the usual nine a decade are a blur here.
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(LogLocator(base=10, subs=(1.0,), numticks=100))
        axis.set_minor_formatter(NullFormatter())


def _decades(cutoff: float, top: float) -> list[float]:
    """The cutoff and about three powers of ten above it, far enough apart for their labels."""
    low, high = math.log10(cutoff), math.log10(top) + 1e-9
    step = max(1, math.ceil((high - low) / 4))
    first = math.ceil(low + max(1, 0.8 * step) - 1e-9)
    return [cutoff, *(10.0**k for k in range(first, math.floor(high) + 1, step))]


def _tick_label(value: float, cutoff: float) -> str:
    exponent = math.log10(value)
    power = round(exponent)
    if math.isclose(exponent, power, abs_tol=1e-9):
        number = f"10^{{{power}}}"
    else:
        number = f"{value / 10 ** math.floor(exponent):.3g}" + (
            rf"\cdot 10^{{{math.floor(exponent)}}}"
        )
    return rf"$\leq {number}$" if value == cutoff else f"${number}$"


def _titles(records: Sequence[SpectrumRecord], line_length: int) -> tuple[str, list[str]]:
    """Title of the figure, with what all panels share, and titles of the panels."""
    settings = [record.settings for record in records]
    workloads = [workload_of(record) for record in records]
    if len(set(workloads)) == 1:
        common, titles = workloads[0], [s.variant for s in settings]
    else:
        common = ""
        titles = [
            f"{textwrap.fill(workload, line_length)}\n{s.variant}"
            for workload, s in zip(workloads, settings, strict=True)
        ]
    return textwrap.fill(f"{common}{computed_when(records)}".strip(), 56), titles


def computed_when(records: Sequence[SpectrumRecord]) -> str:
    """The days of their computation in brackets after a space; empty if none is known."""
    days = sorted({record.computed_on for record in records if record.computed_on})
    return f" ({' to '.join(dict.fromkeys([days[0], days[-1]]))})" if days else ""


def workload_of(record: SpectrumRecord, *, with_weights: bool = True) -> str:
    """What a spectrum is one of; non-breaking spaces keep names and values on one line."""
    spec = record.settings.workload
    dtype = "" if spec.dtype is Precision.FLOAT32 else f", {spec.dtype}"
    weights = f", {spec.checkpoint}" if spec.checkpoint and with_weights else ""
    return (
        f"{_short(spec.problem)}, N\xa0=\xa0{spec.batch_size}, D\xa0=\xa0{record.num_params:,}, "
        f"data\xa0{spec.data}, seed\xa0{spec.seed}{dtype}{weights}"
    )


def _short(problem: str) -> str:
    """Name of a problem, without the folders of a user's file."""
    return problem.rsplit("/", 1)[-1]
