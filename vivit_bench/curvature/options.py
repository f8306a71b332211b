"""The approximations of the GGN that every quantity is offered under."""

from enum import StrEnum


class Curvature(StrEnum):
    """How the loss Hessian at the model output is factorised, H_n = S_n S_n^T."""

    EXACT = "exact"
    """All columns of the exact square root: C - 1 (cross-entropy) or C (MSE)."""
    MC = "mc"
    """``mc_samples`` gradients under labels drawn from the model's prediction."""


class Samples(StrEnum):
    """Which samples of the mini-batch carry the curvature."""

    FULL = "full"
    """All of them."""
    FRAC = "frac"
    """The first max(N // 8, 1); the gradient always uses the whole mini-batch."""

    def size(self, batch_size: int) -> int:
        """Number of samples that carry the curvature of a mini-batch of ``batch_size``."""
        return batch_size if self is Samples.FULL else max(batch_size // 8, 1)


class Blocks(StrEnum):
    """The block structure of the GGN."""

    NONE = "none"
    """One block: the full GGN."""
    LAYER = "layer"
    """One block per layer, weight and bias together (appendix C.2)."""


VARIANTS: tuple[tuple[Curvature, Samples], ...] = (
    (Curvature.EXACT, Samples.FULL),
    (Curvature.EXACT, Samples.FRAC),
    (Curvature.MC, Samples.FULL),
    (Curvature.MC, Samples.FRAC),
)
"""The paper's four approximations, in the order of its tables and figures."""
