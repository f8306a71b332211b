"""A problem: what every command works on."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
OwnData = Batch | Callable[[int, int], Batch]


@dataclass(frozen=True)
class Problem:
    """A model, its loss, and what belongs to them.

    Attributes:
        name: As given to `load_problem`, which rebuilds the problem from it, also in
            another process with the same working directory.
        model: On the CPU, float32, in evaluation mode. Maps [n, *input_shape] to
            [n, C] (cross-entropy) or [n, *target_shape] (MSE).
        loss: ``CrossEntropyLoss`` or ``MSELoss`` with mean reduction. No l2 term.
        num_params: D, number of trainable parameters.
        num_outputs: C, number of outputs per sample.
        input_shape: Of one input.
        default_batch_size: Of training (DeepOBS's setting; 128 or fewer for a user's).
        spectrum_batch_size: Default mini-batch of a spectrum.
        default_epochs: Of training (DeepOBS's setting); None for a user's.
        target_shape: Of one target: () for class indices.
        own_data: A user's data: all tensors, or a function of (n, seed).
    """

    name: str
    model: nn.Module
    loss: nn.Module
    num_params: int
    num_outputs: int
    input_shape: tuple[int, ...]
    default_batch_size: int
    spectrum_batch_size: int
    default_epochs: int | None
    target_shape: tuple[int, ...] = ()
    own_data: OwnData | None = None

    @property
    def is_classification(self) -> bool:
        """Whether targets are class indices (cross-entropy)."""
        return isinstance(self.loss, nn.CrossEntropyLoss)


def count_trainable(model: nn.Module) -> int:
    """D, the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
