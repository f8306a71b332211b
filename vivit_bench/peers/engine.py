"""The interface every implementation is measured through."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vivit_bench.curvature import Certificate
    from vivit_bench.curvature.options import Approximation
    from vivit_bench.trees import Tree

DAMPING = 1.0
CUTOFF = 1e-4
"""Newton steps as in Table S.1: damping 1 along directions with eigenvalues above 1e-4."""


class Quantity(StrEnum):
    """What is computed besides the gradient of the whole mini-batch."""

    GRADIENT = "gradient"
    """Nothing."""
    EIGENVALUES = "eigenvalues"
    """All non-trivial eigenvalues of the GGN."""
    BLOCK_NEWTON = "block-newton"
    """The damped Newton step of the per-layer block diagonal."""
    FULL_NEWTON = "full-newton"
    """The damped Newton step of the full GGN."""
    STEP = "step"
    """A training step of the user's own; no engine's."""


OF_ENGINES = frozenset(Quantity) - {Quantity.STEP}


LAPACKS_LARGEST: Mapping[Quantity, int] = MappingProxyType(
    {Quantity.BLOCK_NEWTON: 32_766, Quantity.FULL_NEWTON: 32_766}
)
"""Rows of the largest matrix whose eigenvectors LAPACK's syevd computes: its workspace of
2 n^2 + 6 n + 1 numbers is a 32-bit integer (https://github.com/pytorch/pytorch/issues/92141)."""


class Engine(Protocol):
    """One implementation."""

    name: str
    quantities: frozenset[Quantity]
    planned: frozenset[Quantity]
    """Those of them whose memory it plans."""
    largest_matrix: Mapping[Quantity, int]
    """Rows of the largest matrix that its solver takes, whatever the memory, where there is one."""

    def prepare(self, model: nn.Module, loss: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Convert model and loss once, outside of what is measured.

        Raises:
            UsageError: If the implementation cannot handle the model.
        """

    def run(
        self,
        quantity: Quantity,
        model: nn.Module,
        loss: nn.Module,
        inputs: Tree,
        targets: Tensor,
        approximation: Approximation,
        memory: int | None = None,
    ) -> dict[str, Tensor]:
        """Backpropagate the whole mini-batch's gradient (into ``.grad``) and compute.

        Args:
            quantity: One of ``quantities``.
            model: As ``prepare`` returned it.
            loss: As ``prepare`` returned it.
            inputs: Tensors [N, ...].
            targets: [N, ...].
            approximation: Of the GGN; engines draw differently from the same seed.
            memory: Bytes that it may take, for an implementation that can trade time for
                memory; it does its best, and no more.

        Returns:
            ``loss`` [], and ``eigenvalues`` [K] (descending) or ``step`` [D], the
            flattened parameters in the order of ``model.parameters()``.

        Raises:
            UsageError: If the implementation cannot compute it.
        """

    def certify(
        self,
        quantity: Quantity,
        model: nn.Module,
        loss: nn.Module,
        inputs: Tree,
        targets: Tensor,
        approximation: Approximation,
    ) -> Certificate | None:
        """Compute the same and check it by plain autograd.

        Args:
            quantity: As for `run`, as all others.
            model: As there.
            loss: As there.
            inputs: As there.
            targets: As there.
            approximation: As there.

        Returns:
            The certificate; None where the implementation has none.

        Raises:
            CertificateError: The check failed.
        """

    def planned_peak(
        self,
        quantity: Quantity,
        model: nn.Module,
        loss: nn.Module,
        inputs: Tree,
        targets: Tensor,
        approximation: Approximation,
    ) -> tuple[int, str]:
        """What `run` needs at the least beside the mini-batch; nothing is run.

        Args:
            quantity: One of ``planned``.
            model: As for `run`, as all others.
            loss: As there.
            inputs: As there.
            targets: As there.
            approximation: As there.

        Returns:
            Bytes, and at which part of the work they are held.

        Raises:
            UsageError: If the implementation cannot compute it.
        """

    def planned_costs(
        self,
        quantity: Quantity,
        model: nn.Module,
        loss: nn.Module,
        inputs: Tree,
        targets: Tensor,
        approximation: Approximation,
        memory: int,
    ) -> tuple[int, float]:
        """What `run` takes by its plan for a memory; a fraction of a second of it is run.

        Args:
            quantity: One of ``planned``.
            model: As for `run`, as all others.
            loss: As there.
            inputs: As there.
            targets: As there.
            approximation: As there.
            memory: As there.

        Returns:
            Bytes, and seconds.

        Raises:
            UsageError: If the implementation cannot compute it.
        """


class PlainEngine:
    """Implementations without a check and a plan of their own."""

    planned: frozenset[Quantity] = frozenset()
    largest_matrix: Mapping[Quantity, int] = MappingProxyType({})

    def planned_peak(self, *_: object, **__: object) -> tuple[int, str]:
        """Not to be asked."""
        raise NotImplementedError

    def planned_costs(self, *_: object, **__: object) -> tuple[int, float]:
        """Not to be asked."""
        raise NotImplementedError

    def certify(self, *_: object, **__: object) -> None:
        """Nothing is checked."""


def backpropagate_gradient(
    model: nn.Module, loss: nn.Module, inputs: Tree, targets: Tensor
) -> Tensor:
    """The standard gradient backpropagation that is always part of the work."""
    model.zero_grad(set_to_none=True)
    value: Tensor = loss(model(inputs), targets)
    value.backward()
    return value.detach()
