"""What a computation lets be checked on its way: the hooks that a certificate is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vivit_bench.curvature.factors import Direction, Factor
from vivit_bench.curvature.passes import Totals
from vivit_bench.curvature.results import Certificate
from vivit_bench.curvature.units import BlockPlan, UnitPlan


@dataclass
class Watch:
    """The drawn samples' vectors in the coordinates of one block's matrix.

    Attributes:
        coordinates: [k, m] float64: the weights w_n over all columns of V, or v_n itself.
        rows: [k, m] float64, their products with the matrix.
        inner: [k, m], so that v_n . lift(x) = inner x for coordinates x.
        vectors: Parts of v_n in the block.
        scale: [k] |v_n| over all parameters.
    """

    coordinates: Tensor
    rows: Tensor
    inner: Tensor
    vectors: Sequence[Direction]
    scale: Tensor


class Checks:
    """What a computation lets be checked on its way; of itself it checks nothing."""

    active = False
    """Whether anything is compared, so that it is worth computing for it."""

    def unit(self, unit: UnitPlan, factor: Factor, matrix: Tensor | None) -> None:
        """A unit was added to a Gram ``matrix`` (None: in parameter space)."""

    def gradient_weights(self, unit: UnitPlan, factor: Factor, weights: Tensor) -> None:
        """A unit's share of the gradient is V w for these weights [M]."""

    def gradient_pass(self) -> None:
        """The gradient comes from passes over the mini-batch."""

    def system(self, block: BlockPlan, matrix: Tensor, v: Tensor | None) -> None:
        """A block's matrix is complete; it will be overwritten.

        Args:
            block: Whose.
            matrix: [m, m], its lower triangle.
            v: [N, c, D] in parameter space; None for a Gram matrix.
        """

    def slopes(self, slopes: Tensor, gradients: Direction | None) -> None:
        """Products of gradients with the block in hand's coordinates.

        Args:
            slopes: [m, N], one column a sample, or [m, 1] of the mean gradient.
            gradients: The mean gradient; None: they are every sample's.
        """

    def coordinates(self, coordinates: Tensor) -> None:
        """Grad l_n = sqrt(N) V_n a_n with these a_n, [N, c]; of the block in hand."""

    def eigenvalues(self, values: Tensor, trace: float, squares: float) -> None:
        """All eigenvalues of the block in hand, beside its matrix's trace and squared norm."""

    def eigenpairs(self, values: Tensor, vectors: Tensor, largest: float) -> None:
        """Some eigenvalues [K] and eigenvectors [m, K] of the block in hand, and the largest."""

    def derivatives(self, gammas: Tensor, lambdas: Tensor, values: Tensor) -> None:
        """Slopes [N, K] and curvatures [num_samples, K] along directions with eigenvalues [K]."""

    def step(self, products: Tensor, damped: Tensor, projected: Tensor) -> None:
        """Solution y of the damped system along the directions: Gt y + d y = -b, [m, 1] each.

        Args:
            products: y.
            damped: d y.
            projected: b, the gradient's coordinates along the directions.
        """

    def solved(self, weights: Tensor, right: Tensor, damping: float) -> None:
        """(matrix + damping I) weights = right was solved in the block in hand, [m, R]."""

    def lifted(
        self,
        what: str,
        weights: Tensor | None,
        directions: Sequence[Direction],
        products: Tensor | None = None,
    ) -> None:
        """Vectors in parameter space made of coordinates of the block in hand.

        Args:
            what: Names them.
            weights: [m, R]; None: only ``products`` are known.
            directions: R of them.
            products: [m, R] with v_n . direction = coordinates_n products, where these are
                known without the weights.
        """

    def watch(self) -> "Watch | None":
        """The block in hand, for what is handed out later."""
        return None

    def result(self, totals: Totals) -> Certificate | None:
        """The certificate of the whole result.

        Raises:
            CertificateError: Something disagrees.
        """
        return None
