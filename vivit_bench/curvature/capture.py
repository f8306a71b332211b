"""The front end: layer inputs of a forward pass and cotangents at the layers' outputs.

Forward hooks note, for every call of a module that owns trainable parameters, its
input and the gradient edge of its output; batched autograd then sends any number of
columns back to those edges. This needs no rule per layer type and no conversion of
the network: in-place activations, residual sums and reused modules are ordinary
autograd graphs.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from vivit_bench.errors import UsageError


@dataclass
class LayerCall:
    """One call of one module with trainable parameters of its own."""

    name: str
    """Qualified module name ("" for the model itself)."""
    module: nn.Module
    inputs: tuple[Any, ...]
    """Positional arguments, tensors detached."""
    output_shape: torch.Size
    edge: GradientEdge | None
    """Where the output's cotangents arrive; None if the output needs no gradient."""
    versions: list[int] = field(default_factory=list)

    def check_unmodified(self) -> None:
        """Raise if an input was overwritten after the layer had used it."""
        if [t._version for t in self.inputs if isinstance(t, Tensor)] != self.versions:
            raise UsageError(
                f"the input of layer {self.name!r} is overwritten in place later in the "
                "forward pass; use an out-of-place operation there"
            )


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's own (not its children's) trainable parameters by their local names."""
    return {k: p for k, p in module._parameters.items() if p is not None and p.requires_grad}


@contextmanager
def record_calls(model: nn.Module) -> Iterator[list[LayerCall]]:
    """Note every call of a parametrised module of ``model`` in the order of completion.

    Raises:
        UsageError: From the forward pass, if a layer takes keyword arguments or returns
            something else than one tensor with the sample axis first.
    """
    calls: list[LayerCall] = []
    handles = []

    def note(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        kind = type(module).__name__
        if kwargs:
            raise UsageError(
                f"layer {name!r} ({kind}) is called with keyword arguments "
                f"{sorted(kwargs)}; call it with positional arguments"
            )
        if not isinstance(output, Tensor):
            raise UsageError(
                f"layer {name!r} ({kind}) returns {type(output).__name__}, not one tensor; "
                "such layers are not supported"
            )
        inputs = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        versions = [t._version for t in inputs if isinstance(t, Tensor)]
        edge = get_gradient_edge(output) if output.requires_grad else None
        calls.append(LayerCall(name, module, inputs, output.shape, edge, versions))

    for name, module in model.named_modules():
        if own_parameters(module):

            def hook(m: nn.Module, a: tuple, k: dict, o: Any, name: str = name) -> None:
                note(name, m, a, k, o)

            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def parameter_uses(outputs: Tensor) -> Counter[Tensor]:
    """How often each leaf appears in the graph of ``outputs``."""
    uses: Counter[Tensor] = Counter()
    seen = {outputs.grad_fn}  # keeps the nodes alive, whose identity is compared
    stack = [outputs.grad_fn]
    while stack:
        node = stack.pop()
        for other, _ in node.next_functions if node is not None else ():
            leaf = getattr(other, "variable", None)
            if leaf is not None:
                uses[leaf] += 1
            elif other not in seen:
                seen.add(other)
                stack.append(other)
    return uses


def backpropagate(
    outputs: Tensor, edges: Sequence[GradientEdge], columns: Tensor
) -> tuple[Tensor, ...]:
    """Send columns at the model output back to the layers' outputs.

    Args:
        outputs: [n, ...] model output with its graph (which is kept).
        edges: Where to collect.
        columns: [n, c, ...] cotangents, c for each sample.

    Returns:
        For each edge [c, n, *layer output].
    """

    def pull(column: Tensor) -> tuple[Tensor, ...]:
        # Every edge was reached in the first pass, so no gradient is None.
        return torch.autograd.grad(outputs, edges, column, retain_graph=True)

    if columns.shape[1] == 1:
        return tuple(g.unsqueeze(0) for g in pull(columns[:, 0]))
    return torch.func.vmap(pull)(columns.transpose(0, 1))
