"""Damped Newton steps (Equation 9) and products with the inverse of the damped GGN (S.25)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vivit_bench.curvature.certificate import Certify
from vivit_bench.curvature.damping import ConstantDamping, DampingPolicy
from vivit_bench.curvature.factors import Direction
from vivit_bench.curvature.matrix_free import newton_step_matrix_free
from vivit_bench.curvature.method import compute_by
from vivit_bench.curvature.minibatch import (
    MiniBatch,
    Patterns,
    blamed_on_model,
)
from vivit_bench.curvature.options import (
    Approximation,
    Blocks,
    Goal,
    Memory,
    Method,
    approximation_of,
)
from vivit_bench.curvature.passes import Sweep, complete
from vivit_bench.curvature.results import NewtonStep
from vivit_bench.curvature.session import Request, check_cutoff, check_number, run
from vivit_bench.curvature.slopes import (
    SlopesOfDirections,
    Work,
    find_slopes,
    in_parameter_format,
    shared_gradient,
)
from vivit_bench.curvature.systems import Eigenpairs, form_systems
from vivit_bench.curvature.units import BlockPatterns
from vivit_bench.errors import UsageError
from vivit_bench.trees import Tree


def newton_step(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tree,
    targets: Tensor,
    approximation: Approximation | None = None,
    *,
    damping: float | DampingPolicy = 1.0,
    cutoff: float | None = 1e-4,
    curvature: str | None = None,
    samples: str | None = None,
    mc_samples: int | None = None,
    seed: int | None = None,
    blocks: BlockPatterns = Blocks.NONE,
    params: Patterns | None = None,
    with_gradient: bool = False,
    certify: Certify = True,
    working_bytes: int | None = None,
    memory: int | Memory | None = None,
    method: Method | str = Method.AUTO,
    tolerance: float | None = None,
    max_products: int | None = None,
    max_directions: int | None = None,
) -> NewtonStep:
    """The step -sum_k gamma_k / (l_k + d_k) e_k over the directions above the cutoff.

    Neither V nor an eigenvector in parameter space is formed: s = V w for weights w from
    the Gram matrix's eigenpairs, one ordinary backward pass (full GGN) or one weight
    gradient per layer (blocks). Matrix-free, no Gram matrix is formed either (see
    `vivit_bench.curvature.matrix_free`).

    Args:
        model: See :func:`~vivit_bench.curvature.eigenvalues`, as for what is not named here.
        loss: As there.
        inputs: As there.
        targets: As there.
        approximation: As there.
        damping: d, or a policy (gammas [N, K], lambdas [num_samples, K]) -> d [K], where
            ``inf`` means no step along a direction.
        cutoff: Directions have eigenvalues above it. None: the whole space,
            s = -(G + d I)^-1 grad L (Equation S.25); needs a constant damping above zero.
        curvature: As there.
        samples: As there.
        mc_samples: As there.
        seed: As there.
        blocks: As there.
        params: As there.
        with_gradient: As there.
        certify: As there.
        working_bytes: As there.
        memory: As there.
        method: ``gram``, ``lanczos`` (matrix-free; not with a policy), or ``auto``: ``gram`` where
            its leanest plan fits into the memory, or into what is available where none is given.
        tolerance: Of a matrix-free step's residuals; None: 1e-8 in float64, 1e-5 in float32.
        max_products: With the GGN that a matrix-free step may use; None: 2000.
        max_directions: Above the cutoff that a matrix-free step may have; None: 200, or as many
            as the memory has room for.

    Raises:
        UsageError: The request cannot be computed; in one line.
        VivitBenchError: A matrix-free step needs more products or directions.
        CertificateError: The result failed its check.
    """
    if not callable(damping):
        check_number("damping", damping)
    policy: DampingPolicy = damping if callable(damping) else ConstantDamping(damping)
    if cutoff is None:
        if not isinstance(policy, ConstantDamping) or policy.value <= 0:
            raise UsageError(
                "a step over the whole space needs a constant damping above 0; "
                "give a number, or a cutoff"
            )
        if max_directions is not None:
            raise UsageError(
                f"max_directions is {max_directions}: a step over the whole space counts none; "
                "leave it out, or give a cutoff"
            )
        goal = Goal.INVERSE
    else:
        check_cutoff(cutoff)
        constant = isinstance(policy, ConstantDamping)
        goal = Goal.STEP if constant else Goal.POLICY_STEP
    request = Request(
        model,
        loss,
        inputs,
        targets,
        approximation_of(approximation, curvature, samples, mc_samples, seed),
        blocks,
        params,
        certify,
        working_bytes,
        memory,
        goal,
    )

    def compute(work: Work, sweep: Sweep) -> NewtonStep:
        if cutoff is None:
            assert isinstance(policy, ConstantDamping)
            return _whole_space_step(work, sweep, policy.value, with_gradient)
        return _step_along_directions(work, sweep, policy, cutoff, with_gradient)

    return compute_by(
        method,
        request,
        lambda bounded: run(bounded, compute, with_gradient=with_gradient or cutoff is None),
        lambda bounded: newton_step_matrix_free(
            bounded,
            damping=policy,
            cutoff=cutoff,
            with_gradient=with_gradient,
            tolerance=tolerance,
            max_products=max_products,
            max_directions=max_directions,
        ),
        {
            "tolerance": tolerance,
            "max_products": max_products,
            "max_directions": max_directions,
        },
        needs_gram="" if isinstance(policy, ConstantDamping) else "a damping policy needs it",
    )


def _step_along_directions(
    work: Work, sweep: Sweep, policy: DampingPolicy, cutoff: float, with_gradient: bool
) -> NewtonStep:
    per_sample = not isinstance(policy, ConstantDamping)
    slopes, gradient = find_slopes(work, sweep, per_sample=per_sample)
    shared = shared_gradient(work, sweep, with_gradient and gradient is None)
    step: Direction = {}
    found: dict[str, Tensor] = {}
    dampings: dict[str, Tensor] = {}
    for formed in form_systems(work, sweep, slopes, shared.for_factors):
        shared.add(formed.gradient)
        pairs = formed.system.eigenpairs(cutoff)
        delta = _dampings(pairs, policy)
        weights, products = pairs.step(delta)
        name = formed.system.block.name
        found[name] = pairs.values.flip(0).cpu()
        dampings[name] = delta.flip(0).cpu()
        system = formed.system
        del pairs, formed  # eigenvectors are as large as the Gram matrix
        (share,) = system.lift("step", weights, products)
        step |= share
        del system, share  # with its matrix and factors, before the next block's
    totals = complete(
        work.batch, work.plan, sweep, gradient or shared.found, with_gradient=with_gradient
    )
    return NewtonStep(
        info=work.batch.info(totals.loss),
        step=in_parameter_format(work.batch, step) or [],
        eigenvalues=found,
        dampings=dampings,
        gradient=in_parameter_format(work.batch, totals.gradient) if with_gradient else None,
        certificate=work.checks.result(totals),
    )


def _dampings(pairs: Eigenpairs, policy: DampingPolicy) -> Tensor:
    """The dampings [K]; a policy's answer may be wrong in many ways."""
    if isinstance(policy, ConstantDamping):
        return torch.full_like(pairs.values, policy.value)
    count = len(pairs.values)
    gammas, lambdas = pairs.derivatives()
    with blamed_on_model("the damping policy"):
        delta = policy(gammas, lambdas)
    if not isinstance(delta, Tensor) or delta.shape != pairs.values.shape:
        got = f"shape {list(delta.shape)}" if isinstance(delta, Tensor) else f"{delta!r}"
        raise UsageError(
            f"the damping policy returned {got}; it must return a tensor of {count} dampings, one "
            "a direction"
        )
    if not (delta >= 0).all():
        raise UsageError(
            "the damping policy returned a negative damping or NaN; every damping must be >= 0 "
            "(inf for no step along a direction)"
        )
    return delta.to(pairs.values)


