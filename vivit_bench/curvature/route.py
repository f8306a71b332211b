"""How a network's passes may be cut, as proven on samples of the mini-batch.

Several samples may run at a time only where it is known, for every use of a parameter,
which rows belong to which sample; several columns may be sent back at once only where that
gives what one after the other gives. Both are tried, on one sample alone and beside
another one; whatever is not proven runs one sample, or one column, at a time.
"""

from collections.abc import Collection, Mapping, Sequence
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
from vivit_bench.curvature.layout import AGREE, Layout, Layouts, agree, deviation, find_layouts
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.rules import Role, Rule, Saved
from vivit_bench.errors import CertificateError, UsageError, is_out_of_memory
from vivit_bench.trees import leaves


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
    min_samples: int
    """Fewer do not run in one pass: the graph of a single one is another."""
    activations: int
    """Numbers that one sample's forward pass computes, all intermediate results together."""
    saved_bytes: int
    """Memory that one sample's forward pass keeps for the backward pass."""
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

    def backpropagate(
        self,
        outputs: Tensor,
        reading: Reading,
        columns: Tensor,
        uses: Sequence[int],
        plain: Collection[nn.Parameter],
    ) -> "Collected":
        """Send columns back to the uses, and to the plain parameters themselves.

        Args:
            outputs: Of n samples, with their graph.
            reading: Of that graph.
            columns: [n, c, ...].
            uses: Numbers of those that they are wanted at.
            plain: Plain parameters that are wanted.
        """
        numbers = [i for i in uses if self.uses[i].reached]
        plain = [p for p in reading.others if p in plain]
        if not numbers and not plain:
            return Collected({}, {})
        edges = [reading.uses[i].edge for i in numbers] + [edge_of(p) for p in plain]
        found = None
        if self.batched_columns:
            # Samples may leave a use out, which batched autograd cannot say.
            found = _try_batched(outputs, edges, columns)
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
    if not reading.uses and not reading.others:
        raise UsageError("the model's output does not depend on its trainable parameters")
    notes = [f"{batch.names[p]} is used by {kind}" for p, kind in reading.others.items()]
    with batch.hastened():
        if batch.num_samples > 1 and not reading.others:
            route = _try_pair(batch, reading, outputs, columns)
            if route is not None:
                return route
            notes.append("it is not certain which rows inside the network belong to which sample")
        return _one_at_a_time(batch, reading, outputs, columns, plain, notes)


def _one_at_a_time(
    batch: MiniBatch,
    reading: Reading,
    outputs: Tensor,
    columns: int,
    plain: frozenset[nn.Parameter],
    notes: list[str],
) -> Route:
    """A route for any network, as proven on its first sample."""
    edges = [u.edge for u in reading.uses] + [edge_of(p) for p in reading.others]
    tried = _random_columns(outputs, 1, min(columns, 2))
    alone = backpropagate(outputs, edges, tried, batched=False)
    batched = False
    if columns > 1:
        reached = [(e, g) for e, g in zip(edges, alone, strict=True) if g is not None]
        together = _try_batched(outputs, [e for e, _ in reached], tried)
        batched = together is not None and all(
            agree(a, b) for a, (_, b) in zip(together, reached, strict=True)
        )
    why = {p: f"used by {kind}" for p, kind in reading.others.items()}
    if plain.issuperset(batch.parameters):  # other samples may use what the first one does not
        why = dict.fromkeys(batch.parameters, "set to plain autograd")
    shapes = [
        _shape(use, use.saved(), None if cotangent is None else cotangent.shape[1:], {})
        for use, cotangent in zip(reading.uses, alone, strict=False)  # plain ones follow
    ]
    saved = reading.saved_bytes(batch.model)
    return _route(shapes, why, None, columns, batched, 1, reading, saved, notes)


def _route(
    shapes: Sequence[UseShape],
    plain: dict[nn.Parameter, str],
    layouts: tuple[Layouts, ...] | None,
    columns: int,
    batched: bool,
    min_samples: int,
    reading: Reading,
    saved_bytes: int,
    notes: Sequence[str],
) -> Route:
    notes = list(notes)
    if columns > 1 and not batched:
        notes.append("an operation has no right batching rule: columns run one after the other")
    return Route(
        uses=tuple(shapes),
        plain=plain,
        layouts=layouts,
        batched_columns=batched,
        min_samples=min_samples,
        activations=reading.activations,
        saved_bytes=saved_bytes,
        notes=tuple(notes),
    )


