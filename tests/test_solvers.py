"""Dense solvers in place, against torch.linalg.eigh of the whole matrix."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from textwrap import dedent

import numpy as np
import pytest
import torch
from torch import Tensor

from vivit_bench.curvature import banded, rates
from vivit_bench.curvature.options import Goal
from vivit_bench.curvature.solvers import (
    Tridiagonal,
    cholesky_solve_in_place,
    eigenvalues_in_place,
)
from vivit_bench.curvature.tridiagonal import TridiagonalEigenproblem
from vivit_bench.measure.host_memory import EXACT_MEMORY

EPS = torch.finfo(torch.float64).eps


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def with_eigenvalues(values: Tensor, seed: int = 0) -> Tensor:
    q, _ = torch.linalg.qr(random(len(values), len(values), seed=seed))
    return (q * values) @ q.t()


def gram(rows: int, rank: int, seed: int = 0) -> Tensor:
    x = random(rows, rank, seed=seed)
    return x @ x.t()


def coupled(diagonal: Tensor, beside: Tensor) -> Tensor:
    return torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1)


def spread(m: int, *values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(-(-m // len(values)))[:m]


def glued_wilkinson() -> Tensor:
    """Eigenvalues in pairs that agree to rounding, in copies that are coupled by little."""
    one = torch.arange(-15, 16, dtype=torch.float64).abs()
    beside = torch.ones(31 * 6 - 1, dtype=torch.float64)
    beside[30::31] = 1e-9
    return coupled(one.repeat(6) + 2, beside)


def block_diagonal() -> Tensor:
    return torch.block_diag(
        gram(60, 20), torch.zeros(50, 50), gram(1, 1), gram(90, 90), 0 * gram(9, 9)
    )


CASES: dict[str, Callable[[], Tensor]] = {
    "nothing": lambda: random(0, 0),
    "one": lambda: gram(1, 1),
    "two": lambda: gram(2, 2),
    "three of rank one": lambda: gram(3, 1),
    "as large as a leaf": lambda: gram(32, 40),
    "one more than a leaf": lambda: gram(33, 40),
    "full rank": lambda: gram(257, 300),
    "low rank": lambda: gram(250, 12),
    "low rank in float32": lambda: gram(250, 12).float().double(),
    "every sample ten times": lambda: torch.kron(gram(25, 30), torch.ones(10, 10).double()),
    "samples ten times, one after the other": lambda: torch.kron(
        torch.ones(10, 10).double(), gram(25, 30)
    ),
    "a linear layer's classes": lambda: torch.kron(gram(25, 9), torch.eye(10).double()),
    "64 classes": lambda: torch.kron(gram(6, 6), torch.eye(64).double()),
    "classes outside": lambda: torch.kron(torch.eye(10).double(), gram(25, 9)),
    "zero": lambda: torch.zeros(200, 200, dtype=torch.float64),
    "identity": lambda: 3 * torch.eye(200, dtype=torch.float64),
    "identity and noise": lambda: torch.eye(200).double() + 1e-9 * gram(200, 200),
    "identity and rounding": lambda: torch.eye(200).double() + 1e-16 * gram(200, 200),
    "ones": lambda: torch.ones(150, 150, dtype=torch.float64),
    "a cluster wider than any slice": lambda: with_eigenvalues(
        spread(250, 1, 2, 2, 2, 5) + 1e-15 * random(250)
    ),
    "a wide cluster": lambda: with_eigenvalues(spread(250, 1, 2, 2, 2, 5) + 1e-10 * random(250)),
    "16 decades": lambda: with_eigenvalues(torch.logspace(-16, 0, 250, dtype=torch.float64)),
    "steps of 100": lambda: with_eigenvalues(spread(250, 1e-15, 1e-12, 1e-8, 1e-4, 1)),
    "block-diagonal with zeros": block_diagonal,
    "Wilkinson": lambda: coupled(
        torch.arange(-100, 101, dtype=torch.float64).abs(), torch.ones(200, dtype=torch.float64)
    ),
    "glued Wilkinson": glued_wilkinson,
    "second differences": lambda: coupled(spread(200, 2), -spread(199, 1)),
    "20 decades": lambda: with_eigenvalues(torch.logspace(-20, 0, 203, dtype=torch.float64)),
    "of both signs": lambda: with_eigenvalues(torch.linspace(-1, 1, 130, dtype=torch.float64)),
    "diagonal": lambda: torch.diag(random(150).square()),
    "tiny entries": lambda: 1e-200 * gram(120, 60),
    "huge entries": lambda: 1e200 * gram(120, 60),
}


def lower(matrix: Tensor) -> Tensor:
    """A copy whose upper triangle is NaN."""
    hidden = torch.full_like(matrix, torch.nan).triu(1)
    return matrix.tril() + torch.where(hidden.isnan(), hidden, 0.0)


class Oracle:
    """Dense, and errors in units of rounding of the matrix."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        # PyTorch's own does not scale.
        self.scale = float(matrix.abs().max()) if matrix.numel() else 0.0
        self.scale = self.scale or 1.0
        values, self.vectors = torch.linalg.eigh(matrix / self.scale)
        self.values = values * self.scale
        self.size = max(float(self.values.abs().max()) if len(values) else 0.0, 1e-323)
        self.unit = EPS * max(len(matrix), 100)

    def values_wrong_by(self, values: Tensor) -> float:
        return largest((values - self.values) / self.size) / self.unit

    def clusters(self, gap: float = 1e-4) -> list[slice]:
        """Eigenvalues between gaps so wide that their projectors are known to rounding / gap."""
        edges = (self.values.diff() > gap * self.size).nonzero().flatten().add(1).tolist()
        return [slice(a, b) for a, b in zip([0, *edges], [*edges, len(self.values)], strict=True)]


def largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


@pytest.fixture(params=CASES)
def oracle(request: pytest.FixtureRequest) -> Oracle:
    return Oracle(CASES[request.param]())


def test_eigenvalues(oracle: Oracle) -> None:
    assert oracle.values_wrong_by(eigenvalues_in_place(lower(oracle.matrix))) < 0.5


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix is large enough for a band."""
    monkeypatch.setattr(banded, "BANDED_ROWS", 1)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("width", [1, 7, 32, 64])
@pytest.mark.usefixtures("large")
def test_eigenvalues_by_way_of_a_band(
    oracle: Oracle, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banded, "WIDTH", width)
    if len(oracle.matrix):
        test_eigenvalues(oracle)


@pytest.mark.parametrize("m", [1, 2, 3, 7, 8, 9, 15, 16, 17, 100])
def test_a_band_is_that_of_a_similar_matrix_and_the_upper_triangle_is_untouched(m: int) -> None:
    matrix, width = gram(m, m + 3), 8
    own = lower(matrix)
    band = torch.from_numpy(banded.reduce_to_band(own.numpy(), width))
    assert own.triu(1).isnan().sum() == m * (m - 1) // 2
    whole = torch.zeros_like(matrix)
    for d in range(min(width + 1, m)):
        whole += torch.diag(band[d, : m - d], -d)
    whole += whole.tril(-1).t()
    expected, found = matrix, whole
    for _ in range(3):  # traces of powers
        torch.testing.assert_close(found.trace(), expected.trace(), rtol=1e-12, atol=0)
        expected, found = expected @ matrix, found @ whole


def test_the_threshold_is_where_the_band_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the memory plan counts for it."""
    monkeypatch.setattr(banded, "BANDED_ROWS", 100)
    widths: list[int] = []
    reduce = banded.reduce_to_band
    monkeypatch.setattr(
        banded, "reduce_to_band", lambda a, width: widths.append(width) or reduce(a, width)
    )
    for m, expected in ((99, 0), (100, 1), (101, 2)):
        test_eigenvalues(Oracle(gram(m, m)))
        assert len(widths) == expected
        assert (banded.band_bytes(m) > 0) == (m >= 100)


@pytest.mark.parametrize("width", [1, 7, 64, 1000])
@pytest.mark.one_in(3)
def test_eigenvectors_in_slices(oracle: Oracle, width: int) -> None:
    solver = Tridiagonal(lower(oracle.matrix))
    assert oracle.values_wrong_by(solver.values) < 0.5
    m = len(oracle.matrix)
    slices = list(solver.vectors(0, m, width))
    assert [k for which, _ in slices for k in range(which.start, which.stop)] == list(range(m))
    assert all(vectors.shape == (m, which.stop - which.start) for which, vectors in slices)
    assert all(vectors.shape[1] <= width for _, vectors in slices)
    vectors = torch.cat([random(m, 0), *(vectors for _, vectors in slices)], 1)
    assert largest(vectors.t() @ vectors - torch.eye(m)) < oracle.unit
    residual = (oracle.matrix / oracle.size) @ vectors - vectors * (solver.values / oracle.size)
    assert largest(residual) < 0.5 * oracle.unit
    for cluster in oracle.clusters():
        ours, theirs = vectors[:, cluster], oracle.vectors[:, cluster]
        assert largest(ours @ ours.t() - theirs @ theirs.t()) < 1e4 * oracle.unit