def _whole_space_step(work: Work, sweep: Sweep, damping: float, with_gradient: bool) -> NewtonStep:
    slopes, gradient = find_slopes(work, sweep, per_sample=False)
    step: list[Tensor] = []
    if gradient is not None:
        totals = complete(work.batch, work.plan, sweep, gradient, with_gradient=True)
        (step,) = _solve(work, sweep, [gradient], damping)
    else:
        # The gradient is V w: no difference of large vectors, however small the damping.
        shared = shared_gradient(work, sweep, True)
        assert shared.weights is not None
        found: Direction = {}
        for formed in form_systems(work, sweep, slopes, shared.for_factors):
            shared.add(formed.gradient)
            found |= formed.system.solve_in_range(damping, shared.weights)
            del formed  # before the next block's
        totals = complete(work.batch, work.plan, sweep, shared.found, with_gradient=True)
        step = in_parameter_format(work.batch, found) or []
    empty = {"": torch.empty(0)}
    return NewtonStep(
        info=work.batch.info(totals.loss),
        step=[-s for s in step],
        eigenvalues=empty,
        dampings=empty,
        gradient=in_parameter_format(work.batch, totals.gradient) if with_gradient else None,
        certificate=work.checks.result(totals),
    )


def _solve(
    work: Work, sweep: Sweep, directions: Sequence[Direction], damping: float
) -> list[list[Tensor]]:
    """(G + d I)^-1 x for vectors in parameter space."""
    # Parameters that do not reach the output have zero curvature.
    solved: list[Direction] = [{p: x / damping for p, x in d.items()} for d in directions]
    for formed in form_systems(work, sweep, SlopesOfDirections(directions), None):
        for result, product in zip(solved, formed.system.solve(damping), strict=True):
            result |= product
        del formed  # before the next block's
    return [in_parameter_format(work.batch, s) or [] for s in solved]


