"""Factors of the kept columns of V alone (see ``kept``)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vivit_bench.curvature.factors import (
    AffineFactor,
    Contraction,
    Direction,
    ExplicitFactor,
    Factor,
    WholeFactor,
)
from vivit_bench.curvature.kept import Kept


def keep_columns(factor: WholeFactor, kept: Kept) -> Factor:
    """A factor without its dropped columns, rows in the order of ``kept.index``.

    An explicit V is cut in place, to [K, 1, D_part].
    """
    if isinstance(factor, ExplicitFactor):
        factor.v = factor.v.flatten(0, 1)[kept.index].unsqueeze(1)
        factor.num_samples, factor.num_columns = len(kept.index), 1
        return factor
    assert isinstance(factor, AffineFactor)
    return GroupedFactor([factor.select(samples, columns) for samples, columns in kept.groups])


class GroupedFactor(Factor):
    """Factors of one unit for groups of samples with different numbers of columns.

    A sample's input is there once, whatever it keeps, and products stay as large as the group
    makes them; copying the input for every kept column would be simpler and slower.

    Args:
        parts: Filled ones, which share unit and contraction; their rows follow one another.
    """

    def __init__(self, parts: Sequence[AffineFactor]) -> None:
        self._parts = list(parts)
        rows = sum(part.rows for part in parts)
        super().__init__(parts[0].parameters, rows, 1)
        ends = torch.tensor([part.rows for part in parts]).cumsum(0).tolist()
        self._slices = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    @property
    def chunk_width(self) -> int:  # noqa: D102
        one = sum(part.channel_bytes for part in self._parts)
        return max(self._parts[0].chunk_bytes // one, 1)

    def chunks(self, width: int | None = None) -> Iterator[Tensor]:  # noqa: D102
        width = width or self.chunk_width
        for pieces in zip(*(part.chunks(width) for part in self._parts), strict=True):
            yield torch.cat(pieces)

    def add_gram(self, gram: Tensor) -> None:  # noqa: D102
        if self._parts[0].contraction is Contraction.CHUNKS:
            super().add_gram(gram)
            return
        for number, (part, rows) in enumerate(zip(self._parts, self._slices, strict=True)):
            part.add_gram(gram[rows, rows])
            for other, columns in zip(self._parts[:number], self._slices, strict=False):
                part.add_block(other, gram[rows, columns])

    def add_cross(self, other: Factor, out: Tensor) -> None:  # noqa: D102
        if self._parts[0].contraction is not Contraction.GRAM_PRODUCT:
            super().add_cross(other, out)
            return
        for part, rows in zip(self._parts, self._slices, strict=True):
            part.add_cross(other, out[rows])

    def dot(self, direction: Direction) -> Tensor:  # noqa: D102
        return torch.cat([part.dot(direction) for part in self._parts])

    def combine(self, weights: Tensor, samples: Sequence[int] | None = None) -> Direction:  # noqa: D102
        assert samples is None
        found = [
            part.combine(weights[rows])
            for part, rows in zip(self._parts, self._slices, strict=True)
        ]
        return {p: torch.stack([share[p] for share in found]).sum(0) for p in self.parameters}
