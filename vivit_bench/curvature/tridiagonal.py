"""All eigenvectors of a symmetric tridiagonal matrix as an operator that is never formed.

Divide and conquer (Cuppen 1981; Gu and Eisenstat 1995, as LAPACK's dstedc): T is two halves
and a rank-one coupling, T = diag(T1, T2) + rho v v^T. With the halves' eigenvectors, T becomes
D + rho z z^T, whose eigenvalues l_i solve the secular equation 1 + rho sum_j z_j^2 / (d_j - l_i)
= 0 and whose eigenvectors are columns of a Cauchy matrix z_j / (d_j - l_i). LAPACK multiplies
these matrices out, which takes twice the memory of the result. Here they stay factored:
each level is given by O(m) numbers, of which its Cauchy matrix is made again block by block
whenever it is applied.

That z is computed from the eigenvalues found, so that these are exact for it, makes the
vectors orthogonal to rounding however close the eigenvalues are. Slices of LAPACK's MRRR
algorithm (dstemr) are not: where a cluster of eigenvalues is wider than a slice, they come out
wrong without a word.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cython_lapack
from torch import Tensor

Doubles = NDArray[np.float64]
Places = NDArray[np.int64]

EPS = float(np.finfo(np.float64).eps)

LEAF = 32
"""Up to this size, eigenvectors are stored."""

BLOCK_ENTRIES = 2**18
"""Of a Cauchy matrix at a time (2 MiB)."""

NUM_PROBES = 4
"""Random combinations of all eigenvectors, by which they are checked."""

ALLOWED = 100.0
"""Times max(m, 100) EPS: what eigenvectors may be wrong by, see `TridiagonalEigenproblem`."""


class TridiagonalEigenproblem:
    """T = Z diag(values) Z^T, in memory O(m).

    Args:
        diagonal: [m] float64.
        beside: [m - 1] float64, the entries beside the diagonal.

    Raises:
        numpy.linalg.LinAlgError: T is not finite, or Z fails its check: with random columns P,
            Z^T (Z P) is not P or T (Z P) is not Z diag(values) P.
    """

    def __init__(self, diagonal: Doubles, beside: Doubles) -> None:
        if not (np.isfinite(diagonal).all() and np.isfinite(beside).all()):
            raise np.linalg.LinAlgError("the matrix is not finite")
        self._diagonal = torch.from_numpy(diagonal)
        self._beside = torch.from_numpy(beside)
        m = len(diagonal)
        self._scale = float(np.abs(diagonal).max(initial=0.0) + 2 * np.abs(beside).max(initial=0.0))
        scale = self._scale or 1.0
        self._root = _divide(diagonal / scale, beside / scale)[0]
        self.values = torch.from_numpy(self._root.values * scale)
        """[m] ascending, float64."""
        generator = torch.Generator().manual_seed(0)
        self._probes = torch.randn(m, NUM_PROBES, dtype=torch.float64, generator=generator)
        self._mixed = self.combine(self._probes)
        self._check(self._mixed, self.combine(self.values.unsqueeze(1) * self._probes))
        self._check_products(self.products(self._mixed), self._probes)

    def combine(self, x: Tensor) -> Tensor:
        """Z x for x [m, R]."""
        return self._root.combine(x)

    def products(self, x: Tensor) -> Tensor:
        """Z^T x for x [m, R]."""
        return self._root.products(x)

    def vectors(self, first: int, last: int) -> Tensor:
        """Columns first to last of Z, [m, last - first].

        Raises:
            numpy.linalg.LinAlgError: They are not eigenvectors, or not orthogonal to the others.
        """
        z = self._root.columns(torch.arange(first, last))
        self._check(z, z * self.values[first:last])
        self._check_products(z.t() @ self._mixed, self._probes[first:last])
        return z

    def _check(self, z: Tensor, scaled: Tensor) -> None:
        """T z = Z diag(l) c for z = Z c, [m, w]."""
        worst = 0.0
        for start in range(0, z.shape[1], 64):
            columns = slice(start, start + 64)
            part = z[:, columns]
            wrong = self._diagonal.unsqueeze(1) * part - scaled[:, columns]
            wrong[1:] += self._beside.unsqueeze(1) * part[:-1]
            wrong[:-1] += self._beside.unsqueeze(1) * part[1:]
            worst = max(worst, float(torch.linalg.vector_norm(wrong, dim=0).max()))
        if not worst <= self._allowed * (self._scale or 1.0):
            raise np.linalg.LinAlgError(f"eigenvectors are wrong: T Z - Z L is {worst:.1e}")

    def _check_products(self, found: Tensor, expected: Tensor) -> None:
        """Z^T Z c = c."""
        wrong = float((found - expected).abs().max()) if len(found) else 0.0
        if not wrong <= self._allowed:
            raise np.linalg.LinAlgError(f"eigenvectors are not orthogonal, by {wrong:.1e}")

    @property
    def _allowed(self) -> float:
        return ALLOWED * EPS * max(len(self.values), 100)


@dataclass(frozen=True)
class Leaf:
    """A small part of T."""

    values: Doubles
    """[n] ascending."""
    vectors: Tensor
    """[n, n]."""

    @staticmethod
    def of(matrix: Doubles) -> "Leaf":
        """Of a dense matrix [n, n]."""
        values, vectors = np.linalg.eigh(matrix)
        return Leaf(values, torch.from_numpy(vectors))

    def combine(self, x: Tensor) -> Tensor:
        """Z x, [n, R]."""
        return self.vectors @ x

    def products(self, x: Tensor) -> Tensor:
        """Z^T x, [n, R]."""
        return self.vectors.t() @ x

    def columns(self, which: Tensor) -> Tensor:
        """Some of Z's, [n, w]."""
        return self.vectors[:, which]


