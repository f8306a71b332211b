"""Statistics of one monitor batch along every direction (appendix B.2)."""

import pandas as pd
import torch
from torch import Tensor

from vivit_bench.curvature import DirectionalDerivatives, signal_to_noise

EQUAL_WITHIN = 1e-12
"""Samples whose values differ by no more than this share of the largest are equal to rounding."""

COLUMNS = ("direction", "lambda", "gamma", "alignment", "snr_gamma", "snr_lambda")


def direction_table(
    derivatives: DirectionalDerivatives, gradient_norm_squared: float
) -> pd.DataFrame:
    """One row per direction, by descending curvature.

    Args:
        derivatives: Of the monitor batch; gammas [N, K] and lambdas [N_curv, K].
        gradient_norm_squared: ``||grad L||^2`` on the same batch.

    Returns:
        Columns, float64 but the first:

        - ``direction``: k from 0.
        - ``lambda``: lambda_k, mean over the samples that carry the curvature: the eigenvalue.
        - ``gamma``: gamma_k = e_k^T grad L; its sign is that of the eigenvector, arbitrary.
        - ``alignment``: gamma_k^2 / ||grad L||^2, the share of the gradient's squared norm.
          NaN if the gradient is zero.
        - ``snr_gamma``, ``snr_lambda``: mean^2 / variance over the samples, with the biased
          variance. ``inf`` where the samples are equal to rounding (zero variance, see
          `has_zero_variance`), NaN where all are zero.
    """
    gamma = derivatives.gammas.double().mean(0)
    denominator = gradient_norm_squared if gradient_norm_squared > 0 else float("nan")
    columns = {
        "direction": torch.arange(len(gamma)),
        "lambda": derivatives.lambdas.double().mean(0),
        "gamma": gamma,
        "alignment": gamma.square() / denominator,
        "snr_gamma": _ratio(derivatives.gammas),
        "snr_lambda": _ratio(derivatives.lambdas),
    }
    return pd.DataFrame({name: values.numpy() for name, values in columns.items()})


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


def _ratio(values: Tensor) -> Tensor:
    """Signal-to-noise ratio; rounding would make it finite, but arbitrary, for equal samples."""
    if not values.numel():
        return torch.zeros(values.shape[1], dtype=torch.float64)
    infinite = torch.where(values.abs().amax(0) == 0, torch.nan, torch.inf).double()
    return torch.where(has_zero_variance(values), infinite, signal_to_noise(values))
