"""Leading eigenvalues and Newton steps when the Gram matrix does not fit: by products alone.

Memory is some vectors in parameter space beside one micro-batch: `vectors_of` K eigenpairs, or
`WHOLE_SPACE`. No matrix over the columns of V and none of N x D is formed.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vivit_bench.curvature.damping import ConstantDamping, DampingPolicy
from vivit_bench.curvature.factors import Direction
from vivit_bench.curvature.iterative import (
    Array,
    Multiply,
    Pairs,
    conjugate_gradients,
    leading_pairs,
    pairs_above,
)
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.options import memory_of
from vivit_bench.curvature.plan import DoesNotFit, size_text
from vivit_bench.curvature.product_checks import ProductCheck
from vivit_bench.curvature.products import (
    BudgetSpent,
    GgnProducts,
    Progress,
    activations_of_a_sample,
    bytes_of_a_sample,
)
from vivit_bench.curvature.results import Iterations, LeadingEigenvalues, NewtonStep
from vivit_bench.curvature.session import (
    Request,
    check_count,
    check_cutoff,
    check_number,
    check_tolerance,
    checked,
)
from vivit_bench.curvature.units import group_parameters, layers_of
from vivit_bench.errors import CertificateError, UsageError, VivitBenchError

DEFAULT_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}
"""Of residuals: of eigenpairs relative to the largest eigenvalue, of a linear system relative to
the gradient."""

ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Of products, relative to the largest eigenvalue: smaller eigenvalues cannot be told from 0."""

MOST_PRODUCTS = 2000
"""Default limit on products; each is about two gradients of the samples that carry the
curvature."""

MOST_DIRECTIONS = 200
"""Default limit on directions above a cutoff; less where the memory has room for fewer."""

WHOLE_SPACE = 16
"""Vectors [D] in float64 that conjugate gradients hold, with a product's own."""


def vectors_of(pairs: int) -> int:
    """Vectors [D] in float64 that Lanczos iterations hold at their height for so many eigenpairs.

    Measured: 3 K + 46 in ARPACK and around it; the rest is a product's own.
    """
    return 3 * pairs + 52


def lanczos_eigenvalues(
    request: Request,
    k: int,
    *,
    vectors: bool = False,
    tolerance: float | None = None,
    max_products: int | None = None,
) -> LeadingEigenvalues:
    """The ``k`` largest eigenvalues of G by Lanczos iterations (of every block, if there are).

    Every pair's residual is computed anew, and a run from another start vector, with what was
    found deflated, looks for eigenvalues that are missing: it tells them from the k-th one where
    they are 2e-4 of it and a ``tolerance`` of the largest one above it.

    Args:
        request: The call. Its seed is that of the start vectors, too.
        k: How many; fewer are returned where G has fewer that can be other than zero.
        vectors: Return the eigenvectors too; of the full GGN.
        tolerance: Of the residuals; None: 1e-8 in float64, 1e-5 in float32.
        max_products: Refuse to use more products with G; None: `MOST_PRODUCTS`.

    Raises:
        UsageError: The request cannot be computed; in one line.
        DoesNotFit: It takes more than the request's memory.
        VivitBenchError: The iterations did not converge within ``max_products``.
        CertificateError: The products failed their check.
    """
    check_count("k", k)
    size = vectors_of(k)
    with _started(request, tolerance, max_products, size, size) as work:
        if vectors and work.diagonal:
            raise UsageError("eigenvectors of blocks are not available; use blocks 'none'")
        outputs = work.products.outputs()
        check = work.check(outputs)
        found: dict[str, _Checked] = {}
        for name, products in work.blocks.items():
            size = products.batch.num_params
            count = min(k, products.batch.rows, size)
            pairs = leading_pairs(_on_arrays(products), size, count, work.tolerance, work.seed)
            found[name] = work.checked(products, pairs)
        values = torch.cat([f.values for f in found.values()])
        residuals = torch.cat([f.residuals for f in found.values()])
        if work.diagonal:  # K of all blocks together
            order = values.argsort(descending=True)[:k]
            values, residuals = values[order], residuals[order]
        batch = work.products.batch
        return LeadingEigenvalues(
            info=batch.info(batch.factor.value(outputs)),
            eigenvalues=values,
            residuals=residuals,
            iterations=work.iterations("lanczos", residuals.max().item()),
            blocks={name: f.values for name, f in found.items()} if work.diagonal else {},
            vectors=found[""].in_parameter_format(work.products) if vectors else None,
            certificate=None if check is None else check.result(),
        )


