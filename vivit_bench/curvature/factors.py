"""What is kept of each unit's share of V, and how its Gram matrix is formed from it.

Two kinds, after appendix C of the paper:

* :class:`ExplicitFactor` holds V itself. It costs least where a layer has fewer
  parameters than outputs, and it serves every rule and plain autograd.
* :class:`AffineFactor` holds the layer input z and the cotangents s of a linear layer
  or convolution, whose V = s unfold(z)^T is never held as a whole. It is contracted
  in chunks of V, over pairs of samples, or (one output position) as the product of
  the input and output Gram matrices (C.1).

All rows are ordered (sample, column), and samples are put in any slices. V^T V is a sum over
parameters, so that a factor may hold a part of its unit alone: some output channels of a
weight, or some entries of V.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from enum import StrEnum
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from vivit_bench.curvature.kernels import add_lower, for_each, product_block, unfold
from vivit_bench.curvature.route import GraphChanged, UseShape
from vivit_bench.curvature.rules import LINEAR, Saved
from vivit_bench.curvature.tuning import expand_bytes, tile_bytes

Direction = dict[nn.Parameter, Tensor]
"""A vector in parameter space, parameter -> tensor of its shape."""


class Contraction(StrEnum):
    """The ways to contract a layer's V with itself; all compute the same Gram matrix."""

    EXPLICIT = "explicit V"
    """V is held and multiplied; wins where D_layer is small."""
    GRAM_PRODUCT = "input Gram x output Gram"
    """One output position: (u u'^T + 1) * (s s'^T); always wins there."""
    CHUNKS = "V in chunks"
    """V in chunks of input channels; wins where there are many output positions."""
    PAIRS = "sample pairs"
    """For every two samples s (unfold(z)^T unfold(z') + 1) s'^T; wins for few positions."""


class Factor(ABC):
    """One unit's share of V, or a part of it, for N samples with c columns each (M = N c rows)."""

    def __init__(self, parameters: Sequence[nn.Parameter], num_samples: int, num_columns: int):
        self.parameters = tuple(parameters)
        self.num_samples = num_samples
        self.num_columns = num_columns

    @property
    def rows(self) -> int:
        """M = N c."""
        return self.num_samples * self.num_columns

    @abstractmethod
    def chunks(self, width: int | None = None) -> Iterator[Tensor]:
        """V^T in pieces [M, d], whose widths add up to the unit's parameters.

        A piece is valid until the next one is asked for.

        Args:
            width: Input channels in a chunk, where the factor has any; None: its own choice.
        """

    @abstractmethod
    def dot(self, direction: Direction) -> Tensor:
        """V^T x for a vector x in parameter space: [M]."""

    @abstractmethod
    def combine(self, weights: Tensor, samples: Sequence[int] | None = None) -> Direction:
        """V w for ``weights`` [M]; only these samples' share of it, if ``samples`` are named."""

    @property
    def chunk_width(self) -> int:
        """Input channels in a chunk that its memory allows."""
        return 1

    def add_gram(self, gram: Tensor) -> None:
        """Lower triangle of ``gram`` [M, M] += V^T V."""
        for v in self.chunks():
            add_lower(gram, v)

    def add_cross(self, other: "Factor", out: Tensor) -> None:
        """``out`` [M, M'] += V^T V' for a factor of the same unit and kind."""
        width = min(self.chunk_width, other.chunk_width)
        for v, w in zip(self.chunks(width), other.chunks(width), strict=True):
            out.addmm_(v, w.t())


