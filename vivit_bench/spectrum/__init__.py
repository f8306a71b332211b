"""Spectra of the GGN: compute, store, sweep over approximations, compare."""

from vivit_bench.spectrum.compare import SpectrumComparison, compare_spectra, spectral_distance
from vivit_bench.spectrum.compute import compute_on, compute_spectrum, leading_eigenvectors
from vivit_bench.spectrum.record import SpectrumRecord, load_spectrum
from vivit_bench.spectrum.settings import SpectrumSettings
from vivit_bench.spectrum.stored import SweepEvent, SweepStep, store_spectrum, sweep_spectra

__all__ = [
    "SpectrumComparison",
    "SpectrumRecord",
    "SpectrumSettings",
    "SweepEvent",
    "SweepStep",
    "compare_spectra",
    "compute_on",
    "compute_spectrum",
    "leading_eigenvectors",
    "load_spectrum",
    "spectral_distance",
    "store_spectrum",
    "sweep_spectra",
]
