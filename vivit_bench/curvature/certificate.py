"""The proof that goes with a result: plain autograd (see ``Certificate``).

For weights w_n over a sample's columns, v_n = J_n^T S_n w_n / sqrt(N) is one backward pass of
that sample alone, through the model and the loss just as they are: no hook, no batching, no
rule of this package. With w_n as a vector over all columns, w_n' Gt w_m = v_n . v_m, layer by
layer; V^T g, steps and eigenvectors are compared with the same vectors. In parameter space
(the D x D matrix) v_n itself is compared with w_n' V.

So it is done for some samples alone, and for V u of all samples together with random weights u,
an ordinary backward pass of the whole mini-batch: u' Gt u = |V u|^2, and so on. It depends on
every column, and on which sample each belongs to.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from vivit_bench.curvature.checks import Checks, Watch
from vivit_bench.curvature.factors import Direction, ExplicitFactor, Factor
from vivit_bench.curvature.kept import Kept
from vivit_bench.curvature.kernels import times_lower
from vivit_bench.curvature.layout import deviation
from vivit_bench.curvature.minibatch import MiniBatch, Together, blamed_on_model
from vivit_bench.curvature.passes import (
    Sweep,
    Totals,
    add_pulled,
    curvature_columns,
    micro_batches,
)
from vivit_bench.curvature.plan import Plan
from vivit_bench.curvature.results import Certificate
from vivit_bench.curvature.route import disagreement
from vivit_bench.curvature.units import BlockPlan, UnitPlan
from vivit_bench.errors import CertificateError, UsageError

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest deviation, relative to |v_n| |v_m| (of what is compared with these vectors), or to
the largest entry (outputs, loss)."""

ROUNDING = 1e-4
"""Share of |x| |y| below which an inner product x . y is rounding: where a sample's columns are
zero, products with them are not."""

COMPANY = 16
"""Samples that run in one forward pass with the drawn ones, where not all are drawn."""

Certify = bool | Literal["all"]
"""Whether to check a result on two samples, or on all of them."""


class LayersDisagree(Exception):  # noqa: N818
    """Layers whose rule failed the check; they are computed by plain autograd instead."""

    def __init__(self, parameters: frozenset[nn.Parameter], notes: Sequence[str]) -> None:
        super().__init__()
        self.parameters = parameters
        self.notes = notes


@dataclass
class _Block:
    """What is compared for the block in hand."""

    forms: Tensor
    """[k, k] of the Gram matrix so far, of the drawn samples."""
    watch: Watch | None = None
    failed: dict[UnitPlan, float] = field(default_factory=dict)