def _shape(
    use: Use, saved: Saved, output: torch.Size | None, layouts: Mapping[str, Layout | None]
) -> UseShape:
    """A use in a forward pass of one sample; ``layouts`` of tensors that are those of two."""
    shapes = {}
    for name, tensor in saved.tensors.items():
        layout = layouts.get(name)
        shapes[name] = tensor.shape if layout is None else layout.of_one(tensor.shape)
    return UseShape(
        rule=use.rule,
        roles=use.roles,
        signature=use.signature,
        output=output or torch.Size(),
        saved=shapes,
        constants=saved.constants,
        reached=output is not None,
    )


def _random_columns(outputs: Tensor, n: int, columns: int) -> Tensor:
    """[n, columns, ...] for a network with these outputs."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, columns, *outputs.shape[1:], generator=generator).to(outputs)


def _try_pair(batch: MiniBatch, alone: Reading, outputs: Tensor, columns: int) -> Route | None:
    """A route for several samples at a time, as proven on two; None if it cannot be proven.

    Of the columns that are sent back the first is zero for the second sample, and the second
    for the first one: what arrives in a sample's own rows is zero wherever it is in the
    other's column, and only there.
    """
    both = batch.forward([0, _different_sample(batch)])
    _check_alone(batch, outputs, both)
    reading = read_uses(both, batch.parameters)
    if reading.others:
        return None
    tried = _random_columns(outputs, 2, min(columns, 2))
    tried[1, 0] = 0
    tried[0, 1:] = 0
    edges = [u.edge for u in reading.uses]
    first = backpropagate(both, edges, tried[:, :1], batched=False)
    reached = [(e, g) for e, g in zip(edges, first, strict=True) if g is not None]
    found: list[Tensor | None] | None = None
    if columns > 1:
        found = _try_batched(both, [e for e, _ in reached], tried)
        if found is not None and not all(
            g is not None and agree(g[:1], f) for g, (_, f) in zip(found, reached, strict=True)
        ):
            found = None
    batched = found is not None
    if found is None:
        found = backpropagate(both, [e for e, _ in reached], tried, batched=False)
    rest = iter(found)
    shapes, layouts = [], []
    for use, arrived in zip(reading.uses, first, strict=True):
        saved = use.saved()
        if arrived is None:
            shapes.append(_shape(use, saved, None, {}))
            layouts.append(Layouts(Layout(0, 1, False), {}))
            continue
        cotangent = next(rest)
        assert cotangent is not None
        proven = find_layouts(use, saved, cotangent, alone)
        if proven is None:
            return None
        layouts.append(proven)
        shapes.append(
            _shape(use, saved, proven.cotangent.of_one(cotangent.shape[1:]), proven.saved)
        )
    same = [u.signature for u in reading.uses] == [u.signature for u in alone.uses]
    saved_bytes = reading.saved_bytes(batch.model) // 2
    least = 1 if same else 2
    return _route(shapes, {}, tuple(layouts), columns, batched, least, reading, saved_bytes, [])


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
    error = deviation(together.detach(), alone.detach())
    if error <= tolerance:
        return ""
    again = batch.forward([index]).detach()
    if deviation(again, alone.detach()) > tolerance:
        return (
            f"the model's forward pass is random: sample {index} twice gives outputs that differ "
            f"by {error:.1e}; call model.eval(), and give dropout its training flag"
        )
    return (
        f"the model couples its samples: the output of sample {index} alone and in a mini-batch "
        f"differ by {error:.1e}, so that there is no per-sample Jacobian; call model.eval(), and "
        "let the forward pass use each sample alone"
    )


def _try_batched(
    outputs: Tensor, edges: Sequence[GradientEdge], columns: Tensor
) -> list[Tensor | None] | None:
    """All columns at once, or None where PyTorch cannot."""
    try:
        return backpropagate(outputs, edges, columns, batched=True)
    except (RuntimeError, NotImplementedError, ValueError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        return None
