"""Benchmarks of the ViViT curvature model: critical batch sizes and GGN spectra.

The curvature engine is a library of its own, :mod:`vivit_bench.curvature`.
"""

__version__ = "0.1.0"
