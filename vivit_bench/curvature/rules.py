"""How a layer's share of V follows from its input and its output's cotangents.

A rule belongs to a node of the autograd graph, not to a module: the graph says what was
really computed, whatever hooks, patches and parametrisations stood between a module's
name and its arithmetic. A rule says which of a node's inputs may be a parameter, what the
node has saved, and v_nc = (d z / d theta)^T s_nc (Equation S.22) for one call on one
sample, for all samples and columns at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from vivit_bench.curvature.kernels import unfold


class Tier(StrEnum):
    """How a parameter's share of V is computed."""

    FAST = "fast"
    """Linear layers and convolutions, from their inputs and cotangents."""
    SMALL = "small"
    """Normalisations, embeddings, broadcast sums and products: a small exact rule."""
    PLAIN = "plain"
    """Plain autograd, one sample at a time; right for every differentiable network."""


@dataclass(frozen=True)
class Saved:
    """What a node keeps of its forward pass."""

    tensors: dict[str, Tensor]
    """Those that the samples run through."""
    constants: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Role:
    """A parameter in one place of one node."""

    parameter: nn.Parameter
    shape: torch.Size
    """In which the node sees it (its own shape, or that of a reshaping on the way)."""


Roles = Mapping[str, Role]


class Rule(ABC):
    """One kind of node."""

    tier = Tier.SMALL
    broadcasts = False
    """Whether saved tensors are aligned with the output at their last axes, and may lack the
    sample; else at their first axes."""
    without_samples = False
    """Whether saved tensors are the same for all samples."""

    def summed(self, roles: Roles) -> list[torch.Size]:
        """Shapes that cotangents are summed to, along the samples, too; aligned at their ends."""
        return []

    def __init__(self, label: str, nodes: Sequence[str]) -> None:
        self.label = label
        self.nodes = nodes
        """Names of the nodes without their number."""

    @abstractmethod
    def role(self, node: Any, slot: int, path: tuple[str, ...]) -> str | None:
        """What a parameter in input ``slot`` is, reached through ``path``; None: no rule."""

    @abstractmethod
    def read(self, node: Any, roles: Roles) -> Saved:
        """What :meth:`expand` needs."""

    @abstractmethod
    def expand(self, saved: Saved, roles: Roles, s: Tensor) -> dict[str, Tensor]:
        """The share of V.

        Args:
            saved: With tensors [n, *shape of one sample's].
            roles: The parameters.
            s: [n, c, *shape of one sample's output] cotangents.

        Returns:
            Role -> [n, c, numel].
        """


def _flat_path(path: tuple[str, ...]) -> bool:
    """Whether a parameter keeps the order of its entries on the way."""
    return all(step in RESHAPES for step in path)


RESHAPES = frozenset(
    f"{name}Backward"
    for name in ("View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Alias")
)
"""Nodes that only change a parameter's shape."""
TRANSPOSE = "TBackward"


class _Linear(Rule):
    """x W^T + b, or x W + b, on [rows, K] inputs; a sample may have many rows."""

    tier = Tier.FAST

    def role(self, node: Any, slot: int, path: tuple[str, ...]) -> str | None:
        with_bias = node.name().startswith("Addmm")
        if with_bias and not (node._saved_alpha == 1 and node._saved_beta == 1):
            return None
        if slot == (2 if with_bias else 1):
            return {(TRANSPOSE,): "weight", (): "transposed weight"}.get(path)
        return "bias" if with_bias and slot == 0 and not path else None

    def read(self, node: Any, roles: Roles) -> Saved:
        if set(roles) <= {"bias"}:
            return Saved({})
        name = "_saved_mat1" if node.name().startswith("Addmm") else "_saved_self"
        return Saved({"input": getattr(node, name).detach()})

    def expand(self, saved: Saved, roles: Roles, s: Tensor) -> dict[str, Tensor]:
        found = {}
        if "bias" in roles:
            found["bias"] = s.sum(2)
        if "weight" in roles:
            found["weight"] = (s.mT @ saved.tensors["input"].unsqueeze(1)).flatten(2)
        if "transposed weight" in roles:
            found["transposed weight"] = (saved.tensors["input"].mT.unsqueeze(1) @ s).flatten(2)
        return found


