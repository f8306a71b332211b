"""torchvision's resnet18 on images of 32 x 32 pixels, 10 classes; inputs are noise.

    vivit-bench compare-engines scripts/examples/resnet18.py:images --batch-size 16 \\
        --engine vivit-bench --engine curvlinops

Its last convolutions have one output position that does not see its whole input.
"""

import torch
from torch import nn
from torchvision.models import resnet18


def images():
    """The problem, with mini-batches of any size."""

    def batch(n, seed):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(n, 3, 32, 32, generator=generator)
        return inputs, torch.randint(10, (n,), generator=generator)

    return resnet18(num_classes=10), nn.CrossEntropyLoss(), batch
