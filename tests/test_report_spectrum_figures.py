"""Histograms count every eigenvalue once, zeros at the cutoff, and are written as figures."""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spectrum_cases import make_record

from vivit_bench.curvature.options import Curvature
from vivit_bench.errors import UsageError
from vivit_bench.report.spectrum_figures import (
    draw_spectra,
    histogram_edges,
    plot_spectra,
    spectral_density,
)

ANY_FLOATS = st.lists(
    st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=20
)


@settings(deadline=None)
@given(ANY_FLOATS, st.integers(20, 10**7), st.sampled_from([1e-4, 3e-5, 0.7]))
def test_bars_sum_to_one_whatever_the_eigenvalues(
    values: list[float], num_params: int, cutoff: float
):
    record = make_record(values, num_params=num_params)
    edges = histogram_edges([record.eigenvalues], cutoff)
    density = spectral_density(record, edges)
    assert (np.diff(edges) > 0).all()
    assert density.sum() == pytest.approx(1)
    above = sum(value > cutoff for value in values)
    assert density[0] == pytest.approx((num_params - above) / num_params)
    assert density[1:].sum() == pytest.approx(above / num_params)


def test_eigenvalues_fall_into_their_bins():
    record = make_record([0.9, 2e-3, 1.1e-4, 1e-4, 1e-9, -1e-7, np.nan], num_params=1000)
    edges = histogram_edges([record.eigenvalues], 1e-4)
    density = spectral_density(record, edges)
    for value in (0.9, 2e-3, 1.1e-4):
        (place,) = np.flatnonzero((edges[:-1] < value) & (value <= edges[1:]))
        assert density[place] == pytest.approx(1e-3)
    assert edges[1] == 1e-4
    assert density[0] == pytest.approx(0.997)


def test_panels_share_axes_and_show_every_spectrum():
    records = [
        make_record([30.0, 1e-3], num_params=1000),
        make_record([0.1], num_params=10, problem="mnist_mlp", curvature=Curvature.MC),
        make_record([2.0], num_params=1000, problem="fmnist_mlp"),
    ]
    figure = draw_spectra(records, cutoff=1e-4)
    figure.canvas.draw()
    panels = [panel for panel in figure.axes if panel.axison]
    assert len(panels) == 3
    assert len({(panel.get_xlim(), panel.get_ylim()) for panel in panels}) == 1
    low, high = panels[0].get_ylim()
    assert low < 1 / 1000
    assert high > 1
    assert panels[0].get_xlim()[1] >= 30
    for panel, name in zip(panels, ("cifar10_3c3d", "mnist_mlp", "fmnist_mlp"), strict=True):
        assert name in panel.get_title()
        heights = [bar.get_height() for bar in panel.patches]
        assert sum(heights) == pytest.approx(1)
    # The last panel of each column carries the labels of the shared axis.
    shown = [[t.get_text() for t in p.get_xticklabels() if t.get_visible()] for p in panels]
    assert not any(shown[0])
    assert "10^{-4}" in shown[1][0]
    assert "10^{-4}" in shown[2][0]


def test_spectrum_without_anything_above_the_cutoff_is_drawn(tmp_path: Path):
    assert all(path.exists() for path in plot_spectra([make_record([])], tmp_path / "empty"))


def test_files_are_reproducible_png_of_200_dpi_and_pdf(tmp_path: Path):
    first = plot_spectra([make_record()], tmp_path / "v1.0")
    second = plot_spectra([make_record()], tmp_path / "again")
    assert [path.name for path in first] == ["v1.0.png", "v1.0.pdf"]
    png, pdf = (path.read_bytes() for path in first)
    assert struct.unpack(">I", png[16:20]) == (680,)  # One column of 3.4 inches.
    assert pdf.startswith(b"%PDF")
    assert [path.read_bytes() for path in second] == [png, pdf]


def test_different_cutoffs_need_a_choice(tmp_path: Path):
    records = [make_record(), make_record(cutoff=1e-3)]
    with pytest.raises(UsageError, match="--cutoff"):
        plot_spectra(records, tmp_path / "f")
    assert len(plot_spectra(records, tmp_path / "f", cutoff=1e-4)) == 2


def shown(*changes: dict[str, Any]) -> tuple[str, list[str]]:
    figure = draw_spectra([make_record(**each) for each in changes], cutoff=1e-4)
    words = [figure.get_suptitle(), *(panel.get_title() for panel in figure.axes if panel.axison)]
    title, *panels = (" ".join(text.split()) for text in words)
    return title, panels


def test_title_names_what_all_spectra_are_of():
    title, panels = shown({"seed": 3}, {"seed": 3, "curvature": Curvature.MC})
    assert title == "cifar10_3c3d, N = 128, D = 100, data deepobs, seed 3"
    assert [panel.split(" 2 above")[0] for panel in panels] == ["exact, full", "mc, full"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 8}, ("N = 128", "N = 8")),
        ({"data": "synthetic"}, ("data deepobs", "data synthetic")),
        ({"seed": 7}, ("seed 0", "seed 7")),
        ({"dtype": "float64"}, ("seed 0 exact", "seed 0, float64 exact")),
        ({"checkpoint": "runs/w.pt"}, ("seed 0 exact", "seed 0, runs/w.pt exact")),
    ],
)
def test_panels_name_what_differs(change: dict[str, Any], words: tuple[str, str]):
    title, panels = shown({}, change)
    assert not title
    for word, panel in zip(words, panels, strict=True):
        assert word in panel
