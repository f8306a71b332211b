"""A training step of a small language model, with gradient clipping and a learning rate schedule.

vivit-bench critical-batch search scripts/examples/transformer_step.py:step --memory-limit 2GiB
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

VOCABULARY, LENGTH, WIDTH = 1000, 64, 128


class LanguageModel(nn.Module):
    """Four layers that look back only."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [n, LENGTH, VOCABULARY] of tokens [n, LENGTH]."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        hidden = self.embedding(tokens) + self.position
        logits: Tensor = self.head(self.layers(hidden, mask=mask, is_causal=True))
        return logits


def step() -> Callable[[int, int], None]:
    """Built anew for every batch size; what it returns is called several times."""
    model = LanguageModel().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    loss = nn.CrossEntropyLoss()

    def train(n: int, seed: int) -> None:
        tokens = torch.randint(VOCABULARY, (n, LENGTH + 1))
        logits = model(tokens[:, :-1])
        optimizer.zero_grad()
        loss(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    return train
