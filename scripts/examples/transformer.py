"""Two small transformers on tokens, each a function that returns (model, loss, data).

    vivit-bench problems show scripts/examples/transformer.py:classifier
    vivit-bench spectrum compute scripts/examples/transformer.py:classifier --batch-size 64
    vivit-bench spectrum compute scripts/examples/transformer.py:language_model --batch-size 8

One has a Dataset of dicts as its data, the other a DataLoader that pads each batch. Samples are
chosen by the --seed option, whatever the order of the DataLoader.
"""

import re
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

WIDTH = 16


def encoder():
    layer = nn.TransformerEncoderLayer(WIDTH, nhead=2, dim_feedforward=2 * WIDTH, batch_first=True)
    return nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)


class Embedding(nn.Module):
    """Tokens and their positions, [n, length] to [n, length, WIDTH]."""

    def __init__(self, tokens, longest):
        super().__init__()
        self.token = nn.Embedding(tokens, WIDTH)
        self.position = nn.Embedding(longest, WIDTH)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.token(tokens) + self.position(places.expand_as(tokens))


# A label for every sequence: which of the tokens 1 and 2 it has more of, or as many.

LONGEST, TOKENS, PAD = 12, 10, 0


class Sequences(Dataset):
    """Random sequences of 4 to LONGEST tokens, each always the same."""

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        length = int(torch.randint(4, LONGEST + 1, (), generator=generator))
        tokens = torch.full((LONGEST,), PAD)
        tokens[:length] = torch.randint(1, TOKENS, (length,), generator=generator)
        ones, twos = int((tokens == 1).sum()), int((tokens == 2).sum())
        label = 0 if ones > twos else 1 if twos > ones else 2
        return {"tokens": tokens, "padding": tokens == PAD}, label


class Classifier(nn.Module):
    """Maps {"tokens", "padding"}, both [n, LONGEST], to [n, 3]."""

    def __init__(self):
        super().__init__()
        self.embedding, self.encoder = Embedding(TOKENS, LONGEST), encoder()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, inputs):
        padding = inputs["padding"]
        hidden = self.encoder(self.embedding(inputs["tokens"]), src_key_padding_mask=padding)
        known = ~padding.unsqueeze(2)
        return self.head((hidden * known).sum(1) / known.sum(1))


def classifier():
    """One cross-entropy for each sequence: data as a Dataset of ({"tokens", "padding"}, label)."""
    return Classifier(), nn.CrossEntropyLoss(), Sequences()


# A label for every token: the next letter of a word of this file.

LETTERS, START, END, IGNORED = 27, 0, 0, -100
LONGEST_WORD = 10


class Words(Dataset):
    """The words of this file as numbers from 1 to 26; inputs lag one behind the targets."""

    def __init__(self):
        text = Path(__file__).read_text().lower()
        self.words = sorted(set(re.findall(rf"\b[a-z]{{2,{LONGEST_WORD}}}\b", text)))

    def __len__(self):
        return len(self.words)

    def __getitem__(self, index):
        letters = [ord(letter) - ord("a") + 1 for letter in self.words[index]]
        return torch.tensor([START, *letters]), torch.tensor([*letters, END])


def pad(items):
    """Tokens [n, longest] and labels [n, longest] of words of different lengths."""
    tokens, labels = zip(*items, strict=True)
    return (
        pad_sequence(tokens, batch_first=True),
        pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    )


class LanguageModel(nn.Module):
    """Maps tokens [n, length] to [n, LETTERS, length]; no token sees those after it."""

    def __init__(self):
        super().__init__()
        self.embedding, self.encoder = Embedding(LETTERS, LONGEST_WORD + 1), encoder()
        self.head = nn.Linear(WIDTH, LETTERS)

    def forward(self, tokens):
        length = tokens.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        return self.head(self.encoder(self.embedding(tokens), mask=later)).transpose(1, 2)


def language_model():
    """One cross-entropy for each letter, padding left out: data as a DataLoader that pads."""
    loader = DataLoader(Words(), batch_size=32, shuffle=True, collate_fn=pad)
    return LanguageModel(), nn.CrossEntropyLoss(ignore_index=IGNORED), loader