class WholeFactor(Factor):
    """A factor of all columns, as the passes fill it."""

    @abstractmethod
    def put(
        self, samples: slice, columns: slice, number: int, saved: Saved, cotangents: Tensor
    ) -> None:
        """Take in some samples' columns at one use, [n, c', *shape of one sample's output].

        Args:
            samples: Which samples these are.
            columns: Which of their columns.
            number: Of the use, in the order of the unit's.
            saved: What the use's node keeps, [n, ...].
            cotangents: At its output.
        """

    def leave_out(self, samples: slice, columns: slice) -> None:
        """No cotangents arrive at a use of some samples: its share of V is zero there."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """|v|^2 of every column of V, [N, c] float64."""


class ExplicitFactor(WholeFactor):
    """V itself, [N, c, D_part], summed over the uses of the parameters.

    Args:
        parameters: The unit's.
        num_samples: N.
        num_columns: c.
        uses: The unit's.
        chunk_bytes: Bounds what expanding cotangents takes.
        part: Entries of the unit's parameters, in their order; None: all.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        num_samples: int,
        num_columns: int,
        uses: Sequence[UseShape],
        chunk_bytes: int,
        part: slice | None = None,
    ):
        super().__init__(parameters, num_samples, num_columns)
        self._uses = uses
        self._chunk_bytes = chunk_bytes
        self._entries: dict[nn.Parameter, slice] = {}
        """Of each parameter that has any in the part."""
        self._slices: dict[nn.Parameter, slice] = {}
        """Where they stand in ``v``."""
        end = width = 0
        size = sum(p.numel() for p in parameters)
        first, stop = (0, size) if part is None else (part.start, part.stop)
        for p in parameters:
            entries = slice(max(first - end, 0), min(stop - end, p.numel()))
            end += p.numel()
            if entries.start < entries.stop:
                self._entries[p] = entries
                self._slices[p] = slice(width, width + entries.stop - entries.start)
                width = self._slices[p].stop
        self.v = parameters[0].new_zeros(num_samples, num_columns, width, requires_grad=False)

    def put(  # noqa: D102
        self, samples: slice, columns: slice, number: int, saved: Saved, cotangents: Tensor
    ) -> None:
        use = self._uses[number]
        roles = {name: role for name, role in use.roles.items() if role.parameter in self._slices}
        count = len(cotangents)
        most = expand_bytes(cotangents.device, 2 * self._chunk_bytes)
        step = max(most // expanding_bytes(self.parameters, use, cotangents.shape[1]), 1)
        for first in range(0, count, step):
            few = slice(first, min(first + step, count))
            tensors = {k: t if len(t) < count else t[few] for k, t in saved.tensors.items()}
            found = use.rule.expand(Saved(tensors, saved.constants), roles, cotangents[few])
            rows = slice(samples.start + few.start, samples.start + few.stop)
            for name, v in found.items():
                parameter = roles[name].parameter
                v = v[..., self._entries[parameter]]
                self.v[rows, columns, self._slices[parameter]] += v

    def put_plain(
        self, samples: slice, columns: slice, parameter: nn.Parameter, gradients: Tensor
    ) -> None:
        """Take in one sample's columns of a parameter's own gradients, [c', *shape]."""
        if parameter in self._slices:
            flat = gradients.reshape(len(gradients), -1)[:, self._entries[parameter]]
            self.v[samples, columns, self._slices[parameter]] = flat

    def chunks(self, width: int | None = None) -> Iterator[Tensor]:  # noqa: D102
        yield self.v.flatten(0, 1)

    def squared_norms(self) -> Tensor:  # noqa: D102
        return _squares(self.v)

    def dot(self, direction: Direction) -> Tensor:  # noqa: D102
        parts = [direction[p].flatten()[entries] for p, entries in self._entries.items()]
        return self.v.flatten(0, 1) @ torch.cat([*parts, self.v.new_empty(0)])

    def combine(self, weights: Tensor, samples: Sequence[int] | None = None) -> Direction:  # noqa: D102
        v, weights = self.v, weights.view(self.num_samples, self.num_columns)
        if samples is not None:
            v, weights = v[list(samples)], weights[list(samples)]
        vector = weights.flatten() @ v.flatten(0, 1)
        nothing = slice(0, 0)  # of a parameter without entries
        return {p: vector[self._slices.get(p, nothing)].view_as(p) for p in self.parameters}


def expanding_bytes(parameters: Sequence[nn.Parameter], use: UseShape, columns: int) -> int:
    """What expanding one sample's columns at one use into V takes beside the cotangents.

    A copy of them, the products, and the patches of a convolution's input.
    """
    outputs = use.output.numel()
    channels = use.output[1] if len(use.output) > 1 else 1
    size = sum(p.numel() for p in parameters)
    patches = max((p[0].numel() for p in parameters if p.ndim > 2), default=0)
    numbers = columns * (outputs + size) + patches * outputs // max(channels, 1)
    return max(numbers * parameters[0].element_size(), 1)


def _squares(v: Tensor) -> Tensor:
    """Squared norms over the last axis, float64."""
    return torch.linalg.vector_norm(v, dim=-1).double().square()


_WEIGHT_GRADIENTS = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}


