"""The front end: where parameters are used in a forward pass, and cotangents sent back there.

The autograd graph of the outputs is read, not the modules: every path from a parameter to
the output is either a use with a rule (``rules.py``), or the parameter is left to plain
autograd. Batched autograd then sends any number of columns back to the uses. No conversion
of the network and no hook is needed: in-place activations, residual sums, reused modules and
functional uses of a weight are ordinary graphs.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from vivit_bench.curvature.minibatch import blamed_on_model
from vivit_bench.curvature.rules import (
    EMBEDDING,
    RESHAPES,
    TRANSPOSE,
    Broadcast,
    Role,
    Rule,
    Saved,
    find_rule,
    node_kind,
)


class GraphChanged(Exception):  # noqa: N818
    """The network computes differently for other samples, so that uses cannot be matched."""


@dataclass(frozen=True)
class Use:
    """One node of one forward pass with parameters among its inputs."""

    rule: Rule
    node: Node
    """Whose output's cotangents are wanted."""
    source: Node
    """Whose inputs the parameters are; the same node, except for a ``Broadcast``."""
    roles: dict[str, Role]

    @property
    def edge(self) -> GradientEdge:
        """Where the cotangents of the node's output arrive."""
        return GradientEdge(self.node, 0)

    @property
    def output_shape(self) -> torch.Size:
        """Of the node."""
        return torch.Size(self.node._input_metadata[0].shape)

    def saved(self) -> Saved:
        """What the node keeps of its forward pass.

        Raises:
            UsageError: It was overwritten in place, so that there is no gradient either.
        """
        with blamed_on_model("the model's backward pass"):
            return self.rule.read(self.source, self.roles)

    @property
    def signature(self) -> tuple:
        """What must be the same in every forward pass."""
        roles = tuple((r, id(x.parameter), tuple(x.shape)) for r, x in self.roles.items())
        return (self.rule.label, roles)


@dataclass(frozen=True)
class Reading:
    """What a forward pass's graph says of the parameters."""

    uses: list[Use]
    """In a fixed order."""
    others: dict[nn.Parameter, str]
    """Parameters with a use that has no rule -> the kind of that node."""
    nodes: list[Node]
    """All of the graph."""

    @property
    def activations(self) -> int:
        """Numbers that the pass computed, all intermediate results together."""
        return sum(_num_entries(node) for node in self.nodes)

    def saved_bytes(self, model: nn.Module) -> int:
        """Memory that the graph keeps for its backward pass, beside the model's own tensors."""
        own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        storages = [t.untyped_storage() for node in self.nodes for t in _saved_tensors(node)]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        return sum(size for place, size in sizes.items() if place not in own)


def read_uses(
    outputs: Tensor, parameters: Iterable[nn.Parameter], plain: Collection[nn.Parameter] = ()
) -> Reading:
    """Where the parameters are used; those that are not in the graph are in no result.

    Args:
        outputs: Of a forward pass, with their graph.
        parameters: To look for.
        plain: Those of them whose rules are not to be used.
    """
    nodes, consumers = _read_graph(outputs)
    wanted = set(parameters)
    matched: dict[Node, dict[str, Use]] = defaultdict(dict)
    others: dict[nn.Parameter, str] = {}
    for leaf in nodes:
        parameter = getattr(leaf, "variable", None)
        if parameter is None or parameter not in wanted:
            continue
        found = "a failed check" if parameter in plain else _match(leaf, parameter, consumers)
        if isinstance(found, str):
            others[parameter] = found
            continue
        for source, rule, name, role in found:
            node, rule = _broadcast(source, rule, consumers)
            use = matched[node].setdefault(rule.label, Use(rule, node, source, {}))
            use.roles[name] = role
    uses = [use for node in nodes if node in matched for use in matched[node].values()]
    return Reading(uses, others, nodes)


def _broadcast(node: Node, rule: Rule, consumers: "_Consumers") -> tuple[Node, Rule]:
    """Where an embedding's cotangents are to be collected, and its rule there.

    Behind the sum that is its only consumer, if it has fewer axes than that: samples can then
    only be told apart there.
    """
    if rule is EMBEDDING and len(consumers[node]) == 1:
        ((total, slot),) = consumers[node]
        if node_kind(total) == "AddBackward" and (slot == 0 or total._saved_alpha == 1):  # type: ignore[attr-defined]
            output, summed = (n._input_metadata[0].shape for n in (node, total))
            if len(output) < len(summed):
                return total, Broadcast(rule, torch.Size(output))
    return node, rule


