"""DeepOBS's networks out of plain modules, and running statistics that evaluation mode needs.

BackPACK and torch.fx know torch's modules only; DeepOBS has a flatten of its own,
padding that a hook computes from the input, and a residual sum in place.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vivit_bench.problems.deepobs_torch import deepobs_module
from vivit_bench.trees import Tree


class ResidualBlock(nn.Module):
    """DeepOBS's pre-activation residual block with the sum out of place.

    Args:
        block: DeepOBS's block, whose modules and their names are taken over.
    """

    bn1: nn.Module
    relu1: nn.Module
    conv1: nn.Module
    bn2: nn.Module
    relu2: nn.Module
    conv2: nn.Module

    def __init__(self, block: nn.Module):
        super().__init__()
        self.is_first_block = bool(block.is_first_block)
        for name, module in block.named_children():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, in_channels, h, w] to [n, out_channels, h', w']."""
        activated = self.relu1(self.bn1(x))
        identity = self.get_submodule("convFirstBlock")(activated) if self.is_first_block else x
        out = self.conv1(activated)
        out = self.conv2(self.relu2(self.bn2(out)))
        return out + identity


def make_plain(net: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """Replace what is DeepOBS's own by torch's modules, in place.

    Parameters, their names and the outputs stay the same, bit by bit. The network then
    accepts inputs of ``input_shape`` only, where DeepOBS's padding adapts.

    Args:
        net: A network of DeepOBS.
        input_shape: Of one sample.

    Returns:
        ``net``, or its replacement, in evaluation mode.
    """
    net.eval()
    with torch.no_grad():
        net(torch.zeros(1, *input_shape))  # the hooks now have set every padding
    return _plain(net)


def _plain(module: nn.Module) -> nn.Module:
    utils = deepobs_module("testproblems.testproblems_utils")
    for name, child in list(module.named_children()):
        if isinstance(child, nn.ZeroPad2d):
            if any(child.padding):
                setattr(module, name, nn.ZeroPad2d(child.padding).eval())
            else:
                # Not by ``del module[i]``, which renames the modules after it.
                del module._modules[name]
        else:
            setattr(module, name, _plain(child))
    if isinstance(module, utils.flatten):
        return nn.Flatten().eval()
    if isinstance(module, utils.residual_block):
        return ResidualBlock(module).eval()
    return module


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
