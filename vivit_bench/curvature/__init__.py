"""The ViViT curvature engine: every quantity of the GGN from its small Gram matrix.

    >>> from vivit_bench.curvature import eigenvalues
    >>> spectrum = eigenvalues(model, loss, inputs, targets, curvature="exact")
    >>> spectrum.eigenvalues[:10], spectrum.trace

A library of its own: of the rest of the package it imports the errors and `lazy` only.
Names are imported on first use, so that a command line's help need not load torch.
"""

from typing import TYPE_CHECKING

from vivit_bench.lazy import lazy_getattr

if TYPE_CHECKING:
    from vivit_bench.curvature.damping import BootstrapDamping, ConstantDamping, DampingPolicy
    from vivit_bench.curvature.directional import directional_derivatives
    from vivit_bench.curvature.eigenbasis import Eigenbasis, eigenvectors
    from vivit_bench.curvature.explanation import explain
    from vivit_bench.curvature.inverse import inverse_product
    from vivit_bench.curvature.newton import newton_step
    from vivit_bench.curvature.options import Blocks, Curvature, Samples
    from vivit_bench.curvature.results import (
        BatchInfo,
        DirectionalDerivatives,
        NewtonStep,
        Spectrum,
    )
    from vivit_bench.curvature.spectrum import eigenvalues

_HOMES = {
    "BatchInfo": "results",
    "Blocks": "options",
    "BootstrapDamping": "damping",
    "ConstantDamping": "damping",
    "Curvature": "options",
    "DampingPolicy": "damping",
    "DirectionalDerivatives": "results",
    "Eigenbasis": "eigenbasis",
    "NewtonStep": "results",
    "Samples": "options",
    "Spectrum": "results",
    "directional_derivatives": "directional",
    "eigenvalues": "spectrum",
    "eigenvectors": "eigenbasis",
    "explain": "explanation",
    "inverse_product": "inverse",
    "newton_step": "newton",
}

__all__ = [
    "BatchInfo",
    "Blocks",
    "BootstrapDamping",
    "ConstantDamping",
    "Curvature",
    "DampingPolicy",
    "DirectionalDerivatives",
    "Eigenbasis",
    "NewtonStep",
    "Samples",
    "Spectrum",
    "directional_derivatives",
    "eigenvalues",
    "eigenvectors",
    "explain",
    "inverse_product",
    "newton_step",
]

__getattr__ = lazy_getattr(__name__, _HOMES)