def test_functions(oracle: Oracle) -> None:
    """Smooth functions of all eigenvalues do not depend on how a cluster's basis is chosen."""
    solver = Tridiagonal(lower(oracle.matrix))
    m = len(oracle.matrix)
    x = random(m, 3, seed=1)
    relative = solver.values / oracle.size
    smooth = torch.stack([1 / (relative.square() + 0.1), (-relative).exp()])
    ours = solver.functions(0, smooth, x)
    assert ours.shape == (2, m, 3)
    exact = (oracle.values / oracle.size).unsqueeze(1)
    along = oracle.vectors.t() @ x
    assert largest(ours[0] - oracle.vectors @ (along / (exact.square() + 0.1))) < 100 * oracle.unit
    assert largest(ours[1] - oracle.vectors @ (along * (-exact).exp())) < 10 * oracle.unit


def test_functions_of_some_are_sums_over_the_slices(oracle: Oracle) -> None:
    """From any first eigenvalue on, also one inside a cluster."""
    solver = Tridiagonal(lower(oracle.matrix))
    m = len(oracle.matrix)
    x = random(m, 2, seed=1)
    for first in {0, min(1, m), m // 3, m // 2, max(m - 1, 0), m}:
        coefficients = random(2, m - first, seed=2)
        vectors = torch.cat([random(m, 0), *(v for _, v in solver.vectors(first, m, 50))], 1)
        expected = (vectors * coefficients.unsqueeze(1)) @ (vectors.t() @ x)
        assert largest(solver.functions(first, coefficients, x) - expected) < 2 * oracle.unit


@pytest.mark.parametrize("damping", [1.0, 1e-3, 1e-8, 1e-14])
def test_damped_inverse(oracle: Oracle, damping: float) -> None:
    """Whether or not rounding leaves it a Cholesky factor."""
    x = random(len(oracle.matrix), 2, seed=1)
    d = max(damping * oracle.size, 1e-300)
    found = cholesky_solve_in_place(lower(oracle.matrix), d, x)
    values = oracle.values / d + 1
    if len(values) and values.min() <= 0:
        values = values.clamp(min=1)
    values = values.unsqueeze(1)
    expected = oracle.vectors @ ((oracle.vectors.t() @ x) / values) / d
    # Eigenvalues are known to rounding of the largest, so solutions to that over the damping.
    known = max(oracle.unit * oracle.size / d, EPS)
    least = min(float(values.min()) if len(values) else 1.0, 1.0)
    if known < 0.1 * least**2:
        assert largest((found - expected) * d) <= 10 * known / least**2 * max(
            largest(expected * d), 1e-10
        )
    else:
        assert largest(found * d) < 100 / least


@pytest.mark.parametrize("m", [1, 2, 100, 300, 700])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_without_a_cholesky_factor_the_eigenvalues_are_clamped(m: int, place: float) -> None:
    """The matrix is computed back from a factor that ends anywhere."""
    matrix = gram(m, m // 2, seed=2) / m
    at = round(place * (m - 1))
    matrix[at, at] -= 0.5 + matrix[at, at]
    damping, x = 1e-2, random(m, 2, seed=1)
    values, vectors = torch.linalg.eigh(matrix)
    assert values[0] < -damping
    found = cholesky_solve_in_place(lower(matrix), damping, x)
    inverse = 1 / (values + damping).clamp(min=damping)
    expected = vectors @ (inverse.unsqueeze(1) * (vectors.t() @ x))
    assert largest(found - expected) < 1e-9


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("m", [2, 40, 300])
def test_a_matrix_that_is_not_finite_is_an_error(m: int, bad: float) -> None:
    for row, column in ((m - 1, 0), (m // 2, m // 2)):
        matrix = gram(m, m)
        matrix[row, column] = matrix[column, row] = bad
        for solve in (
            eigenvalues_in_place,
            Tridiagonal,
            lambda a: cholesky_solve_in_place(a, 1.0, random(len(a), 1)),
        ):
            with pytest.raises(np.linalg.LinAlgError):
                solve(lower(matrix))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("m", [2, 40, 300])
@pytest.mark.usefixtures("large")
def test_a_large_matrix_that_is_not_finite_is_an_error(m: int, bad: float) -> None:
    for row, column in ((m - 1, 0), (m // 2, m // 2), (m - 1, m - 2)):
        matrix = gram(m, m)
        matrix[row, column] = matrix[column, row] = bad
        with pytest.raises(np.linalg.LinAlgError):
            eigenvalues_in_place(lower(matrix))


def test_wrong_eigenvectors_are_an_error() -> None:
    matrix = glued_wilkinson()
    problem = TridiagonalEigenproblem(matrix.diagonal().numpy(), matrix.diagonal(1).numpy())
    problem.vectors(0, 10)
    first = problem._root
    while hasattr(first, "halves"):
        first = first.halves[0]
    first.vectors[:, 0] *= 1 + 1e-9  # not of length one
    with pytest.raises(np.linalg.LinAlgError):
        problem.vectors(0, len(matrix))


def random_matrix(rng: np.random.Generator) -> Tensor:
    """Clusters of every size and width, blocks, and couplings down to rounding."""
    m = int(rng.integers(1, 160))
    centres = rng.choice([0.0, 1.0, 1e-3, 1e-8, 1e-13, 3.0], size=m) * rng.random()
    widths = 10.0 ** rng.integers(-17, 1) * rng.random(m)
    kind = rng.integers(4)
    if kind == 0:
        return with_eigenvalues(torch.from_numpy(centres + widths), seed=int(rng.integers(1000)))
    if kind == 1:
        beside = 10.0 ** (-18 * rng.random(max(m - 1, 0)))
        return coupled(torch.from_numpy(centres), torch.from_numpy(beside))
    x = rng.standard_normal((m, int(rng.integers(1, m + 1))))
    x *= 10.0 ** (-8 * rng.random((m, 1)))
    x[rng.random(m) < 0.2] = 0.0
    repeated = x[rng.integers(0, m, m)] if kind == 2 else x
    return torch.from_numpy(repeated @ repeated.T)


@pytest.mark.parametrize("seed", range(150))
@pytest.mark.one_in(3)
def test_random_matrices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = random_matrix(rng)
    oracle = Oracle((matrix + matrix.t()) / 2)
    test_eigenvalues(oracle)
    test_eigenvectors_in_slices(oracle, int(rng.choice([1, 7, 64])))
    test_functions(oracle)


MEMORY = """
    import sys
    import torch
    from vivit_bench.curvature import solvers
    from vivit_bench.measure.host_memory import PeakOverIdle, read_memory, reset_peak, settle

    torch.set_num_threads(1)

    def solve(m):
        matrix = torch.zeros(m, m, dtype=torch.float64)
        x = torch.randn(m, 1, dtype=torch.float64)
        for row in range(m):  # the upper triangle stays untouched
            matrix[row, : row + 1] = torch.randn(row + 1, dtype=torch.float64) / m
            matrix[row, row] += {shift}
        settle(one_cpu=False)
        reset_peak()
        peak = PeakOverIdle(read_memory())
        {call}
        peak.see(read_memory())
        return peak.bytes

    solve(1200)  # libraries' own memory
    print(solve(2000) / (8 * 2000**2))
"""


@pytest.mark.parametrize(
    ("call", "shift", "share"),
    [
        ("solvers.eigenvalues_in_place(matrix)", 0, 0.1),
        ("solvers.banded.BANDED_ROWS = 1; solvers.eigenvalues_in_place(matrix)", 0, 0.12),
        (
            "solvers.Tridiagonal(matrix).functions(1000, torch.ones(1, m - 1000).double(), x)",
            0,
            0.5,
        ),
        ("for _ in solvers.Tridiagonal(matrix).vectors(1000, m, 100): pass", 0, 0.5),
        ("solvers.cholesky_solve_in_place(matrix, 1e-3, x)", 3, 0.7),
        ("solvers.cholesky_solve_in_place(matrix, 1e-3, x)", 0, 1.0),
    ],
    ids=[
        "eigenvalues",
        "eigenvalues by way of a band",
        "functions",
        "vectors",
        "Cholesky",
        "Cholesky fails",
    ],
)
@pytest.mark.one_in(4)
def test_peak_memory_beyond_the_matrix(call: str, shift: float, share: float) -> None:
    """The process's largest resident size over that just before, by 8 m^2 with m = 2000.

    Before, half of the matrix is resident; Cholesky factorisation writes the other half.
    """
    code = dedent(MEMORY).format(call=call, shift=shift)
    environment = os.environ | EXACT_MEMORY
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    print(run.stdout)
    assert float(run.stdout) < share


def test_seconds_by_way_of_a_band_grow_as_its_stages_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first with the cube, the second with the square; what is timed is of few rows."""
    monkeypatch.setattr(banded, "BANDED_ROWS", 1000)

    def timed(work: Callable[[], object], _: torch.device) -> float:
        work()
        return 1.0

    monkeypatch.setattr(rates, "timed", timed)
    rows, few = 2 * rates.SOLVER_ROWS, rates.SOLVER_ROWS
    measure = rates.solver_rate.__wrapped__
    cpu = torch.device("cpu")
    assert measure(rows, Goal.EIGENVALUES, True, cpu, 1) == 4 / 3 * rows**3 / (8 + 4)
    assert measure(few, Goal.EIGENVALUES, True, cpu, 1) == 4 / 3 * few**3
    assert measure(rows, Goal.EIGENVALUES, False, cpu, 1) == 4 / 3 * few**3
