"""Which columns of V are kept where those that cannot matter are left out.

G = V V^T is the sum of v v^T over V's columns. Without some of them it is G' = G - R with R
positive semidefinite, so that by Weyl lambda_k(G') <= lambda_k(G) <= lambda_k(G') + tr R for
every k, and block by block likewise. tr R, the sum of the dropped columns' squared norms, is
no estimate: every column is sent back once. What is saved is the contraction and the solver.

In a trained network most samples are confident, and their columns tiny.
"""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from vivit_bench.curvature.results import Dropped

LEAST_SHARE = 0.4
"""Share of the columns that is worth dropping: norms, smaller products and, with slopes, a pass
for the gradients take the time that fewer would save (mnist_2c2d, N = 128, one thread: with 54 %
dropped, eigenvalues take 0.69 and directional derivatives 0.88 of the CPU time)."""

MOST_GROUPS = 16
"""Samples are grouped by their number of kept columns; with more columns than this, a sample
keeps a few that it need not, so that there are no more groups."""


@dataclass(frozen=True, eq=False)
class Kept:
    """The columns that are kept, at least one so that there is something to check."""

    squares: Tensor
    """[N, c] float64, squared norms of all columns of V."""
    mask: Tensor
    """[N, c] booleans."""
    groups: tuple[tuple[Tensor, Tensor], ...]
    """Samples [n] with equally many kept columns, and which these are, [n, k]; every sample that
    keeps any is in one."""
    index: Tensor
    """[K] numbers of the kept columns in V, in the order of the groups: that of the Gram
    matrix's rows."""

    @property
    def samples(self) -> Tensor:
        """[K] sample of every row of the Gram matrix."""
        return self.index // self.mask.shape[1]

    @property
    def positions(self) -> Tensor:
        """[N, c] row of every column in the Gram matrix; 0 for the dropped ones."""
        found = torch.zeros_like(self.mask, dtype=torch.int64)
        found.view(-1)[self.index] = torch.arange(len(self.index), device=found.device)
        return found

    @property
    def dropped(self) -> Dropped:
        """What is missing."""
        left = self.squares[~self.mask]
        return Dropped(len(left), left.sum().item())


def choose_columns(squares: Tensor, trace: float) -> Kept | None:
    """Drop the columns of smallest norm, as many as have no more than a given trace together.

    None where that is not worth it.

    Args:
        squares: [N, c] float64, squared norms of V's columns.
        trace: Largest sum of the dropped columns' squared norms.
    """
    count, c = squares.numel(), squares.shape[1]
    ascending, order = squares.flatten().sort(stable=True)
    fewest = torch.ones(count, dtype=torch.int64, device=squares.device)
    num_small = min(int((ascending.cumsum(0) <= trace).sum()), count - 1)
    fewest[order[:num_small]] = 0
    step = ceil(c / MOST_GROUPS)
    counts = ((fewest.view(-1, c).sum(1) + step - 1) // step * step).clamp(max=c)
    # A sample's largest columns, which those above are but for ties.
    ranks = squares.argsort(1, descending=True).argsort(1)
    mask = ranks < counts[:, None]
    if int((~mask).sum()) <= LEAST_SHARE * count:
        return None
    groups = []
    for width in counts[counts > 0].unique().tolist():
        samples = (counts == width).nonzero()[:, 0]
        groups.append((samples, mask[samples].nonzero()[:, 1].view(-1, width)))
    index = torch.cat([(samples[:, None] * c + columns).flatten() for samples, columns in groups])
    return Kept(squares, mask, tuple(groups), index)
