"""The dense eigensolver that holds all eigenvectors, and what every solver offers."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor


class Solver(Protocol):
    """A symmetric matrix, solved."""

    values: Tensor
    """[m] eigenvalues, ascending, float64."""

    def vectors(self, first: int, last: int) -> Iterator[tuple[slice, Tensor]]:
        """Eigenvectors ``first`` .. ``last`` - 1 in slices of consecutive ones, [m, k]."""

    def functions(self, first: int, coefficients: Tensor, x: Tensor) -> Tensor:
        """U diag(f_j) U^T x over the eigenvectors from ``first`` on.

        Args:
            first: Number of the first one.
            coefficients: [J, m - first] values of J functions f_j.
            x: [m, R].

        Returns:
            [J, m, R].
        """


class Diagonalised:
    """All eigenvectors at once, in 24 m^2 bytes.

    Args:
        matrix: [m, m] float64, of which the lower triangle is read; it is overwritten.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.device.type == "cpu":
            # In place, which spares a copy: PyTorch copies its input to the output and
            # solves there. LAPACK stores by columns, where the lower triangle is the upper.
            values, vectors = matrix.new_empty(len(matrix)), matrix.mT
            torch.linalg.eigh(vectors, UPLO="U", out=(values, vectors))
        else:
            values, vectors = torch.linalg.eigh(matrix)
        self.values, self._vectors = values, vectors

    def vectors(self, first: int, last: int) -> Iterator[tuple[slice, Tensor]]:
        """See :class:`Solver`."""
        if first < last:
            yield slice(first, last), self._vectors[:, first:last]

    def functions(self, first: int, coefficients: Tensor, x: Tensor) -> Tensor:
        """See :class:`Solver`."""
        vectors = self._vectors[:, first:]
        along = vectors.t() @ x
        return torch.stack([vectors @ (f.unsqueeze(1) * along) for f in coefficients])


class Elsewhere:
    """A matrix that the CPU has solved, for what goes on on another device.

    Args:
        solver: On the CPU.
        device: Where its results are wanted.
    """

    def __init__(self, solver: Solver, device: torch.device) -> None:
        self._solver, self._device = solver, device
        self.values = solver.values.to(device)

    def vectors(self, first: int, last: int) -> Iterator[tuple[slice, Tensor]]:
        """See :class:`Solver`."""
        for columns, vectors in self._solver.vectors(first, last):
            yield columns, vectors.to(self._device)

    def functions(self, first: int, coefficients: Tensor, x: Tensor) -> Tensor:
        """See :class:`Solver`."""
        return self._solver.functions(first, coefficients.cpu(), x.cpu()).to(self._device)
