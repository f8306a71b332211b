"""What the engine would do with a request, and why."""

from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.plan import UnitPlan


@torch.no_grad()
def explain(
    model: nn.Module, loss: nn.Module, inputs: Tensor, targets: Tensor, **options: Any
) -> list[UnitPlan]:
    """The contraction of every layer with its FLOPs, memory and reason, without computing.

    Args:
        model: See :func:`~vivit_bench.curvature.eigenvalues`.
        loss: As there.
        inputs: As there.
        targets: As there.
        **options: As there.

    Raises:
        UsageError: If the request cannot be computed.
    """
    return MiniBatch(model, loss, inputs, targets, **options).units
