"""What the engine returns. Every number is on the CPU in float64 unless a field says otherwise."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class BatchInfo:
    """The mini-batch and curvature approximation a result belongs to."""

    num_params: int
    """D, trainable parameters."""
    batch_size: int
    """N, samples of the mini-batch (gradient, loss)."""
    num_samples: int
    """Samples that carry the curvature (N, or N // 8 for ``frac``)."""
    num_outputs: int
    """C, model outputs per sample."""
    num_columns: int
    """M, columns of V: ``num_samples`` times C - 1 (exact cross-entropy), C (exact MSE) or
    mc_samples."""
    loss: float
    """Mean loss of the mini-batch."""
    solver_dtype: str
    """Precision the Gram matrix's eigenproblem was solved in, e.g. ``"float64"``."""


@dataclass(frozen=True)
class Spectrum:
    """Non-trivial eigenvalues of the GGN (or of its diagonal blocks)."""

    info: BatchInfo
    eigenvalues: Tensor
    """[min(num_columns, D)], descending; of all blocks together if there are blocks.
    The remaining eigenvalues of the GGN are exactly zero."""
    trace: float
    """Trace of the GGN, from the Gram matrix's diagonal."""
    blocks: dict[str, Tensor] = field(default_factory=dict)
    """Layer name -> its block's eigenvalues, descending; empty for the full GGN."""
    gradient: list[Tensor] | None = None
    """Gradient of the mean loss in the format of a step; None unless asked for."""


@dataclass(frozen=True)
class DirectionalDerivatives:
    """Per-sample slopes and curvatures along the GGN eigenvectors (Equation 8)."""

    info: BatchInfo
    eigenvalues: Tensor
    """[K], descending, those above the cutoff."""
    gammas: Tensor
    """[N, K], gamma_nk = e_k^T grad l_n, over the whole mini-batch."""
    lambdas: Tensor
    """[num_samples, K], lambda_nk = e_k^T J_n^T H_n J_n e_k."""
    gradient: list[Tensor] | None = None
    """Gradient of the mean loss in parameter format; None unless asked for."""


@dataclass(frozen=True)
class NewtonStep:
    """A damped Newton step in parameter format (Equation 9)."""

    info: BatchInfo
    step: list[Tensor]
    """One tensor per trainable parameter, its shape, dtype and device: theta + step."""
    eigenvalues: dict[str, Tensor]
    """Block name ("" for the full GGN) -> [K] eigenvalues above the cutoff, descending."""
    dampings: dict[str, Tensor]
    """Block name -> [K] damping of each direction, in the same order."""
    gradient: list[Tensor] | None = None
    """Gradient of the mean loss in the format of ``step``; None unless asked for."""
