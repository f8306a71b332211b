"""Dense solvers in the matrix's own memory: 8 m^2 bytes where PyTorch's take two to four times.

All take the lower triangle of a symmetric float64 matrix [m, m] in C order on the CPU, and
destroy it. What is above the diagonal is not read and, except by the Cholesky factorisation,
not written but next to the diagonal: memory never touched is not resident.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from vivit_bench.curvature import banded
from vivit_bench.curvature.kernels import mirror_lower
from vivit_bench.curvature.tridiagonal import Doubles, TridiagonalEigenproblem

REFLECTORS = 64
"""Householder reflectors applied at a time."""


def eigenvalues_in_place(matrix: Tensor) -> Tensor:
    """All eigenvalues; LAPACK's dsytrd and dsterf, of a large matrix by way of a band.

    Args:
        matrix: [m, m] float64, lower triangle; destroyed.

    Returns:
        [m] float64, ascending.

    Raises:
        numpy.linalg.LinAlgError: The matrix is not finite, or the iteration does not converge.
    """
    if banded.by_band(len(matrix)):
        scale = _scale_down(matrix)
        with threadpool_limits(torch.get_num_threads(), user_api="blas"):
            values = banded.banded_eigenvalues(matrix.numpy())
        return torch.from_numpy(values).mul_(scale)
    diagonal, beside, _, scale = _tridiagonalize(matrix)
    if len(beside):
        diagonal, info = lapack.dsterf(diagonal, beside)
        if info:
            raise np.linalg.LinAlgError("the eigenvalues do not converge")
    return torch.from_numpy(diagonal).mul_(scale)


class Tridiagonal:
    """A = Q T Q^T, the orthogonal Q kept as reflectors in the memory of A, and T = Z L Z^T.

    Args:
        matrix: [m, m] float64, lower triangle; destroyed, and in use as long as this is.

    Raises:
        numpy.linalg.LinAlgError: The matrix is not finite, or T's eigenvectors fail their check.
    """

    def __init__(self, matrix: Tensor) -> None:
        diagonal, beside, tau, scale = _tridiagonalize(matrix)
        self._q = _Reflectors(matrix, torch.from_numpy(tau))
        self._problem = TridiagonalEigenproblem(diagonal, beside)
        self.values = self._problem.values * scale
        """[m] float64, ascending."""

    def vectors(self, first: int, last: int, width: int = 256) -> Iterator[tuple[slice, Tensor]]:
        """Eigenvectors u_k = Q z_k, ascending in k.

        Args:
            first: The first k.
            last: One past the last.
            width: How many at a time, at most.

        Yields:
            Which k, and their vectors [m, w] float64, orthonormal across slices too.

        Raises:
            numpy.linalg.LinAlgError: They fail their check (see `TridiagonalEigenproblem`).
        """
        for start in range(first, last, width):
            columns = slice(start, min(start + width, last))
            vectors = self._problem.vectors(columns.start, columns.stop)
            self._q.multiply(vectors)
            yield columns, vectors

    def functions(self, first: int, coefficients: Tensor, x: Tensor) -> Tensor:
        """sum_{k >= first} f_jk u_k u_k^T x, without any u_k: O(m^2 (J + 1) R) operations.

        Args:
            first: The first eigenvalue's index.
            coefficients: [J, m - first] float64, the f_jk.
            x: [m, R] float64.

        Returns:
            [J, m, R] float64.
        """
        along = x.double().clone()
        self._q.multiply_transposed(along)
        along = self._problem.products(along)
        weights = x.new_zeros(len(along), len(coefficients), along.shape[1], dtype=torch.float64)
        torch.mul(coefficients.t().unsqueeze(2), along[first:].unsqueeze(1), out=weights[first:])
        found = self._problem.combine(weights.flatten(1))
        self._q.multiply(found)
        return found.view_as(weights).transpose(0, 1)


def cholesky_solve_in_place(matrix: Tensor, damping: float, right: Tensor) -> Tensor:
    """(A + damping I)^-1 b; LAPACK's dpotrf.

    A factorisation that fails has destroyed its triangle, so that A is kept in the other one:
    rounding may have made an eigenvalue less than -damping. A is then solved with its
    eigenvalues, those of A + damping I not less than the damping.

    Args:
        matrix: [m, m] float64, lower triangle of A; destroyed, the upper one too.
        damping: Positive.
        right: [m, R] float64.

    Returns:
        [m, R] float64.

    Raises:
        numpy.linalg.LinAlgError: The matrix is not finite, or its eigenvectors fail their check.
    """
    diagonal = matrix.diagonal().clone()
    if not diagonal.isfinite().all():
        raise np.linalg.LinAlgError("the matrix is not finite")
    if not right.numel():
        return right.clone()
    mirror_lower(matrix)
    matrix.diagonal().add_(damping)
    columns = matrix.numpy().T
    with threadpool_limits(torch.get_num_threads(), user_api="blas"):
        _, failed = lapack.dpotrf(columns, lower=0, clean=0, overwrite_a=1)
        if not failed:
            found = torch.from_numpy(lapack.dpotrs(columns, right.numpy(), lower=0)[0])
    if failed:
        mirror_lower(matrix.mT)  # what was kept, back
        matrix.diagonal().copy_(diagonal)
        solver = Tridiagonal(matrix)
        inverse = (solver.values + damping).clamp(min=damping).reciprocal()
        found = solver.functions(0, inverse.unsqueeze(0), right)[0]
    if not found.isfinite().all():
        raise np.linalg.LinAlgError("the matrix or the right-hand side is not finite")
    return found


def _tridiagonalize(matrix: Tensor) -> tuple[Doubles, Doubles, Doubles, float]:
    """A = scale Q T Q^T; the lower triangle holds Q's reflectors afterwards.

    Returns:
        T's diagonal [m] and the entries beside it [m - 1]; the reflectors' tau [m - 1]; scale.
    """
    m = len(matrix)
    if m == 0:
        return np.empty(0), np.empty(0), np.empty(0), 1.0
    scale = _scale_down(matrix)
    with threadpool_limits(torch.get_num_threads(), user_api="blas"):
        # By columns, as LAPACK reads it, the lower triangle is the upper one.
        work = int(lapack.dsytrd_lwork(m, lower=0)[0])
        packed, diagonal, beside, tau, info = lapack.dsytrd(
            matrix.numpy().T, lower=0, lwork=work, overwrite_a=1
        )
    assert info == 0
    assert np.shares_memory(packed, matrix.numpy()), "SciPy has made a copy"
    if not (np.isfinite(diagonal).all() and np.isfinite(beside).all()):
        raise np.linalg.LinAlgError("the matrix is not finite")
    return diagonal, beside, tau, scale


def _scale_down(matrix: Tensor) -> float:
    """Divide the lower triangle by what is returned, so that squares are in range."""
    scale = _power_of_two(float(matrix.diagonal().abs().max()))
    if scale != 1.0:
        for row in range(len(matrix)):
            matrix[row, : row + 1] /= scale
    return scale


def _power_of_two(size: float) -> float:
    """By which to divide entries whose squares would overflow or underflow; 1: none would."""
    if 1e-100 < size < 1e100 or size == 0.0 or not np.isfinite(size):
        return 1.0
    return float(2.0 ** np.clip(np.floor(np.log2(size)), -1000, 1000))


class _Reflectors:
    """Q = H_{m-1} ... H_1 with H_r = I - tau_r v_r v_r^T, as dsytrd leaves it.

    v_r is row r of the matrix: r - 1 entries, then a one (where dsytrd keeps what belongs to T,
    which has been copied), then zeros. Blocks of them are applied as I - V S V^T, where S^-1 is
    the upper triangle of V^T V with 1 / tau on the diagonal (Joffrain et al. 2006).
    """

    def __init__(self, matrix: Tensor, tau: Tensor) -> None:
        self._blocks: list[tuple[Tensor, Tensor]] = []
        for start in range(1, len(matrix), REFLECTORS):
            stop = min(start + REFLECTORS, len(matrix))
            v = matrix[start:stop, : stop - 1]  # its rows are the vectors
            last = v[:, start - 1 :]
            last.tril_(-1).diagonal().fill_(1.0)
            scales = tau[start - 1 : stop - 1]
            v[scales == 0.0] = 0.0
            inverse = (v @ v.t()).triu_(1)
            inverse.diagonal().copy_(torch.where(scales == 0.0, 1.0, 1.0 / scales))
            identity = torch.eye(stop - start, dtype=torch.float64)
            s = torch.linalg.solve_triangular(inverse, identity, upper=True)
            self._blocks.append((v, s))

    def multiply(self, x: Tensor) -> None:
        """X [m, R] <- Q x."""
        for v, s in self._blocks:
            part = x[: v.shape[1]]
            part.addmm_(v.t(), s.t() @ (v @ part), alpha=-1)

    def multiply_transposed(self, x: Tensor) -> None:
        """X [m, R] <- Q^T x."""
        for v, s in self._blocks[::-1]:
            part = x[: v.shape[1]]
            part.addmm_(v.t(), s @ (v @ part), alpha=-1)
