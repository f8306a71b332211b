r"""Square roots S_n of the loss Hessian at the model output, H_n = S_n S_n^T.

Softmax cross-entropy has H_n = diag(p) - p p^T, of rank C - 1. The Householder
reflection that sends sqrt(p) to the last axis makes the last column of
diag(sqrt p) - p sqrt(p)^T vanish, so C - 1 columns carry the exact Hessian. MSE
(mean over the C entries of a sample's output) has H_n = 2/C I.

The output gradient lies in their range, r_n = S_n a_n, unless the true class's
probability underflows.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vivit_bench.curvature.options import Curvature
from vivit_bench.errors import UsageError


@dataclass(frozen=True)
class LossFactor(ABC):
    """One loss under one approximation of its Hessian.

    Every method takes the outputs and targets of some samples and computes in
    float64; only the columns return in the dtype of the outputs.
    """

    curvature: Curvature
    mc_samples: int

    @abstractmethod
    def num_columns(self, num_outputs: int) -> int:
        """Columns of S_n for a model with ``num_outputs`` outputs per sample."""

    @abstractmethod
    def noise(self, num_samples: int, num_outputs: int, seed: int) -> Tensor | None:
        """Random numbers of the Monte-Carlo columns, first axis: sample (None if exact).

        Drawn for all samples at once, so that the result does not depend on how the
        mini-batch is cut.
        """

    @abstractmethod
    def columns(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """S_n of each sample.

        Args:
            outputs: [n, ...] model outputs.
            noise: This slice of :meth:`noise`.

        Returns:
            [n, columns, ...] in the dtype of ``outputs``.
        """

    @abstractmethod
    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """r_n = grad_f l_n, [n, ...], the shape and dtype of ``outputs``."""

    @abstractmethod
    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """a_n with r_n = S_n a_n, [n, columns] in float64; None where there is none.

        There is none under Monte-Carlo curvature, and none that floating point can
        carry for some samples whose true class has a small probability.
        """

    @abstractmethod
    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise :class:`UsageError` if outputs [1, ...] or targets [N, ...] do not fit the loss."""


CANCELLATION = 1e-5
"""Largest rounding error in r_n = S_n a_n, relative to 1, with which a_n is used."""


class CrossEntropyFactor(LossFactor):
    """Softmax cross-entropy over the second axis of [n, C] outputs."""

    def num_columns(self, num_outputs: int) -> int:  # noqa: D102
        return num_outputs - 1 if self.curvature is Curvature.EXACT else self.mc_samples

    def noise(self, num_samples: int, num_outputs: int, seed: int) -> Tensor | None:  # noqa: D102
        if self.curvature is Curvature.EXACT:
            return None
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(num_samples, self.mc_samples, dtype=torch.float64, generator=generator)

    def columns(self, outputs: Tensor, noise: Tensor | None) -> Tensor:  # noqa: D102
        p = outputs.double().softmax(1)
        if noise is None:
            return self._exact(p).to(outputs.dtype)
        cumulative = p.cumsum(1).contiguous()
        # The last class takes what rounding leaves of the unit interval.
        labels = torch.searchsorted(cumulative, noise.to(p.device), right=True)
        labels = labels.clamp_(max=p.shape[1] - 1)
        columns = p.unsqueeze(1) - nn.functional.one_hot(labels, p.shape[1])
        return (columns / self.mc_samples**0.5).to(outputs.dtype)

    @staticmethod
    def _exact(p: Tensor) -> Tensor:
        """The C - 1 rotated columns, written so that no entry suffers cancellation."""
        root = p.sqrt()
        last = root[:, -1:, None]
        rest = _complement(p)
        columns = -p[:, None, :] / (1 + last) * root[:, :-1, None]
        diagonal = root[:, :-1] * (rest[:, :-1] + p[:, :-1] * last[:, 0] / (1 + last[:, 0]))
        columns[:, :, :-1].diagonal(dim1=1, dim2=2).copy_(diagonal)
        edge = p[:, -1:] + rest[:, -1:] * last[:, 0] / (1 + last[:, 0])
        columns[:, :, -1] = -root[:, :-1] * edge
        return columns

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        p = outputs.double().softmax(1)
        rows = torch.arange(len(p), device=p.device)
        residual = p.clone()
        residual[rows, targets] = -_complement(p)[rows, targets]
        return residual.to(outputs.dtype)

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor | None:  # noqa: D102
        if self.curvature is Curvature.MC:
            return None
        p = outputs.double().softmax(1)
        rows = torch.arange(len(p), device=p.device)
        # Products of two columns scaled by sqrt(p_y) must stay above the smallest
        # normal number of the columns' own precision.
        if (p[rows, targets] < torch.finfo(outputs.dtype).tiny * 1e6).any():
            return None
        root = p.sqrt()
        a = root.clone()
        a[rows, targets] = -_complement(p)[rows, targets] / root[rows, targets]
        # w = sqrt(p) + e_C and sqrt(p)^T a = 0, so w^T a is a's last entry.
        a = a[:, :-1] - root[:, :-1] * a[:, -1:] / (1 + root[:, -1:])
        # |r_n| is about 1. If the true class is the last one and unlikely while others
        # compete, r_n = S_n a_n is the small difference of large columns.
        largest = (root * _complement(p))[:, :-1] * a.abs()
        if (largest * torch.finfo(outputs.dtype).eps > CANCELLATION).any():
            return None
        return a

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:  # noqa: D102
        if outputs.ndim != 2:
            raise UsageError(
                f"CrossEntropyLoss needs outputs of shape [N, C], the model returns "
                f"{list(outputs.shape)}; flatten the other axes into N"
            )
        if targets.dtype not in (torch.int64, torch.int32, torch.uint8):
            raise UsageError(
                f"CrossEntropyLoss needs integer class labels, got targets of {targets.dtype}; "
                "convert them with targets.long()"
            )
        if targets.ndim != 1:
            raise UsageError(
                f"targets have shape {list(targets.shape)}; CrossEntropyLoss needs one label "
                "per sample, [N]"
            )
        if outputs.shape[1] < 2:
            raise UsageError("CrossEntropyLoss needs at least C = 2 outputs, the model has 1")
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= outputs.shape[1]:
            raise UsageError(
                f"labels lie in {low}..{high}, the model has C = {outputs.shape[1]} outputs; "
                f"labels must lie in 0..{outputs.shape[1] - 1}"
            )


