"""Products with the GGN, G x = 1/n sum_n J_n^T H_n J_n x, without a matrix (Equation 3).

J x is one forward-mode product and J^T one backward pass, both through the model just as it is
and in micro-batches: no rule of this package, no Gram matrix, no V. That the one is the adjoint of
the other, <x, J^T u> = <J x, u>, costs next to nothing to ask with u = H J x, and is asked of every
product: so an operation whose forward-mode derivative is missing or is another one than its
backward pass's (a hook that scales gradients, say) is noticed, and differentiated by double
backward instead.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from vivit_bench.curvature.capture import read_uses
from vivit_bench.curvature.certificate import TOLERANCE
from vivit_bench.curvature.factors import Direction
from vivit_bench.curvature.minibatch import MiniBatch, Together, mend_batch_norm
from vivit_bench.curvature.passes import add_pulled
from vivit_bench.errors import UsageError, VivitBenchError, describe, is_out_of_memory, message_of
from vivit_bench.precision import without_cudnn
from vivit_bench.trees import map_tree

T = TypeVar("T")

COPIES = 4
"""Numbers alive in a micro-batch's passes, relative to one forward pass's results: these, their
tangents or cotangents, and what is in the making."""


class BudgetSpent(Exception):  # noqa: N818
    """As many products as were allowed have been used."""


class _Unfit(Exception):  # noqa: N818
    """A way to J x does not work for this model."""


@dataclass(frozen=True)
class Way:
    """One way to J x."""

    name: str
    tangent: Callable[[MiniBatch, slice, Direction], tuple[Tensor, Tensor]]
    """(request, samples, x) -> (outputs with their graph, J x), both [n, ...]."""
    vendor: bool
    """With oneDNN and cuDNN, some of whose kernels have no forward-mode derivative."""

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Only kernels that can be differentiated this way."""
        fast_path = torch.backends.mha.get_fastpath_enabled()
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel([SDPBackend.MATH]))
            if not self.vendor:
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
                stack.enter_context(without_cudnn())
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                yield
            finally:
                torch.backends.mha.set_fastpath_enabled(fast_path)


def _forward_mode(batch: MiniBatch, samples: slice, direction: Direction) -> tuple[Tensor, Tensor]:
    """By dual numbers, in the pass that the backward pass belongs to."""
    with torch.enable_grad():
        outputs, tangent = _dual_pass(batch, samples, direction, lambda p: p)
    if batch.has_batch_norm:
        mend_batch_norm(outputs)
    return outputs, tangent


def _forward_mode_apart(
    batch: MiniBatch, samples: slice, direction: Direction
) -> tuple[Tensor, Tensor]:
    """By dual numbers, in a pass of its own that keeps nothing for a backward pass.

    A third slower, and right where the backward pass runs parts of the model again.
    """
    _, tangent = _dual_pass(batch, samples, direction, lambda p: p.detach())
    return batch.plain_forward(samples), tangent


