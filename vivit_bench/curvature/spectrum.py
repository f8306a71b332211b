"""GGN eigenvalues (appendix A.1), and eigenvectors formed on request (A.2)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from vivit_bench.curvature.certificate import Certify, compare_lifted
from vivit_bench.curvature.checks import Watch
from vivit_bench.curvature.factors import Direction
from vivit_bench.curvature.matrix_free import lanczos_eigenvalues
from vivit_bench.curvature.method import compute_by
from vivit_bench.curvature.minibatch import Patterns, undisturbed
from vivit_bench.curvature.options import (
    Approximation,
    Blocks,
    Goal,
    Memory,
    Method,
    approximation_of,
)
from vivit_bench.curvature.passes import Sweep, complete
from vivit_bench.curvature.results import BatchInfo, Certificate, LeadingEigenvalues, Spectrum
from vivit_bench.curvature.session import Request, check_count, check_cutoff, run
from vivit_bench.curvature.slopes import NoSlopes, Work, in_parameter_format, shared_gradient
from vivit_bench.curvature.systems import Eigenpairs, form_systems
from vivit_bench.curvature.units import BlockPatterns
from vivit_bench.errors import CertificateError
from vivit_bench.trees import Tree


def eigenvalues(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tree,
    targets: Tensor,
    approximation: Approximation | None = None,
    *,
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
    drop_trace: float | None = None,
) -> Spectrum:
    """Eigenvalues of the mini-batch GGN, G = V V^T, or of its diagonal blocks.

    Args:
        model: In evaluation mode; float32 or float64, CPU or CUDA. Called with ``inputs``, it
            returns one tensor with the sample axis first.
        loss: ``CrossEntropyLoss`` (also weighted, smoothed, with ignored targets, probabilities
            or further axes), ``MSELoss`` or ``BCEWithLogitsLoss``; mean or sum.
        inputs: A tensor [N, ...] of any dtype, or a dict, list or tuple of such tensors.
        targets: [N, ...] as the loss takes them.
        approximation: Which GGN; or its parts, by the next four:
        curvature: ``exact`` or ``mc``.
        samples: ``full``, or ``frac`` for the first max(N // 8, 1).
        mc_samples: Draws per sample for ``mc``.
        seed: Of the draws, and of the samples that are checked.
        blocks: ``none`` for the full GGN, ``layer`` for one block a layer, or a dict of block
            name -> patterns of parameter names.
        params: Patterns of parameter names: the GGN over these alone. None: over all that
            require gradients.
        with_gradient: Also return the gradient of the loss.
        certify: Check the result by plain autograd on two samples (True), on all, holding a
            vector of D numbers for each (``"all"``), or not at all (False).
        working_bytes: Memory target of one micro-batch's backpropagation. None: 48 MiB on the
            CPU; on CUDA 1 GiB, or a sixteenth of a smaller card's.
        memory: Bytes that the computation may take over what the process holds; it then trades
            time for memory, or is refused. None: as much as the fastest way takes; on CUDA what
            is free there.
        drop_trace: Leave out the columns of V of smallest norm, as many as have no more than
            this trace together: no eigenvalue becomes smaller by more than their trace (see
            ``Dropped``). Most columns of a trained network are tiny. None: all are used.

    Returns:
        The non-trivial eigenvalues; all others are exactly zero. Those of dropped columns are
        given as zeros.

    Raises:
        UsageError: The request cannot be computed; in one line.
        CertificateError: The result failed its check.
    """
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
        Goal.EIGENVALUES,
        drop_trace,
    )
    return _spectrum(request, with_gradient)


def _spectrum(request: Request, with_gradient: bool) -> Spectrum:
    def compute(work: Work, sweep: Sweep) -> Spectrum:
        # Blocks of unused parameters are zero.
        found: dict[str, Tensor] = {
            block.name: torch.zeros(block.num_eigenvalues, dtype=torch.float64)
            for block in work.plan.blocks
        }
        trace = work.dropped.trace if work.dropped else 0.0
        shared = shared_gradient(work, sweep, with_gradient)
        for formed in form_systems(work, sweep, NoSlopes(), shared.for_factors):
            trace += formed.system.trace
            found[formed.system.block.name] = formed.system.eigenvalues()
            shared.add(formed.gradient)
            del formed  # before the next block's
        totals = complete(work.batch, work.plan, sweep, shared.found, with_gradient=with_gradient)
        values = torch.cat(list(found.values())).sort(descending=True).values
        return Spectrum(
            info=work.batch.info(totals.loss),
            eigenvalues=values,
            trace=trace,
            blocks=found if work.plan.diagonal else {},
            gradient=in_parameter_format(work.batch, totals.gradient),
            certificate=work.checks.result(totals),
            dropped=work.dropped,
        )

    return run(request, compute, with_gradient=with_gradient)


def leading_eigenvalues(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tree,
    targets: Tensor,
    approximation: Approximation | None = None,
    *,
    k: int,
    method: Method | str = Method.AUTO,
    curvature: str | None = None,
    samples: str | None = None,
    mc_samples: int | None = None,
    seed: int | None = None,
    blocks: BlockPatterns = Blocks.NONE,
    params: Patterns | None = None,
    certify: Certify = True,
    working_bytes: int | None = None,
    memory: int | Memory | None = None,
    tolerance: float | None = None,
    max_products: int | None = None,
) -> LeadingEigenvalues:
    """The ``k`` largest eigenvalues: of the Gram matrix, or matrix-free by Lanczos iterations.

    Args:
        model: See :func:`eigenvalues`, as for what is not named here.
        loss: As there.
        inputs: As there.
        targets: As there.
        approximation: As there.
        k: How many, with blocks of all together; fewer where fewer can be other than zero.
        method: ``gram``, ``lanczos``, or ``auto``: ``gram`` where its leanest plan fits into the
            memory, or into what is available where none is given.
        curvature: As there.
        samples: As there.
        mc_samples: As there.
        seed: As there.
        blocks: As there.
        params: As there.
        certify: As there.
        working_bytes: As there.
        memory: As there.
        tolerance: Of the iterations' residuals; None: 1e-8 in float64, 1e-5 in float32.
        max_products: With the GGN that iterations may use; None: 2000.

    Raises:
        UsageError: The request cannot be computed; in one line.
        VivitBenchError: The iterations do not converge.
        CertificateError: The result failed its check.
    """
    check_count("k", k)
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
        Goal.EIGENVALUES,
    )

    def from_gram(bounded: Request) -> LeadingEigenvalues:
        found = _spectrum(bounded, with_gradient=False)
        blocks = {name: values[:k] for name, values in found.blocks.items()}
        return LeadingEigenvalues(
            found.info, found.eigenvalues[:k], blocks, certificate=found.certificate
        )

    return compute_by(
        method,
        request,
        from_gram,
        lambda bounded: lanczos_eigenvalues(
            bounded, k, tolerance=tolerance, max_products=max_products
        ),
        {"tolerance": tolerance, "max_products": max_products},
    )


class Eigenbasis:
    """Orthonormal eigenvectors of the leading eigenvalues.

    Attributes:
        info: The mini-batch they belong to.
        eigenvalues: [K] float64, descending.
        certificate: Of the eigenvalues and the Gram matrix's eigenvectors; those in parameter
            space are checked as they are formed.
    """

    def __init__(
        self,
        work: Work,
        pairs: Eigenpairs,
        watch: Watch | None,
        info: BatchInfo,
        certificate: Certificate | None,
    ) -> None:
        self._work, self._pairs, self._watch = work, pairs, watch
        self.info, self.certificate = info, certificate
        self.eigenvalues = pairs.values.flip(0).cpu()

    def chunks(self, max_bytes: int = 256 * 2**20) -> Iterator[list[list[Tensor]]]:
        """Eigenvectors by descending eigenvalue, as many at a time as fit ``max_bytes``.

        Yields:
            For each eigenvector one tensor per parameter, of its shape.

        Raises:
            CertificateError: A vector is not what the Gram matrix says.
        """
        batch = self._work.batch
        step = max(max_bytes // (batch.num_params * batch.dtype.itemsize), 1)
        count = len(self.eigenvalues)
        for start in range(0, count, step):
            with undisturbed(batch.model):
                last = count - start  # theirs ascend
                weights = self._pairs.coordinates(max(last - step, 0), last).flip(1)
                directions = self._pairs.system.lift("eigenvectors", weights)
            self._check(self.eigenvalues[start : start + step], weights, directions)
            yield [in_parameter_format(batch, d) or [] for d in directions]

    def _check(self, values: Tensor, weights: Tensor, directions: Sequence[Direction]) -> None:
        """Products with the drawn samples' vectors, and that the length is 1.

        A length is as good as the eigenvalue beside the largest one.
        """
        if self._watch is None or self.certificate is None:
            return
        products = self._watch.inner @ weights.double()
        error = compare_lifted(self._watch, products, directions)
        for value, direction in zip(values.tolist(), directions, strict=True):
            length = sum(x.double().square().sum().item() for x in direction.values()) ** 0.5
            error = max(error, abs(length - 1) * value / self.eigenvalues[0].item())
        if error > self.certificate.tolerance:
            raise CertificateError(
                f"the eigenvectors failed their check by plain autograd: they are off by "
                f"{error:.1e}, more than {self.certificate.tolerance:.0e}"
            )


def eigenvectors(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tree,
    targets: Tensor,
    approximation: Approximation | None = None,
    *,
    k: int | None = None,
    cutoff: float = 1e-4,
    curvature: str | None = None,
    samples: str | None = None,
    mc_samples: int | None = None,
    seed: int | None = None,
    params: Patterns | None = None,
    certify: Certify = True,
    working_bytes: int | None = None,
    memory: int | Memory | None = None,
) -> Eigenbasis:
    """Eigenvectors of the ``k`` leading eigenvalues above the cutoff (all if ``k`` is None).

    Args:
        model: See :func:`eigenvalues`, as for what is not named here.
        loss: As there.
        inputs: As there.
        targets: As there.
        approximation: As there.
        k: How many at the most.
        cutoff: Directions have eigenvalues above it.
        curvature: As there.
        samples: As there.
        mc_samples: As there.
        seed: As there.
        params: As there.
        certify: As there.
        working_bytes: As there.
        memory: As there.

    Raises:
        UsageError: The request cannot be computed; in one line.
        CertificateError: The result failed its check.
    """
    check_cutoff(cutoff)
    if k is not None:
        check_count("k", k)
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
        goal=Goal.EIGENVECTORS,
    )

    def compute(work: Work, sweep: Sweep) -> Eigenbasis:
        (formed,) = form_systems(work, sweep, NoSlopes(), None)
        pairs = formed.system.eigenpairs(cutoff)
        if k is not None:
            pairs.keep(k)
        totals = complete(work.batch, work.plan, sweep, None, with_gradient=False)
        certificate = work.checks.result(totals)
        return Eigenbasis(
            work, pairs, work.checks.watch(), work.batch.info(totals.loss), certificate
        )

    return run(request, compute, with_gradient=False)
