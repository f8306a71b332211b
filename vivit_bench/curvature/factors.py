"""What is kept of each layer's share of V, and how its Gram matrix is formed from it.

Two kinds, after appendix C of the paper:

* :class:`ExplicitFactor` holds V itself. It costs least where a layer has fewer
  parameters than outputs, and it serves every layer type.
* :class:`AffineFactor` holds the layer input z and the cotangents s of a linear layer
  or convolution, whose V = s unfold(z)^T is never held as a whole. It is contracted
  in chunks of V, over pairs of samples, or (one output position) as the product of
  the input and output Gram matrices (C.1).

All rows are ordered (sample, column), and samples are put in any slices.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vivit_bench.curvature.capture import LayerCall, own_parameters
from vivit_bench.curvature.expand import expand
from vivit_bench.curvature.kernels import add_lower, unfold
from vivit_bench.curvature.parallel import for_each

Direction = dict[nn.Parameter, Tensor]
"""A vector in parameter space, parameter -> tensor of its shape."""


PAIRS_TILE_BYTES = 2 * 2**20
"""Size of each of the sample-pair contraction's intermediates, per thread; smaller ones are
slower (conv3 of 3c3d: 0.5 MiB 0.59 s, 1 MiB 0.38 s, 2 MiB 0.33 s, 4 MiB 0.36 s)."""


class Contraction(StrEnum):
    """The ways to contract a layer's V with itself; all compute the same Gram matrix."""

    EXPLICIT = "explicit V"
    """V is held and multiplied; wins where D_layer is small."""
    GRAM_PRODUCT = "input Gram x output Gram"
    """One output position: (z z'^T + 1) * (s s'^T); always wins there."""
    CHUNKS = "V in chunks"
    """V in chunks of input channels; wins where there are many output positions."""
    PAIRS = "sample pairs"
    """For every two samples s (unfold(z)^T unfold(z') + 1) s'^T; wins for few positions."""


class Factor(ABC):
    """One unit's share of V for N samples with c columns each (M = N c rows)."""

    def __init__(self, num_samples: int, num_columns: int):
        self.num_samples = num_samples
        self.num_columns = num_columns

    @property
    def rows(self) -> int:
        """M = N c."""
        return self.num_samples * self.num_columns

    @abstractmethod
    def put(
        self,
        samples: slice,
        columns: slice,
        calls: Sequence[LayerCall],
        cotangents: Sequence[Tensor | None],
    ) -> None:
        """Take in some samples' columns: one cotangent [c', n', *output] per call."""

    @abstractmethod
    def chunks(self) -> Iterator[Tensor]:
        """V^T in pieces [M, d], whose widths add up to the unit's parameters.

        A piece is valid until the next one is asked for.
        """

    @abstractmethod
    def dot(self, direction: Direction) -> Tensor:
        """V^T x for a vector x in parameter space: [M]."""

    @abstractmethod
    def combine(self, weights: Tensor) -> Direction:
        """V w for ``weights`` [M]."""

    def add_gram(self, gram: Tensor) -> None:
        """Lower triangle of ``gram`` [M, M] += V^T V."""
        for v in self.chunks():
            add_lower(gram, v)

    def add_cross(self, other: "Factor", out: Tensor) -> None:
        """``out`` [M, M'] += V^T V' for a factor of the same unit and kind."""
        for v, w in zip(self.chunks(), other.chunks(), strict=True):
            out.addmm_(v, w.t())


class ExplicitFactor(Factor):
    """V itself, [N, c, D_unit], summed over the calls that share the parameters."""

    def __init__(self, num_samples: int, num_columns: int, parameters: Sequence[nn.Parameter]):
        super().__init__(num_samples, num_columns)
        self.parameters = list(parameters)
        sizes = [p.numel() for p in parameters]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self._slices = {
            p: slice(end - size, end) for p, size, end in zip(parameters, sizes, ends, strict=True)
        }
        self.v = parameters[0].new_zeros(num_samples, num_columns, ends[-1], requires_grad=False)

    def put(  # noqa: D102
        self,
        samples: slice,
        columns: slice,
        calls: Sequence[LayerCall],
        cotangents: Sequence[Tensor | None],
    ) -> None:
        for call, s in zip(calls, cotangents, strict=True):
            if s is None:
                continue
            own = own_parameters(call.module)
            for name, v in expand(call, s).items():
                self.v[samples, columns, self._slices[own[name]]] += v.transpose(0, 1)

    def chunks(self) -> Iterator[Tensor]:  # noqa: D102
        yield self.v.flatten(0, 1)

    def dot(self, direction: Direction) -> Tensor:  # noqa: D102
        return self.v.flatten(0, 1) @ torch.cat([direction[p].flatten() for p in self.parameters])

    def combine(self, weights: Tensor) -> Direction:  # noqa: D102
        vector = weights @ self.v.flatten(0, 1)
        return {p: vector[self._slices[p]].view_as(p) for p in self.parameters}