@dataclass(frozen=True)
class Rotations:
    """A product of rotations of two coordinates, multiplied out where it is not the identity."""

    rows: Tensor
    """[r] coordinates that it changes."""
    matrix: Tensor
    """[r, r]."""


@dataclass(frozen=True)
class Cauchy:
    """Eigenvectors of diag(d) + rho z z^T: s_ji = z_j / (d_j - l_i) / norm_i.

    The difference is taken as (d_j - d_nearest(i)) - offset_i, of full relative accuracy.
    """

    d: Tensor
    """[k] ascending."""
    nearest: Tensor
    """[k] the d nearest to each eigenvalue."""
    offsets: Tensor
    """[k] l_i = nearest_i + offset_i."""
    z: Tensor
    """[k] recomputed from the eigenvalues (Gu and Eisenstat)."""
    inverse_norms: Tensor
    """[k]."""

    @staticmethod
    def of(d: Doubles, z: Doubles, nearest: Doubles, offsets: Doubles) -> "Cauchy":
        """From the eigenvalues.

        Args:
            d: [k] ascending, different.
            z: [k] not zero.
            nearest: [k] see above.
            offsets: [k] see above.
        """
        found = Cauchy(*(torch.from_numpy(a) for a in (d, nearest, offsets, z, z.copy())))
        squares, norms = torch.empty_like(found.d), torch.empty_like(found.d)
        # z_j^2 = (l_j - d_j) prod_{i != j} (l_i - d_j) / (d_i - d_j); every ratio is positive,
        # and their partial products are bounded, as the l lie between the d.
        for rows in found._blocks():
            ratios = (found.d[rows, None] - found.nearest) - found.offsets
            own = torch.arange(len(d))[rows]
            divisors = found.d[rows, None] - found.d
            here = torch.arange(len(own))
            divisors[here, own] = -1.0
            squares[rows] = (ratios / divisors).prod(1)
        torch.copysign(squares.sqrt(), found.z, out=found.z)
        for rows in found._blocks():
            norms[rows] = torch.linalg.vector_norm(found._of_roots(rows), dim=1)
        torch.reciprocal(norms, out=found.inverse_norms)
        return found

    @property
    def values(self) -> Doubles:
        """[k] ascending."""
        return (self.nearest + self.offsets).numpy()

    def _blocks(self) -> Iterator[slice]:
        k = len(self.d)
        step = max(BLOCK_ENTRIES // max(k, 1), 16)
        return (slice(start, start + step) for start in range(0, k, step))

    def _of_roots(self, roots: slice | Tensor) -> Tensor:
        """Rows of the transposed matrix without norms: z_j / (d_j - l_i), [i, j]."""
        block = self.d - self.nearest[roots, None]
        block -= self.offsets[roots, None]
        return torch.div(self.z, block, out=block)

    def _of_entries(self, entries: slice) -> Tensor:
        """Rows of the matrix without norms: z_j / (d_j - l_i), [j, i]."""
        block = self.d[entries, None] - self.nearest
        block -= self.offsets
        return torch.div(self.z[entries, None], block, out=block)

    def combine(self, x: Tensor) -> Tensor:
        """S x, [k, R]."""
        scaled = x * self.inverse_norms.unsqueeze(1)
        found = torch.empty_like(scaled)
        for rows in self._blocks():
            torch.mm(self._of_entries(rows), scaled, out=found[rows])
        return found

    def products(self, x: Tensor) -> Tensor:
        """S^T x, [k, R]."""
        found = torch.empty_like(x)
        for rows in self._blocks():
            torch.mm(self._of_roots(rows), x, out=found[rows])
        return found.mul_(self.inverse_norms.unsqueeze(1))

    def columns(self, which: Tensor) -> Tensor:
        """Some of S's, [k, w]."""
        return self._of_roots(which).mul_(self.inverse_norms[which, None]).t()


@dataclass(frozen=True)
class Merge:
    """Two halves coupled: Z = diag(Z1, Z2) G (S and an identity), columns ascending."""

    values: Doubles
    """[n] ascending."""
    halves: "tuple[Leaf | Merge, Leaf | Merge]"
    rotations: list[Rotations]
    """G, which makes z zero where eigenvalues of the halves are equal."""
    coupled: Leaf | Cauchy
    entries: Tensor
    """[k] coordinates of the halves that S combines."""
    roots: Tensor
    """[k] places of its eigenvalues among all n."""
    alone: Tensor
    """[n - k] coordinates of the halves that are eigenvectors already."""
    kept: Tensor
    """[n - k] places of their eigenvalues among all n."""

    def combine(self, x: Tensor) -> Tensor:
        """Z x, [n, R]."""
        y = torch.empty_like(x)
        y[self.entries] = self.coupled.combine(x[self.roots])
        y[self.alone] = x[self.kept]
        return self._through_halves(y)

    def columns(self, which: Tensor) -> Tensor:
        """Some of Z's, [n, w]."""
        y = torch.zeros(len(self.values), len(which), dtype=torch.float64)
        wanted = torch.full((len(self.values),), -1)
        wanted[which] = torch.arange(len(which))
        roots = (wanted[self.roots] >= 0).nonzero().squeeze(1)
        y[self.entries.unsqueeze(1), wanted[self.roots[roots]]] = self.coupled.columns(roots)
        kept = (wanted[self.kept] >= 0).nonzero().squeeze(1)
        y[self.alone[kept], wanted[self.kept[kept]]] = 1.0
        return self._through_halves(y)

    def products(self, x: Tensor) -> Tensor:
        """Z^T x, [n, R]."""
        left, right = self.halves
        size = len(left.values)
        return self.from_halves(torch.cat([left.products(x[:size]), right.products(x[size:])]))

    def from_halves(self, y: Tensor) -> Tensor:
        """Z^T x where y = diag(Z1, Z2)^T x, [n, R], which is used up."""
        for rotation in self.rotations:
            y[rotation.rows] = rotation.matrix.t() @ y[rotation.rows]
        found = torch.empty_like(y)
        found[self.roots] = self.coupled.products(y[self.entries])
        found[self.kept] = y[self.alone]
        return found

    def _through_halves(self, y: Tensor) -> Tensor:
        """diag(Z1, Z2) G y, which may be in the memory of y."""
        for rotation in self.rotations[::-1]:
            y[rotation.rows] = rotation.matrix @ y[rotation.rows]
        left, right = self.halves
        size = len(left.values)
        y[:size] = left.combine(y[:size])
        y[size:] = right.combine(y[size:])
        return y


# ---------------------------------------------------------------------- solving


def _divide(diagonal: Doubles, beside: Doubles) -> tuple["Leaf | Merge", Doubles]:
    """Eigenpairs of T [n, n] with entries up to one; uses the diagonal up.

    Returns:
        Them, and the first and last row of Z, [2, n], which couple it to its neighbours.
    """
    n = len(diagonal)
    if n <= LEAF:
        leaf = Leaf.of(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        return leaf, leaf.vectors[[0, -1] if n else []].numpy()
    size = n // 2
    coupling = float(beside[size - 1])
    diagonal[size - 1 : size + 1] -= abs(coupling)
    left, left_ends = _divide(diagonal[:size], beside[: size - 1])
    right, right_ends = _divide(diagonal[size:], beside[size:])

    # T = diag(T1, T2) + |coupling| v v^T with v = e_last, +-e_first.
    d = np.concatenate([left.values, right.values])
    z = np.concatenate([left_ends[1], right_ends[0] * np.sign(coupling)])
    length = float(np.linalg.norm(z))
    z /= length or 1.0
    rho = abs(coupling) * length**2
    entries, alone, turns = _deflate(d, z, rho)
    kept = z[entries]
    length = float(np.linalg.norm(kept))
    coupled = _rank_one(d[entries], kept / (length or 1.0), rho * length**2)
    values = np.concatenate([coupled.values, d[alone]])
    order = np.argsort(values, kind="stable")
    places = torch.empty(n, dtype=torch.int64)
    places[torch.from_numpy(order)] = torch.arange(n)
    merge = Merge(
        values[order],
        (left, right),
        _multiply_out(turns),
        coupled,
        torch.from_numpy(entries),
        places[: len(entries)],
        torch.from_numpy(alone),
        places[len(entries) :],
    )
    ends = torch.zeros(n, 2, dtype=torch.float64)
    ends[:size, 0] = torch.from_numpy(left_ends[0])
    ends[size:, 1] = torch.from_numpy(right_ends[1])
    return merge, merge.from_halves(ends).t().numpy()


Turn = tuple[int, int, float, float]
"""Coordinates p and j, and c and s: y_p, y_j = c y_p - s y_j, s y_p + c y_j."""


def _deflate(d: Doubles, z: Doubles, rho: float) -> tuple[Places, Places, list[Turn]]:
    """Which coordinates rho z z^T couples, to rounding (as LAPACK's dlaed2).

    Args:
        d: [n]; changed where equal ones are rotated.
        z: [n] of length one; changed likewise.
        rho: Not negative.

    Returns:
        The coordinates that are coupled, d ascending; the others; and the rotations.
    """
    least = 4 * EPS * max(np.abs(d).max(), np.abs(z).max())
    entries: list[int] = []
    alone: list[int] = []
    turns: list[Turn] = []
    before = -1
    for j in np.argsort(d, kind="stable").tolist():
        if rho * abs(z[j]) <= least:
            alone.append(j)
            continue
        if before >= 0:
            length = float(np.hypot(z[before], z[j]))
            c, s = float(z[j]) / length, -float(z[before]) / length
            low, high = float(d[before]), float(d[j])
            if abs((high - low) * c * s) <= least:
                z[before], z[j] = 0.0, length
                d[before], d[j] = low * c * c + high * s * s, low * s * s + high * c * c
                turns.append((before, j, c, s))
                alone.append(before)
            else:
                entries.append(before)
        before = j
    if before >= 0:
        entries.append(before)
    return np.array(entries, dtype=np.int64), np.array(alone, dtype=np.int64), turns


def _multiply_out(turns: list[Turn]) -> list[Rotations]:
    """Rotations one by one would take longer than a small matrix product."""
    found = []
    for start in range(0, len(turns), 64):
        group = turns[start : start + 64]
        rows = sorted({row for p, j, _, _ in group for row in (p, j)})
        place = {row: i for i, row in enumerate(rows)}
        matrix = np.eye(len(rows))
        for p, j, c, s in group:
            pair = [place[p], place[j]]
            matrix[:, pair] = matrix[:, pair] @ np.array([[c, -s], [s, c]])
        found.append(Rotations(torch.tensor(rows), torch.from_numpy(matrix)))
    return found


def _rank_one(d: Doubles, z: Doubles, rho: float) -> "Leaf | Cauchy":
    """Eigenpairs of diag(d) + rho z z^T."""
    if len(d) <= LEAF:
        return Leaf.of(np.diag(d) + rho * np.outer(z, z))
    return Cauchy.of(d, z, *_secular(d, z, rho))


def _secular(d: Doubles, z: Doubles, rho: float) -> tuple[Doubles, Doubles]:
    """Roots of 1 + rho sum_j z_j^2 / (d_j - l), each as the nearest d and the offset from it.

    Args:
        d: [k > 2] ascending, different.
        z: [k] of length one, not zero.
        rho: Positive.

    Raises:
        numpy.linalg.LinAlgError: An iteration does not converge.
    """
    k = len(d)
    differences = np.empty(k)
    root, info = ctypes.c_double(), ctypes.c_int()
    pointers = [a.ctypes.data_as(_DOUBLE) for a in (d, z, differences)]
    nearest, offsets = np.empty(k), np.empty(k)
    for i in range(k):
        _dlaed4(ctypes.c_int(k), ctypes.c_int(i + 1), *pointers, ctypes.c_double(rho), root, info)
        if info.value:
            raise np.linalg.LinAlgError("a secular equation does not converge")
        near = i + 1 if i + 1 < k and abs(differences[i + 1]) < abs(differences[i]) else i
        nearest[i], offsets[i] = d[near], -differences[near]
    return nearest, offsets


def address(module: ModuleType, function: str) -> int:
    """Of a BLAS or LAPACK function in SciPy, which exports all of them for other languages.

    Args:
        module: `scipy.linalg.cython_blas` or `scipy.linalg.cython_lapack`.
        function: Its name.
    """
    capsule = module.__pyx_capi__[function]
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(pointer(capsule, name(capsule)))


_INT, _DOUBLE = ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_double)
_dlaed4 = ctypes.CFUNCTYPE(None, _INT, _INT, _DOUBLE, _DOUBLE, _DOUBLE, _DOUBLE, _DOUBLE, _INT)(
    address(cython_lapack, "dlaed4")
)  # n, i, d, z, delta, rho, dlam, info
