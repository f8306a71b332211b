"""Per-sample slopes and curvatures along the GGN eigenvectors (Equation 8)."""

import torch
from torch import Tensor, nn

from vivit_bench.curvature.certificate import Certify
from vivit_bench.curvature.minibatch import Patterns
from vivit_bench.curvature.options import Approximation, Goal, Memory, approximation_of
from vivit_bench.curvature.passes import Sweep, complete
from vivit_bench.curvature.results import DirectionalDerivatives
from vivit_bench.curvature.session import Request, check_cutoff, run
from vivit_bench.curvature.slopes import Work, find_slopes, in_parameter_format, shared_gradient
from vivit_bench.curvature.systems import form_systems
from vivit_bench.trees import Tree


def directional_derivatives(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tree,
    targets: Tensor,
    approximation: Approximation | None = None,
    *,
    cutoff: float = 1e-4,
    curvature: str | None = None,
    samples: str | None = None,
    mc_samples: int | None = None,
    seed: int | None = None,
    params: Patterns | None = None,
    with_gradient: bool = False,
    certify: Certify = True,
    working_bytes: int | None = None,
    memory: int | Memory | None = None,
    drop_trace: float | None = None,
) -> DirectionalDerivatives:
    """gamma_nk = e_k^T grad l_n and lambda_nk = e_k^T J_n^T H_n J_n e_k for all directions.

    With exact curvature on the whole mini-batch both come from the Gram matrix alone.

    Args:
        model: See :func:`~vivit_bench.curvature.eigenvalues`, as for what is not named here.
        loss: As there.
        inputs: As there.
        targets: As there.
        approximation: As there.
        cutoff: Directions have eigenvalues above it.
        curvature: As there.
        samples: As there.
        mc_samples: As there.
        seed: As there.
        params: As there.
        with_gradient: As there.
        certify: As there.
        working_bytes: As there.
        memory: As there.
        drop_trace: As there. The directions, and the lambdas along them, are those of the GGN
            of the kept columns; the gammas are slopes of the samples' whole gradients. A
            direction is missed if its eigenvalue is above the cutoff by less than the trace.

    Returns:
        Directions by descending eigenvalue. Signs of the gammas are those of the
        eigenvectors, which are arbitrary.

    Raises:
        UsageError: The request cannot be computed; in one line.
        CertificateError: The result failed its check.
    """
    check_cutoff(cutoff)
    request = Request(
        model,
        loss,
        inputs,
        targets,
        approximation_of(approximation, curvature, samples, mc_samples, seed),
        params=params,
        certify=certify,
        working_bytes=working_bytes,
        memory=memory,
        goal=Goal.DERIVATIVES,
        drop_trace=drop_trace,
    )

    def compute(work: Work, sweep: Sweep) -> DirectionalDerivatives:
        slopes, gradient = find_slopes(work, sweep, per_sample=True)
        wanted = with_gradient and gradient is None
        shared = shared_gradient(work, sweep, wanted)
        (formed,) = form_systems(work, sweep, slopes, shared.for_factors)
        shared.add(formed.gradient)
        pairs = formed.system.eigenpairs(cutoff)
        gammas, lambdas = pairs.derivatives()
        work.checks.derivatives(gammas, lambdas, pairs.values)
        totals = complete(
            work.batch, work.plan, sweep, gradient or shared.found, with_gradient=with_gradient
        )
        kept = totals.gradient if with_gradient else None
        return DirectionalDerivatives(
            info=work.batch.info(totals.loss),
            eigenvalues=pairs.values.flip(0).cpu(),
            gammas=gammas.flip(1).cpu(),
            lambdas=lambdas.flip(1).cpu(),
            gradient=in_parameter_format(work.batch, kept),
            certificate=work.checks.result(totals),
            dropped=work.dropped,
        )

    return run(request, compute, with_gradient=with_gradient)


EQUAL_WITHIN = 1e-12
"""Samples whose values differ by no more than this share of the largest are equal to rounding."""


def signal_to_noise(values: Tensor) -> Tensor:
    """mean(x)^2 / var(x) over samples with the biased variance (appendix B.2).

    Args:
        values: [N, K] gammas or lambdas.

    Returns:
        [K] float64; ``inf`` where the variance is zero (N = 1, or samples that are equal to
        rounding, which would make the ratio finite but arbitrary), ``nan`` where all samples
        are zero.
    """
    if not values.numel():
        return torch.zeros(values.shape[1], dtype=torch.float64)
    wide = values.double()
    infinite = torch.where(wide.abs().amax(0) == 0, torch.nan, torch.inf).double()
    ratio = wide.mean(0).square() / wide.var(0, correction=0)
    return torch.where(has_zero_variance(values), infinite, ratio)


def has_zero_variance(values: Tensor) -> Tensor:
    """Directions along which the samples are equal to rounding (``EQUAL_WITHIN``), or all zero.

    Args:
        values: [N, K] gammas or lambdas.

    Returns:
        [K] booleans.
    """
    if not values.numel():
        return torch.zeros(values.shape[1], dtype=torch.bool)
    spread = values.amax(0) - values.amin(0)
    return spread <= EQUAL_WITHIN * values.abs().amax(0)
