"""Eigenvalues of a large symmetric matrix in its own memory, by way of a band.

LAPACK's dsytrd spends half of its operations in products of the matrix with one vector, at the
speed of the memory. Here the matrix first becomes a band, by products with as many vectors as
the band is wide, at the speed of the processor; the band then becomes tridiagonal in
O(m^2 width) operations (successive band reduction, Bischof, Lang and Sun 2000). The first stage
is that of LAPACK's dsytrd_sy2sb, which keeps what it reflects by; eigenvalues do without.
"""

import ctypes
from types import ModuleType

import numpy as np
from scipy.linalg import cython_blas, cython_lapack, lapack

from vivit_bench.curvature.tridiagonal import Doubles, address

WIDTH = 64
"""Entries of the band below the diagonal, and reflectors applied at a time.

On one core m = 8000 takes 27 to 30 s, and 34 s with 32: products with fewer vectors are slower. The
second stage takes 5 to 6 s either way."""

BANDED_ROWS = 2500
"""From so many rows on a band is faster (measured, seconds on one core by dsytrd and by the band:
m = 1000 0.08 and 0.14, 2000 0.8 and 0.8, 2500 1.5 and 1.3, 4000 7.3 and 4.3, 8000 65 and 30)."""


def by_band(m: int) -> bool:
    """Whether this is the faster way to the eigenvalues of a matrix.

    Args:
        m: Its rows.
    """
    return m >= BANDED_ROWS


def band_bytes(m: int) -> int:
    """Memory of `banded_eigenvalues` beside the matrix, 0 where it is not used.

    The band and two panels.

    Args:
        m: Rows of the matrix.
    """
    return 8 * m * (3 * WIDTH + 1) if by_band(m) else 0


def banded_eigenvalues(matrix: Doubles) -> Doubles:
    """All eigenvalues, to rounding of the largest; LAPACK's dsbtrd and dsterf for the band.

    Args:
        matrix: [m, m] float64 in C order, lower triangle; destroyed. What is above the diagonal is
            neither read nor written. Squares of its entries neither overflow nor underflow.

    Returns:
        [m] float64, ascending.

    Raises:
        numpy.linalg.LinAlgError: The matrix is not finite, or the iteration does not converge.
    """
    return band_eigenvalues(reduce_to_band(matrix, WIDTH))


def band_eigenvalues(band: Doubles) -> Doubles:
    """All eigenvalues of a band.

    Args:
        band: [width + 1, m] float64, as `reduce_to_band` returns it; destroyed.

    Returns:
        [m] float64, ascending.

    Raises:
        numpy.linalg.LinAlgError: It is not finite, or the iteration does not converge.
    """
    if not np.isfinite(band.sum()):
        raise np.linalg.LinAlgError("the matrix is not finite")
    values, _, info = lapack.dsbevd(band, compute_v=0, lower=1, overwrite_ab=1)
    if info:
        raise np.linalg.LinAlgError("the eigenvalues do not converge")
    return np.asarray(values)


def reduce_to_band(matrix: Doubles, width: int) -> Doubles:
    """The band B of A = Q B Q^T with an orthogonal Q.

    Columns of a block are made triangular below the band by I - V T V^T, a product of reflectors.
    What is to their right becomes A - V W^T - W V^T with W = X - V (T^T V^T X) / 2 and X = A V T.

    Args:
        matrix: [m, m] float64 in C order, lower triangle; destroyed.
        width: Of the band, positive.

    Returns:
        [width + 1, m] float64 in Fortran order; [d, j] is B_{j + d, j}.
    """
    m = len(matrix)
    band: Doubles = np.zeros((width + 1, m), order="F")
    panels = np.empty((2, m * width))
    # Small ones of BLAS and LAPACK: T, T^T V^T X, and dgeqrt's work.
    t, product, work = np.zeros((3, width, width))
    info = ctypes.c_int()
    for start in range(0, m, width):
        stop = min(start + width, m)
        rest = m - stop
        for j in range(start, stop):
            band[: stop - j, j] = matrix[j:stop, j]
        if not rest:
            break
        count = min(width, rest)  # of reflectors
        # To BLAS, these rows are columns, and the lower triangle is the upper one.
        v, x = (panel[: width * rest].reshape(width, rest) for panel in panels)
        v[:] = matrix[stop:, start:stop].T
        _dgeqrt(rest, width, count, v, rest, t, width, work, info)
        assert info.value == 0
        for j in range(width):
            kept = min(j + 1, count)
            band[width - j : width - j + kept, start + j] = v[j, :kept]
            v[j, :kept] = 0.0
        v[range(count), range(count)] = 1.0
        trailing = matrix[stop:, stop:]
        _dsymm(b"L", b"U", rest, count, 1.0, trailing, m, v, rest, 0.0, x, rest)
        _dtrmm(b"R", b"U", b"N", b"N", rest, count, 1.0, t, width, x, rest)
        _dgemm(b"T", b"N", count, count, rest, 1.0, v, rest, x, rest, 0.0, product, width)
        _dtrmm(b"L", b"U", b"T", b"N", count, count, 1.0, t, width, product, width)
        _dgemm(b"N", b"N", rest, count, count, -0.5, v, rest, product, width, 1.0, x, rest)
        _dsyr2k(b"U", b"N", rest, count, -1.0, v, rest, x, rest, 1.0, trailing, m)
    return band


Argument = bytes | int | float | Doubles | ctypes.c_int


class _Routine:
    """A function of SciPy's BLAS or LAPACK, which takes everything by reference.

    SciPy's own wrappers would copy a part of a matrix.
    """

    def __init__(self, module: ModuleType, name: str, num_arguments: int) -> None:
        prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * num_arguments)
        self._function = prototype(address(module, name))

    def __call__(self, *arguments: Argument) -> None:
        self._function(*map(_reference, arguments))


def _reference(argument: Argument) -> object:
    match argument:
        case np.ndarray():
            return argument.ctypes.data
        case int():
            return ctypes.byref(ctypes.c_int(argument))
        case float():
            return ctypes.byref(ctypes.c_double(argument))
        case ctypes.c_int():
            return ctypes.byref(argument)
    return argument


_dgeqrt = _Routine(cython_lapack, "dgeqrt", 9)
_dgemm = _Routine(cython_blas, "dgemm", 13)
_dsymm = _Routine(cython_blas, "dsymm", 12)
_dsyr2k = _Routine(cython_blas, "dsyr2k", 12)
_dtrmm = _Routine(cython_blas, "dtrmm", 11)