def newton_step_matrix_free(
    request: Request,
    *,
    damping: float | DampingPolicy = 1.0,
    cutoff: float | None = 1e-4,
    with_gradient: bool = False,
    tolerance: float | None = None,
    max_products: int | None = None,
    max_directions: int | None = None,
) -> NewtonStep:
    """A damped Newton step (Equation 9) from products with G.

    Over the whole space (``cutoff`` None) s = -(G + d I)^-1 grad L by conjugate gradients: the
    step is within residual |grad L| / d of the exact one. Else s = -sum_k gamma_k / (l_k + d) e_k
    over all eigenpairs above the cutoff, by Lanczos iterations.

    Args:
        request: The call.
        damping: d, a constant; above 0 for a step over the whole space.
        cutoff: Directions have eigenvalues above it. None: the whole space.
        with_gradient: Return the gradient too.
        tolerance: Of the residuals; None: 1e-8 in float64, 1e-5 in float32.
        max_products: Refuse to use more products with G; None: `MOST_PRODUCTS`.
        max_directions: Refuse more directions, in any block; None: `MOST_DIRECTIONS`, or as many
            as the request's memory has room for.

    Raises:
        UsageError: The request cannot be computed; in one line.
        DoesNotFit: It takes more than the request's memory.
        VivitBenchError: The iterations did not converge within ``max_products``, or more than
            ``max_directions`` eigenvalues are above the cutoff.
        CertificateError: The products failed their check.
    """
    constant = _constant(damping, cutoff)
    if max_directions is not None:
        check_count("max_directions", max_directions)
    least, most = vectors_of(max_directions or 1), vectors_of(max_directions or MOST_DIRECTIONS)
    if cutoff is None:
        least = most = WHOLE_SPACE
    with _started(request, tolerance, max_products, least, most) as work:
        whole = work.products
        outputs = whole.outputs()
        check = work.check(outputs)
        gradient = whole.split(whole.gradient(), torch.float64)
        step: Direction = {}
        values: dict[str, Tensor] = {}
        dampings: dict[str, Tensor] = {}
        worst = 0.0
        for name, products in work.blocks.items():
            right = products.flatten(gradient)
            if cutoff is None:
                solved = conjugate_gradients(products, -right, constant, work.tolerance)
                found, residual = solved.solution, solved.residual
                values[name] = torch.empty(0, dtype=torch.float64)
            else:
                pairs = pairs_above(
                    _on_arrays(products),
                    products.batch.num_params,
                    cutoff,
                    work.max_pairs,
                    work.tolerance,
                    ROUNDING[products.batch.dtype],
                    work.seed,
                )
                pairs_of_block = work.checked(products, pairs)
                residual = pairs_of_block.residuals.max().item() if len(pairs) else 0.0
                found = _along(pairs_of_block, right, constant)
                values[name] = pairs_of_block.values
            dampings[name] = torch.full_like(values[name], constant)
            step |= products.split(found)
            worst = max(worst, residual)
        batch = whole.batch
        method = "conjugate gradients" if cutoff is None else "lanczos"
        return NewtonStep(
            info=batch.info(batch.factor.value(outputs)),
            step=[step[p] for p in batch.parameters],
            eigenvalues=values,
            dampings=dampings,
            gradient=[gradient[p].to(p) for p in batch.parameters] if with_gradient else None,
            certificate=None if check is None else check.result(),
            iterations=work.iterations(method, worst),
        )


def _constant(damping: float | DampingPolicy, cutoff: float | None) -> float:
    """The damping, checked.

    Raises:
        UsageError: It is no number that makes sense here.
    """
    if isinstance(damping, ConstantDamping):
        damping = damping.value
    if callable(damping):
        raise UsageError(
            "a damping policy needs slopes and curvatures of every sample along every direction, "
            "which are not computed matrix-free; give a number, or use method 'gram' "
            "(--method gram)"
        )
    check_number("damping", damping)
    if cutoff is not None:
        check_cutoff(cutoff)
    least = "above 0 over the whole space" if cutoff is None else ">= 0"
    if not (damping > 0 if cutoff is None else damping >= 0) or damping == float("inf"):
        raise UsageError(f"damping is {damping}; it must be finite and {least}")
    return damping


def _along(checked: "_Checked", gradient: Tensor, damping: float) -> Tensor:
    """-sum_k e_k^T g / (l_k + d) e_k."""
    vectors = torch.from_numpy(checked.vectors)
    coefficients = (vectors.t() @ gradient.cpu()) / (checked.values + damping)
    return -(vectors @ coefficients).to(gradient.device)


def _on_arrays(products: GgnProducts) -> Multiply:
    """Products for SciPy, whose vectors are on the CPU."""

    def multiply(x: Array) -> Array:
        found: Array = products(torch.from_numpy(x).to(products.batch.device)).cpu().numpy()
        return found

    return multiply


@dataclass(frozen=True)
class _Checked:
    """Eigenpairs whose residuals are known.

    Attributes:
        values: [K] float64, u^T G u, descending.
        residuals: [K] |G u - l u| / l_1.
        vectors: [D, K].
    """

    values: Tensor
    residuals: Tensor
    vectors: Array

    def in_parameter_format(self, products: GgnProducts) -> list[list[Tensor]]:
        """One tensor per parameter for each vector."""
        device = products.batch.device
        columns = [torch.from_numpy(u.copy()).to(device) for u in self.vectors.T]
        return [list(products.split(u).values()) for u in columns]