def _complement(p: Tensor) -> Tensor:
    """1 - p_i as the sum of the others: exact even where p_i rounds to 1."""
    return p @ (1 - torch.eye(p.shape[1], dtype=p.dtype, device=p.device))


class MSEFactor(LossFactor):
    """Squared error, mean over all entries of [n, ...] outputs."""

    def num_columns(self, num_outputs: int) -> int:  # noqa: D102
        return num_outputs if self.curvature is Curvature.EXACT else self.mc_samples

    def noise(self, num_samples: int, num_outputs: int, seed: int) -> Tensor | None:  # noqa: D102
        if self.curvature is Curvature.EXACT:
            return None
        generator = torch.Generator().manual_seed(seed)
        shape = (num_samples, self.mc_samples, num_outputs)
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def columns(self, outputs: Tensor, noise: Tensor | None) -> Tensor:  # noqa: D102
        count = outputs[0].numel()
        if noise is None:
            eye = torch.eye(count, dtype=outputs.dtype, device=outputs.device)
            columns = (eye * (2 / count) ** 0.5).expand(len(outputs), -1, -1)
        else:
            columns = noise.to(outputs) * (2 / count / self.mc_samples) ** 0.5
        return columns.reshape(len(outputs), -1, *outputs.shape[1:])

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return (outputs - targets) * (2 / outputs[0].numel())

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor | None:  # noqa: D102
        if self.curvature is Curvature.MC:
            return None
        scale = (2 / outputs[0].numel()) ** 0.5
        return (outputs.double() - targets.double()).flatten(1) * scale

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:  # noqa: D102
        if not targets.is_floating_point():
            raise UsageError(
                f"MSELoss needs floating-point targets, got {targets.dtype}; "
                "convert them with targets.float()"
            )
        if targets.shape[1:] != outputs.shape[1:]:
            raise UsageError(
                f"targets of shape {list(targets.shape)} do not match outputs of shape "
                f"[N, {', '.join(map(str, outputs.shape[1:]))}]; MSELoss needs equal shapes"
            )


def loss_factor(loss: nn.Module, curvature: Curvature, mc_samples: int = 1) -> LossFactor:
    """The factorisation of a loss module's Hessian.

    Args:
        loss: ``CrossEntropyLoss`` or ``MSELoss`` with mean reduction, no class weights,
            no label smoothing.
        curvature: Exact or Monte-Carlo.
        mc_samples: Monte-Carlo samples per datum (only for ``mc``).

    Raises:
        UsageError: For any other loss or setting.
    """
    if mc_samples < 1:
        raise UsageError(f"mc_samples is {mc_samples}; it must be at least 1")
    if not isinstance(loss, nn.CrossEntropyLoss | nn.MSELoss):
        raise UsageError(
            f"loss {type(loss).__name__} is not supported; use CrossEntropyLoss or MSELoss"
        )
    if loss.reduction != "mean":
        raise UsageError(f"loss reduction is {loss.reduction!r}; use reduction='mean'")
    if isinstance(loss, nn.MSELoss):
        return MSEFactor(curvature, mc_samples)
    if loss.weight is not None or loss.label_smoothing:
        raise UsageError(
            "CrossEntropyLoss with class weights or label smoothing is not supported; "
            "use CrossEntropyLoss()"
        )
    return CrossEntropyFactor(curvature, mc_samples)
