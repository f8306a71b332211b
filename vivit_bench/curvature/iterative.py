"""Eigenpairs and linear systems of a positive semi-definite matrix known by its products only.

Lanczos iterations (ARPACK, by SciPy) from one start vector see one copy of a multiple eigenvalue;
further ones come out by rounding or not at all. So whatever was found is deflated, and a run from
another start vector must find nothing above it: what it finds is added, and the question asked
again. The largest eigenvalue of what is left is thereby known as well as Lanczos iterations can
know it: a start vector orthogonal to an eigenvector has probability zero.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from vivit_bench.errors import UsageError, VivitBenchError

Array = NDArray[np.float64]
Multiply = Callable[[Array], Array]
"""x [D] -> A x [D], float64."""

SMALL = 64
"""Of a matrix of this size every column is computed."""

EXTRA = 20
"""Lanczos vectors beside those that are wanted."""

CHECK = 1e-4
"""Distance, relative to the smallest eigenvalue found, within which the check for missing ones
tells eigenvalues apart."""

_HAS_RNG = "rng" in inspect.signature(eigsh).parameters  # restarts are reproducible without it


@dataclass(frozen=True)
class Pairs:
    """Some eigenpairs.

    Attributes:
        values: [K] descending.
        vectors: [D, K] orthonormal.
        largest: Size of the largest eigenvalue, to which tolerances are relative.
    """

    values: Array
    vectors: Array
    largest: float

    def join(self, other: "Pairs") -> "Pairs":
        """Those of both, by descending value."""
        values = np.concatenate([self.values, other.values])
        vectors = np.concatenate([self.vectors, other.vectors], axis=1)
        order = np.argsort(-values, kind="stable")
        return Pairs(values[order], vectors[:, order], max(self.largest, float(values.max())))

    def keep(self, k: int) -> "Pairs":
        """The first ``k``."""
        return Pairs(self.values[:k], self.vectors[:, :k], self.largest)

    def __len__(self) -> int:
        return len(self.values)


def leading_pairs(multiply: Multiply, size: int, k: int, tolerance: float, seed: int) -> Pairs:
    """The ``k`` largest eigenvalues and their eigenvectors.

    Args:
        multiply: By the matrix.
        size: D.
        k: K <= D.
        tolerance: Of the residuals |A u - l u|, relative to the largest eigenvalue.
        seed: Of the start vectors.

    Raises:
        VivitBenchError: ARPACK fails.
    """
    runs = _Runs(multiply, size, tolerance, seed)
    if _is_small(size, k):
        return runs.dense().keep(k)
    found = runs.none()
    if not found.largest:
        return Pairs(np.zeros(k), np.eye(size, k), 0.0)
    while True:
        found = found.join(runs.deflated(found, k)).keep(k)
        if runs.none_above(found, found.values[-1]):
            return found


def pairs_above(
    multiply: Multiply,
    size: int,
    cutoff: float,
    most: int,
    tolerance: float,
    rounding: float,
    seed: int,
) -> Pairs:
    """All eigenvalues above a cutoff, and their eigenvectors.

    Args:
        multiply: By the matrix.
        size: D.
        cutoff: Eigenvalues above it are wanted.
        most: More than so many are refused.
        tolerance: Of the residuals, relative to the largest eigenvalue; made smaller where
            the cutoff asks for it.
        rounding: Of products, relative to the largest eigenvalue.
        seed: Of the start vectors.

    Raises:
        UsageError: Rounding hides eigenvalues as small as the cutoff.
        VivitBenchError: There are more, or ARPACK fails.
    """
    runs = _Runs(multiply, size, tolerance, seed)
    found, chunk, above = runs.none(), EXTRA, 0
    if cutoff < 4 * rounding * found.largest:
        raise UsageError(
            f"the cutoff {cutoff:g} is only {cutoff / found.largest:.1g} of the largest "
            "eigenvalue, where products are rounding; use a cutoff above "
            f"{4 * rounding * found.largest:.1g}, "
            "float64, or cutoff None (--whole-space) for a step over the whole space"
        )
    runs.resolve(cutoff, rounding, found.largest)
    while found.largest:
        if above < len(found) and runs.none_above(found, cutoff):
            break
        k = min(chunk, most + 1 - above)
        small = _is_small(size, above + k)
        found = runs.dense() if small else found.join(runs.deflated(found, k))
        above = int((found.values > cutoff).sum())
        if above > most:
            raise VivitBenchError(
                f"more than {most} eigenvalues are above the cutoff {cutoff:g} (number {most} is "
                f"{found.values[most - 1]:.3g}); use a cutoff above that, allow more directions "
                "(--max-directions) and memory, or cutoff None (--whole-space) for a step over the "
                "whole space"
            )
        if small:
            break
        found, chunk = found.keep(above + 1), 2 * chunk
    return found.keep(above)


def _is_small(size: int, k: int) -> bool:
    return size <= max(SMALL, 2 * (k + EXTRA))


class _Runs:
    """Lanczos runs on one matrix, each from a start vector of its own."""

    def __init__(self, multiply: Multiply, size: int, tolerance: float, seed: int) -> None:
        self._multiply, self._size, self._tolerance = multiply, size, tolerance
        self._random = np.random.default_rng(seed)

    def none(self) -> Pairs:
        """No pair yet, and the size of the largest eigenvalue by a few power iterations."""
        x = self._random.standard_normal(self._size)
        largest = 0.0
        for _ in range(4):
            x = self._multiply(x / np.linalg.norm(x))
            largest = float(np.linalg.norm(x))
            if not largest:
                break
        return Pairs(np.empty(0), np.empty((self._size, 0)), largest)

    def resolve(self, value: float, rounding: float, largest: float) -> None:
        """Make tolerances small enough to see eigenvalues of this size."""
        if largest:
            self._tolerance = max(min(self._tolerance, 0.1 * value / largest), rounding)

    def dense(self) -> Pairs:
        """All pairs, from all columns."""
        matrix = np.stack([self._multiply(column) for column in np.eye(self._size)], 1)
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        largest = float(max(values[-1], 0.0))
        return Pairs(values[::-1].copy(), vectors[:, ::-1].copy(), largest)

    def none_above(self, found: Pairs, value: float) -> bool:
        """Whether no eigenvalue beside those found is above ``value``."""
        small = self._tolerance * found.largest
        (highest,) = self._run(found, 1, max(value, small), CHECK).values
        return bool(highest <= value * (1 + 2 * CHECK) + small)

    def deflated(self, found: Pairs, k: int) -> Pairs:
        """The ``k`` largest pairs beside those found."""
        return self._run(found, k, found.largest, self._tolerance / 8)

    def _run(self, found: Pairs, k: int, shift: float, tolerance: float) -> Pairs:
        """Of P A P + shift I, with the projection P that takes out what was found.

        ARPACK's residuals are relative to each eigenvalue itself: the shift makes them relative
        to it, so that small eigenvalues are not asked for more than rounding leaves of them.
        """

        def project(x: Array) -> Array:
            return x - found.vectors @ (found.vectors.T @ x) if len(found) else x

        def shifted(x: Array) -> Array:
            x = x.ravel()
            return project(self._multiply(project(x))) + shift * x

        operator = LinearOperator((self._size, self._size), matvec=shifted, dtype=np.float64)
        more: dict[str, Any] = {"rng": self._random} if _HAS_RNG else {}
        start = project(self._random.standard_normal(self._size))
        try:
            values, vectors = eigsh(
                operator,
                k,
                which="LA",
                v0=start,
                ncv=min(k + EXTRA, self._size),
                maxiter=2**30,  # products are limited instead
                tol=tolerance,
                **more,
            )
        except ArpackError as error:
            raise VivitBenchError(
                f"the Lanczos iterations failed ({error}); ask for fewer eigenvalues"
            ) from error
        vectors = vectors[:, ::-1]
        if len(found):
            vectors = np.linalg.qr(vectors - found.vectors @ (found.vectors.T @ vectors))[0]
        return Pairs(values[::-1] - shift, vectors, found.largest)


@dataclass(frozen=True)
class Solved:
    """A solution x of (A + d I) x = b.

    Attributes:
        solution: [D] float64.
        residual: |b - (A + d I) x| / |b|, by a product of its own.
    """

    solution: Tensor
    residual: float


def conjugate_gradients(
    multiply: Callable[[Tensor], Tensor], right: Tensor, damping: float, tolerance: float
) -> Solved:
    """(A + d I)^-1 b by conjugate gradients (Hestenes and Stiefel).

    The residual that the iterations carry along drifts from the true one by rounding; so they
    are started again from the solution until the true one is small enough.

    Args:
        multiply: By A, [D] -> [D] float64.
        right: b, [D] float64.
        damping: d > 0.
        tolerance: Of the residual, relative to |b|.

    Raises:
        VivitBenchError: Rounding keeps the residual above the tolerance.
    """
    solution = torch.zeros_like(right)
    size = right.norm().item()
    if not size:
        return Solved(solution, 0.0)
    residual, error = right.clone(), 1.0
    while True:
        solution += _iterate(multiply, residual, damping, tolerance * size / 2)
        residual = right - multiply(solution) - damping * solution
        before, error = error, residual.norm().item() / size
        if error <= tolerance:
            return Solved(solution, error)
        if not error < before / 2:
            raise VivitBenchError(
                f"the step's residual stays at {error:.1e} of the gradient by rounding, above the "
                f"tolerance {tolerance:.0e}; use a larger damping or tolerance, or float64"
            )


def _iterate(
    multiply: Callable[[Tensor], Tensor], right: Tensor, damping: float, enough: float
) -> Tensor:
    """Conjugate gradients from zero until the recursion's residual is small enough."""
    solution, residual = torch.zeros_like(right), right.clone()
    direction = residual.clone()
    squared = residual @ residual
    while squared.sqrt() > enough:
        product = multiply(direction) + damping * direction
        step = squared / (direction @ product)
        solution += step * direction
        residual -= step * product
        before, squared = squared, residual @ residual
        direction = residual + (squared / before) * direction
    return solution
