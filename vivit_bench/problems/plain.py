"""DeepOBS's networks out of plain modules, with their own names, weights and outputs.

BackPACK and torch.fx know torch's modules only; DeepOBS has a flatten of its own,
padding that a hook computes from the input, and a residual sum in place.
"""

import torch
from torch import Tensor, nn

from vivit_bench.problems.deepobs_torch import deepobs_module


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
