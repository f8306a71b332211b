"""The cells of the paper's Table S.1."""

from dataclasses import dataclass

from vivit_bench.peers import Quantity

PROBLEMS = ("cifar10_3c3d", "fmnist_2c2d", "cifar100_allcnnc")
"""In the paper's order."""


@dataclass(frozen=True)
class SubTable:
    """One of the tables S.1a to S.1d."""

    letter: str
    quantity: Quantity
    device: str
    """``cpu`` or ``cuda``."""

    @property
    def title(self) -> str:
        """What the table shows."""
        return f"Table S.1{self.letter}: critical batch sizes, {self.quantity}, {self.device}"


SUB_TABLES = {
    table.letter: table
    for table in (
        SubTable("a", Quantity.EIGENVALUES, "cpu"),
        SubTable("b", Quantity.BLOCK_NEWTON, "cpu"),
        SubTable("c", Quantity.FULL_NEWTON, "cpu"),
        SubTable("d", Quantity.FULL_NEWTON, "cuda"),
    )
}

DEFAULT_TABLES = ("a", "b", "c")
"""Of a sweep; the one of CUDA takes a card for hours, and is made where it is asked for."""
