"""Passes over the mini-batch. Each returns what it found; none leaves anything behind."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vivit_bench.curvature.capture import Reading
from vivit_bench.curvature.factors import Direction, ExplicitFactor, Factor, WholeFactor
from vivit_bench.curvature.grouped import keep_columns
from vivit_bench.curvature.kept import Kept, choose_columns
from vivit_bench.curvature.minibatch import MiniBatch, Together, blamed_on_model
from vivit_bench.curvature.plan import Piece, Plan, cut
from vivit_bench.curvature.route import Collected, Route

ColumnsOf = Callable[[Tensor, slice], Tensor]
"""(model outputs, their samples) -> cotangents at the model output, [n, c, ...]."""


class Sweep:
    """Columns of some of the samples, sent back in as many passes as the plan has.

    The first pass is run at once, another when the first of its pieces is asked for.

    Args:
        batch: The request.
        plan: How to compute it.
        columns_of: What is sent back.
        num_samples: The first ones.
        num_columns: Of each.
        with_gradient: Their gradients are added up as well.

    Attributes:
        outputs: [n, ...], detached.
        gradient: The sum over these samples of grad l_n / N; None unless it came along.
    """

    def __init__(
        self,
        batch: MiniBatch,
        plan: Plan,
        columns_of: ColumnsOf,
        num_samples: int,
        num_columns: int,
        with_gradient: bool,
    ) -> None:
        self._batch, self._plan, self._columns_of = batch, plan, columns_of
        self._shape = (num_samples, num_columns)
        self._left = iter(plan.passes)
        self._kept: Kept | None = None
        self.gradient: Direction | None = {} if with_gradient else None
        self._factors, self.outputs = self._collect(next(self._left, ()), self.gradient)

    def take(self, piece: Piece) -> Factor:
        """The factor of a piece, which is the caller's from now on."""
        if piece not in self._factors:
            assert not self._factors, "pieces are taken in the order of the passes"
            self._factors, _ = self._collect(next(self._left), None)
        factor = self._factors.pop(piece)
        return factor if self._kept is None else keep_columns(factor, self._kept)

    def drop(self, trace: float) -> Kept | None:
        """Leave out columns that have no more than this trace together; all passes were run."""
        assert len(self._plan.passes) == 1
        squares = [factor.squared_norms() for factor in self._factors.values()]
        self._kept = choose_columns(torch.stack(squares).sum(0), trace)
        return self._kept

    def _collect(
        self, pieces: Sequence[Piece], gradient: Direction | None
    ) -> tuple[dict[Piece, WholeFactor], Tensor]:
        """One pass: the pieces' factors, and the outputs."""
        batch, plan, route = self._batch, self._plan, self._plan.route
        num_samples, columns = self._shape
        factors = {
            piece: piece.factor(route, num_samples, columns, batch.working_bytes // 2)
            for piece in pieces
        }
        uses = sorted({number for piece in pieces for number in piece.unit.uses})
        plain = {p for piece in pieces for p in piece.unit.plain}
        together = Together(num_samples)
        cuts = _pieces(batch, plan, uses, num_samples, columns, per_sample=True)
        with batch.hastened():
            for samples, slices in cuts:
                outputs = batch.forward(samples, check=False)
                together.put(samples, outputs)
                reading = route.read(batch, outputs)
                s = self._columns_of(outputs.detach(), samples)
                for part in slices:
                    # Unnamed, so that the next part's cotangents do not come beside these.
                    put(
                        *(route, factors, samples, part, reading),
                        route.backpropagate(outputs, reading, s[:, part], uses, plain),
                    )
                del s
                if gradient is not None:
                    _add_gradient(batch, gradient, outputs, samples)
                del outputs, reading  # with the graph, before the next one
        batch.check_outputs(together.tensor, slice(0, num_samples))
        return factors, together.tensor


def curvature_columns(batch: MiniBatch) -> ColumnsOf:
    """S_n / sqrt(N) of any samples that carry the curvature (Equation 4)."""
    noise = batch.factor.noise()
    if noise is not None:
        noise = noise.to(batch.device)  # once, not for every micro-batch
    scale = batch.num_samples**-0.5

    def columns(outputs: Tensor, samples: slice) -> Tensor:
        part = None if noise is None else noise[samples]
        return batch.factor.columns(outputs, samples, part) * scale

    return columns


def sweep_curvature(batch: MiniBatch, plan: Plan, *, with_gradient: bool) -> Sweep:
    """Factors of V for all units.

    Args:
        batch: The request.
        plan: How to compute it.
        with_gradient: The gradient is wanted too. It comes along where a sample has one
            column: one backward pass more costs little beside few columns in large
            micro-batches, but as much as a pass of its own beside many in small ones.
    """
    count = batch.factor.num_columns
    along = with_gradient and count == 1
    return Sweep(batch, plan, curvature_columns(batch), batch.num_samples, count, along)


def sweep_gradients(batch: MiniBatch, plan: Plan) -> Sweep:
    """Factors of the per-sample gradients grad l_n, and their mean."""

    def columns(outputs: Tensor, samples: slice) -> Tensor:
        return batch.factor.residual(outputs, samples).unsqueeze(1)

    return Sweep(batch, plan, columns, batch.batch_size, 1, True)


def put(
    route: Route,
    factors: dict[Piece, WholeFactor],
    samples: slice,
    columns: slice,
    reading: Reading,
    found: Collected,
) -> None:
    """Hand cotangents and gradients to the factors."""
    n = samples.stop - samples.start
    read = {
        number: route.per_sample(number, reading.uses[number], cotangent, n)
        for number, cotangent in found.cotangents.items()
    }
    for piece, factor in factors.items():
        for position, number in enumerate(piece.unit.uses):
            if number in read:
                factor.put(samples, columns, position, *read[number])
            else:
                factor.leave_out(samples, columns)
        for parameter in piece.unit.plain:
            if parameter in found.gradients:
                assert isinstance(factor, ExplicitFactor)
                factor.put_plain(samples, columns, parameter, found.gradients[parameter])


def _pieces(
    batch: MiniBatch,
    plan: Plan,
    uses: Sequence[int] | None,
    num_samples: int,
    columns: int,
    *,
    per_sample: bool,
) -> Iterator[tuple[slice, list[slice]]]:
    """Cut samples, then columns, so that one backpropagation meets the memory target.

    Args:
        batch: The request.
        plan: How to compute it.
        uses: Whose cotangents are returned; None: all.
        num_samples: To cut.
        columns: Of each.
        per_sample: Samples are told apart, so that they only run together where it is known
            which rows belong to which.
    """
    step, width = cut(batch, plan.route, uses, num_samples, columns, per_sample)
    least = plan.route.min_samples if per_sample else 1
    slices = [slice(i, min(i + width, columns)) for i in range(0, columns, width)]
    start = 0
    while start < num_samples:
        stop = min(start + step, num_samples)
        if num_samples - stop < least:
            stop = num_samples
        yield slice(start, stop), slices
        start = stop


@dataclass(frozen=True)
class Totals:
    """What the whole mini-batch adds up to."""

    loss: float
    outputs: Tensor
    """[N, ...], of all samples."""
    gradient: Direction | None
    """grad L; None unless asked for."""


def complete(
    batch: MiniBatch, plan: Plan, sweep: Sweep, gradient: Direction | None, *, with_gradient: bool
) -> Totals:
    """Loss and gradient of the whole mini-batch; only samples that are missing are run.

    Args:
        batch: The request.
        plan: How to compute it.
        sweep: What is known.
        gradient: The whole gradient, if it is known from elsewhere.
        with_gradient: It is wanted.
    """
    known = len(sweep.outputs)
    total = gradient
    first = known
    if with_gradient and gradient is None:
        total = dict(sweep.gradient or {})
        first = known if sweep.gradient is not None else 0
    together = Together(batch.batch_size)
    together.put(slice(0, known), sweep.outputs)
    for samples in micro_batches(batch, plan, first):
        missing = with_gradient and gradient is None
        found = batch.forward(samples, graph=missing, check=False)
        if missing:
            assert total is not None
            _add_gradient(batch, total, found, samples)
        if samples.stop > known:
            new = slice(max(known, samples.start), samples.stop)
            together.put(new, found[new.start - samples.start :])
    batch.check_outputs(together.tensor, slice(0, batch.batch_size))
    return Totals(batch.factor.value(together.tensor), together.tensor, total)


def pull(
    batch: MiniBatch, plan: Plan, weights: Tensor, parameters: Sequence[nn.Parameter] | None = None
) -> list[Direction]:
    """V w for every column w of ``weights`` [M, R]: R backward passes of one forward.

    The cotangent at the model output is S_n w_n / sqrt(N).

    Args:
        batch: The request.
        plan: How to compute it.
        weights: [M, R].
        parameters: A block's, whose share of V is meant; None: all.
    """
    columns_of, count = curvature_columns(batch), weights.shape[1]
    weights = weights.reshape(batch.num_samples, batch.factor.num_columns, count)
    sums: list[Direction] = [{} for _ in range(count)]
    with batch.hastened():
        for samples in micro_batches(batch, plan, 0, batch.num_samples):
            outputs = batch.forward(samples, check=False)  # as they were checked before
            columns = columns_of(outputs.detach(), samples).double()
            columns = columns.reshape(*columns.shape[:2], -1)
            products = torch.einsum("ncf,ncr->rnf", columns, weights[samples])
            cotangents = products.to(outputs.dtype).view(count, *outputs.shape)
            for i, (total, cotangent) in enumerate(zip(sums, cotangents, strict=True)):
                last = i == count - 1
                add_pulled(batch, total, outputs, cotangent, keep_graph=not last, only=parameters)
    return sums


def micro_batches(
    batch: MiniBatch, plan: Plan, start: int, stop: int | None = None
) -> Iterator[slice]:
    """Samples in micro-batches for ordinary passes, one column for each."""
    stop = batch.batch_size if stop is None else stop
    for samples, _ in _pieces(batch, plan, None, stop - start, 1, per_sample=False):
        yield slice(start + samples.start, start + samples.stop)


def _add_gradient(batch: MiniBatch, total: Direction, outputs: Tensor, samples: slice) -> None:
    """Add some samples' share of the gradient; frees the graph of ``outputs``."""
    residual = batch.factor.residual(outputs.detach(), samples) / batch.batch_size
    with batch.hastened():
        add_pulled(batch, total, outputs, residual, keep_graph=False)


def add_pulled(
    batch: MiniBatch,
    total: Direction,
    outputs: Tensor,
    cotangent: Tensor,
    *,
    keep_graph: bool,
    only: Sequence[nn.Parameter] | None = None,
) -> None:
    """``total`` += the sum over the samples of J_n^T times their cotangents.

    Args:
        batch: The request.
        total: What is added to.
        outputs: Of the samples, with their graph.
        cotangent: Shaped like the outputs.
        keep_graph: It is used again.
        only: Parameters that count; None: all.
    """
    parameters = batch.parameters if only is None else list(only)
    grads: Sequence[Tensor | None] = [None] * len(parameters)
    if outputs.requires_grad:  # samples may use no parameter
        with blamed_on_model("the model's backward pass"):
            grads = torch.autograd.grad(
                outputs, parameters, cotangent, retain_graph=keep_graph, allow_unused=True
            )
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is None:
            total.setdefault(parameter, torch.zeros_like(parameter))
            continue
        grad = grad.to_dense() if grad.layout is not torch.strided else grad
        if parameter in total:
            total[parameter] += grad
        else:  # parameters may share one tensor as their gradient
            total[parameter] = grad.clone()
