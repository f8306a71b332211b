"""A training step of torchvision's resnet18 with AdamW: how large a batch does it take?

vivit-bench critical-batch search scripts/examples/resnet18_step.py:step --memory-limit 2GiB
"""

from collections.abc import Callable

import torch
from torch import nn
from torchvision import models


def step() -> Callable[[int, int], None]:
    """Built anew for every batch size; what it returns is called several times."""
    model = models.resnet18(num_classes=10).train()
    optimizer = torch.optim.AdamW(model.parameters())
    loss = nn.CrossEntropyLoss()

    def train(n: int, seed: int) -> None:
        images, labels = torch.randn(n, 3, 32, 32), torch.randint(10, (n,))
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()

    return train