class AffineFactor(WholeFactor):
    """Input and cotangents of a linear layer or convolution with one use of its weight.

    The input is kept as [N, channels, *space] (a linear layer's rows are its space, and a
    sample's several images stand behind one another), cotangents as [N, c, O, P].

    Args:
        parameters: The unit's.
        num_samples: N.
        num_columns: c.
        use: The weight's.
        contraction: How the Gram matrix is formed.
        chunk_bytes: Memory of a chunk of V.
        part: Output channels, whole groups of them; None: all.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        num_samples: int,
        num_columns: int,
        use: UseShape,
        contraction: Contraction,
        chunk_bytes: int,
        part: slice | None = None,
    ):
        super().__init__(parameters, num_samples, num_columns)
        self.contraction = contraction
        self.chunk_bytes = chunk_bytes
        own = set(parameters)
        roles = {r.parameter: name for name, r in use.roles.items() if r.parameter in own}
        self._roles = {name: p for p, name in roles.items()}
        self._is_linear = use.rule is LINEAR
        self._constants = use.constants
        self._geometry = use.constants.get("geometry", {})
        groups = use.constants.get("groups", 1)
        weight = next(p for p, name in roles.items() if name != "bias")
        self._weight = weight
        self._transposed = "transposed weight" in self._roles
        shape = use.saved["input"]
        self._input_shape = tuple(shape)
        if self._is_linear:
            rows, channels = shape
            z_shape: tuple[int, ...] = (channels, rows)
            outputs, positions = use.output[1], rows
        else:
            z_shape = tuple(shape)
            outputs, positions = use.output[1], use.output[0] * prod(use.output[2:])
        self._images = 1 if self._is_linear else shape[0]
        self._outputs = slice(0, outputs) if part is None else part
        self._inputs = slice(None)
        """Input channels that the output channels see."""
        self._groups = groups
        if part is not None:
            own, seen = outputs // groups, (1 if self._is_linear else shape[1] // groups)
            outputs = part.stop - part.start
            if groups > 1:
                self._groups = outputs // own
                first = part.start // own * seen
                self._inputs = slice(first, first + self._groups * seen)
                z_shape = (z_shape[0], self._groups * seen, *z_shape[2:])
        self.z = weight.new_empty(num_samples, *z_shape, requires_grad=False)
        self.s = weight.new_empty(num_samples, num_columns, outputs, positions, requires_grad=False)
        if not use.reached:
            self.s.zero_()
            self.z.zero_()

    @property
    def _has_bias(self) -> bool:
        return "bias" in self._roles

    @property
    def _channels(self) -> int:
        """Input channels of one group."""
        return self.z.shape[1] if self._is_linear else self.z.shape[2] // self._groups

    @property
    def _kernel(self) -> int:
        return 1 if self._is_linear else prod(self._geometry["kernel"])

    def put(  # noqa: D102
        self, samples: slice, columns: slice, number: int, saved: Saved, cotangents: Tensor
    ) -> None:
        z, s = saved.tensors["input"], cotangents
        if tuple(z.shape[1:]) != self._input_shape or saved.constants != self._constants:
            raise GraphChanged
        if columns.start == 0:
            self.z[samples] = z.mT if self._is_linear else z[:, :, self._inputs]
        if self._is_linear:
            s = s[..., self._outputs].mT
        else:
            s = s[:, :, :, self._outputs].flatten(4)
            s = s.squeeze(2) if self._images == 1 else s.transpose(2, 3).flatten(3)
        kept = self.s[samples, columns]
        if s.shape != kept.shape:
            raise GraphChanged
        kept.copy_(s)

    def leave_out(self, samples: slice, columns: slice) -> None:  # noqa: D102
        if columns.start == 0:
            self.z[samples] = 0
        self.s[samples, columns] = 0

    def _unfolded(
        self, samples: slice | list[int], channels: slice = slice(None), group: int = 0
    ) -> Tensor:
        """Patches of one group's channels, [n, channels * kernel, P]."""
        z = self.z[samples]
        if self._is_linear:
            return z[:, channels]
        start, stop, _ = channels.indices(self._channels)
        first = group * self._channels
        z = z[:, :, first + start : first + stop]
        u = unfold(z.flatten(0, 1), **self._geometry)
        if self._images == 1:
            return u
        return u.view(len(z), self._images, *u.shape[1:]).transpose(1, 2).flatten(2)

    @property
    def channel_bytes(self) -> int:
        """Memory of one input channel's chunk of V and of the patches it is made of."""
        n, c, outputs, positions = self.s.shape
        channel_size = (n * c * (outputs // self._groups) + n * positions) * self._kernel
        return max(channel_size * self.s.element_size(), 1)

    @property
    def chunk_width(self) -> int:  # noqa: D102
        return min(max(self.chunk_bytes // self.channel_bytes, 1), self._channels)

    def chunks(self, width: int | None = None) -> Iterator[Tensor]:  # noqa: D102
        n, c, outputs, positions = self.s.shape
        step, own = width or self.chunk_width, outputs // self._groups
        # One buffer for all chunks: fresh memory for each costs a tenth of the time.
        buffer = self.s.new_empty(self.rows * own * self._kernel * step)
        for group in range(self._groups):
            s = self.s[:, :, group * own : (group + 1) * own].reshape(n, c * own, positions)
            for start in range(0, self._channels, step):
                u = self._unfolded(slice(None), slice(start, start + step), group)
                v = buffer[: n * c * own * u.shape[1]].view(n, c * own, -1)
                torch.bmm(s, u.mT, out=v)
                del u  # not beside the next one
                yield v.view(self.rows, -1)
        if self._has_bias:
            yield self.s.sum(3).view(self.rows, -1)

    def add_gram(self, gram: Tensor) -> None:  # noqa: D102
        if self.contraction is Contraction.GRAM_PRODUCT:
            self._add_product(self, gram, lower=True)
        elif self.contraction is Contraction.PAIRS:
            self._add_pairs(self, gram, lower=True)
        else:
            super().add_gram(gram)

    def squared_norms(self) -> Tensor:  # noqa: D102
        n, c, outputs, positions = self.s.shape
        if self.contraction is Contraction.GRAM_PRODUCT:
            inputs = _squares(self._unfolded(slice(None)).flatten(1)) + float(self._has_bias)
            return inputs[:, None] * _squares(self.s.flatten(2))
        # V of a few samples at a time: in chunks of channels, products are smaller.
        own, patch = outputs // self._groups, self._channels * self._kernel
        size = (c * own + positions) * patch * self.s.element_size()
        step = max(self.chunk_bytes // size, 1)
        found = torch.zeros(n, c, dtype=torch.float64, device=self.s.device)
        for start in range(0, n, step):
            samples = slice(start, min(start + step, n))
            for group, s in enumerate(self.s[samples].split(own, 2)):
                u = self._unfolded(samples, group=group)
                v = torch.bmm(s.reshape(len(s), c * own, positions), u.mT)
                found[samples] += _squares(v.view(len(s), c, -1))
            if self._has_bias:
                found[samples] += _squares(self.s[samples].sum(3))
        return found

    def select(self, samples: Tensor, columns: Tensor) -> "AffineFactor":
        """That of some samples [n] with some of their columns [n, k] alone; shares nothing."""
        found = copy.copy(self)
        found.num_samples, found.num_columns = columns.shape
        found.z, found.s = self.z[samples], self.s[samples[:, None], columns]
        return found

    def add_block(self, other: "AffineFactor", out: Tensor) -> None:
        """``out`` [M, M'] += V^T V' as Gram matrices are formed, where that needs no chunks."""
        if self.contraction is Contraction.GRAM_PRODUCT:
            self._add_product(other, out, lower=False)
        else:
            assert self.contraction is Contraction.PAIRS
            self._add_pairs(other, out, lower=False)

    def add_cross(self, other: Factor, out: Tensor) -> None:  # noqa: D102
        assert isinstance(other, AffineFactor)
        if self.contraction is Contraction.GRAM_PRODUCT:
            self._add_product(other, out, lower=False)
        else:
            super().add_cross(other, out)

    def _add_product(self, other: "AffineFactor", out: Tensor, lower: bool) -> None:
        """``out`` += (u u'^T + 1) * (s s'^T) in row blocks of whole samples (C.1).

        With one output position a sample's patches u are one vector.
        """
        bias = float(self._has_bias)
        c, d = self.num_columns, other.num_columns
        block = product_block(c, out.device)
        u, patches = self._unfolded(slice(None)).flatten(1), other._unfolded(slice(None)).flatten(1)
        s = other.s.flatten(1).view(other.rows, -1)
        for start in range(0, self.num_samples, block):
            stop = min(start + block, self.num_samples)
            end = stop if lower else other.num_samples
            inputs = u[start:stop] @ patches[:end].t() + bias
            outputs = self.s[start:stop].reshape((stop - start) * c, -1) @ s[: end * d].t()
            outputs.view(stop - start, c, end, d).mul_(inputs[:, None, :, None])
            out[start * c : stop * c, : end * d] += outputs

    def _add_pairs(self, other: "AffineFactor", out: Tensor, lower: bool) -> None:
        """``out`` += V^T V', or its lower triangle, sample pair by sample pair.

        For samples n, m: G = s_n A s_m^T over outputs and positions, with
        A = unfold(z_n)^T unfold(z_m) + 1, [P, P].
        """
        outputs, positions = self.s.shape[2:]
        n, m = self.num_samples, other.num_samples
        itemsize, target = self.s.element_size(), tile_bytes(out.device, 2 * self.chunk_bytes)
        product_bytes = other.num_columns * outputs * positions * itemsize
        columns = max(target // product_bytes, 1)
        patch = self._channels * self._kernel
        rows = max(target // (positions * max(columns * positions, patch) * itemsize), 1)
        # Patches of all samples where they are few, else made again for every tile.
        samples = n if other is self else n + m
        held = samples * positions * patch * itemsize <= self.chunk_bytes
        patches = self._patches(slice(None)) if held else None
        others = patches if other is self else other._patches(slice(None)) if held else None
        tiles = [
            (slice(i, min(i + rows, n)), slice(start, min(start + columns, m)))
            for start in range(0, m, columns)
            for i in range(start if lower else 0, n, rows)
        ]

        def add(tile: tuple[slice, slice]) -> None:
            left = self._patches(tile[0]) if patches is None else patches[tile[0]]
            right = other._patches(tile[1]) if others is None else others[tile[1]]
            self._add_pairs_of(*tile, left, right, other, out)

        if product_bytes > target:  # large enough for all cores at a time
            for tile in tiles:
                add(tile)
        else:
            for_each(add, tiles, out.device)

    def _patches(self, samples: slice) -> Tensor:
        """[n, P, patch]."""
        return self._unfolded(samples).mT.contiguous()

    def _add_pairs_of(
        self,
        rows: slice,
        columns: slice,
        left: Tensor,
        right: Tensor,
        other: "AffineFactor",
        out: Tensor,
    ) -> None:
        """The pairs (n, m) with n in ``rows`` and m in ``columns``, which have these patches."""
        c, d, positions = self.num_columns, other.num_columns, self.s.shape[3]
        a = (left.flatten(0, 1) @ right.flatten(0, 1).t()).add_(float(self._has_bias))
        # Of each row's sample, [m, position there, position here].
        pairs = a.view(len(left), positions, -1, positions).permute(0, 2, 3, 1).unbind()
        s = other.s[columns].flatten(1, 2)
        t = torch.empty_like(s)
        # The interpreter's lock is the two threads' bottleneck: no indexing in the loop.
        t_flat = t.view(len(s) * d, -1).t()
        own = self.s[rows].flatten(2).unbind()
        blocks = out[rows.start * c : rows.stop * c, columns.start * d : columns.stop * d].split(c)
        for a_n, s_n, block in zip(pairs, own, blocks, strict=True):
            torch.bmm(s, a_n, out=t)
            block.addmm_(s_n, t_flat)

    def dot(self, direction: Direction) -> Tensor:  # noqa: D102
        weight, out_channels = direction[self._weight], self._outputs
        weight = weight[:, out_channels] if self._transposed else weight[out_channels]
        parts = []
        for samples in self._slices():
            s, z = self.s[samples], self.z[samples]
            if self._is_linear:
                weight_rows = weight.t() if self._transposed else weight
                out = weight_rows @ z
            else:
                out = self._convolve(z, weight)
            part = torch.einsum("ncop,nop->nc", s, out)
            if self._has_bias:
                part += s.sum(3) @ direction[self._roles["bias"]][out_channels]
            parts.append(part)
        return torch.cat(parts).flatten()

    def _convolve(self, z: Tensor, weight: Tensor) -> Tensor:
        """[n, O, P]."""
        g = self._geometry
        out = torch.convolution(
            z.flatten(0, 1),
            weight,
            None,
            g["stride"],
            g["padding"],
            g["dilation"],
            False,
            [0] * len(g["stride"]),
            self._groups,
        ).flatten(2)
        if self._images == 1:
            return out
        return out.view(len(z), self._images, *out.shape[1:]).transpose(1, 2).flatten(2)

    def combine(self, weights: Tensor, samples: Sequence[int] | None = None) -> Direction:  # noqa: D102
        weights = weights.view(self.num_samples, -1)
        total = {p: torch.zeros_like(p) for p in self.parameters}
        groups = self._slices() if samples is None else [list(samples)]
        for chosen in groups:
            s, z = self.s[chosen], self.z[chosen]
            cotangent = torch.einsum("ncop,nc->nop", s, weights[chosen])
            total[self._weight] += self._weight_gradient(z, cotangent)
            if self._has_bias:
                total[self._roles["bias"]] += cotangent.sum((0, 2))
        return total

    def _weight_gradient(self, z: Tensor, cotangent: Tensor) -> Tensor:
        if self._is_linear:
            outputs, inputs = (t.transpose(0, 1).flatten(1) for t in (cotangent, z))
            return inputs @ outputs.t() if self._transposed else outputs @ inputs.t()
        if self._images > 1:
            cotangent = cotangent.unflatten(2, (self._images, -1)).transpose(1, 2).flatten(0, 1)
        else:
            cotangent = cotangent.contiguous()
        g = self._geometry
        space = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(
                self.z.shape[3:], g["kernel"], g["stride"], g["padding"], g["dilation"], strict=True
            )
        ]
        gradient: Tensor = _WEIGHT_GRADIENTS[len(space)](
            z.flatten(0, 1),
            self._weight.shape,
            cotangent.reshape(len(cotangent), -1, *space),
            stride=g["stride"],
            padding=g["padding"],
            dilation=g["dilation"],
            groups=self._groups,
        )
        return gradient

    def _slices(self) -> Iterator[slice]:
        """Samples whose inputs and outputs take little beside a chunk: kernels copy both."""
        inputs, outputs = prod(self.z.shape[1:]), prod(self.s.shape[2:])
        size = max(inputs, outputs, 1) * self.s.element_size()
        step = max(self.chunk_bytes // (4 * size), 1)
        for start in range(0, self.num_samples, step):
            yield slice(start, min(start + step, self.num_samples))