def _sizes(values: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


class _Convolution(Rule):
    """Any number of spatial axes and groups; a sample may be several images."""

    tier = Tier.FAST

    def role(self, node: Any, slot: int, path: tuple[str, ...]) -> str | None:
        if path or slot not in (1, 2) or node._saved_transposed:
            return None
        return {1: "weight", 2: "bias"}[slot]

    def read(self, node: Any, roles: Roles) -> Saved:
        kernel = node._saved_weight.shape[2:]
        names = ("stride", "padding", "dilation")
        geometry = {name: _sizes(getattr(node, f"_saved_{name}")) for name in names}
        # With padding="valid" one number stands for all axes.
        geometry = {n: g * len(kernel) if len(g) == 1 else g for n, g in geometry.items()}
        geometry["kernel"] = _sizes(kernel)
        constants = {"geometry": geometry, "groups": int(node._saved_groups)}
        return Saved({"input": node._saved_input.detach()}, constants)

    def expand(self, saved: Saved, roles: Roles, s: Tensor) -> dict[str, Tensor]:
        z, groups = saved.tensors["input"], saved.constants["groups"]
        n, c, images, outputs = s.shape[:4]
        s = s.flatten(4)
        found = {}
        if "bias" in roles:
            found["bias"] = s.sum((2, 4))
        if "weight" in roles:
            u = unfold(z.flatten(0, 1), **saved.constants["geometry"])
            found["weight"] = _grouped_product(
                s.reshape(n, c, images, groups, outputs // groups, -1),
                u.reshape(n, 1, images, groups, -1, u.shape[-1]),
            )
        return found


def _grouped_product(a: Tensor, b: Tensor) -> Tensor:
    """Sum over images and positions of a b^T in each group.

    Args:
        a: [n, c or 1, images, groups, i, P].
        b: [n, c or 1, images, groups, j, P].

    Returns:
        [n, c, groups * i * j].
    """
    n, ca, images, groups, i, positions = a.shape
    cb, j = b.shape[1], b.shape[4]
    if cb == 1 and images == 1 and a.stride(1) > a.stride(0):
        # As columns come from batched autograd, outermost: one at a time needs no copy.
        right = b.reshape(n * groups, j, positions).mT
        products = [torch.bmm(a[:, k].reshape(n * groups, i, positions), right) for k in range(ca)]
        return torch.stack(products).view(ca, n, -1).transpose(0, 1)
    if cb == 1:  # columns beside the rows of a: one product a sample and group
        left = a.permute(0, 3, 1, 4, 2, 5).reshape(n * groups, ca * i, images * positions)
        right = b.permute(0, 3, 1, 4, 2, 5).reshape(n * groups, j, images * positions)
        product = torch.bmm(left, right.mT).view(n, groups, ca, i * j)
    else:
        left = a.permute(0, 3, 1, 4, 2, 5).reshape(n * groups, i, images * positions)
        right = b.permute(0, 3, 1, 4, 2, 5).reshape(n * groups, cb * j, images * positions)
        product = torch.bmm(left, right.mT).view(n, groups, i, cb, j).transpose(2, 3)
        product = product.reshape(n, groups, cb, i * j)
    return product.transpose(1, 2).flatten(2)


class _TransposedConvolution(Rule):
    """Like a convolution with the roles of its input and its output's cotangents changed."""

    def role(self, node: Any, slot: int, path: tuple[str, ...]) -> str | None:
        if path or slot not in (1, 2) or not node._saved_transposed:
            return None
        extra, stride = _sizes(node._saved_output_padding), _sizes(node._saved_stride)
        if any(e >= s for e, s in zip(extra, stride, strict=True)):
            return None  # the output then has positions that no patch begins at
        return {1: "weight", 2: "bias"}[slot]

    read = _Convolution.read

    def expand(self, saved: Saved, roles: Roles, s: Tensor) -> dict[str, Tensor]:
        z, groups = saved.tensors["input"], saved.constants["groups"]
        n, c, images = s.shape[:3]
        found = {}
        if "bias" in roles:
            found["bias"] = s.flatten(4).sum((2, 4))
        if "weight" in roles:
            u = unfold(s.flatten(0, 2), **saved.constants["geometry"])
            found["weight"] = _grouped_product(
                z.reshape(n, 1, images, groups, z.shape[2] // groups, -1),
                u.reshape(n, c, images, groups, -1, u.shape[-1]),
            )
        return found


def _scale_and_shift(roles: Roles, normalised: Tensor, s: Tensor, axis: int) -> dict[str, Tensor]:
    """Weight and bias of a normalisation with one entry a channel.

    Args:
        roles: ``weight``, ``bias`` or both.
        normalised: [n, ...] what the weight multiplies.
        s: [n, c, ...].
        axis: Of the channels in ``s``.
    """
    others = [a for a in range(2, s.ndim) if a != axis]
    values = {"bias": s, "weight": s * normalised.unsqueeze(1) if "weight" in roles else s}
    return {role: values[role].sum(others) if others else values[role] for role in roles}


class _BatchNorm(Rule):
    """With running statistics, as in evaluation mode."""

    def role(self, node: Any, slot: int, path: tuple[str, ...]) -> str | None:
        if path or node._saved_training:
            return None
        return {1: "weight", 2: "bias"}.get(slot)

    def read(self, node: Any, roles: Roles) -> Saved:
        native = node_kind(node) == "NativeBatchNormBackward"
        eps = node._saved_eps if native else node._saved_epsilon
        constants = {
            "mean": node._saved_running_mean.detach(),
            "variance": node._saved_running_var.detach() + eps,
        }
        return Saved({"input": node._saved_input.detach()}, constants)

    def expand(self, saved: Saved, roles: Roles, s: Tensor) -> dict[str, Tensor]:
        z = saved.tensors["input"]
        shape = (1, 1, -1, *[1] * (z.ndim - 3))
        centred = z - saved.constants["mean"].view(shape)
        return _scale_and_shift(
            roles, centred * saved.constants["variance"].rsqrt().view(shape), s, 3
        )


class _LayerNorm(Rule):
    def role(self, node: Any, slot: int, path: tuple[str, ...]) -> str | None:
        return None if path else {1: "weight", 2: "bias"}.get(slot)

    def read(self, node: Any, roles: Roles) -> Saved:
        tensors = {"input": node._saved_input, "mean": node._saved_result1}
        tensors["rstd"] = node._saved_result2
        size = prod(_sizes(node._saved_normalized_shape))
        return Saved({name: t.detach() for name, t in tensors.items()}, {"size": size})

    def expand(self, saved: Saved, roles: Roles, s: Tensor) -> dict[str, Tensor]:
        z, mean, rstd = (saved.tensors[name] for name in ("input", "mean", "rstd"))
        size = saved.constants["size"]
        normalised = ((z - mean) * rstd).reshape(len(z), -1, size)
        return _scale_and_shift(roles, normalised, s.reshape(*s.shape[:2], -1, size), 3)


class _GroupNorm(Rule):
    def role(self, node: Any, slot: int, path: tuple[str, ...]) -> str | None:
        return None if path else {1: "weight", 2: "bias"}.get(slot)

    def read(self, node: Any, roles: Roles) -> Saved:
        tensors = {"input": node._saved_input, "mean": node._saved_result1}
        tensors["rstd"] = node._saved_result2
        return Saved({name: t.detach() for name, t in tensors.items()})

    def expand(self, saved: Saved, roles: Roles, s: Tensor) -> dict[str, Tensor]:
        z, mean, rstd = (saved.tensors[name] for name in ("input", "mean", "rstd"))
        grouped = z.reshape(*mean.shape, -1)
        normalised = (grouped - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)
        return _scale_and_shift(roles, normalised.reshape(z.shape), s, 3)


class _Embedding(Rule):
    def role(self, node: Any, slot: int, path: tuple[str, ...]) -> str | None:
        return "weight" if slot == 0 and not path and not node._saved_scale_grad_by_freq else None

    def read(self, node: Any, roles: Roles) -> Saved:
        constants = {"padding": int(node._saved_padding_idx)}
        return Saved({"indices": node._saved_indices}, constants)

    def expand(self, saved: Saved, roles: Roles, s: Tensor) -> dict[str, Tensor]:
        count, width = roles["weight"].shape
        n, c = s.shape[:2]
        s = s.reshape(n, c, -1, width)
        rows = saved.tensors["indices"].reshape(n, 1, -1, 1).long().expand(s.shape)
        v = s.new_zeros(n, c, count, width).scatter_add_(2, rows, s)
        if 0 <= saved.constants["padding"] < count:
            v[:, :, saved.constants["padding"]] = 0
        return {"weight": v.flatten(2)}


def _sum_to(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum [n, c, *out] over what a tensor of ``shape`` was broadcast along: [n, c, numel]."""
    added = values.ndim - 2 - len(shape)
    axes = [2 + a for a in range(added)]
    axes += [2 + added + a for a, size in enumerate(shape) if size == 1]
    return (values.sum(axes) if axes else values).reshape(*values.shape[:2], prod(shape))


class _PReLU(Rule):
    def role(self, node: Any, slot: int, path: tuple[str, ...]) -> str | None:
        return "weight" if slot == 1 and _flat_path(path) else None

    def read(self, node: Any, roles: Roles) -> Saved:
        return Saved({"input": node._saved_self.detach()})

    def expand(self, saved: Saved, roles: Roles, s: Tensor) -> dict[str, Tensor]:
        slopes = s * saved.tensors["input"].clamp(max=0).unsqueeze(1)
        return {"weight": _sum_to(slopes, roles["weight"].shape)}


class _BroadcastSum(Rule):
    """Positions, biases and tokens that are added or expanded."""

    def summed(self, roles: Roles) -> list[torch.Size]:
        return [role.shape for role in roles.values()]

    def role(self, node: Any, slot: int, path: tuple[str, ...]) -> str | None:
        if not _flat_path(path) or (slot == 1 and node._saved_alpha != 1):
            return None
        return f"term {slot}"

    def read(self, node: Any, roles: Roles) -> Saved:
        return Saved({})

    def expand(self, saved: Saved, roles: Roles, s: Tensor) -> dict[str, Tensor]:
        return {role: _sum_to(s, found.shape) for role, found in roles.items()}


class _BroadcastProduct(Rule):
    """Scales and gates that multiply."""

    broadcasts = True

    def summed(self, roles: Roles) -> list[torch.Size]:
        return [role.shape for role in roles.values()]

    def role(self, node: Any, slot: int, path: tuple[str, ...]) -> str | None:
        other = node._saved_other if slot == 0 else node._saved_self
        return f"factor {slot}" if _flat_path(path) and isinstance(other, Tensor) else None

    def read(self, node: Any, roles: Roles) -> Saved:
        others = {"factor 0": "_saved_other", "factor 1": "_saved_self"}
        return Saved({role: getattr(node, others[role]).detach() for role in roles})

    def expand(self, saved: Saved, roles: Roles, s: Tensor) -> dict[str, Tensor]:
        found = {}
        for role, parameter in roles.items():
            other = saved.tensors[role]
            # The product broadcasts from the last axis, behind the sample and the column.
            lead = [1] * (s.ndim - 1 - other.ndim)
            other = other.reshape(len(other), 1, *lead, *other.shape[1:])
            found[role] = _sum_to(s * other, parameter.shape)
        return found


class Broadcast(Rule):
    """A rule of a node without samples, whose output is added to what the samples run through.

    A table of positions, say, looked up once for all samples. The cotangents are those of the
    sum, where the samples are apart.
    """

    without_samples = True

    def __init__(self, rule: Rule, output: torch.Size) -> None:
        super().__init__(f"{rule.label} of {list(output)}, broadcast", [])
        self._rule, self._output = rule, output

    def summed(self, roles: Roles) -> list[torch.Size]:  # noqa: D102
        return [self._output]

    def role(self, node: Any, slot: int, path: tuple[str, ...]) -> str | None:  # noqa: D102
        return None  # made where a graph is read

    def read(self, node: Any, roles: Roles) -> Saved:  # noqa: D102
        return self._rule.read(node, roles)

    def expand(self, saved: Saved, roles: Roles, s: Tensor) -> dict[str, Tensor]:  # noqa: D102
        reduced = _sum_to(s, self._output).view(*s.shape[:2], *self._output)
        tensors = {k: t.expand(len(s), *t.shape[1:]) for k, t in saved.tensors.items()}
        return self._rule.expand(Saved(tensors, saved.constants), roles, reduced)


LINEAR = _Linear("linear", ["AddmmBackward", "MmBackward"])
CONVOLUTION = _Convolution("convolution", ["ConvolutionBackward"])
EMBEDDING = _Embedding("embedding", ["EmbeddingBackward"])
_RULES: tuple[Rule, ...] = (
    LINEAR,
    CONVOLUTION,
    _TransposedConvolution("transposed convolution", ["ConvolutionBackward"]),
    _BatchNorm("batch norm", ["NativeBatchNormBackward", "CudnnBatchNormBackward"]),
    _LayerNorm("layer norm", ["NativeLayerNormBackward"]),
    _GroupNorm("group norm", ["NativeGroupNormBackward"]),
    EMBEDDING,
    _PReLU("PReLU", ["PreluKernelBackward"]),
    _BroadcastSum("sum", ["AddBackward", "ExpandBackward"]),
    _BroadcastProduct("product", ["MulBackward"]),
)
_BY_NODE = {name: [r for r in _RULES if name in r.nodes] for rule in _RULES for name in rule.nodes}


def node_kind(node: Node) -> str:
    """A node's name without its number, such as ``AddmmBackward``."""
    return node.name().rstrip("0123456789")


def find_rule(node: Node, slot: int, path: tuple[str, ...]) -> tuple[Rule, str] | None:
    """The rule and role of a parameter that enters ``node`` at ``slot``; None: there is none."""
    for rule in _BY_NODE.get(node_kind(node), []):
        role = rule.role(node, slot, path)
        if role is not None:
            return rule, role
    return None
