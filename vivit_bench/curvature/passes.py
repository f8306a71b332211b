"""Passes over the mini-batch. Each returns what it found; none leaves anything behind."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from vivit_bench.curvature.capture import Reading
from vivit_bench.curvature.factors import Direction, ExplicitFactor, Factor
from vivit_bench.curvature.minibatch import MiniBatch, blamed_on_model
from vivit_bench.curvature.plan import Plan, UnitPlan
from vivit_bench.curvature.route import Collected

ColumnsOf = Callable[[Tensor, slice], Tensor]
"""(model outputs, their samples) -> cotangents at the model output, [n, c, ...]."""


@dataclass(frozen=True)
class Sweep:
    """What one sweep over some of the samples returned."""

    factors: dict[UnitPlan, Factor]
    """Their share of V, or their gradients, unit by unit."""
    outputs: Tensor
    """[n, ...], detached."""
    gradient: Direction | None
    """The sum over these samples of grad l_n / N, where it came along at little cost."""


def curvature_columns(batch: MiniBatch) -> ColumnsOf:
    """S_n / sqrt(N) of any samples that carry the curvature (Equation 4)."""
    noise = batch.factor.noise()
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
    return _sweep(batch, plan, curvature_columns(batch), batch.num_samples, count, along)


def sweep_gradients(batch: MiniBatch, plan: Plan) -> Sweep:
    """Factors of the per-sample gradients grad l_n, and their mean."""

    def columns(outputs: Tensor, samples: slice) -> Tensor:
        return batch.factor.residual(outputs, samples).unsqueeze(1)

    return _sweep(batch, plan, columns, batch.batch_size, 1, True)


def _sweep(
    batch: MiniBatch,
    plan: Plan,
    columns_of: ColumnsOf,
    num_samples: int,
    columns: int,
    with_gradient: bool,
) -> Sweep:
    factors = {
        unit: unit.factor(plan.route, num_samples, columns, batch.working_bytes // 2)
        for unit in plan.units
    }
    kept: list[Tensor] = []
    gradient: Direction | None = {} if with_gradient else None
    for samples, slices in _pieces(batch, plan, num_samples, columns, per_sample=True):
        outputs = batch.forward(samples)
        kept.append(outputs.detach())
        reading = plan.route.read(batch, outputs)
        s = columns_of(kept[-1], samples)
        for part in slices:
            found = plan.route.backpropagate(outputs, reading, s[:, part])
            _put(plan, factors, samples, part, reading, found)
        del found, s
        if gradient is not None:
            _add_gradient(batch, gradient, outputs, samples)
    return Sweep(factors, torch.cat(kept), gradient)


def _put(
    plan: Plan,
    factors: dict[UnitPlan, Factor],
    samples: slice,
    columns: slice,
    reading: Reading,
    found: Collected,
) -> None:
    """Hand cotangents and gradients to the factors."""
    n = samples.stop - samples.start
    read = {
        number: plan.route.per_sample(number, reading.uses[number], cotangent, n)
        for number, cotangent in found.cotangents.items()
    }
    for unit, factor in factors.items():
        for position, number in enumerate(unit.uses):
            if number in read:
                factor.put(samples, columns, position, *read[number])
        for parameter in unit.plain:
            if parameter in found.gradients:
                assert isinstance(factor, ExplicitFactor)
                factor.put_plain(samples, columns, parameter, found.gradients[parameter])


def _pieces(
    batch: MiniBatch, plan: Plan, num_samples: int, columns: int, *, per_sample: bool
) -> Iterator[tuple[slice, list[slice]]]:
    """Cut samples, then columns, so that one backpropagation meets the memory target.

    Args:
        batch: The request.
        plan: How to compute it.
        num_samples: To cut.
        columns: Of each.
        per_sample: Samples are told apart, so that they only run together where it is known
            which rows belong to which.
    """
    itemsize = batch.parameters[0].element_size()
    sizes = [use.output.numel() for use in plan.route.uses]
    if plan.route.plain:
        sizes.append(plan.route.activations)
        sizes += [parameter.numel() for parameter in plan.route.plain if per_sample]
    # The forward pass keeps layer outputs, masks and indices. All layers' cotangents are
    # returned at once; a few more of the widest are alive on their way through
    # activations and pooling.
    kept = 2 * sum(sizes) * itemsize
    per_column = (sum(sizes) + 3 * max(sizes) or 1) * itemsize
    step = max(batch.working_bytes // (kept + columns * per_column), 1)
    if per_sample and plan.route.layouts is None:
        step = 1
    least = plan.route.min_samples if per_sample else 1
    pieces = max(ceil(num_samples / max(step, least)), 1)
    step = ceil(num_samples / pieces) or 1  # no small rest
    width = min(max((batch.working_bytes - kept) // per_column, 1), columns)
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
    outputs = [sweep.outputs]
    for samples in _micro_batches(batch, plan, first):
        missing = with_gradient and gradient is None
        found = batch.forward(samples, graph=missing)
        if missing:
            assert total is not None
            _add_gradient(batch, total, found, samples)
        if samples.stop > known:
            outputs.append(found.detach()[max(known - samples.start, 0) :])
    together = torch.cat(outputs)
    return Totals(batch.factor.value(together), together, total)


def pull(batch: MiniBatch, plan: Plan, weights: Tensor) -> list[Direction]:
    """V w for every column w of ``weights`` [M, R]: R backward passes of one forward.

    The cotangent at the model output is S_n w_n / sqrt(N).
    """
    columns_of, count = curvature_columns(batch), weights.shape[1]
    weights = weights.reshape(batch.num_samples, batch.factor.num_columns, count)
    sums: list[Direction] = [{} for _ in range(count)]
    for samples in _micro_batches(batch, plan, 0, batch.num_samples):
        outputs = batch.forward(samples)
        columns = columns_of(outputs.detach(), samples).double()
        columns = columns.reshape(*columns.shape[:2], -1)
        products = torch.einsum("ncf,ncr->rnf", columns, weights[samples])
        cotangents = products.to(outputs.dtype).view(count, *outputs.shape)
        for i, (total, cotangent) in enumerate(zip(sums, cotangents, strict=True)):
            add_pulled(batch, total, outputs, cotangent, keep_graph=i < count - 1)
    return sums


def _micro_batches(
    batch: MiniBatch, plan: Plan, start: int, stop: int | None = None
) -> Iterator[slice]:
    """Samples in micro-batches for ordinary passes, one column for each."""
    stop = batch.batch_size if stop is None else stop
    for samples, _ in _pieces(batch, plan, stop - start, 1, per_sample=False):
        yield slice(start + samples.start, start + samples.stop)


def _add_gradient(batch: MiniBatch, total: Direction, outputs: Tensor, samples: slice) -> None:
    """Add some samples' share of the gradient; frees the graph of ``outputs``."""
    residual = batch.factor.residual(outputs.detach(), samples) / batch.batch_size
    add_pulled(batch, total, outputs, residual, keep_graph=False)


def add_pulled(
    batch: MiniBatch, total: Direction, outputs: Tensor, cotangent: Tensor, *, keep_graph: bool
) -> None:
    """``total`` += the sum over the samples of J_n^T times their cotangents."""
    with blamed_on_model("the model's backward pass"):
        grads = torch.autograd.grad(
            outputs, batch.parameters, cotangent, retain_graph=keep_graph, allow_unused=True
        )
    for parameter, grad in zip(batch.parameters, grads, strict=True):
        if grad is None:
            total.setdefault(parameter, torch.zeros_like(parameter))
            continue
        grad = grad.to_dense() if grad.layout is not torch.strided else grad
        if parameter in total:
            total[parameter] += grad
        else:  # parameters may share one tensor as their gradient
            total[parameter] = grad.clone()