def inverse_product(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tree,
    targets: Tensor,
    vectors: Sequence[Sequence[Tensor]],
    approximation: Approximation | None = None,
    *,
    damping: float,
    curvature: str | None = None,
    samples: str | None = None,
    mc_samples: int | None = None,
    seed: int | None = None,
    blocks: BlockPatterns = Blocks.NONE,
    params: Patterns | None = None,
    certify: Certify = True,
    working_bytes: int | None = None,
    memory: int | Memory | None = None,
) -> list[list[Tensor]]:
    """(G + d I)^-1 x = 1/d [x - V (d I + Gt)^-1 V^T x] for some vectors x.

    Args:
        model: See :func:`~vivit_bench.curvature.eigenvalues`, as for what is not named here.
        loss: As there.
        inputs: As there.
        targets: As there.
        vectors: Each a sequence of tensors shaped like the parameters.
        approximation: As there.
        damping: d > 0.
        curvature: As there.
        samples: As there.
        mc_samples: As there.
        seed: As there.
        blocks: As there.
        params: As there.
        certify: As there.
        working_bytes: As there.
        memory: As there.

    Returns:
        The products in the format of ``vectors``.

    Raises:
        UsageError: The request cannot be computed, or a vector does not fit the model.
        CertificateError: The result failed its check.
    """
    check_number("damping", damping)
    if not 0 < damping < float("inf"):
        raise UsageError(f"damping is {damping}; the inverse needs a finite damping above 0")
    request = Request(
        model,
        loss,
        inputs,
        targets,
        approximation_of(approximation, curvature, samples, mc_samples, seed),
        blocks,
        params,
        certify,
        working_bytes,
        memory,
        Goal.INVERSE,
    )

    def compute(work: Work, sweep: Sweep) -> list[list[Tensor]]:
        products = _solve(work, sweep, _directions(work.batch, vectors), damping)
        work.checks.result(complete(work.batch, work.plan, sweep, None, with_gradient=False))
        return products

    return run(request, compute, with_gradient=False)


def _directions(batch: MiniBatch, vectors: Sequence[Sequence[Tensor]]) -> list[Direction]:
    directions = []
    if not isinstance(vectors, list | tuple):
        raise UsageError(
            f"vectors is a {type(vectors).__name__}; give a list of vectors, each a list of "
            "tensors shaped like the parameters"
        )
    for number, vector in enumerate(vectors):
        tensors = isinstance(vector, list | tuple) and all(isinstance(t, Tensor) for t in vector)
        shapes = [tuple(t.shape) for t in vector] if tensors else []
        if shapes != [tuple(p.shape) for p in batch.parameters]:
            what = f"has shapes {shapes[:3]}" if tensors else f"is a {type(vector).__name__}"
            raise UsageError(
                f"vector {number} {what}; give a list of vectors, each a list with one tensor of "
                "its shape for each parameter"
            )
        if not all(t.isfinite().all() for t in vector):
            raise UsageError(f"vector {number} contains NaN or infinity")
        moved = [t.to(p) for t, p in zip(vector, batch.parameters, strict=True)]
        directions.append(dict(zip(batch.parameters, moved, strict=True)))
    return directions
