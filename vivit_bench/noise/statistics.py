"""Statistics of one monitor batch along every direction (appendix B.2)."""

import pandas as pd
import torch

from vivit_bench.curvature import DirectionalDerivatives, signal_to_noise

COLUMNS = ("direction", "eigenvalue", "gamma", "alignment", "snr_gamma", "snr_lambda")


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
