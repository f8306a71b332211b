"""The one dense float64 reference: Jacobians, loss Hessians and the GGN by plain autograd.

One sample (beside its own copy) and one output at a time, through a float64 copy of the model
and the loss exactly as given. Nothing here is optimised or batched, and nothing of the package
is used.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Tree = Any
"""A tensor, or a dict, list or tuple of trees; the first axis of every tensor is the sample."""


def tree_map(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return type(tree)({k: tree_map(function, v) for k, v in tree.items()})
    return type(tree)([tree_map(function, v) for v in tree])


def tree_len(tree: Tree) -> int:
    while not isinstance(tree, Tensor):
        tree = next(iter(tree.values() if isinstance(tree, dict) else tree))
    return len(tree)


def to_double(tree: Tree) -> Tree:
    return tree_map(lambda t: t.double() if t.is_floating_point() else t, tree)


@dataclass
class Dense:
    """[N, C, D] Jacobians, [N, C, C] loss Hessians, [N, D] gradients; parameters in order.

    Scaled so that the mean over the samples of J^T H J is the GGN of the loss, and the mean of
    the gradients its gradient, whatever the loss's weights and reduction.
    """

    jacobians: Tensor
    hessians: Tensor
    gradients: Tensor
    loss: float
    names: list[str]
    sizes: list[int]

    def ggn(self, samples: int | None = None) -> Tensor:
        j, h = self.jacobians[:samples], self.hessians[:samples]
        return torch.einsum("ncd,nce,nef->df", j, h, j) / len(j)

    @property
    def mean_gradient(self) -> Tensor:
        return self.gradients.mean(0)

    def curvatures(self, directions: Tensor, samples: int | None = None) -> Tensor:
        """[N, K] e_k^T J_n^T H_n J_n e_k for directions [D, K]."""
        je = self.jacobians[:samples] @ directions
        return torch.einsum("nck,nce,nek->nk", je, self.hessians[:samples], je)

    def block_mask(self, blocks: list[list[str]]) -> Tensor:
        """[D, D], one where both parameters belong to the same block."""
        owner = {name: number for number, block in enumerate(blocks) for name in block}
        ids = torch.cat(
            [torch.full((s,), owner[n]) for n, s in zip(self.names, self.sizes, strict=True)]
        )
        return (ids[:, None] == ids[None, :]).double()


def dense(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tree,
    targets: Tensor,
    names: Sequence[str] | None = None,
) -> Dense:
    """Differentiate.

    Args:
        model: In evaluation mode; differentiated in float64, as a copy if it is not already.
        loss: Any loss of (outputs, targets).
        inputs: [N, ...] tensors.
        targets: [N, ...].
        names: Of the parameters; None: all that require gradients.
    """
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if dtypes != {torch.float64}:
        model, loss = copy.deepcopy(model).double(), copy.deepcopy(loss).double()
    inputs, targets = to_double(inputs), to_double(targets)
    chosen = {
        n: p
        for n, p in model.named_parameters()
        if (p.requires_grad if names is None else n in names)
    }
    parameters = list(chosen.values())
    count = tree_len(inputs)

    def flat(grads: Sequence[Tensor | None]) -> Tensor:
        return torch.cat(
            [
                (torch.zeros_like(p) if g is None else g.to_dense()).flatten()
                for p, g in zip(parameters, grads, strict=True)
            ]
        )

    eager = torch.compiler.set_stance("force_eager")  # compiled graphs differentiate once only
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), eager:
        # Twice each, and the first read: PyTorch's backward pass of batch normalisation is
        # wrong for a batch of one whose incoming gradient is transposed.
        singles = [model(tree_map(lambda t, n=n: t[[n, n]], inputs))[:1] for n in range(count)]
        together = torch.cat([s.detach() for s in singles]).requires_grad_()
        value = loss(together, targets)
        (slope,) = torch.autograd.grad(value, together, create_graph=True)
        entries = singles[0].numel()
        hessians = torch.zeros(count, entries, entries, dtype=torch.float64)
        if slope.requires_grad:
            for e in range(entries):
                # Samples do not interact in the loss: one product for all of them.
                (row,) = torch.autograd.grad(
                    slope.reshape(count, -1)[:, e].sum(), together, retain_graph=True
                )
                hessians[:, e] = count * row.reshape(count, -1)
        jacobians, gradients = [], []
        for n, single in enumerate(singles):
            entry_list = single.reshape(-1).unbind() if entries > 1 else [single.reshape(())]
            rows = [
                flat(
                    torch.autograd.grad(f, parameters, retain_graph=True, allow_unused=True)
                    if f.requires_grad  # samples may use no parameter
                    else [None] * len(parameters)
                )
                for f in entry_list
            ]
            jacobians.append(torch.stack(rows))
            gradients.append(count * slope[n].detach().reshape(-1) @ jacobians[-1])
    return Dense(
        torch.stack(jacobians),
        hessians.detach(),
        torch.stack(gradients),
        float(value.detach()),
        list(chosen),
        [p.numel() for p in parameters],
    )


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest deviation over the largest expected entry (over 1 where all are zero)."""
    if not expected.numel():
        assert not found.numel()
        return 0.0
    scale = expected.abs().max().item() or 1.0
    return (found.double() - expected.double()).abs().max().item() / scale