class AffineFactor(Factor):
    """Layer input and cotangents of one call of a linear layer or convolution."""

    def __init__(
        self,
        num_samples: int,
        num_columns: int,
        call: LayerCall,
        contraction: Contraction,
        chunk_bytes: int,
    ):
        super().__init__(num_samples, num_columns)
        self.module = call.module
        self.contraction = contraction
        self.chunk_bytes = chunk_bytes
        z = call.inputs[0]
        self._is_linear = isinstance(self.module, nn.Linear)
        self._output_shape = call.output_shape[1:]
        outputs = self._output_shape[-1 if self._is_linear else 0]
        positions = self._output_shape.numel() // outputs
        # Linear layers are kept as [channels, positions] too, like convolutions.
        shape = (z.shape[-1], positions) if self._is_linear else tuple(z.shape[1:])
        self.z = z.new_empty(num_samples, *shape)
        self.s = z.new_empty(num_samples, num_columns, outputs, positions)

    def put(  # noqa: D102
        self,
        samples: slice,
        columns: slice,
        calls: Sequence[LayerCall],
        cotangents: Sequence[Tensor | None],
    ) -> None:
        (call,), (s,) = calls, cotangents
        z = call.inputs[0]
        n = len(z)
        self.z[samples] = z.reshape(n, -1, z.shape[-1]).mT if self._is_linear else z
        if s is None:
            self.s[samples, columns] = 0
            return
        s = s.transpose(0, 1)
        if self._is_linear:
            self.s[samples, columns] = s.reshape(*s.shape[:2], -1, self.s.shape[2]).mT
        else:
            self.s[samples, columns] = s.flatten(3)

    def _unfolded(self, samples: slice, channels: slice = slice(None)) -> Tensor:
        """[n, channels * kernel, P]."""
        z = self.z[samples]
        if isinstance(self.module, nn.Linear):
            return z[:, channels]
        return unfold(z, self.module, channels)  # type: ignore[arg-type]

    @property
    def _has_bias(self) -> bool:
        return "bias" in own_parameters(self.module)

    def chunks(self) -> Iterator[Tensor]:  # noqa: D102
        n, c, outputs, positions = self.s.shape
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        channels = weight.shape[1]
        kernel = weight[0, 0].numel()
        # A chunk of V and the patches it is made of.
        channel_size = (self.rows * outputs + n * positions) * kernel
        step = self.chunk_bytes // max(channel_size * self.s.element_size(), 1)
        step = min(max(step, 1), channels)
        s = self.s.view(n, c * outputs, positions)
        # One buffer for all chunks: fresh memory for each costs a tenth of the time.
        buffer = s.new_empty(self.rows * outputs * kernel * step)
        for start in range(0, channels, step):
            u = self._unfolded(slice(None), slice(start, start + step))
            v = buffer[: n * c * outputs * u.shape[1]].view(n, c * outputs, -1)
            yield torch.bmm(s, u.mT, out=v).view(self.rows, -1)
        if self._has_bias:
            yield self.s.sum(3).view(self.rows, -1)

    def add_gram(self, gram: Tensor) -> None:  # noqa: D102
        if self.contraction is Contraction.GRAM_PRODUCT:
            self._add_product(self, gram, lower=True)
        elif self.contraction is Contraction.PAIRS:
            self._add_pairs(gram)
        else:
            super().add_gram(gram)

    def add_cross(self, other: Factor, out: Tensor) -> None:  # noqa: D102
        assert isinstance(other, AffineFactor)
        if self.contraction is Contraction.GRAM_PRODUCT:
            self._add_product(other, out, lower=False)
        else:
            super().add_cross(other, out)

    def _add_product(self, other: "AffineFactor", out: Tensor, lower: bool) -> None:
        """``out`` += (z z'^T + 1) * (s s'^T) in row blocks of whole samples (C.1)."""
        bias = float(self._has_bias)
        c, d = self.num_columns, other.num_columns
        block = max(512 // max(c, 1), 1)
        z, s = other.z.flatten(1), other.s.flatten(1).view(other.rows, -1)
        for start in range(0, self.num_samples, block):
            stop = min(start + block, self.num_samples)
            end = stop if lower else other.num_samples
            inputs = self.z[start:stop].flatten(1) @ z[:end].t() + bias
            outputs = self.s[start:stop].reshape((stop - start) * c, -1) @ s[: end * d].t()
            outputs.view(stop - start, c, end, d).mul_(inputs[:, None, :, None])
            out[start * c : stop * c, : end * d] += outputs

    def _add_pairs(self, gram: Tensor) -> None:
        """Lower triangle of ``gram``, sample pair by sample pair.

        For samples n, m: G = s_n A s_m^T over outputs and positions, with
        A = unfold(z_n)^T unfold(z_m) + 1, [P, P].
        """
        n, c, outputs, positions = self.s.shape
        itemsize, target = self.s.element_size(), PAIRS_TILE_BYTES
        product_bytes = c * outputs * positions * itemsize
        rows = max(target // product_bytes, 1)
        patch = self._unfolded(slice(0, 1)).shape[1]
        columns = max(target // (positions * max(rows * positions, patch) * itemsize), 1)
        tiles = [
            (slice(i, min(i + rows, n)), slice(start, min(start + columns, n)))
            for start in range(0, n, columns)
            for i in range(start, n, rows)
        ]

        def add(tile: tuple[slice, slice]) -> None:
            self._add_pairs_of(*tile, gram)

        if product_bytes > target:  # large enough for all cores at a time
            for tile in tiles:
                add(tile)
        else:
            for_each(add, tiles, gram.device)

    def _add_pairs_of(self, rows: slice, columns: slice, gram: Tensor) -> None:
        """The pairs (n, m) with n in ``rows``, m in ``columns`` and m < the end of ``rows``."""
        _, c, outputs, positions = self.s.shape
        left = self._unfolded(rows).mT.flatten(0, 1)
        right = self._unfolded(columns).transpose(0, 1).flatten(1)
        a = (left @ right).add_(float(self._has_bias))
        a = a.view(-1, positions, columns.stop - columns.start, positions)
        s = self.s[rows].flatten(1, 2)
        t = torch.empty_like(s)
        t_flat = t.view(-1, outputs * positions)
        # The interpreter's lock is the two threads' bottleneck: no indexing in the loop.
        last = min(columns.stop, rows.stop)
        others = self.s[columns.start : last].flatten(2).mT.unbind()
        grams = gram[rows.start * c : rows.stop * c, columns.start * c : last * c].split(c, 1)
        for a_m, s_m, gram_m in zip(a.unbind(2), others, grams, strict=False):
            torch.bmm(s, a_m, out=t)
            gram_m.addmm_(t_flat, s_m)

    def dot(self, direction: Direction) -> Tensor:  # noqa: D102
        own = own_parameters(self.module)
        assert isinstance(self.module.weight, nn.Parameter)
        values = {"weight": direction[own["weight"]]}
        if self.module.bias is not None:
            bias = self.module.bias
            assert isinstance(bias, nn.Parameter)
            values["bias"] = direction[bias] if "bias" in own else torch.zeros_like(bias)
        parts = [
            torch.einsum("ncop,nop->nc", self.s[samples], self._output(samples, values))
            for samples in self._slices()
        ]
        return torch.cat(parts).flatten()

    def combine(self, weights: Tensor) -> Direction:  # noqa: D102
        weights = weights.view(self.num_samples, -1)
        own = own_parameters(self.module)
        total = {p: torch.zeros_like(p) for p in own.values()}
        for samples in self._slices():
            cotangent = torch.einsum("ncop,nc->nop", self.s[samples], weights[samples])
            with torch.enable_grad():
                out = self._output(samples, {})
                grads = torch.autograd.grad(out, list(own.values()), cotangent)
            for parameter, grad in zip(own.values(), grads, strict=True):
                total[parameter] += grad
        return total

    def _slices(self) -> Iterator[slice]:
        """Samples whose layer outputs and their like take little beside a chunk."""
        step = self.chunk_bytes // (4 * self._output_shape.numel() * self.s.element_size())
        step = max(step, 1)
        for start in range(0, self.num_samples, step):
            yield slice(start, min(start + step, self.num_samples))

    def _output(self, samples: slice, parameters: dict[str, Tensor]) -> Tensor:
        """The layer's output for some samples, [n, O, P], under other parameters."""
        z = self.z[samples]
        if self._is_linear:
            z = z.mT.reshape(len(z), *self._output_shape[:-1], z.shape[1])
        out: Tensor = functional_call(self.module, parameters, (z,))
        return out.reshape(len(z), -1, self.s.shape[2]).mT if self._is_linear else out.flatten(2)