def _saved_tensors(node: Node) -> list[Tensor]:
    names = [name for name in dir(node) if name.startswith("_saved_") or name == "saved_tensors"]
    found: list[Tensor] = []
    for name in names:
        with suppress(RuntimeError):  # overwritten in place since
            value = getattr(node, name)
            found += [t for t in (value if isinstance(value, tuple) else (value,)) if _is_own(t)]
    return found


def _is_own(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided


def _num_entries(node: Node) -> int:
    """Of a node's outputs; parameters, which are no results, count as none."""
    if hasattr(node, "variable"):
        return 0
    return sum(prod(meta.shape) for meta in node._input_metadata)


_Consumers = dict[Node, list[tuple[Node, int]]]


def _read_graph(outputs: Tensor) -> tuple[list[Node], _Consumers]:
    """Nodes in a fixed order, and for each the nodes that take its output, with their slots."""
    root = outputs.grad_fn
    roots = [] if root is None else [root]  # samples may use no parameter
    order = list(roots)  # the list keeps the nodes alive, whose identity is compared
    seen = set(roots)
    consumers: _Consumers = defaultdict(list)
    stack = list(roots)
    while stack:
        node = stack.pop()
        for slot, (other, _) in enumerate(node.next_functions):
            if other is None:
                continue
            consumers[other].append((node, slot))
            if other not in seen:
                seen.add(other)
                order.append(other)
                stack.append(other)
    return order, consumers


def _match(
    leaf: Node, parameter: nn.Parameter, consumers: _Consumers
) -> list[tuple[Node, Rule, str, Role]] | str:
    """Every use of a parameter, or the kind of a node that has no rule for it."""
    found = []
    stack: list[tuple[Node, tuple[str, ...], torch.Size]] = [(leaf, (), parameter.shape)]
    while stack:
        source, path, shape = stack.pop()
        for node, slot in consumers[source]:
            rule = find_rule(node, slot, path)
            if rule is not None:
                found.append((node, *rule, Role(parameter, shape)))
                continue
            kind = node_kind(node)
            if kind not in RESHAPES and kind != TRANSPOSE:
                return kind.removesuffix("Backward")
            seen_as = torch.Size(node._input_metadata[0].shape)
            stack.append((node, (*path, kind), seen_as))
    return found


def edge_of(parameter: nn.Parameter) -> GradientEdge:
    """Where a parameter's own gradient arrives."""
    return get_gradient_edge(parameter)


def backpropagate(
    outputs: Tensor, edges: Sequence[GradientEdge], columns: Tensor, *, batched: bool
) -> list[Tensor | None]:
    """Send columns at the model output back, keeping the graph.

    Args:
        outputs: [n, ...] model output with its graph.
        edges: Where to collect.
        columns: [n, c, ...] cotangents, c for each sample.
        batched: All columns at once; every edge must be reached. Else one after the other,
            which is right for every network, where the batching rules of single operations
            may be wrong or missing.

    Returns:
        For each edge [c, *shape there]; None where no column arrives. Sparse gradients are
        returned dense.
    """
    count = columns.shape[1]
    if batched and count > 1:

        def pull(column: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(outputs, edges, column, retain_graph=True)

        return list(torch.func.vmap(pull)(columns.transpose(0, 1)))
    rows = [_pull(outputs, edges, columns[:, i]) for i in range(count)]
    return [_stack(grads) for grads in zip(*rows, strict=True)]


def _pull(outputs: Tensor, edges: Sequence[GradientEdge], column: Tensor) -> list[Tensor | None]:
    with blamed_on_model("the model's backward pass"):
        grads = torch.autograd.grad(outputs, edges, column, retain_graph=True, allow_unused=True)
    return [g.to_dense() if g is not None and g.layout is not torch.strided else g for g in grads]


def _stack(grads: Sequence[Tensor | None]) -> Tensor | None:
    template = next((g for g in grads if g is not None), None)
    if template is None:
        return None
    if len(grads) == 1:
        return template.unsqueeze(0)
    return torch.stack([torch.zeros_like(template) if g is None else g for g in grads])
