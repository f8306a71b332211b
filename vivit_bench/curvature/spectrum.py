"""GGN eigenvalues through the Gram matrix (appendix A.1)."""

from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.curvature.gram import grams
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.options import Blocks
from vivit_bench.curvature.results import Spectrum
from vivit_bench.curvature.solve import eigenvalues_of


@torch.no_grad()
def eigenvalues(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    blocks: Blocks = Blocks.NONE,
    **options: Any,
) -> Spectrum:
    """Eigenvalues of the mini-batch GGN, G = V V^T, or of its per-layer blocks.

    Args:
        model: In evaluation mode; float32 or float64, CPU or CUDA.
        loss: ``CrossEntropyLoss`` or ``MSELoss`` with mean reduction.
        inputs: [N, ...].
        targets: [N] labels (cross-entropy) or the shape of the outputs (MSE).
        blocks: ``none`` for the full GGN, ``layer`` for its diagonal blocks.
        **options: ``curvature``, ``samples``, ``mc_samples``, ``seed``,
            ``working_bytes`` and ``with_gradient`` of :class:`MiniBatch`.

    Returns:
        The non-trivial eigenvalues; all others are exactly zero.

    Raises:
        UsageError: If the request cannot be computed.
    """
    batch = MiniBatch(model, loss, inputs, targets, **options)
    found: dict[str, Tensor] = {}
    trace = 0.0
    for gram in grams(batch, batch.collect()[0], Blocks(blocks)):
        trace += gram.matrix.diagonal().double().sum().item()
        size = sum(unit.num_params for unit in gram.units)
        found[gram.units[0].name] = eigenvalues_of(gram.take_double())[:size]
    gradient = batch.requested_gradient()
    info = batch.info(batch.mean_loss())
    values = torch.cat(list(found.values())).sort(descending=True).values
    layers = found if Blocks(blocks) is Blocks.LAYER else {}
    return Spectrum(info, values, trace, layers, gradient)