@dataclass(frozen=True)
class _Work:
    """A request that is being computed."""

    request: Request
    products: GgnProducts
    blocks: dict[str, GgnProducts]
    tolerance: float
    start: float
    max_pairs: int
    """Eigenpairs that the memory has room for, or that were asked for."""

    @property
    def diagonal(self) -> bool:
        return self.request.blocks != "none"

    @property
    def seed(self) -> int:
        return self.request.approximation.seed

    def check(self, outputs: Tensor) -> ProductCheck | None:
        if self.request.certify is False:
            return None
        return ProductCheck(self.products, self.request.certify, outputs)

    def checked(self, products: GgnProducts, pairs: Pairs) -> _Checked:
        """Residuals of eigenpairs by products of their own.

        Raises:
            CertificateError: They are not small enough.
        """
        multiply = _on_arrays(products)
        values, norms = [], []
        for u in pairs.vectors.T:
            product = multiply(u.copy())
            values.append(max(float(u @ product), 0.0))
            norms.append(float(((product - values[-1] * u) ** 2).sum() ** 0.5))
        scale = max(values, default=0.0) or pairs.largest or 1.0
        found = torch.tensor(values, dtype=torch.float64)
        residuals = torch.tensor(norms, dtype=torch.float64) / scale
        if len(values) and not residuals.max() <= self.tolerance:
            raise CertificateError(
                f"the residual of eigenvalue {int(residuals.argmax()) + 1} is "
                f"{residuals.max():.1e} of the largest one, more than the tolerance "
                f"{self.tolerance:.0e}; use a larger tolerance, or float64"
            )
        order = found.argsort(descending=True, stable=True)
        return _Checked(found[order], residuals[order], pairs.vectors[:, order.numpy()])

    def iterations(self, method: str, residual: float) -> Iterations:
        progress = self.products.progress
        return Iterations(
            method=method,
            derivative=progress.ways[0].name,
            products=progress.count,
            residual=residual,
            tolerance=self.tolerance,
            seconds=time.perf_counter() - self.start,
        )


@contextmanager
def _started(
    request: Request, tolerance: float | None, max_products: int | None, least: int, most: int
) -> Iterator[_Work]:
    """Check a request and set its products up; the model is afterwards as it was.

    Args:
        request: The call.
        tolerance: Of the residuals; None: the usual one.
        max_products: None: the usual number.
        least: Vectors [D] in float64 that must be held.
        most: As many as may be.
    """
    start = time.perf_counter()
    limit = MOST_PRODUCTS if max_products is None else max_products
    check_count("max_products", limit)
    if tolerance is not None:
        check_tolerance(tolerance)
    with request.undisturbed():
        # What PyTorch says of its own parts, as kernels are chosen, is no news to a user.
        warnings.filterwarnings("ignore", message=".*TF32 acceleration")
        warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated")
        batch, outputs = checked(request)
        activations = activations_of_a_sample(batch, outputs)
        batch, vectors = _fitted(request, batch, activations, least, most)
        products = GgnProducts(batch, activations, Progress(limit))
        del outputs
        groups = group_parameters(batch, layers_of(batch), request.blocks)
        blocks = {
            name: products.over(replace(batch, names={p: batch.names[p] for p in parameters}))
            for name, parameters in groups.items()
        }
        tolerance = tolerance or DEFAULT_TOLERANCE[batch.dtype]
        try:
            pairs = (vectors - vectors_of(0)) // (vectors_of(1) - vectors_of(0))
            yield _Work(request, products, blocks, tolerance, start, pairs)
        except BudgetSpent:
            raise VivitBenchError(
                f"no convergence within max_products = {limit} products with the GGN; allow more "
                "(--max-products), or use a larger tolerance, fewer eigenvalues, a larger cutoff "
                "or damping"
            ) from None


def _fitted(
    request: Request, batch: MiniBatch, activations: int, least: int, most: int
) -> tuple[MiniBatch, int]:
    """The request with micro-batches that keep to its memory, and for how many vectors it has room.

    Raises:
        DoesNotFit: Not for the least.
    """
    memory = memory_of(request.memory)
    if memory is None:
        return batch, most
    all_pairs = vectors_of(min(batch.rows, batch.num_params))
    least, most = min(least, all_pairs), min(most, all_pairs)
    vector = 8 * batch.num_params
    outputs = 4 * batch.batch_size * batch.output_shape.numel() * batch.dtype.itemsize
    sample = bytes_of_a_sample(batch, activations)
    room = (memory.bytes - outputs - sample) // vector
    if memory.strict and room < least:
        needed = outputs + sample + least * vector
        raise DoesNotFit(
            f"memory of {size_text(memory.bytes)} does not suffice for D = {batch.num_params:,}: "
            f"products with the GGN take {size_text(needed)}, {least} vectors of D numbers in "
            "float64 and one sample's activations; give as much, or use fewer eigenvalues, "
            "directions or params",
            needed,
        )
    vectors = max(min(room, most), least)
    working = memory.bytes - outputs - vectors * vector
    return replace(batch, working_bytes=max(min(batch.working_bytes, working), 1)), vectors
