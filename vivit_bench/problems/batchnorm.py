"""Running statistics of batch normalisation, without which evaluation mode means little."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vivit_bench.trees import Tree

STATISTICS_BATCHES, STATISTICS_SAMPLES = 3, 32
"""Forward passes that fill running statistics, and the inputs of each."""


def needs_statistics(model: nn.Module) -> bool:
    """Whether a batch normalisation of ``model`` never saw a training batch."""
    return any(map(_never_updated, model.modules()))


def fill_statistics(model: nn.Module, batches: Iterable[Tree]) -> None:
    """Fill running means and variances that were never updated, by forward passes.

    Only these layers are in training mode meanwhile: dropout stays off.

    Args:
        model: Left in evaluation mode.
        batches: Inputs of n > 1 samples, one forward pass each.
    """
    model.eval()
    fresh = [module for module in model.modules() if _never_updated(module)]
    for module in fresh:
        module.train()
    with torch.no_grad():
        for inputs in batches:
            model(inputs)
    model.eval()


def _never_updated(module: nn.Module) -> bool:
    # num_batches_tracked is None without running statistics.
    return (
        isinstance(module, _BatchNorm)
        and module.num_batches_tracked is not None
        and int(module.num_batches_tracked) == 0
    )
