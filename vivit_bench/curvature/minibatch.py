"""A checked request and the passes over its mini-batch that every quantity is made of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from vivit_bench.curvature.batched import batched_backward
from vivit_bench.curvature.capture import (
    LayerCall,
    backpropagate,
    own_parameters,
    parameter_uses,
    record_calls,
)
from vivit_bench.curvature.checks import check_request
from vivit_bench.curvature.expand import has_rule
from vivit_bench.curvature.factors import Direction, Factor
from vivit_bench.curvature.loss_factor import LossFactor, loss_factor
from vivit_bench.curvature.options import Curvature, Samples
from vivit_bench.curvature.plan import UnitPlan, plan_units
from vivit_bench.curvature.results import BatchInfo
from vivit_bench.errors import UsageError

WORKING_BYTES = 48 * 2**20
"""Default working-memory target of one micro-batch's backpropagation; a chunk of V
takes at most half of it."""


def _let_allocator_keep_memory() -> None:
    """Free one large block, unused.

    Then glibc keeps freed blocks up to that size for the next allocation. Otherwise every
    micro-batch gets its memory anew from the kernel, page by page.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


ColumnsOf = Callable[[Tensor, slice], Tensor]
"""(model outputs, their samples) -> cotangents at the model output."""


@dataclass
class _Piece:
    """A slice of samples and the slices its columns are sent back in."""

    samples: slice
    columns: list[slice]


