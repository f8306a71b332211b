"""One look at a model through a monitor batch, which leaves no trace on the training."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vivit_bench.curvature import (
    Approximation,
    DirectionalDerivatives,
    directional_derivatives,
    has_zero_variance,
    signal_to_noise,
)
from vivit_bench.errors import CertificateError
from vivit_bench.trees import Tree, leaves


@dataclass(frozen=True)
class Measurement:
    """What the monitor saw."""

    derivatives: DirectionalDerivatives
    """Per-sample slopes and curvatures; its ``info`` has the loss of the monitor batch."""
    gradient_norm_squared: float
    """``||grad L||^2`` on the whole monitor batch."""
    directions: pd.DataFrame
    """See `direction_table`."""
    seconds: float
    """Wall-clock time of the call."""

    def summary(self) -> dict[str, Any]:
        """The directions together.

        Returns:
            ``loss`` of the monitor batch, ``num_directions`` K, ``num_columns`` of V (the most K
            can be), ``gradient_norm_squared``, ``alignment_sum`` (share of it that lies in the
            span of the directions), and for how many directions all samples have the same
            gamma or lambda (``zero_variance_gamma``, ``zero_variance_lambda``), so that their SNR
            is infinite or undefined; ``certificate_error``, the largest of the check by plain
            autograd, and ``certified_samples``, on how many samples it was made.
        """
        found = self.derivatives
        certificate = found.certificate
        return {
            "loss": found.info.loss,
            "num_directions": len(found.eigenvalues),
            "num_columns": found.info.num_columns,
            "gradient_norm_squared": self.gradient_norm_squared,
            "alignment_sum": float(self.directions["alignment"].sum(skipna=False)),
            "zero_variance_gamma": int(has_zero_variance(found.gammas).sum()),
            "zero_variance_lambda": int(has_zero_variance(found.lambdas).sum()),
            "certificate_error": certificate.worst if certificate else float("nan"),
            "certified_samples": len(certificate.samples) if certificate else 0,
        }


def measure(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tree,
    targets: Tensor,
    approximation: Approximation | None = None,
    *,
    cutoff: float = 1e-4,
    drop_trace: float | None = None,
    memory: int | None = None,
) -> Measurement:
    """Slopes, curvatures, alignment and signal-to-noise ratios on one mini-batch (B.2).

    The model is in evaluation mode meanwhile; its modes, its ``.grad`` and the global random
    state are as before afterwards.

    Args:
        model: In any mode. Of one that is trained in several processes (DistributedDataParallel)
            this process's copy is looked at, so that the others need not look.
        loss: One that `vivit_bench.curvature` knows.
        inputs: Tensors [N, ...], on the model's device and in its precision.
        targets: [N] labels, or [N, ...] like the outputs.
        approximation: Of the GGN; None for the exact one. Gammas and the gradient are those
            of the whole batch, whichever samples carry the curvature.
        cutoff: Directions have eigenvalues above it.
        drop_trace: See `directional_derivatives`.
        memory: Bytes that the look may take; see `directional_derivatives`.

    Raises:
        UsageError: The engine cannot compute the request.
        CertificateError: What it computed failed its check.
    """
    start = time.perf_counter()
    if isinstance(model, DistributedDataParallel):
        model = model.module  # the wrapper's forward pass waits for the other processes' buffers
    with _undisturbed(model, inputs):
        derivatives = directional_derivatives(
            model,
            loss,
            inputs,
            targets,
            approximation,
            cutoff=cutoff,
            with_gradient=True,
            drop_trace=drop_trace,
            memory=memory,
        )
    assert derivatives.gradient is not None
    squared = sum(float(g.double().square().sum()) for g in derivatives.gradient)
    derivatives = replace(derivatives, gradient=None)  # as large as the model
    table = direction_table(derivatives, squared)
    _check_sums(table)
    return Measurement(derivatives, squared, table, time.perf_counter() - start)


def direction_table(
    derivatives: DirectionalDerivatives, gradient_norm_squared: float
) -> pd.DataFrame:
    """One row per direction, by descending curvature.

    Args:
        derivatives: Of the monitor batch; gammas [N, K] and lambdas [N_curv, K].
        gradient_norm_squared: ``||grad L||^2`` on the same batch.

    Returns:
        Columns, float64 but the first:

        - ``direction``: k from 1.
        - ``eigenvalue``: lambda_k, the mean over the samples that carry the curvature.
        - ``gamma``: gamma_k = e_k^T grad L; its sign is that of the eigenvector, arbitrary.
        - ``alignment``: gamma_k^2 / ||grad L||^2, the share of the gradient's squared norm.
          NaN if the gradient is zero.
        - ``snr_gamma``, ``snr_lambda``: mean^2 / variance over the samples, with the biased
          variance, see `signal_to_noise`.
    """
    gamma = derivatives.gammas.double().mean(0)
    denominator = gradient_norm_squared if gradient_norm_squared > 0 else float("nan")
    columns = {
        "direction": torch.arange(1, len(gamma) + 1),
        "eigenvalue": derivatives.lambdas.double().mean(0),
        "gamma": gamma,
        "alignment": gamma.square() / denominator,
        "snr_gamma": signal_to_noise(derivatives.gammas),
        "snr_lambda": signal_to_noise(derivatives.lambdas),
    }
    return pd.DataFrame({name: values.numpy() for name, values in columns.items()})


def _check_sums(table: pd.DataFrame) -> None:
    """Refuse what cannot be: shares of the gradient's squared norm that add up to more than it.

    Raises:
        CertificateError: They do.
    """
    total = float(table["alignment"].sum())
    if total > 1 + 1e-3:
        raise CertificateError(
            f"the directions hold {100 * total:.1f} % of the gradient's squared norm, which cannot "
            "be; nothing of this checkpoint is kept"
        )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every module's own mode back at the end.

    The flags are set one by one: ``model.train()`` would lose a module that the user keeps in
    evaluation mode, and may be overridden.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _undisturbed(model: nn.Module, inputs: Tree) -> Iterator[None]:
    devices = {leaf.device for _, leaf in leaves(inputs) if leaf.device.type == "cuda"}
    with evaluation_mode(model), torch.random.fork_rng(devices=devices):
        yield
