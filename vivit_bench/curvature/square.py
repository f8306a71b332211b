"""Memory of a small symmetric matrix, which on the CPU grows from float32 to float64 where it lies.

Only the lower triangle is ever written, and on the CPU pages that are never written take no
memory: a float64 matrix of 8 m^2 bytes keeps 4 m^2 resident.
"""

import mmap
import sys

import torch
from torch import Tensor

_CAN_GROW = sys.platform == "linux"
"""Elsewhere anonymous maps cannot be resized, and the matrix is copied to a larger one."""


class Square:
    """An [m, m] matrix of zeros.

    Args:
        m: Rows.
        dtype: float32 or float64.
        device: On the CPU the matrix lies outside of the allocator's heap.

    Raises:
        MemoryError: There is no memory for it.
    """

    def __init__(self, m: int, dtype: torch.dtype, device: torch.device) -> None:
        self._m, self._dtype = m, dtype
        self._tensor: Tensor | None = None
        if device.type == "cpu" and m:
            self._memory = _map(dtype.itemsize * m * m)
        else:
            self._tensor = torch.zeros(m, m, dtype=dtype, device=device)

    def view(self) -> Tensor:
        """The matrix; no view may be alive when it is widened."""
        return (
            self._tensor if self._tensor is not None else self._flat(self._dtype).view(-1, self._m)
        )

    def _flat(self, dtype: torch.dtype) -> Tensor:
        return torch.frombuffer(self._memory, dtype=dtype)

    def widen(self) -> Tensor:
        """Its lower triangle in float64, in the same memory; no other view may be alive.

        Raises:
            BufferError: A view is alive.
            MemoryError: There is no memory to grow.
        """
        if self._tensor is not None:
            self._tensor = self._tensor.double()
        elif self._dtype != torch.float64:
            self._grow(8 * self._m**2)
            single, double = self._flat(torch.float32), self._flat(torch.float64)
            # From the last row on: a row of doubles begins behind all rows of floats before it.
            for row in range(self._m - 1, 0, -1):
                start = row * self._m
                double[start : start + row + 1] = single[start : start + row + 1]
            double[0] = single[0].item()
        self._dtype = torch.float64
        return self.view()

    def _grow(self, size: int) -> None:
        if _CAN_GROW:
            try:
                self._memory.resize(size)
            except OSError as error:
                raise MemoryError(f"cannot grow a matrix to {size} bytes: {error}") from error
            return
        larger = _map(size)
        larger[: len(self._memory)] = self._memory[:]
        self._memory.close()
        self._memory = larger


def check_room(m: int, device: torch.device) -> None:
    """Fail before anything is computed, rather than after an hour.

    Args:
        m: Rows of the largest matrix.
        device: Where it will be.

    Raises:
        MemoryError: The process may not have an [m, m] matrix in float64, whatever it holds else.
    """
    if device.type == "cpu":
        _map(8 * m * m).close()


def _map(size: int) -> mmap.mmap:
    try:
        if sys.platform == "win32":
            return mmap.mmap(-1, max(size, 1))
        return mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"cannot allocate a matrix of {size} bytes: {error}") from error