class MiniBatch:
    """Model, loss, data and approximation of one request.

    Args:
        model: In evaluation mode.
        loss: ``CrossEntropyLoss`` or ``MSELoss``, mean reduction.
        inputs: [N, ...].
        targets: [N] labels, or [N, ...] like the outputs for MSE.
        curvature: Exact or Monte-Carlo loss Hessian.
        samples: Which samples carry the curvature.
        mc_samples: Monte-Carlo samples per datum.
        seed: Of the Monte-Carlo samples.
        working_bytes: Working-memory target in bytes.
        with_gradient: Also compute the gradient of the mean loss: from V where it lies in
            its span, else in the same forward passes where that saves time.

    Raises:
        UsageError: If the request cannot be computed; before any long computation.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        *,
        curvature: Curvature = Curvature.EXACT,
        samples: Samples = Samples.FULL,
        mc_samples: int = 1,
        seed: int = 0,
        working_bytes: int = WORKING_BYTES,
        with_gradient: bool = False,
    ):
        self.factor_of_loss: LossFactor = loss_factor(loss, Curvature(curvature), mc_samples)
        self.model, self.loss = model, loss
        self.inputs, self.targets = inputs, targets
        self.parameters = check_request(model, inputs, targets)
        self.batch_size = len(inputs)
        self.num_samples = Samples(samples).size(self.batch_size)
        self.seed, self.working_bytes = seed, working_bytes
        self.with_gradient = with_gradient
        if self.parameters[0].device.type == "cpu":
            _let_allocator_keep_memory()
        calls, outputs = self._probe()
        self.num_outputs = outputs[0].numel()
        self.columns_per_sample = self.factor_of_loss.num_columns(self.num_outputs)
        self.units = plan_units(calls, self.num_samples, self.columns_per_sample)
        self._calls = calls
        self._output_sizes = [call.output_shape.numel() for call in calls]
        self._loss_total, self._losses_known = 0.0, 0
        self._gradient: Direction = {}
        self._gradient_weights: Tensor | None = None
        self._gradients_known = 0

    @property
    def num_params(self) -> int:
        """D."""
        return sum(p.numel() for p in self.parameters)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.parameters[0].dtype

    def new_gram(self) -> Tensor:
        """A Gram matrix of zeros, [M, M], in the parameters' dtype and device."""
        return torch.zeros(self.rows, self.rows, dtype=self.dtype, device=self.parameters[0].device)

    @property
    def rows(self) -> int:
        """M, columns of V."""
        return self.num_samples * self.columns_per_sample

    def info(self, loss: float) -> BatchInfo:
        """The description that goes with every result."""
        return BatchInfo(
            num_params=self.num_params,
            batch_size=self.batch_size,
            num_samples=self.num_samples,
            num_outputs=self.num_outputs,
            num_columns=self.rows,
            loss=loss,
            solver_dtype="float64",
        )

    def _probe(self) -> tuple[list[LayerCall], Tensor]:
        """One sample forward and back: shapes, targets, and that no parameter is missed."""
        with torch.enable_grad(), record_calls(self.model) as calls:
            outputs = self.model(self.inputs[:1])
        if not isinstance(outputs, Tensor) or len(outputs) != 1:
            raise UsageError("the model must return one tensor with the sample axis first")
        self.factor_of_loss.check_targets(outputs.detach(), self.targets)
        for call in calls:
            call.check_unmodified()
        if not outputs.requires_grad:
            raise UsageError("the model's output does not depend on its trainable parameters")
        # A call may be a dead end, whose output never reaches the model's.
        edges = {i: call.edge for i, call in enumerate(calls) if call.edge is not None}
        grads = torch.autograd.grad(
            outputs,
            [get_gradient_edge(p) for p in self.parameters] + list(edges.values()),
            torch.ones_like(outputs),
            allow_unused=True,
        )
        reached = grads[len(self.parameters) :]
        self._reached = [i for i, g in zip(edges, reached, strict=True) if g is not None]
        owners: dict[nn.Parameter, list[LayerCall]] = {}
        for call in calls:
            for owned in own_parameters(call.module).values():
                owners.setdefault(owned, []).append(call)
        names = {p: name for name, p in self.model.named_parameters()}
        uses = parameter_uses(outputs)
        for parameter, grad in zip(self.parameters, grads, strict=False):
            if grad is not None and parameter not in owners:
                raise UsageError(
                    f"parameter {names[parameter]!r} is used without calling the module that "
                    "owns it; call that module in the forward pass"
                )
            users = owners.get(parameter, [])
            if uses[parameter] > len(users) and all(has_rule(c.module) for c in users):
                raise UsageError(
                    f"parameter {names[parameter]!r} is also used outside the module that "
                    "owns it; give that use a module of its own with the same parameter"
                )
        return calls, outputs

    def _pieces(self, num_samples: int, columns: int) -> Iterator[_Piece]:
        """Cut samples, then columns, so that one backpropagation meets the memory target."""
        itemsize = self.parameters[0].element_size()
        # The forward pass keeps layer outputs, masks and indices. All layers' cotangents are
        # returned at once; a few more of the widest are alive on their way through
        # activations and pooling.
        per_sample = 2 * sum(self._output_sizes) * itemsize
        per_column = (sum(self._output_sizes) + 3 * max(self._output_sizes)) * itemsize
        step = max(self.working_bytes // (per_sample + columns * per_column), 1)
        pieces = max(ceil(num_samples / step), 1)
        step = ceil(num_samples / pieces) or 1  # no small rest
        width = min(max((self.working_bytes - per_sample) // per_column, 1), columns)
        slices = [slice(i, min(i + width, columns)) for i in range(0, columns, width)]
        for start in range(0, num_samples, step):
            yield _Piece(slice(start, min(start + step, num_samples)), slices)

    def _forward(self, samples: slice) -> tuple[Tensor, list[LayerCall]]:
        with (
            torch.enable_grad(),
            batched_backward(self.model),
            record_calls(self.model) as calls,
        ):
            outputs = self.model(self.inputs[samples])
        for call in calls:
            call.check_unmodified()
            if call.output_shape[0] != samples.stop - samples.start:
                raise UsageError(
                    f"layer {call.name!r} returns {list(call.output_shape)} for "
                    f"{samples.stop - samples.start} samples; the sample axis must come first"
                )
        if [c.name for c in calls] != [c.name for c in self._calls]:
            raise UsageError("the model calls other layers for other samples; this is unsupported")
        if not outputs.isfinite().all():
            raise UsageError(
                f"model outputs of samples {samples.start}..{samples.stop - 1} are not finite; "
                "check the parameters and inputs for NaN or overflow"
            )
        return outputs, calls

    def collect(self) -> tuple[dict[UnitPlan, Factor], Tensor]:
        """Factors of V, scaled by 1/sqrt(N) (Equation 4), for all units.

        Returns:
            The factors, and the model outputs of the samples that carry the curvature.
        """
        factors, outputs = self._collect(self._columns(), self.num_samples, self.columns_per_sample)
        if self.with_gradient and self._gradients_known == 0 and len(outputs) == self.batch_size:
            coordinates = self.factor_of_loss.coordinates(outputs, self.targets)
            if coordinates is not None:
                scaled = coordinates.flatten() * self.batch_size**-0.5
                self._gradient_weights = scaled.to(self.dtype)
        return factors, outputs

    def _columns(self) -> ColumnsOf:
        """S_n / sqrt(N) of any samples, [n, columns, ...]."""
        noise = self.factor_of_loss.noise(self.num_samples, self.num_outputs, self.seed)
        scale = self.num_samples**-0.5

        def columns(outputs: Tensor, samples: slice) -> Tensor:
            part = None if noise is None else noise[samples]
            return self.factor_of_loss.columns(outputs, part) * scale

        return columns

    def collect_gradients(self) -> dict[UnitPlan, Factor]:
        """Factors of the per-sample gradients grad l_n of the whole mini-batch."""

        def columns(outputs: Tensor, samples: slice) -> Tensor:
            return self.factor_of_loss.residual(outputs, self.targets[samples]).unsqueeze(1)

        return self._collect(columns, self.batch_size, 1)[0]

    def _collect(
        self, columns_of: ColumnsOf, num_samples: int, columns: int
    ) -> tuple[dict[UnitPlan, Factor], Tensor]:
        factors = {
            unit: unit.factor(num_samples, columns, self._calls, self.working_bytes // 2)
            for unit in self.units
        }
        kept: list[Tensor] = []
        for piece in self._pieces(num_samples, columns):
            outputs, calls = self._forward(piece.samples)
            kept.append(outputs.detach())
            self._note_loss(kept[-1], piece.samples)
            s = columns_of(outputs.detach(), piece.samples)
            edges = [calls[i].edge for i in self._reached]
            for part in piece.columns:
                found = backpropagate(outputs, edges, s[:, part])  # type: ignore[arg-type]
                cotangents: list[Tensor | None] = [None] * len(calls)
                for i, cotangent in zip(self._reached, found, strict=True):
                    cotangents[i] = cotangent
                for unit, factor in factors.items():
                    factor.put(
                        piece.samples,
                        part,
                        [calls[i] for i in unit.calls],
                        [cotangents[i] for i in unit.calls],
                    )
            del found, cotangents
            # One backward pass more costs little beside few columns in large micro-batches,
            # but as much as a pass of its own beside many columns in small ones.
            if columns == 1 and self._lacks_gradient_of(piece.samples):
                self._add_gradient(outputs, piece.samples)
        return factors, torch.cat(kept)

    def backward(self, weights: Tensor) -> list[Direction]:
        """V w for every column w of ``weights`` [M, R]: R backward passes of one forward.

        The cotangent at the model output is S_n w_n / sqrt(N).
        """
        columns_of, count = self._columns(), weights.shape[1]
        weights = weights.reshape(self.num_samples, self.columns_per_sample, count)
        sums: list[Direction] = [{} for _ in range(count)]
        for samples in self._slices(self.num_samples):
            outputs = self._outputs(samples)
            columns = columns_of(outputs.detach(), samples).flatten(2).double()
            products = torch.einsum("ncf,ncr->rnf", columns, weights[samples])
            cotangents = products.to(outputs.dtype).view(count, *outputs.shape)
            with_gradient = self._lacks_gradient_of(samples)
            for i, (total, cotangent) in enumerate(zip(sums, cotangents, strict=True)):
                last = i == count - 1 and not with_gradient
                self._add_pulled(total, outputs, cotangent, keep_graph=not last)
            if with_gradient:
                self._add_gradient(outputs, samples)
        return sums

    def gradient(self) -> Direction:
        """Gradient of the mean loss over the whole mini-batch.

        Samples whose gradients an earlier pass has added are not run again.
        """
        known = self._gradients_known
        for rest in self._slices(self.batch_size - known):
            samples = slice(known + rest.start, known + rest.stop)
            outputs = self._outputs(samples)
            self._note_loss(outputs.detach(), samples)
            self._add_gradient(outputs, samples)
        return self._gradient

    def add_gradient_of(self, factor: Factor) -> None:
        """Take a unit's share of the gradient from its share of V, if that is possible.

        With exact curvature of the whole mini-batch grad L = V a / sqrt(N): one weight
        gradient for each layer, and no pass over the network.
        """
        if self._gradient_weights is not None:
            self._gradient |= factor.combine(self._gradient_weights)
            self._gradients_known = self.batch_size

    def requested_gradient(self) -> list[Tensor] | None:
        """The gradient in parameter order, if ``with_gradient`` asked for it."""
        if not self.with_gradient:
            return None
        gradient = self.gradient()
        return [gradient[p] if p in gradient else torch.zeros_like(p) for p in self.parameters]

    def _lacks_gradient_of(self, samples: slice) -> bool:
        """Whether these samples are the next whose gradients are to be added."""
        return self.with_gradient and samples.start == self._gradients_known

    def _add_gradient(self, outputs: Tensor, samples: slice) -> None:
        """Add some samples' share of the gradient; frees the graph of ``outputs``."""
        residual = self.factor_of_loss.residual(outputs.detach(), self.targets[samples])
        self._add_pulled(self._gradient, outputs, residual / self.batch_size, keep_graph=False)
        self._gradients_known = samples.stop

    def _add_pulled(
        self, total: Direction, outputs: Tensor, cotangent: Tensor, *, keep_graph: bool
    ) -> None:
        """``total`` += the sum over the samples of J_n^T times their cotangents."""
        grads = torch.autograd.grad(
            outputs, self.parameters, cotangent, retain_graph=keep_graph, allow_unused=True
        )
        for parameter, grad in zip(self.parameters, grads, strict=True):
            if grad is None:
                total.setdefault(parameter, torch.zeros_like(parameter))
            elif parameter in total:
                total[parameter] += grad
            else:  # parameters may share one tensor as their gradient
                total[parameter] = grad.clone()

    def _slices(self, num_samples: int) -> Iterator[slice]:
        """Samples in micro-batches for ordinary passes, one column for each."""
        for piece in self._pieces(num_samples, 1):
            yield piece.samples

    def _outputs(self, samples: slice) -> Tensor:
        """Model outputs of some samples with their graph."""
        with torch.enable_grad(), batched_backward(self.model):
            outputs: Tensor = self.model(self.inputs[samples])
        return outputs

    def mean_loss(self) -> float:
        """Mean loss over the mini-batch; samples that no pass has seen yet are run forward."""
        while self._losses_known < self.batch_size:
            known = self._losses_known
            samples = slice(known, known + next(self._slices(self.batch_size - known)).stop)
            with torch.no_grad():
                self._note_loss(self.model(self.inputs[samples]), samples)
        return self._loss_total / self.batch_size

    def _note_loss(self, outputs: Tensor, samples: slice) -> None:
        """Add samples' losses, in float64, unless an earlier pass has seen them."""
        new = max(self._losses_known - samples.start, 0)
        if samples.start + new < samples.stop:
            targets = self.targets[samples][new:]
            targets = targets.double() if targets.is_floating_point() else targets.long()
            loss = self.loss(outputs[new:].double(), targets).item()
            self._loss_total += loss * len(targets)
            self._losses_known = samples.stop
