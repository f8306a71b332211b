"""Memory of a small symmetric matrix, which the CPU widens to float64 where it lies.

Only the lower triangle is ever written, and on the CPU pages that are never written take no
memory: a float64 matrix of 8 m^2 bytes keeps 4 m^2 resident.
"""

import mmap
import sys

import torch
from torch import Tensor

_ROWS = 256
"""Rows that leave a device at a time."""


class Square:
    """An [m, m] matrix of zeros.

    Args:
        m: Rows.
        dtype: float32 or float64.
        device: On the CPU the matrix lies outside of the allocator's heap, each row at the start of
            its float64 row, so that widening it touches no page but those that it needs then.

    Raises:
        MemoryError: There is no memory for it.
    """

    def __init__(self, m: int, dtype: torch.dtype, device: torch.device) -> None:
        self._memory: mmap.mmap | None = None
        if device.type == "cpu" and m:
            self._memory = _map(8 * m * m)
            self._tensor = self._rows(dtype, m)
        else:
            self._tensor = torch.zeros(m, m, dtype=dtype, device=device)

    def _rows(self, dtype: torch.dtype, m: int) -> Tensor:
        assert self._memory is not None
        return torch.frombuffer(self._memory, dtype=dtype).view(m, -1)[:, :m]

    def view(self) -> Tensor:
        """The matrix, of which the lower triangle counts."""
        return self._tensor

    def widen(self) -> Tensor:
        """Its lower triangle in float64, on the CPU in the same memory; earlier views are void."""
        if self._memory is None:
            self._tensor = self._tensor.double()
        elif self._tensor.dtype != torch.float64:
            single, m = self._tensor, len(self._tensor)
            double = self._rows(torch.float64, m)
            for row in range(m):
                double[row, : row + 1] = single[row, : row + 1].double()
            self._tensor = double
        return self._tensor

    def widen_on_cpu(self) -> Tensor:
        """Its lower triangle in float64 in the CPU's memory; a device's is given back.

        Raises:
            MemoryError: The CPU has none for it.
        """
        if self._memory is None and len(self._tensor):
            there = self._tensor
            here = Square(len(there), torch.float64, torch.device("cpu"))
            for start in range(0, len(there), _ROWS):
                stop = min(start + _ROWS, len(there))
                here.view()[start:stop, :stop] = there[start:stop, :stop].cpu()
            self._memory, self._tensor = here._memory, here._tensor
        return self.widen()


def check_room(m: int) -> None:
    """Fail before anything is computed, rather than after an hour.

    Args:
        m: Rows of the largest matrix in the CPU's memory.

    Raises:
        MemoryError: The process may not have an [m, m] matrix in float64, whatever it holds else.
    """
    _map(8 * m * m).close()


def _map(size: int) -> mmap.mmap:
    try:
        if sys.platform == "win32":
            return mmap.mmap(-1, max(size, 1))
        return mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"cannot allocate a matrix of {size} bytes: {error}") from error