class Certifier(Checks):
    """Vectors of the drawn samples by plain autograd, and every comparison with them.

    Args:
        batch: The request.
        plan: How it is computed.
        sweep: Of the samples that carry the curvature.
        samples: Two of them, or all.
        everything: The whole mini-batch is their company.
        notes: What earlier attempts found.

    Raises:
        CertificateError: A sample's output is another one alone, or beside another sample.
    """

    active = True

    def __init__(
        self,
        batch: MiniBatch,
        plan: Plan,
        sweep: Sweep,
        samples: Sequence[int],
        everything: bool,
        notes: Sequence[str],
    ) -> None:
        self._seconds = 0.0
        self._batch, self._samples, self._notes = batch, list(samples), tuple(notes)
        self._tolerance = TOLERANCE[batch.dtype]
        self._errors: dict[str, float] = {}
        self._columns = batch.factor.num_columns
        generator = torch.Generator().manual_seed(batch.approximation.seed + 1)
        shape = (len(self._samples), self._columns)
        self._weights = torch.randn(shape, generator=generator, dtype=torch.float64).to(
            batch.device
        )
        columns = torch.arange(self._columns, device=batch.device)
        self._rows = torch.tensor(self._samples, device=batch.device)[:, None] * self._columns
        self._rows = self._rows + columns
        """[k, c] rows of the Gram matrix that are these samples' columns."""
        if batch.kept is not None:  # dropped columns have no row, and no weight
            self._weights *= batch.kept.mask[self._samples]
            self._rows = batch.kept.positions[self._samples]
        self._everything, self._plan = everything, plan
        self._company = self._find_company(plan)
        """Samples that run together with the drawn ones, to see whether they are coupled."""
        with self._timed():
            alone = self._run_alone(sweep)
            self._find_vectors(sweep, alone)
            self._check_company(alone)
            self._find_whole(sweep)
            self._find_gradients(sweep, alone)
            if batch.kept is not None:
                self._check_dropped(sweep, batch.kept)
        self._block = self._new_block()

    def _find_company(self, plan: Plan) -> list[int]:
        """The drawn samples among the first ones of the mini-batch, or all of it."""
        batch, drawn = self._batch, set(self._samples)
        if self._everything:
            return list(range(batch.batch_size))
        bytes_each = 2 * plan.route.activations * batch.dtype.itemsize
        size = min(max(4 * batch.working_bytes // max(bytes_each, 1), len(drawn) + 1), COMPANY)
        others = [n for n in range(batch.batch_size) if n not in drawn]
        return sorted([*drawn, *others[: size - len(drawn)]])

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - start

    def _run_alone(self, sweep: Sweep) -> list[Tensor]:
        """Outputs of the drawn samples with their graphs, [1, ...] each: as in the passes."""
        batch = self._batch
        alone = []
        for n in self._samples:
            outputs = batch.plain_forward([n])
            self._compare_outputs(n, outputs, sweep.outputs[n : n + 1])
            alone.append(outputs)
        return alone

    def _check_company(self, alone: Sequence[Tensor]) -> None:
        """The drawn samples in one pass with others: the same outputs, and the same v_n."""
        batch = self._batch
        together = batch.plain_forward(self._company)
        if len(together) != len(self._company):
            raise UsageError("the model's output must have the sample axis first")
        cotangents = torch.zeros_like(together)
        for n, outputs, cotangent in zip(self._samples, alone, self._cotangents, strict=True):
            position = self._company.index(n)
            self._compare_outputs(n, outputs, together[position : position + 1].detach())
            cotangents[position] = cotangent[0]
        if self._everything:  # also those that carry no curvature
            for position in range(batch.num_samples, batch.batch_size):
                alone_too = batch.plain_forward([position], graph=False)
                beside = together[position : position + 1].detach()
                self._compare_outputs(position, alone_too, beside)
        found: Direction = {}
        add_pulled(batch, found, together, cotangents, keep_graph=False)
        difference = _norm(
            found[p] - torch.stack([v[p] for v in self._vectors]).sum(0) for p in batch.parameters
        )
        error = difference / (self._scale.sum().item() or 1.0)
        if not error <= self._tolerance:
            raise CertificateError(
                "the model couples its samples in the backward pass: derivatives of samples "
                f"{self._samples[:2]} alone and in company differ by {error:.1e}; call "
                "model.eval(), and let every sample be differentiated alone (no hook, detach or "
                "scaling that depends on the others)"
            )
        self._note("company", error)
        self._together = together.detach()

    def _find_vectors(self, sweep: Sweep, alone: Sequence[Tensor]) -> None:
        """v_n, their inner products parameter by parameter, and their lengths."""
        batch = self._batch
        noise = batch.factor.noise()
        self._vectors: list[Direction] = []
        self._cotangents: list[Tensor] = []
        scales = []
        for weights, n, outputs in zip(self._weights, self._samples, alone, strict=True):
            drawn = None if noise is None else noise[n : n + 1]
            columns = batch.factor.columns(sweep.outputs[n : n + 1], slice(n, n + 1), drawn)
            cotangent = torch.einsum("c,c...->...", weights, columns[0].double())
            cotangent = (cotangent * batch.num_samples**-0.5).to(outputs.dtype).unsqueeze(0)
            vector: Direction = {}
            add_pulled(batch, vector, outputs, cotangent, keep_graph=True)
            self._vectors.append(vector)
            self._cotangents.append(cotangent)
            scales.append(max(_norm(vector.values()), self._least_scale(cotangent, outputs)))
        self._scale = torch.tensor(scales, dtype=torch.float64)

    def _find_whole(self, sweep: Sweep) -> None:
        """V u of all samples with random u, as the last of the vectors; their inner products."""
        batch = self._batch
        self._whole_weights = self._random(batch.num_samples, self._columns)
        if batch.kept is not None:
            self._whole_weights *= batch.kept.mask
        columns_of = curvature_columns(batch)

        def cotangents(outputs: Tensor, samples: slice) -> Tensor:
            # Of the outputs in the passes: from others, other labels may be drawn.
            columns = columns_of(sweep.outputs[samples], samples).double()
            return torch.einsum("nc,nc...->n...", self._whole_weights[samples], columns)

        whole, outputs, least = self._pull(cotangents, batch.num_samples)
        self._note("outputs", deviation(outputs, sweep.outputs))
        # Where terms cancel, what they add up to is as exact as they are large.
        typical = (batch.num_samples * self._scale.square().mean()).sqrt().item()
        self._vectors.append(whole)
        scale = torch.tensor([max(_norm(whole.values()), typical, least)], dtype=torch.float64)
        self._scale = torch.cat([self._scale, scale])
        self._products = {p: self._inner(self._vectors, p) for p in batch.parameters}

    def _random(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._batch.approximation.seed + 3)
        weights = torch.randn(shape, generator=generator, dtype=torch.float64)
        return weights.to(self._batch.device)

    def _pull(
        self, cotangents: Callable[[Tensor, slice], Tensor], count: int
    ) -> tuple[Direction, Tensor, float]:
        """Sum of J_n^T times a cotangent over the first samples, by the model just as it is.

        Samples run beside others than in the passes, to see whether they are coupled.

        Returns:
            It, the outputs, and what is rounding of it.
        """
        batch = self._batch
        total: Direction = {}
        seen, sizes = Together(count), Together(count)
        passes = micro_batches(batch, self._plan, 0, count)
        for samples in (part for whole in passes for part in _cut_unlike(whole)):
            outputs = batch.plain_forward(samples, check=False)  # a GPU is not waited for
            seen.put(samples, outputs)
            cotangent = cotangents(outputs.detach(), samples).to(outputs.dtype)
            add_pulled(batch, total, outputs, cotangent, keep_graph=False)
            lengths = [x.reshape(len(x), -1).norm(dim=1) for x in (cotangent, outputs.detach())]
            sizes.put(samples, lengths[0].double() * lengths[1])
        batch.check_outputs(seen.tensor, slice(0, count))
        return total, seen.tensor, self._rounding * sizes.tensor.norm().item()

    def _find_gradients(self, sweep: Sweep, alone: Sequence[Tensor]) -> None:
        """Products of v_n with grad l_m, parameter by parameter, and the mean of grad l_m."""
        batch = self._batch
        self._mean: Direction = {}
        self._gradient_norms: list[float] = []
        slopes, least = [], 0.0
        for n, outputs in zip(self._samples, alone, strict=True):
            residual = batch.factor.residual(sweep.outputs[n : n + 1], slice(n, n + 1))
            gradient: Direction = {}
            add_pulled(batch, gradient, outputs, residual, keep_graph=False)
            slopes.append(
                {p: self._inner(self._vectors, p, [gradient])[:, 0] for p in batch.parameters}
            )
            self._gradient_norms.append(_norm(gradient.values()))
            least = max(least, self._least_scale(residual, outputs))
            for p, g in gradient.items():
                self._mean[p] = self._mean.get(p, 0) + g / batch.batch_size
        self._slopes = {p: torch.stack([s[p] for s in slopes], 1) for p in batch.parameters}
        self._gradient_scale = max(_norm(self._mean.values()), least / batch.batch_size)

    def _check_dropped(self, sweep: Sweep, kept: Kept) -> None:
        """Squared norm of some samples' largest dropped column: of two, or of all."""
        batch, noise = self._batch, self._batch.factor.noise()
        squares = kept.squares.masked_fill(kept.mask, -1)
        samples = (~kept.mask).any(1).nonzero()[:, 0].tolist()
        if not self._everything:
            generator = torch.Generator().manual_seed(batch.approximation.seed)
            order = torch.randperm(len(samples), generator=generator)[:2].tolist()
            samples = [samples[i] for i in order]
        for n in samples:
            column = int(squares[n].argmax())
            outputs = batch.plain_forward([n])
            drawn = None if noise is None else noise[n : n + 1]
            s = batch.factor.columns(sweep.outputs[n : n + 1], slice(n, n + 1), drawn)
            cotangent = s[:, column] * batch.num_samples**-0.5
            vector: Direction = {}
            add_pulled(batch, vector, outputs, cotangent, keep_graph=False)
            expected = torch.tensor(_norm(vector.values()), dtype=torch.float64)
            least = self._least_scale(cotangent, outputs)
            scale = expected.clamp(min=least).square()
            found = squares[n, column].cpu()
            self._compare("dropped columns", found, expected.square(), scale)

    def _least_scale(self, cotangent: Tensor, outputs: Tensor) -> float:
        """What J^T s is rounding below, where its terms cancel: |s| |f| / |theta| is their size."""
        return self._rounding * _norm([cotangent]) * _norm([outputs.detach()])

    @cached_property
    def _rounding(self) -> float:
        rounding = torch.finfo(self._batch.dtype).eps / self._tolerance
        return 30 * rounding / (_norm(self._batch.parameters) or 1.0)

    def _compare_outputs(self, n: int, alone: Tensor, together: Tensor) -> None:
        line = disagreement(self._batch, n, alone, together, self._tolerance)
        if line:
            raise CertificateError(line)
        scale = alone.detach().abs().max().item() or 1.0
        self._note("outputs", (alone.detach() - together).abs().max().item() / scale)

    def _inner(
        self,
        left: Sequence[Direction],
        parameter: nn.Parameter,
        right: Sequence[Direction] | None = None,
    ) -> Tensor:
        """Inner products of one parameter's parts, [k, l] float64."""
        a = [v[parameter].flatten() for v in left]
        b = a if right is None else [v[parameter].flatten() for v in right]
        return torch.tensor([[torch.dot(x, y).item() for y in b] for x in a], dtype=torch.float64)

    def _note(self, what: str, error: float) -> None:
        """Keep the largest error of each kind."""
        error = math.inf if math.isnan(error) else error
        self._errors[what] = max(self._errors.get(what, 0.0), error)

    def _compare(self, what: str, found: Tensor, expected: Tensor, scale: Tensor) -> float:
        error = _relative(found, expected, scale, self._batch.dtype)
        self._note(what, error)
        return error

    def _new_block(self) -> _Block:
        k = len(self._samples)
        return _Block(torch.zeros(k, k, dtype=torch.float64))

    def unit(self, unit: UnitPlan, factor: Factor, matrix: Tensor | None) -> None:  # noqa: D102
        with self._timed():
            if matrix is None:
                assert isinstance(factor, ExplicitFactor)
                error = self._compare_rows(unit, factor)
            else:
                forms = self._forms(matrix)
                k = len(self._samples)
                expected = sum(self._products[p][:k, :k] for p in unit.parameters)
                pairs = self._scale[:k, None] * self._scale[:k]
                error = self._compare("layers", forms - self._block.forms, expected, pairs)  # type: ignore[arg-type]
                self._block.forms = forms
            if error > self._tolerance:
                self._block.failed[unit] = error

    def _compare_rows(self, unit: UnitPlan, factor: ExplicitFactor) -> float:
        """w_n' V against v_n, entry by entry."""
        worst = 0.0
        v = factor.v.flatten(0, 1)
        for weights, vector, scale in zip(
            self._embedded(), self._vectors, self._scale, strict=True
        ):
            found = (weights.to(v.dtype) @ v).double()
            expected = torch.cat([vector[p].flatten() for p in unit.parameters]).double()
            error = _relative((found - expected).norm(), torch.zeros(()), scale, self._batch.dtype)
            worst = max(worst, error)
        self._note("layers", worst)
        return worst

    def _forms(self, matrix: Tensor) -> Tensor:
        """w_n' Gt w_m, [k, k], from the lower triangle of [M, M]."""
        c, k = self._columns, len(self._samples)
        index, order = self._rows.flatten().sort(stable=True)
        lower = matrix[index][:, index].double().tril()
        full = lower + lower.tril(-1).t()
        if self._batch.kept is not None:
            back = order.argsort()
            full = full[back][:, back]
        full = full.view(k, c, k, c)
        return torch.einsum("nc,ncmd,md->nm", self._weights, full, self._weights).cpu()

    def gradient_weights(self, unit: UnitPlan, factor: Factor, weights: Tensor) -> None:  # noqa: D102
        with self._timed():
            found = factor.combine(weights, self._samples)
            self._compare_mean(found)

    def gradient_pass(self) -> None:  # noqa: D102
        with self._timed():
            batch = self._batch
            found: Direction = {}
            outputs = batch.forward(self._samples)
            alone = outputs.detach()
            residual = torch.cat(
                [
                    batch.factor.residual(alone[i : i + 1], slice(n, n + 1))
                    for i, n in enumerate(self._samples)
                ]
            )
            with batch.hastened():
                add_pulled(batch, found, outputs, residual / batch.batch_size, keep_graph=False)
            self._compare_mean(found)

    def _compare_mean(self, found: Direction) -> None:
        """Part of the gradient that the drawn samples make up, against plain autograd."""
        difference = _norm(g - self._mean[p] for p, g in found.items())
        scale = torch.tensor(self._gradient_scale)
        dtype = self._batch.dtype
        self._note("gradient", _relative(torch.tensor(difference), torch.zeros(()), scale, dtype))

    def system(self, block: BlockPlan, matrix: Tensor, v: Tensor | None) -> None:  # noqa: D102
        with self._timed():
            done, self._block = self._block, self._new_block()
            if done.failed:
                raise LayersDisagree(*_failures(done.failed, self._tolerance))
            parameters = [p for unit in block.units for p in unit.parameters]
            vectors = [{p: x[p] for p in parameters} for x in self._vectors]
            if v is not None:
                coordinates = torch.stack(
                    [torch.cat([x[p].flatten() for p in parameters]).double() for x in vectors]
                )
                rows = torch.stack([times_lower(matrix, x) for x in coordinates])
                inner = coordinates
                through = torch.stack([_through(v, x) for x in coordinates])
                # The largest singular value is at most the root of the trace.
                trace = matrix.diagonal().double().sum()
                scale = trace * coordinates.norm(dim=1, keepdim=True)
                self._compare("curvature", rows.cpu(), through.cpu(), scale.cpu())
            else:
                coordinates = self._embedded()
                rows = torch.stack([times_lower(matrix, x) for x in coordinates])
                inner = rows
                total = sum(self._products[p] for p in parameters)
                pairs = self._scale[:, None] * self._scale
                error = self._compare("curvature", (rows @ coordinates.t()).cpu(), total, pairs)  # type: ignore[arg-type]
                self._compute_plainly(parameters, error)
            self._block.watch = Watch(coordinates, rows, inner, vectors, self._scale)

    def _compute_plainly(self, parameters: Sequence[nn.Parameter], error: float) -> None:
        """Where layers are right of the drawn samples, and all samples together are not.

        Raises:
            LayersDisagree: They are not.
        """
        if self._tolerance < error < math.inf:
            line = f"samples that were not drawn were off by {error:.1e}"
            raise LayersDisagree(frozenset(parameters), [f"{line}: computed by plain autograd"])

    def _embedded(self) -> Tensor:
        """The weights w_n and u as vectors over all columns, [k + 1, M]."""
        batch = self._batch
        count = len(self._samples) + 1
        full = torch.zeros(count, batch.rows, dtype=torch.float64, device=batch.device)
        full[:-1].scatter_add_(1, self._rows, self._weights)
        whole = self._whole_weights.flatten()
        full[-1] = whole if batch.kept is None else whole[batch.kept.index]
        return full

    @property
    def _watched(self) -> Watch:
        assert self._block.watch is not None
        return self._block.watch

    def slopes(self, slopes: Tensor, gradients: Direction | None) -> None:  # noqa: D102
        with self._timed():
            watch = self._watched
            found = (watch.coordinates @ slopes.double()).cpu()
            if gradients is not None:
                expected = torch.tensor(
                    [[_dot(v, gradients)] for v in watch.vectors], dtype=torch.float64
                )
                scale = self._scale[:, None] * _norm(gradients.values())
            else:
                self._compare_all_slopes(watch, slopes)
                found = found[:, self._samples]
                expected = self._expected_slopes(watch)
                scale = self._slope_scale()
            self._compare("slopes", found, expected, scale)

    def _compare_all_slopes(self, watch: Watch, slopes: Tensor) -> None:
        """Those of all samples together, with random weights."""
        weights, gradient, size = self._weighted_gradient
        found = (watch.coordinates @ (slopes.double() @ weights)).cpu()
        expected = torch.tensor([_dot(v, gradient) for v in watch.vectors], dtype=torch.float64)
        error = self._compare("slopes", found, expected, self._scale * size)
        self._compute_plainly(self._batch.parameters, error)

    @cached_property
    def _weighted_gradient(self) -> tuple[Tensor, Direction, float]:
        """Random r, the sum of r_n grad l_n over the whole mini-batch, and its size."""
        batch = self._batch
        weights = self._random(batch.batch_size)

        def cotangents(outputs: Tensor, samples: slice) -> Tensor:
            residual = batch.factor.residual(outputs, samples)
            return torch.einsum("n,n...->n...", weights[samples], residual.double())

        gradient, _, least = self._pull(cotangents, batch.batch_size)
        typical = batch.batch_size**0.5 * self._gradient_scale * batch.batch_size
        return weights, gradient, max(_norm(gradient.values()), typical, least)

    def coordinates(self, coordinates: Tensor) -> None:  # noqa: D102
        with self._timed():
            watch, c = self._watched, self._columns
            parts = []
            for n in self._samples:
                a = coordinates[n].to(watch.inner)
                parts.append(watch.inner[:, n * c : n * c + c] @ a * len(coordinates) ** 0.5)
            found = torch.stack(parts, 1).cpu()
            self._compare("slopes", found, self._expected_slopes(watch), self._slope_scale())

    def _expected_slopes(self, watch: Watch) -> Tensor:
        """v_n . grad l_m over the block's parameters, [k, k]."""
        first = watch.vectors[0]
        return sum(self._slopes[p] for p in first)  # type: ignore[return-value]

    def _slope_scale(self) -> Tensor:
        """|v_n| times the size of the gradients, [k, 1]."""
        batch = self._batch
        return self._scale[:, None] * (self._gradient_scale * batch.batch_size)

    def eigenvalues(self, values: Tensor, trace: float, squares: float) -> None:  # noqa: D102
        with self._timed():
            double = torch.float64
            for what, found, expected in (
                ("trace", values.sum(), trace),
                ("squares", values.square().sum(), squares),
            ):
                wanted = torch.tensor(expected, dtype=double)
                self._note(what, _relative(found.cpu(), wanted, wanted.abs(), double))

    def eigenpairs(self, values: Tensor, vectors: Tensor, largest: float) -> None:  # noqa: D102
        if not len(values):
            return
        with self._timed():
            watch = self._watched
            found = watch.rows @ vectors
            expected = (watch.coordinates @ vectors) * values
            scale = (
                watch.rows.norm(dim=1, keepdim=True)
                + watch.coordinates.norm(dim=1, keepdim=True) * largest
            )
            self._compare("eigenpairs", found.cpu(), expected.cpu(), scale.cpu())

    def derivatives(self, gammas: Tensor, lambdas: Tensor, values: Tensor) -> None:  # noqa: D102
        if not len(values):
            return
        with self._timed():
            self._compare("curvatures", lambdas.mean(0).cpu(), values.cpu(), values.max().cpu())
            # Bessel's inequality: no more than the whole gradient lies along the directions.
            along = gammas[self._samples].double().norm(dim=1).cpu()
            whole = torch.tensor(self._gradient_norms, dtype=torch.float64)
            self._compare("slopes", (along - whole).clamp(min=0), torch.zeros_like(whole), whole)

    def step(self, products: Tensor, damped: Tensor, projected: Tensor) -> None:  # noqa: D102
        with self._timed():
            watch = self._watched
            left = watch.rows @ products + watch.coordinates @ (damped + projected)
            rows, coordinates = watch.rows.norm(dim=1), watch.coordinates.norm(dim=1)
            scale = rows * products.norm() + coordinates * (damped.norm() + projected.norm())
            self._compare("solver", left.cpu()[:, 0], torch.zeros(len(left)), scale.cpu())

    def solved(self, weights: Tensor, right: Tensor, damping: float) -> None:  # noqa: D102
        with self._timed():
            watch = self._watched
            found = watch.rows @ weights + damping * (watch.coordinates @ weights)
            sizes = watch.rows.norm(dim=1) + damping * watch.coordinates.norm(dim=1)
            scale = sizes[:, None] * weights.norm(dim=0)
            self._compare("solver", found.cpu(), (watch.coordinates @ right).cpu(), scale.cpu())

    def lifted(  # noqa: D102
        self,
        what: str,
        weights: Tensor | None,
        directions: Sequence[Direction],
        products: Tensor | None = None,
    ) -> None:
        with self._timed():
            watch = self._watched
            if weights is not None:
                made = watch.inner @ weights.double()
                self._note(what, compare_lifted(watch, made, directions))
            if products is not None:
                expected = watch.coordinates @ products.double()
                sizes = watch.coordinates.norm(dim=1)[:, None] * products.double().norm(dim=0)
                self._note(what, compare_lifted(watch, expected, directions, ROUNDING * sizes))

    def watch(self) -> Watch | None:  # noqa: D102
        return self._watched

    def result(self, totals: Totals) -> Certificate | None:  # noqa: D102
        with self._timed():
            self._compare_together(totals)
            self._check_loss(totals)
            if len(self._samples) == self._batch.batch_size and totals.gradient is not None:
                self._compare_mean(totals.gradient)
        worst = max(self._errors, key=lambda what: self._errors[what])
        if self._errors[worst] == math.inf:
            raise CertificateError(
                f"the result could not be checked: {worst} overflows or is NaN; scale inputs, "
                "targets or weights down, or use float64"
            )
        if worst == "inverse" and self._errors[worst] > self._tolerance:
            raise CertificateError(
                f"(G + damping I)^-1 x loses its digits: it is off by {self._errors[worst]:.1e}, "
                f"more than {self._tolerance:.0e}; use a larger damping, float64, or a step with "
                "a cutoff"
            )
        if self._errors[worst] > self._tolerance:
            raise CertificateError(
                f"the result failed its check by plain autograd: {worst} is off by "
                f"{self._errors[worst]:.1e}, more than {self._tolerance:.0e}, so nothing is "
                "returned; the forward or backward pass is not what the samples' own are (random, "
                "coupled or changing), or this is a fault of the engine: please report the model"
            )
        return Certificate(
            samples=tuple(self._samples),
            num_samples=self._batch.num_samples,
            errors=dict(self._errors),
            tolerance=self._tolerance,
            notes=self._notes,
            seconds=self._seconds,
        )

    def _compare_together(self, totals: Totals) -> None:
        """Outputs of the drawn samples' company against those that the passes produced."""
        passed = totals.outputs[self._company]
        for position, n in enumerate(self._company):
            beside = self._together[position : position + 1]
            self._compare_outputs(n, passed[position : position + 1], beside)

    def _check_loss(self, totals: Totals) -> None:
        """Residual and Hessian product of the user's own loss, on the whole mini-batch."""
        found = loss_errors(self._batch, totals.outputs, totals.loss, self._hessian_product)
        for what, error in found.items():
            self._note(what, error)

    def _hessian_product(self, outputs: Tensor, vector: Tensor) -> Tensor:
        """S_n S_n^T x_n by the columns that were used; in closed form for Monte-Carlo ones."""
        batch = self._batch
        if batch.factor.noise() is not None:
            return batch.factor.hessian_product(outputs, slice(0, batch.batch_size), vector)
        parts = []
        step = max(batch.working_bytes // (8 * self._columns * outputs[0].numel() or 1), 1)
        for start in range(0, batch.batch_size, step):
            samples = slice(start, min(start + step, batch.batch_size))
            s = batch.factor.columns(outputs[samples], samples, None)
            s, x = s.reshape(*s.shape[:2], -1), vector[samples].reshape(len(s), -1)
            product = torch.einsum("ncf,nc->nf", s, torch.einsum("ncf,nf->nc", s, x))
            parts.append(product.view_as(vector[samples]))
        return torch.cat(parts)


def loss_errors(
    batch: MiniBatch,
    outputs: Tensor,
    loss: float,
    hessian_product: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, float]:
    """Loss, its gradient and a Hessian product against the user's own loss, on the mini-batch.

    Args:
        batch: The request.
        outputs: [N, ...] of all samples.
        loss: To compare.
        hessian_product: (outputs, x) -> H_n x_n for all samples, both float64.

    Returns:
        What is compared -> relative deviation.
    """
    x = outputs.double().requires_grad_()
    targets = batch.targets.double() if batch.targets.is_floating_point() else batch.targets
    generator = torch.Generator().manual_seed(batch.approximation.seed + 2)
    vector = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    with torch.enable_grad(), blamed_on_model("the loss on the whole mini-batch"):
        value = copy.deepcopy(batch.loss).double()(x, targets)
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        product = torch.zeros_like(x)
        if slope.requires_grad:
            (product,) = torch.autograd.grad(slope, x, vector)
    count, detached = batch.batch_size, outputs.double()
    floor = 1e-4 * batch.factor.magnitude(detached) / count
    errors = {}
    for what, ours, theirs in (
        ("loss gradient", batch.factor.residual(detached, slice(0, count)), slope.detach()),
        ("loss Hessian", hessian_product(detached, vector), product),
    ):
        scale = max(theirs.abs().max().item(), floor)
        errors[what] = (ours / count - theirs).abs().max().item() / (scale or 1.0)
    return errors | {"loss": abs(loss - value.item()) / max(abs(value.item()), 1.0)}


def compare_lifted(
    watch: Watch,
    products: Tensor,
    directions: Sequence[Direction],
    floor: Tensor | None = None,
) -> float:
    """Largest deviation of v_n . x from ``products`` [k, R], over R vectors x.

    It is relative to |v_n| |x|, or to ``floor`` [k, R] where that is larger.
    """
    worst = 0.0
    least = torch.zeros_like(products) if floor is None else floor
    columns = zip(products.cpu().unbind(1), least.cpu().unbind(1), directions, strict=True)
    for expected, smallest, direction in columns:
        found = torch.tensor([_dot(v, direction) for v in watch.vectors], dtype=torch.float64)
        size = _norm(direction[p] for p in watch.vectors[0])
        dtype = next(iter(direction.values())).dtype
        scale = (watch.scale * size).maximum(smallest)
        worst = max(worst, _relative(found, expected, scale, dtype))
    return worst


def _cut_unlike(samples: slice) -> list[slice]:
    """Two parts of some samples, where there are two."""
    first = samples.start + (samples.stop - samples.start) // 3
    parts = (slice(samples.start, first), slice(first, samples.stop))
    return [part for part in parts if part.start < part.stop]


def _failures(
    failed: dict[UnitPlan, float], tolerance: float
) -> tuple[frozenset[nn.Parameter], list[str]]:
    parameters = frozenset(p for unit in failed for p in unit.parameters)
    notes = [
        f"layer {unit.name} ({unit.layer_type}) was off by {error:.1e} (tolerance "
        f"{tolerance:.0e}) and is computed by plain autograd"
        for unit, error in failed.items()
    ]
    return parameters, notes


def _dot(left: Direction, right: Direction) -> float:
    """Over the parameters of ``left``."""
    return sum(torch.dot(x.flatten(), right[p].flatten()).item() for p, x in left.items())


def _norm(parts: Iterable[Tensor]) -> float:
    """Euclidean norm; squares of what is in reach of a float do not underflow in it."""
    norms = []
    for x in parts:
        largest = x.abs().max().item() if x.numel() else 0.0
        norms.append(largest and largest * torch.linalg.vector_norm(x / largest).item())
    return math.hypot(*norms)


def _through(v: Tensor, vector: Tensor) -> Tensor:
    """V V^T x for V given as [N, c, D], a sample at a time; float64."""
    out = torch.zeros_like(vector)
    for rows in v:
        rows = rows.double()
        out += (rows @ vector) @ rows
    return out


def _relative(found: Tensor, expected: Tensor, scale: Tensor, dtype: torch.dtype) -> float:
    """Largest deviation over its scale; 0 where all of it has underflowed."""
    if not found.numel():
        return 0.0
    error = (found.double() - expected.double()).abs()
    scale = scale.double().expand_as(error)
    lost = (scale <= torch.finfo(dtype).tiny * 1e6) & (error <= torch.finfo(dtype).tiny * 1e6)
    ratio = torch.where(lost, 0.0, error / scale)
    return float("inf") if ratio.isnan().any() else ratio.max().item()
