"""The one dense float64 reference: Jacobians, loss Hessians and the GGN by torch.func.

Nothing here is optimised, and nothing of the package is used.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev, vmap


@dataclass
class Dense:
    """[N, C, D] Jacobians, [N, C, C] loss Hessians, [N, D] gradients; parameters in order."""

    jacobians: Tensor
    hessians: Tensor
    gradients: Tensor
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


def dense(model: nn.Module, loss: nn.Module, inputs: Tensor, targets: Tensor) -> Dense:
    """Differentiate a copy of the model in float64, sample by sample."""
    parameters = {n: p.detach().double() for n, p in model.named_parameters() if p.requires_grad}
    frozen = {
        n: t.detach().double() if t.is_floating_point() else t
        for n, t in [*model.named_parameters(), *model.named_buffers()]
        if n not in parameters
    }
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    targets = targets.double() if targets.is_floating_point() else targets

    def forward(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, {**frozen, **p}, (x[None],))[0]

    def flat(tree: dict[str, Tensor], rows: int) -> Tensor:
        return torch.cat([tree[n].reshape(len(inputs), rows, -1) for n in parameters], -1)

    outputs = torch.stack([forward(parameters, x) for x in inputs])
    count = outputs[0].numel()
    jacobians = [jacrev(forward)(parameters, x) for x in inputs]
    stacked = {n: torch.stack([j[n] for j in jacobians]) for n in parameters}
    hessians = vmap(hessian(lambda f, y: loss(f[None], y[None])))(outputs, targets)
    gradients = [
        jacrev(lambda p, x=x, y=y: loss(forward(p, x)[None], y[None]))(parameters)
        for x, y in zip(inputs, targets, strict=True)
    ]
    grads = {n: torch.stack([g[n] for g in gradients]) for n in parameters}
    return Dense(
        flat(stacked, count).detach(),
        hessians.reshape(len(inputs), count, count).detach(),
        flat(grads, 1)[:, 0].detach(),
        list(parameters),
        [p.numel() for p in parameters.values()],
    )


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest deviation over the largest expected entry (over 1 where all are zero)."""
    if not expected.numel():
        assert not found.numel()
        return 0.0
    scale = expected.abs().max().item() or 1.0
    return (found.double() - expected.double()).abs().max().item() / scale
