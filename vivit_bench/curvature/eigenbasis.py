"""GGN eigenvectors in parameter space, formed on request (appendix A.2)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.results import BatchInfo
from vivit_bench.curvature.systems import GramSystem, gram_systems


class Eigenbasis:
    """Orthonormal eigenvectors e_k = V u_k / sqrt(l_k) of the leading eigenvalues.

    Attributes:
        info: The mini-batch they belong to.
        eigenvalues: [K] float64, descending.
    """

    def __init__(self, batch: MiniBatch, system: GramSystem, info: BatchInfo):
        self._batch, self._system = batch, system
        self.info = info
        self.eigenvalues = system.eigenvalues.flip(0).cpu()

    def chunks(self, max_bytes: int = 256 * 2**20) -> Iterator[list[list[Tensor]]]:
        """Eigenvectors by descending eigenvalue, as many at a time as fit ``max_bytes``.

        Yields:
            For each eigenvector one tensor per trainable parameter, of its shape.
        """
        batch = self._batch
        itemsize = batch.parameters[0].element_size()
        step = max(max_bytes // (batch.num_params * itemsize), 1)
        weights = (self._system.vectors / self._system.eigenvalues.sqrt()).flip(1)
        for start in range(0, weights.shape[1], step):
            with torch.no_grad():
                directions = batch.backward(weights[:, start : start + step])
            yield [[d[p] for p in batch.parameters] for d in directions]


@torch.no_grad()
def eigenvectors(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    k: int | None = None,
    cutoff: float = 1e-4,
    **options: Any,
) -> Eigenbasis:
    """Eigenvectors of the ``k`` leading eigenvalues above the cutoff (all if ``k`` is None).

    Args:
        model: See :func:`~vivit_bench.curvature.eigenvalues`.
        loss: As there.
        inputs: As there.
        targets: As there.
        k: How many at the most.
        cutoff: Directions have eigenvalues above it.
        **options: As there.

    Raises:
        UsageError: If the request cannot be computed.
    """
    batch = MiniBatch(model, loss, inputs, targets, **options)
    (block,) = gram_systems(batch, cutoff, per_sample=False)
    system = block.system
    if k is not None:
        first = max(len(system.eigenvalues) - k, 0)
        system.eigenvalues = system.eigenvalues[first:]
        system.vectors = system.vectors[:, first:]
    return Eigenbasis(batch, system, batch.info(batch.mean_loss()))
