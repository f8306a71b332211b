"""The ViViT curvature engine: every quantity of the GGN from its small Gram matrix.

    >>> from vivit_bench.curvature import eigenvalues
    >>> spectrum = eigenvalues(model, loss, inputs, targets, curvature="exact")
    >>> spectrum.eigenvalues[:10], spectrum.certificate.line()

A library of its own: of the rest of the package it imports the errors, `trees` and `lazy` only.
Names are imported on first use, so that a command line's help need not load torch.
"""

from typing import TYPE_CHECKING

from vivit_bench.lazy import lazy_getattr

if TYPE_CHECKING:
    from vivit_bench.curvature.damping import BootstrapDamping, ConstantDamping, DampingPolicy
    from vivit_bench.curvature.directional import (
        directional_derivatives,
        has_zero_variance,
        signal_to_noise,
    )
    from vivit_bench.curvature.explanation import Explanation, explain, least_memory
    from vivit_bench.curvature.newton import inverse_product, newton_step
    from vivit_bench.curvature.options import (
        Approximation,
        Blocks,
        Curvature,
        Memory,
        Method,
        Samples,
    )
    from vivit_bench.curvature.results import (
        BatchInfo,
        Certificate,
        Choice,
        DirectionalDerivatives,
        Dropped,
        Iterations,
        LeadingEigenvalues,
        NewtonStep,
        Spectrum,
    )
    from vivit_bench.curvature.spectrum import (
        Eigenbasis,
        eigenvalues,
        eigenvectors,
        leading_eigenvalues,
    )

_HOMES = {
    "Approximation": "options",
    "BatchInfo": "results",
    "Blocks": "options",
    "BootstrapDamping": "damping",
    "Certificate": "results",
    "Choice": "results",
    "ConstantDamping": "damping",
    "Curvature": "options",
    "DampingPolicy": "damping",
    "DirectionalDerivatives": "results",
    "Dropped": "results",
    "Eigenbasis": "spectrum",
    "Explanation": "explanation",
    "Iterations": "results",
    "LeadingEigenvalues": "results",
    "Memory": "options",
    "Method": "options",
    "NewtonStep": "results",
    "Samples": "options",
    "Spectrum": "results",
    "directional_derivatives": "directional",
    "eigenvalues": "spectrum",
    "eigenvectors": "spectrum",
    "explain": "explanation",
    "has_zero_variance": "directional",
    "inverse_product": "newton",
    "least_memory": "explanation",
    "leading_eigenvalues": "spectrum",
    "newton_step": "newton",
    "signal_to_noise": "directional",
}

__all__ = [
    "Approximation",
    "BatchInfo",
    "Blocks",
    "BootstrapDamping",
    "Certificate",
    "Choice",
    "ConstantDamping",
    "Curvature",
    "DampingPolicy",
    "DirectionalDerivatives",
    "Dropped",
    "Eigenbasis",
    "Explanation",
    "Iterations",
    "LeadingEigenvalues",
    "Memory",
    "Method",
    "NewtonStep",
    "Samples",
    "Spectrum",
    "directional_derivatives",
    "eigenvalues",
    "eigenvectors",
    "explain",
    "has_zero_variance",
    "inverse_product",
    "leading_eigenvalues",
    "least_memory",
    "newton_step",
    "signal_to_noise",
]

__getattr__ = lazy_getattr(__name__, _HOMES)
