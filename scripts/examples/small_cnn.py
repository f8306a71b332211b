"""Two problems of one's own, each a function that returns (model, loss, data).

They are used wherever a DeepOBS name is, for example:

    vivit-bench problems show scripts/examples/small_cnn.py:digits
    vivit-bench spectrum compute scripts/examples/small_cnn.py:digits --batch-size 64

The weights come from torch's global generator, which the --seed option seeds.
"""

import torch
from torch import nn


def digits():
    """A small convolutional network on 1,797 real digits of 8 x 8 pixels: data as tensors."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    inputs = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    targets = torch.tensor(bunch.target, dtype=torch.int64)
    model = nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )
    return model, nn.CrossEntropyLoss(), (inputs, targets)


def regression():
    """A small perceptron under squared error: data as a function, so batches of any size."""

    def batch(n, seed):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.rand(n, 4, generator=generator) * 2 - 1
        targets = torch.stack([inputs.sum(1).sin(), inputs.prod(1)], dim=1)
        return inputs, targets

    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    return model, nn.MSELoss(), batch
