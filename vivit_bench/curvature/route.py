"""How a network's passes may be cut, as proven on samples of the mini-batch.

Several samples may run at a time only where it is known, for every use of a parameter,
which rows belong to which sample; several columns may be sent back at once only where that
gives what one after the other gives. Both are tried, on one sample alone and beside
another one; whatever is not proven runs one sample, or one column, at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from vivit_bench.curvature.capture import (
    GraphChanged,
    Reading,
    Use,
    backpropagate,
    edge_of,
    read_uses,
)
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.rules import Role, Rule, Saved
from vivit_bench.errors import CertificateError, UsageError
from vivit_bench.trees import leaves

AGREE = {torch.float32: 1e-3, torch.float64: 1e-7}
"""Relative deviation within which two ways of computing agree, for the choice of a route."""


@dataclass(frozen=True)
class Layout:
    """Where the samples are in a tensor of several."""

    axis: int
    rows: int
    """Of one sample along the axis."""
    minor: bool
    """The samples vary fastest, [rows, n] instead of [n, rows]."""

    def split(self, tensor: Tensor, n: int, lead: int = 0) -> Tensor:
        """[*lead, ...] -> [n, *lead, *shape of one sample's].

        Raises:
            GraphChanged: The tensor is not that of n samples.
        """
        axis = lead + self.axis
        if tensor.ndim <= axis or tensor.shape[axis] != n * self.rows:
            raise GraphChanged
        if self.minor:
            return tensor.unflatten(axis, (self.rows, n)).movedim(axis + 1, 0)
        return tensor.unflatten(axis, (n, self.rows)).movedim(axis, 0)


@dataclass(frozen=True)
class UseShape:
    """One use of parameters, in a forward pass of one sample."""

    rule: Rule
    roles: dict[str, Role]
    signature: tuple
    output: torch.Size
    saved: dict[str, torch.Size]
    constants: dict
    reached: bool
    """Whether cotangents arrive; else its share of V is zero."""


@dataclass(frozen=True)
class Layouts:
    """Where the samples are in one use's tensors."""

    cotangent: Layout
    saved: dict[str, Layout | None]
    """None: the tensor is the same for all samples."""


@dataclass(frozen=True)
class Collected:
    """What columns that were sent back left where."""

    cotangents: dict[int, Tensor]
    """Number of a use -> [c, *its output]."""
    gradients: dict[nn.Parameter, Tensor]
    """Plain parameter -> [c, *shape]."""


@dataclass(frozen=True)
class Route:
    """How passes run."""

    uses: tuple[UseShape, ...]
    plain: dict[nn.Parameter, str]
    """Parameters computed by plain autograd -> why."""
    layouts: tuple[Layouts, ...] | None
    """For each use; None: one sample at a time."""
    batched_columns: bool
    activations: int
    """Numbers that one sample's forward pass computes, all intermediate results together."""
    notes: tuple[str, ...]
    """What slows the passes down, for people."""

    def read(self, batch: MiniBatch, outputs: Tensor) -> Reading:
        """The uses in a forward pass, in the order of ``uses``.

        Raises:
            GraphChanged: They are not the same.
        """
        reading = read_uses(outputs, batch.parameters, self.plain)
        same = [u.signature for u in reading.uses] == [u.signature for u in self.uses]
        if not same or not reading.others.keys() <= self.plain.keys():
            raise GraphChanged
        return reading

    def backpropagate(self, outputs: Tensor, reading: Reading, columns: Tensor) -> "Collected":
        """Send columns [n, c, ...] back to the uses, and to the plain parameters themselves."""
        numbers = [i for i, shape in enumerate(self.uses) if shape.reached]
        plain = list(reading.others)
        edges = [reading.uses[i].edge for i in numbers] + [edge_of(p) for p in plain]
        found = None
        if self.batched_columns:
            # A sample may leave a plain parameter out, which batched autograd cannot say.
            found = (_try_batched if plain else _batched)(outputs, edges, columns)
        if found is None:
            found = backpropagate(outputs, edges, columns, batched=False)
        cotangents = {i: g for i, g in zip(numbers, found, strict=False) if g is not None}
        rest = found[len(numbers) :]
        gradients = {p: g for p, g in zip(plain, rest, strict=True) if g is not None}
        return Collected(cotangents, gradients)

    def per_sample(self, number: int, use: Use, cotangent: Tensor, n: int) -> tuple[Saved, Tensor]:
        """One use's saved tensors [n, ...] and cotangents [n, c, ...] of n samples."""
        saved = use.saved()
        if self.layouts is None:
            tensors = {name: t.unsqueeze(0) for name, t in saved.tensors.items()}
            return Saved(tensors, saved.constants), cotangent.unsqueeze(0)
        layouts = self.layouts[number]
        tensors = {}
        for name, tensor in saved.tensors.items():
            layout = layouts.saved[name]
            tensors[name] = tensor.unsqueeze(0) if layout is None else layout.split(tensor, n)
        return Saved(tensors, saved.constants), layouts.cotangent.split(cotangent, n, lead=1)


def find_route(
    batch: MiniBatch, outputs: Tensor, columns: int, plain: frozenset[nn.Parameter]
) -> Route:
    """Read a network's graph and prove what may be batched.

    Args:
        batch: The request.
        outputs: Of its first sample alone, with their graph.
        columns: c, columns a sample that will be sent back.
        plain: Parameters whose rules are not to be used.

    Raises:
        UsageError: No parameter reaches the output.
        CertificateError: A sample's output depends on the others, or on chance.
    """
    reading = read_uses(outputs, batch.parameters, plain)
    everything = plain.issuperset(batch.parameters)
    if not reading.uses and not reading.others:
        raise UsageError("the model's output does not depend on its trainable parameters")
    generator = torch.Generator().manual_seed(0)
    tried = torch.randn(2, min(columns, 2), *outputs.shape[1:], generator=generator).to(outputs)
    edges = [u.edge for u in reading.uses] + [edge_of(p) for p in reading.others]
    alone = backpropagate(outputs, edges, tried[:1], batched=False)
    shapes = _shapes(reading, alone)
    plain_found = {p: f"used by {kind}" for p, kind in reading.others.items()}
    if everything:  # other samples may use parameters that the first one does not
        plain_found = dict.fromkeys(batch.parameters, "set to plain autograd")
    notes = [f"{batch.names[p]} is {why}" for p, why in plain_found.items()]
    layouts, batched = None, columns > 1
    if batch.batch_size > 1 and not plain_found:
        layouts, batched = _try_pair(batch, reading, outputs, alone, tried)
        if layouts is None:
            notes.append("it is not certain which rows inside the network belong to which sample")
    if layouts is None and columns > 1:
        reached = [(e, g) for e, g in zip(edges, alone, strict=True) if g is not None]
        together = _try_batched(outputs, [e for e, _ in reached], tried[:1])
        batched = together is not None and all(
            _agree(a, b) for a, (_, b) in zip(together, reached, strict=True)
        )
    if columns > 1 and not batched:
        notes.append("an operation has no right batching rule: columns run one after the other")
    return Route(shapes, plain_found, layouts, batched, reading.activations, tuple(notes))


def _shapes(reading: Reading, cotangents: Sequence[Tensor | None]) -> tuple[UseShape, ...]:
    shapes = []
    for use, cotangent in zip(reading.uses, cotangents, strict=False):  # plain ones follow
        saved = use.saved()
        shapes.append(
            UseShape(
                rule=use.rule,
                roles=use.roles,
                signature=use.signature,
                output=torch.Size() if cotangent is None else cotangent.shape[1:],
                saved={name: t.shape for name, t in saved.tensors.items()},
                constants=saved.constants,
                reached=cotangent is not None,
            )
        )
    return tuple(shapes)


def _try_pair(
    batch: MiniBatch,
    reading: Reading,
    outputs: Tensor,
    alone: Sequence[Tensor | None],
    tried: Tensor,
) -> tuple[tuple[Layouts, ...] | None, bool]:
    """Layouts proven on the first sample beside another one, and whether columns batch."""
    other = _different_sample(batch)
    both = batch.forward([0, other])
    _check_alone(batch, outputs, both)
    uses = read_uses(both, batch.parameters).uses
    if [u.signature for u in uses] != [u.signature for u in reading.uses]:
        return None, False
    edges = [u.edge for u, g in zip(uses, alone, strict=True) if g is not None]
    together = _try_batched(both, edges, tried)
    layouts = together and _find_layouts(reading.uses, uses, alone, together)
    if layouts or tried.shape[1] == 1:
        return layouts or None, tried.shape[1] > 1
    together = backpropagate(both, edges, tried, batched=False)
    return _find_layouts(reading.uses, uses, alone, together), False


def _different_sample(batch: MiniBatch) -> int:
    """A sample that differs from the first one (the second, if all are equal)."""
    for index in range(1, min(batch.batch_size, 16)):
        if any(not torch.equal(t[0], t[index]) for _, t in leaves(batch.inputs)):
            return index
    return 1


def _check_alone(batch: MiniBatch, alone: Tensor, together: Tensor) -> None:
    """Refuse networks whose forward pass is random or couples the samples."""
    if len(together) != 2 or together.shape[1:] != alone.shape[1:]:
        raise UsageError(
            f"the model returns {list(together.shape)} for 2 samples and {list(alone.shape)} for "
            "one; its output must have the sample axis first"
        )
    line = disagreement(batch, 0, alone, together[:1], 10 * AGREE[batch.dtype])
    if line:
        raise CertificateError(line)


def disagreement(
    batch: MiniBatch, index: int, alone: Tensor, together: Tensor, tolerance: float
) -> str:
    """Why a sample's output alone is not that in a mini-batch; empty if it is.

    Args:
        batch: The request.
        index: Of the sample.
        alone: [1, ...] its output in a forward pass of its own.
        together: [1, ...] its output beside others.
        tolerance: Relative to the largest output.
    """
    error = _deviation(together.detach(), alone.detach())
    if error <= tolerance:
        return ""
    again = batch.forward([index]).detach()
    if _deviation(again, alone.detach()) > tolerance:
        return (
            f"the model's forward pass is random: sample {index} twice gives outputs that differ "
            f"by {error:.1e}; call model.eval(), and give dropout its training flag"
        )
    return (
        f"the model couples its samples: the output of sample {index} alone and in a mini-batch "
        f"differ by {error:.1e}, so that there is no per-sample Jacobian; call model.eval(), and "
        "let the forward pass use each sample alone"
    )


def _deviation(found: Tensor, expected: Tensor) -> float:
    """Largest deviation over the largest expected entry."""
    if found.shape != expected.shape:
        return float("inf")
    scale = expected.abs().max().item() if expected.numel() else 0.0
    error = (found - expected).abs().max().item() if expected.numel() else 0.0
    if error != error:  # NaN
        return float("inf")
    return error / scale if scale else error


def _batched(
    outputs: Tensor, edges: Sequence[GradientEdge], columns: Tensor
) -> list[Tensor | None]:
    return backpropagate(outputs, edges, columns, batched=True)


def _try_batched(
    outputs: Tensor, edges: Sequence[GradientEdge], columns: Tensor
) -> list[Tensor | None] | None:
    """All columns at once, or None where PyTorch cannot."""
    try:
        return _batched(outputs, edges, columns)
    except (RuntimeError, NotImplementedError, ValueError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return None


def _find_layouts(
    uses: Sequence[Use],
    uses_of_pair: Sequence[Use],
    alone: Sequence[Tensor | None],
    together: Sequence[Tensor | None],
) -> tuple[Layouts, ...] | None:
    """Where the samples are in every use's tensors; None if that is uncertain for one."""
    layouts = []
    rest = iter(together)
    for use, use_of_pair, expected in zip(uses, uses_of_pair, alone, strict=True):
        if expected is None:  # never collected
            layouts.append(Layouts(Layout(0, 1, False), {}))
            continue
        found = next(rest)
        cotangent = None if found is None else _find_layout(expected, found, lead=1)
        if cotangent is None:
            return None
        saved: dict[str, Layout | None] = {}
        pair = use_of_pair.saved().tensors
        for name, tensor in use.saved().tensors.items():
            if pair[name].shape == tensor.shape:
                if not torch.equal(pair[name], tensor):
                    return None
                saved[name] = None
                continue
            saved[name] = _find_layout(tensor, pair[name])
            if saved[name] is None:
                return None
        layouts.append(Layouts(cotangent, saved))
    return tuple(layouts)


def _find_layout(alone: Tensor, together: Tensor, lead: int = 0) -> Layout | None:
    """The only layout under which the first of two samples is what it is alone."""
    if alone.ndim != together.ndim:
        return None
    sizes = list(zip(alone.shape, together.shape, strict=True))
    differing = [axis for axis, (one, two) in enumerate(sizes) if one != two]
    if len(differing) != 1 or differing[0] < lead:
        return None
    axis = differing[0]
    rows = alone.shape[axis]
    if together.shape[axis] != 2 * rows:
        return None
    candidates = [Layout(axis - lead, rows, minor) for minor in (False, True)[: 1 + (rows > 1)]]
    fitting = [c for c in candidates if _agree(c.split(together, 2, lead)[0], alone)]
    return fitting[0] if len(fitting) == 1 else None


def _agree(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None:
        return found is expected
    if not found.is_floating_point():
        return torch.equal(found, expected)
    return _deviation(found, expected) <= AGREE[found.dtype]
