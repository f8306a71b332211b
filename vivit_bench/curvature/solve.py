"""Symmetric eigenproblems of Gram matrices, in float64.

LAPACK's float32 solver has an absolute error of about 1e-5 of the largest eigenvalue,
more than the cutoff that eigenvalues are compared with; the float32 Gram matrix itself
is far better than that.
"""

import torch
from torch import Tensor


def eigenvalues_of(gram: Tensor) -> Tensor:
    """All eigenvalues of a symmetric matrix, of which only the lower triangle is read.

    Args:
        gram: [M, M], any float dtype and device.

    Returns:
        [M] float64 on the CPU, descending.
    """
    return torch.linalg.eigvalsh(gram.double()).flip(0).cpu()


def eigenpairs_of(gram: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues above ``cutoff`` and their eigenvectors (lower triangle read).

    Args:
        gram: [M, M], any float dtype and device.
        cutoff: Smallest eigenvalue of interest.

    Returns:
        [K] ascending and [M, K], float64, on the device of ``gram``.
    """
    values, vectors = torch.linalg.eigh(gram.double())
    first = int((values <= cutoff).sum())
    return values[first:], vectors[:, first:]
