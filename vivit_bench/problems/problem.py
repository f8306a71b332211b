"""A problem: what every command works on."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from vivit_bench.problems.batch import Shape, TreeShape
from vivit_bench.problems.own_data import OwnData


@dataclass(frozen=True)
class Problem:
    """A model, its loss, and what belongs to them.

    Attributes:
        name: As given to `load_problem`, which rebuilds the problem from it, also in
            another process with the same working directory.
        model: On the CPU, float32, in evaluation mode. Maps inputs, as one argument, to
            [n, *output_shape].
        loss: As the engine's ``check_loss`` accepts it. No l2 term.
        num_params: D, number of trainable parameters.
        input_shape: Of one sample: a tensor's, or by place those of a tree. Padded data of a
            user's may have other shapes in other batches; this is the first's. So for the
            outputs and targets.
        output_shape: Of one sample's output.
        default_batch_size: Of training (DeepOBS's setting; 128 or fewer for a user's).
        spectrum_batch_size: Default mini-batch of a spectrum.
        default_epochs: Of training (DeepOBS's setting); None for a user's.
        target_shape: Of one target: () for one label.
        target_dtype: int64 for labels, else float32.
        float_inputs: Whether inputs are one floating-point tensor, so that synthetic ones can
            be drawn.
        own_data: A user's data.
    """

    name: str
    model: nn.Module
    loss: nn.Module
    num_params: int
    input_shape: TreeShape
    output_shape: Shape
    default_batch_size: int
    spectrum_batch_size: int
    default_epochs: int | None
    target_shape: Shape = ()
    target_dtype: torch.dtype = torch.int64
    float_inputs: bool = True
    own_data: OwnData | None = None

    @property
    def num_outputs(self) -> int:
        """C, number of entries of a sample's output."""
        return math.prod(self.output_shape)

    @property
    def is_classification(self) -> bool:
        """Whether targets are labels (cross-entropy), not class probabilities or numbers."""
        labels = not self.target_dtype.is_floating_point
        return isinstance(self.loss, nn.CrossEntropyLoss) and labels


def count_trainable(model: nn.Module) -> int:
    """D, the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