def _dual_pass(
    batch: MiniBatch, samples: slice, direction: Direction, primal: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    inputs = map_tree(lambda t: t[samples].clone(), batch.inputs)
    with forward_ad.dual_level():
        duals = {batch.names[p]: forward_ad.make_dual(primal(p), x) for p, x in direction.items()}
        dual = torch.func.functional_call(batch.model, duals, (inputs,))
        outputs, tangent = forward_ad.unpack_dual(dual)
        found = torch.zeros_like(outputs) if tangent is None else tangent.detach().clone()
    return outputs, found.detach()


def _double_backward(
    batch: MiniBatch, samples: slice, direction: Direction
) -> tuple[Tensor, Tensor]:
    """J x as the derivative of <x, J^T u>, which is linear in u."""
    outputs = batch.plain_forward(samples)
    with torch.enable_grad():
        u = torch.zeros_like(outputs, requires_grad=True)
        grads = torch.autograd.grad(
            outputs, list(direction), u, create_graph=True, allow_unused=True
        )
        pairs = [
            (g.to_dense() if g.layout is not torch.strided else g, x)
            for g, x in zip(grads, direction.values(), strict=True)
            if g is not None and g.requires_grad
        ]
        if not pairs:
            return outputs, torch.zeros_like(outputs)
        (found,) = torch.autograd.grad(
            [g for g, _ in pairs], u, [x for _, x in pairs], retain_graph=True, allow_unused=True
        )
    return outputs, torch.zeros_like(outputs) if found is None else found


WAYS = (
    Way("forward mode", _forward_mode, True),
    Way("forward mode in a pass of its own", _forward_mode_apart, True),
    Way("forward mode without oneDNN and cuDNN", _forward_mode, False),
    Way("double backward", _double_backward, True),
    Way("double backward without oneDNN and cuDNN", _double_backward, False),
)
"""In the order in which they are tried."""


@dataclass
class Progress:
    """What products have used and shown so far, those over blocks of parameters included."""

    most: int
    """Products that may be used."""
    count: int = 0
    """Products used."""
    adjoint: float = 0.0
    """Largest deviation of <x, J^T u> from <J x, u>, relative to |x| |J| |u|."""
    ways: list[Way] = field(default_factory=lambda: list(WAYS))
    """To J x; the first one is used, those that turned out not to work are gone."""
    notes: list[str] = field(default_factory=list)
    """Ways that were tried in vain, for people."""


def activations_of_a_sample(batch: MiniBatch, alone: Tensor) -> int:
    """Numbers that one sample's forward pass computes; views of parameters are not among them.

    Args:
        batch: The request.
        alone: Outputs of its first sample, with their graph.

    Raises:
        UsageError: The output does not depend on the parameters, or has no sample axis.
    """
    reading = read_uses(alone, batch.parameters)
    if not reading.uses and not reading.others:
        raise UsageError("the model's output does not depend on its trainable parameters")
    if batch.batch_size == 1:
        return reading.activations
    both = batch.plain_forward([0, 1])
    _check_shape(batch, both, 2)
    more = read_uses(both, batch.parameters).activations - reading.activations
    return more if more > 0 else reading.activations


def _check_shape(batch: MiniBatch, outputs: Tensor, count: int) -> None:
    if outputs.shape != (count, *batch.output_shape):
        raise UsageError(
            f"the model returns {list(outputs.shape)} for {count} samples and "
            f"{[1, *batch.output_shape]} for one; its output must have the sample axis first"
        )


def bytes_of_a_sample(batch: MiniBatch, activations: int) -> int:
    """Memory of a sample in a micro-batch's passes, whose forward pass computes so many numbers."""
    return COPIES * max(activations, 1) * batch.dtype.itemsize


class GgnProducts:
    """The GGN of a mini-batch over some parameters, as something that multiplies.

    Vectors are [D] float64, in the order of the parameters; passes run in the model's precision,
    and micro-batches add up in float64.

    Args:
        batch: The request.
        activations: Numbers that one sample's forward pass computes.
        progress: Shared with other blocks of the same request.

    Attributes:
        batch: The request.
        progress: As given.
    """

    def __init__(self, batch: MiniBatch, activations: int, progress: Progress) -> None:
        self.batch, self.progress = batch, progress
        self._activations = activations
        self._step = max(batch.working_bytes // bytes_of_a_sample(batch, activations), 1)
        noise = batch.factor.noise()
        self._noise = None if noise is None else noise.to(batch.device)
        self._norm = 0.0

    def over(self, batch: MiniBatch) -> "GgnProducts":
        """The same for some of the parameters."""
        return GgnProducts(batch, self._activations, self.progress)

    def split(self, vector: Tensor, dtype: torch.dtype | None = None) -> Direction:
        """[D] float64 -> a tensor for each parameter, of its shape and, if none is given, dtype."""
        parameters, dtype = self.batch.parameters, dtype or self.batch.dtype
        parts = vector.split([p.numel() for p in parameters])
        return {p: x.view_as(p).to(dtype) for p, x in zip(parameters, parts, strict=True)}

    def flatten(self, direction: Direction) -> Tensor:
        """The reverse of :meth:`split`."""
        return torch.cat([direction[p].reshape(-1).double() for p in self.batch.parameters])

    def zeros(self) -> Tensor:
        """The vector 0, [D] float64."""
        return torch.zeros(self.batch.num_params, dtype=torch.float64, device=self.batch.device)

    def micro_batches(self, count: int) -> Iterator[slice]:
        """The first ``count`` samples, cut evenly so that a pass meets the memory target."""
        step = math.ceil(count / math.ceil(count / self._step))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def __call__(self, vector: Tensor) -> Tensor:
        """G x, [D] float64.

        Raises:
            BudgetSpent: No product is left.
            UsageError: The model can be differentiated in no way, or its outputs are not finite.
        """
        if self.progress.count >= self.progress.most:
            raise BudgetSpent
        self.progress.count += 1
        return self._with_a_way(lambda: self._product(vector))

    def _with_a_way(self, passes: Callable[[], T]) -> T:
        """What passes return, by the first way that works."""
        while True:
            try:
                with self.progress.ways[0].kernels():
                    return passes()
            except _Unfit as reason:
                self._give_up_way(str(reason))

    def _product(self, vector: Tensor) -> Tensor:
        batch, direction = self.batch, self.split(vector)
        total = self.zeros()
        squares, inner = torch.zeros(2, dtype=torch.float64), 0.0
        for samples in self.micro_batches(batch.num_samples):
            outputs, tangent = self._tangent(samples, direction)
            cotangent = self.curvature(outputs.detach(), samples, tangent)
            self._pull(outputs, cotangent, total)
            squares += _squares(tangent, cotangent)
            inner += _dot(tangent, cotangent)
        self._check_adjoint(vector, total, squares, inner)
        return total / batch.num_samples

    def derivatives(
        self, samples: slice, vector: Tensor, cotangent: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs, J x and J^T u of some samples in one micro-batch, as in a product.

        Args:
            samples: Which.
            vector: x, [D] float64.
            cotangent: u, [n, ...].

        Returns:
            [n, ...], [n, ...] and [D] float64, the sum over the samples.
        """

        def passes() -> tuple[Tensor, Tensor, Tensor]:
            outputs, tangent = self._tangent(samples, self.split(vector))
            pulled = self.zeros()
            self._pull(outputs, cotangent, pulled)
            self._check_adjoint(
                vector, pulled, _squares(tangent, cotangent), _dot(tangent, cotangent)
            )
            return outputs.detach(), tangent, pulled

        return self._with_a_way(passes)

    def _tangent(self, samples: slice, direction: Direction) -> tuple[Tensor, Tensor]:
        try:
            outputs, tangent = self.progress.ways[0].tangent(self.batch, samples, direction)
        except VivitBenchError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise _Unfit(describe(error, 120)) from error
        _check_shape(self.batch, outputs, samples.stop - samples.start)
        if tangent.shape != outputs.shape or not tangent.isfinite().all():
            raise _Unfit("the derivative is not finite, or not of the output's shape")
        return outputs, tangent

    def curvature(self, outputs: Tensor, samples: slice, tangent: Tensor) -> Tensor:
        """H_n x_n in closed form, or S_n S_n^T x_n of the drawn columns; [n, ...]."""
        factor = self.batch.factor
        if self._noise is None:
            return factor.hessian_product(outputs, samples, tangent).to(outputs.dtype)
        s = factor.columns(outputs, samples, self._noise[samples]).double().flatten(2)
        inner = torch.einsum("ncf,nf->nc", s, tangent.double().flatten(1))
        return torch.einsum("ncf,nc->nf", s, inner).view_as(outputs).to(outputs.dtype)

    def pull(self, outputs: Tensor, cotangent: Tensor, total: Tensor) -> None:
        """Add the sum over some samples of J_n^T u_n to ``total``, [D] float64."""
        found: Direction = {}
        add_pulled(self.batch, found, outputs, cotangent, keep_graph=False)
        start = 0
        for p in self.batch.parameters:
            total[start : start + p.numel()].view_as(p).add_(found[p])
            start += p.numel()

    def _pull(self, outputs: Tensor, cotangent: Tensor, total: Tensor) -> None:
        """The same behind J x, which may be what it fails by."""
        try:
            self.pull(outputs, cotangent, total)
        except UsageError as error:
            raise _Unfit(message_of(error)) from error

    def _check_adjoint(self, x: Tensor, pulled: Tensor, squares: Tensor, inner: float) -> None:
        """<x, J^T u> = <J x, u>, relative to |x| |J| |u| with |J| as the largest |J x| / |x|.

        Along directions without curvature both sides are rounding.

        Args:
            x: [D].
            pulled: J^T u, [D].
            squares: |J x|^2 and |u|^2.
            inner: <J x, u>.
        """
        length, size = x.norm().item(), pulled.norm().item()
        if not math.isfinite(size + inner):
            raise UsageError(
                "a product with the GGN is not finite; scale inputs, targets or weights down, or "
                "use float64"
            )
        if not length:
            return
        tangent, cotangent = squares.sqrt().tolist()
        self._norm = max(self._norm, tangent / length)
        scale = max(self._norm * cotangent, size) * length
        error = abs((x @ pulled).item() - inner) / (scale or 1.0)
        tolerance = TOLERANCE[self.batch.dtype]
        if not error <= tolerance:
            raise _Unfit(
                f"it is not the adjoint of the backward pass: off by {error:.1e}, more than "
                f"{tolerance:.0e}"
            )
        self.progress.adjoint = max(self.progress.adjoint, error)

    def _give_up_way(self, reason: str) -> None:
        progress = self.progress
        name = progress.ways.pop(0).name
        if not any(note.endswith(f"({reason})") for note in progress.notes):
            progress.notes.append(f"{name} does not work ({reason})")
        if not progress.ways:
            raise UsageError(
                f"the model has no derivative J x: {'; '.join(progress.notes)}; compute from "
                "the Gram matrix (--method gram), or leave the operation's parameters out with "
                "params"
            )

    def outputs(self) -> Tensor:
        """Of the whole mini-batch, [N, ...], detached."""
        together = Together(self.batch.batch_size)
        for samples in self.micro_batches(self.batch.batch_size):
            part = self.batch.plain_forward(samples).detach()  # with grad: no other kernels
            _check_shape(self.batch, part, samples.stop - samples.start)
            together.put(samples, part)
        return together.tensor

    def gradient(self) -> Tensor:
        """Of the loss of the whole mini-batch, [D] float64."""
        batch = self.batch
        total = self.zeros()
        for samples in self.micro_batches(batch.batch_size):
            outputs = batch.plain_forward(samples)
            self.pull(outputs, batch.factor.residual(outputs.detach(), samples), total)
        return total / batch.batch_size


def _squares(tangent: Tensor, cotangent: Tensor) -> Tensor:
    """|J x|^2 and |u|^2, [2] float64."""
    parts = [x.double().square().sum() for x in (tangent, cotangent)]
    return torch.stack(parts).cpu()


def _dot(tangent: Tensor, cotangent: Tensor) -> float:
    return (tangent.double() * cotangent.double()).sum().item()
