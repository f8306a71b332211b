"""Compute GGN spectra of problems.

PyTorch is imported inside the functions: plots and comparisons of stored spectra, which
share this package, do without it.
"""

import math
import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vivit_bench.arguments import DEFAULT_CUTOFF, check_cutoff, drop_trace
from vivit_bench.curvature.options import Approximation, Blocks, Curvature, Precision, Samples
from vivit_bench.errors import VivitBenchError
from vivit_bench.hardware import cpu_threads, library_errors
from vivit_bench.problems.workload import Workload, WorkloadSpec, load_workload
from vivit_bench.spectrum.record import SpectrumRecord
from vivit_bench.spectrum.settings import SpectrumSettings

if TYPE_CHECKING:
    from torch import Tensor

    from vivit_bench.curvature import Certificate, Spectrum
    from vivit_bench.curvature.certificate import Certify
    from vivit_bench.problems import DataSource


def compute_spectrum(
    problem: str,
    *,
    batch_size: int | None = None,
    curvature: Curvature = Curvature.EXACT,
    samples: Samples = Samples.FULL,
    mc_samples: int = 1,
    blocks: Blocks | dict[str, list[str]] = Blocks.NONE,
    params: list[str] | None = None,
    cutoff: float = DEFAULT_CUTOFF,
    drop_columns: float | None = None,
    certify: "Certify" = True,
    data: "DataSource | None" = None,
    data_dir: Path | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    dtype: Precision = Precision.FLOAT32,
    device: str = "cpu",
    threads: int | None = None,
    memory: int | None = None,
) -> SpectrumRecord:
    """Compute all non-trivial GGN eigenvalues of a problem on one mini-batch.

    Args:
        problem: DeepOBS name or ``path/to/file.py:function``.
        batch_size: N; None for the problem's default (128, or 64 for cifar100_allcnnc).
        curvature: Exact or Monte-Carlo factorisation of the loss Hessian.
        samples: The whole mini-batch, or its first max(N // 8, 1) samples.
        mc_samples: M, for Monte-Carlo curvature only.
        blocks: The full GGN or its diagonal blocks, one a layer, or block name -> patterns.
        params: Patterns of the names of the parameters that count.
        cutoff: Eigenvalues above it are counted as directions.
        drop_columns: Leave out columns of V whose trace is at most this share of the cutoff.
        certify: Check the result by plain autograd on two samples, on ``"all"``, or not.
        data: Data source; None for the problem's real data.
        data_dir: Folder of the data sets.
        seed: Of parameters, mini-batch and Monte-Carlo samples.
        checkpoint: File with the parameters of a trained model.
        dtype: Precision of model, data and matrix products.
        device: ``cpu`` or ``cuda[:i]``.
        threads: CPU threads; None leaves PyTorch's choice.
        memory: Bytes that the computation may take; see `vivit_bench.curvature.eigenvalues`.

    Returns:
        The spectrum; it is not stored (`store_spectrum` does).

    Raises:
        UsageError: A wrong name, value, file or device.
        CertificateError: The result failed its check.
        VivitBenchError: The memory does not suffice, or the result is not finite.
    """
    spec = WorkloadSpec(problem, batch_size, data, data_dir, seed, checkpoint, dtype, device)
    approximation = Approximation(curvature, samples, mc_samples, seed)
    check_cutoff(cutoff)
    with cpu_threads(threads):
        workload = load_workload(spec)
        settings = SpectrumSettings(
            workload.spec, approximation, blocks, params, cutoff, drop_columns
        )
        return compute_on(workload, settings, certify, memory)


def compute_on(
    workload: Workload,
    settings: SpectrumSettings,
    certify: "Certify" = True,
    memory: int | None = None,
) -> SpectrumRecord:
    """Compute one variant's spectrum on a loaded workload.

    Args:
        workload: Model and mini-batch.
        settings: Those of ``workload.spec``.
        certify: See ``compute_spectrum``.
        memory: As there.

    Raises:
        UsageError: A model the engine cannot handle.
        CertificateError: The result failed its check.
        VivitBenchError: The memory does not suffice, or the result is not finite.
    """
    import torch

    from vivit_bench.curvature import eigenvalues

    start = time.perf_counter()
    with _library_errors(settings):
        spectrum = eigenvalues(
            *workload.request,
            settings.approximation,
            blocks=settings.blocks,
            params=settings.params,
            certify=certify,
            drop_trace=drop_trace(settings.drop_columns, settings.cutoff),
            memory=memory,
        )
    seconds = time.perf_counter() - start
    _check_finite(settings, spectrum)
    return SpectrumRecord(
        settings=settings,
        eigenvalues=spectrum.eigenvalues.numpy(),
        blocks={name: values.numpy() for name, values in spectrum.blocks.items()},
        num_params=spectrum.info.num_params,
        num_samples=spectrum.info.num_samples,
        num_outputs=spectrum.info.num_outputs,
        num_columns=spectrum.info.num_columns,
        trace=spectrum.trace,
        loss=spectrum.info.loss,
        solver_dtype=spectrum.info.solver_dtype,
        threads=torch.get_num_threads(),
        compute_seconds=seconds,
        certificate=asdict(spectrum.certificate) if spectrum.certificate else {},
        dropped=asdict(spectrum.dropped) if spectrum.dropped else {},
    )


def leading_eigenvectors(
    workload: Workload,
    settings: SpectrumSettings,
    k: int,
    certify: "Certify" = True,
    memory: int | None = None,
) -> "tuple[dict[str, Tensor], Certificate | None]":
    """The leading eigenvectors of a loaded workload's full GGN, as they are stored.

    Args:
        workload: Model and mini-batch.
        settings: Those of ``workload.spec``; their ``blocks`` are ignored.
        k: How many at the most; fewer if fewer eigenvalues are above the cutoff.
        certify: See ``compute_spectrum``.
        memory: As there.

    Returns:
        ``eigenvalues`` [K], float64, descending, and for each trainable parameter, by its
        name, [K, *shape], on the CPU; and their certificate.

    Raises:
        UsageError: A model the engine cannot handle.
        VivitBenchError: The memory does not suffice.
    """
    import torch

    from vivit_bench.curvature import eigenvectors
    from vivit_bench.curvature.minibatch import named_parameters

    with _library_errors(settings):
        basis = eigenvectors(
            *workload.request,
            settings.approximation,
            k=k,
            cutoff=settings.cutoff,
            params=settings.params,
            certify=certify,
            memory=memory,
        )
        trainable = named_parameters(workload.model, settings.params)
        count = len(basis.eigenvalues)
        found = {name: torch.empty(count, *p.shape, dtype=p.dtype) for name, p in trainable}
        vectors = (vector for chunk in basis.chunks() for vector in chunk)
        for number, vector in enumerate(vectors):
            for (name, _), part in zip(trainable, vector, strict=True):
                found[name][number] = part
    return {"eigenvalues": basis.eigenvalues, **found}, basis.certificate


def _library_errors(settings: SpectrumSettings) -> AbstractContextManager[None]:
    return library_errors(
        f"{settings.problem} on {settings.workload.device}, {settings.variant}, at batch size "
        f"{settings.batch_size}",
        "try a smaller --batch-size or --samples frac",
    )


def _check_finite(settings: SpectrumSettings, spectrum: "Spectrum") -> None:
    if not (math.isfinite(spectrum.info.loss) and bool(spectrum.eigenvalues.isfinite().all())):
        raise VivitBenchError(
            f"{settings.problem}: the GGN is not finite (loss {spectrum.info.loss}); "
            "check the parameters in the checkpoint and the data"
        )
