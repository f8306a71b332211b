"""Random networks through every quantity of the curvature engine, against the dense oracle.

    python scripts/fuzz_engine.py --cases 5000 --first 0 [--only FEATURE]
    python scripts/fuzz_engine.py --case 123 --verbose

A case number fixes the network, the loss, the batch and the request. A case ends right, wrong,
refused (UsageError, CertificateError) or crashed (any other exception). Cases that cannot be
answered rightly (coupled samples, a random forward, ...) count apart: there a refusal is right.
"""

import argparse
import contextlib
import fnmatch
import itertools
import math
import random
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from oracle import Dense, Tree, dense, to_double, tree_len, tree_map

Shape = tuple[int, ...]
MAX_ENTRIES, MAX_PARAMETERS, MAX_FEATURES = 12, 450, 120


class Draw(random.Random):
    """The random choices of one case; sizes often coincide with one favourite of the case."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.favourite = self.randint(2, 5)
        self.features: set[str] = set()
        self.embedding: nn.Embedding | None = None

    def flip(self, probability: float = 0.5) -> bool:
        return self.random() < probability

    def size(self, low: int = 1, high: int = 5) -> int:
        chosen = self.favourite if self.flip() else self.randint(low, high)
        return min(max(chosen, low), high)

    def divisor(self, number: int) -> int:
        return self.choice([k for k in range(1, number + 1) if number % k == 0])

    def tag(self, feature: str, present: bool = True) -> bool:
        if present:
            self.features.add(feature)
        return present


class Fn(nn.Module):
    """A module whose forward pass is a function of itself and its input."""

    def __init__(self, rule: Callable[[Any, Any], Any], **members: Any) -> None:
        super().__init__()
        self.rule = rule
        for name, member in members.items():
            if isinstance(member, Tensor) and not isinstance(member, nn.Parameter):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)

    def forward(self, x: Any) -> Tensor:
        return self.rule(self, x)


class Cube(torch.autograd.Function):
    """Without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return scale * x**3 / 3 + x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return grad * (scale * x**2 + 1), (grad * x**3 / 3).sum_to_size(scale.shape)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.flip(0)) / 2


def par(*shape: int, scale: float = 0.5) -> nn.Parameter:
    return nn.Parameter(scale * torch.randn(shape))


def lin(d: Draw, s: Shape, out: int | None = None, bias: bool = True) -> nn.Linear:
    return nn.Linear(s[-1], out or d.size(), bias=bias)


def conv(d: Draw, s: Shape, transposed: bool = False) -> nn.Module:
    dims = len(s) - 1
    name = ("ConvTranspose" if transposed else "Conv") + f"{dims}d"
    d.tag(name.lower())
    groups = d.divisor(s[0])
    d.tag("conv-groups", groups > 1)
    options: dict[str, Any] = {"groups": groups, "bias": d.flip(0.7)}
    kernel = tuple(d.randint(1, min(3, size)) for size in s[1:])
    if not transposed and d.flip(0.15) and d.tag("conv-one-position"):
        stride: Shape = tuple(s[1:])
        kernel = tuple(s[1:]) if d.flip() else kernel
    else:
        options["dilation"] = tuple(d.choice([1, 1, 2]) for _ in kernel)
        stride = tuple(d.choice([1, 1, 2, 3]) for _ in kernel)
        options["padding"] = tuple(d.choice([0, 0, 1]) for _ in kernel)
    if not transposed:
        if "padding" in options and d.flip(0.3) and d.tag("conv-same"):
            options["padding"], stride = "same", tuple(1 for _ in kernel)
        if d.flip(0.3) and d.tag("conv-padding-mode"):
            options["padding_mode"] = d.choice(["reflect", "replicate", "circular"])
    make = getattr(nn, name)
    return make(s[0], groups * d.randint(1, 2), kernel, stride, **options)


def keep(d: Draw, s: Shape) -> nn.Module:
    """A layer that keeps the shape."""
    if len(s) > 1 and d.flip():
        make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(s) - 2]
        return make(s[0], s[0], 3, padding="same" if d.flip() else 1)
    return lin(d, s, s[-1])


def batch_norm(d: Draw, s: Shape) -> nn.Module:
    norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(s) - 1](
        s[0], affine=d.flip(0.8)
    )
    norm.running_mean, norm.running_var = torch.randn(s[0]), torch.rand(s[0]) + 0.5
    return norm


def instance_norm(d: Draw, s: Shape) -> nn.Module:
    make = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[len(s) - 2]
    return make(s[0], affine=d.flip(), track_running_stats=d.flip(0.3))


def functional_norm(d: Draw, s: Shape) -> nn.Module:
    weight, mean, var = par(s[0]), torch.randn(s[0]), torch.rand(s[0]) + 0.5
    if d.flip():
        return Fn(lambda m, x: F.batch_norm(x, m.mean, m.var, m.w), w=weight, mean=mean, var=var)
    return Fn(lambda m, x: F.layer_norm(x, x.shape[1:], m.w), w=par(*s))


def pool(d: Draw, s: Shape) -> nn.Module:
    dims, kind = len(s) - 1, d.choice(["Max", "Avg", "AdaptiveAvg", "AdaptiveMax", "LP"])
    if kind.startswith("Adaptive"):
        return getattr(nn, f"{kind}Pool{dims}d")(d.randint(1, 2))
    if kind == "LP":
        return getattr(nn, f"LPPool{dims}d")(1.0, 2)
    return getattr(nn, f"{kind}Pool{dims}d")(2, d.randint(1, 2), padding=d.randint(0, 1))


def raw(d: Draw, s: Shape) -> nn.Module:
    e, out = s[-1], d.size()
    rules = [
        lambda m, x: x @ m.w,
        lambda m, x: torch.einsum("n...e,ef->n...f", x, m.w),
        lambda m, x: torch.matmul(x, m.w) + m.b,
        lambda m, x: F.linear(x, m.w.t(), m.b),
        lambda m, x: (x.unsqueeze(-1) * m.w).sum(-2),
        lambda m, x: torch.tensordot(x, m.w, 1),
        lambda m, x: torch.addmm(m.b, x.flatten(0, -2), m.w).unflatten(0, x.shape[:-1]),
    ]
    return Fn(d.choice(rules), w=par(e, out), b=par(out))


def tokenwise(d: Draw, s: Shape) -> nn.Module:
    t, e = s
    equation, shape = d.choice(
        [("nte,tef->ntf", (t, e, d.size())), ("nte,ts->nse", (t, d.size())), ("nte,te->nt", s)]
    )
    return Fn(lambda m, x: torch.einsum(equation, x, m.w), w=par(*shape))


def positional(d: Draw, s: Shape) -> nn.Module:
    shape = (1, *s) if d.tag("positional-leading-1", d.flip()) else s
    if len(s) > 1 and d.flip(0.3):
        shape = tuple(size if d.flip() else 1 for size in shape)
    times = d.flip()
    return Fn(lambda m, x: x * (1 + m.w) if times else x + m.w, w=par(*shape))


def class_token(d: Draw, s: Shape) -> nn.Module:
    token, expand, front = par(1, 1, s[1]), d.flip(), d.flip()

    def rule(m: Any, x: Tensor) -> Tensor:
        cls = m.cls.expand(len(x), -1, -1) if expand else m.cls.repeat(len(x), 1, 1)
        return torch.cat([cls, x] if front else [x, cls], 1)

    return Fn(rule, cls=token)


def causal(d: Draw, t: int) -> Tensor:
    mask = torch.ones(t, t).triu(1).bool()
    return mask if d.flip() else torch.zeros(t, t).masked_fill(mask, -math.inf)


def attention(d: Draw, s: Shape) -> nn.Module:
    (t, e), first, weights = s, d.flip(), d.flip()
    layer = nn.MultiheadAttention(
        e, d.divisor(e), bias=d.flip(0.8), add_bias_kv=d.flip(0.1), batch_first=first, dropout=0.1
    )
    mask = causal(d, t) if not layer.bias_k and d.tag("attention-mask", d.flip(0.4)) else None
    d.tag("sequence-first", not first)

    def rule(m: Any, x: Tensor) -> Tensor:
        q = x if first else x.transpose(0, 1)
        y = m.a(q, q, q, need_weights=weights, attn_mask=m.mask)[0]
        return y if first else y.transpose(0, 1)

    return Fn(rule, a=layer, mask=mask)


def encoder(d: Draw, s: Shape) -> nn.Module:
    first, decoder = d.flip(), d.flip(0.2)
    make: Any = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
    activation = d.choice(["relu", "gelu"])
    layer = make(s[1], d.divisor(s[1]), 3, 0.1, activation, 1e-5, first, d.flip())
    d.tag("sequence-first", not first)
    if d.flip(0.3) and not decoder and d.tag("encoder-stack"):
        layer = nn.TransformerEncoder(layer, 1, enable_nested_tensor=d.flip())

    def rule(m: Any, x: Tensor) -> Tensor:
        q = x if first else x.transpose(0, 1)
        y = m.layer(q, q) if decoder else m.layer(q)
        return y if first else y.transpose(0, 1)

    return Fn(rule, layer=layer)


def perceiver(d: Draw, s: Shape) -> nn.Module:
    layer = nn.MultiheadAttention(s[1], d.divisor(s[1]), batch_first=True)
    return Fn(
        lambda m, x: m.a(m.q.expand(len(x), -1, -1), x, x)[0], a=layer, q=par(1, d.size(), s[1])
    )


def recurrent(d: Draw, s: Shape) -> nn.Module:
    first, last = d.flip(), d.flip(0.3)
    name = d.choice(["LSTM", "GRU", "RNN"])
    both, layers = d.flip(0.3), d.choice([1, 1, 2])
    layer = getattr(nn, name)(s[1], d.size(1, 3), layers, bidirectional=both, batch_first=first)
    d.tag(name.lower())
    d.tag("sequence-first", not first)

    def rule(m: Any, x: Tensor) -> Tensor:
        y, h = m.r(x if first else x.transpose(0, 1))
        if last:
            return (h[0] if name == "LSTM" else h)[-1]
        return y if first else y.transpose(0, 1)

    return Fn(rule, r=layer)


def cell(d: Draw, s: Shape) -> nn.Module:
    hidden = d.size(1, 3)

    def rule(m: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), hidden)
        for step in x.unbind(1):
            h = m.c(step, h)
        return h

    return Fn(rule, c=d.choice([nn.GRUCell, nn.RNNCell])(s[1], hidden))


def relative_position(d: Draw, s: Shape) -> nn.Module:
    t = torch.arange(s[0])

    def rule(m: Any, x: Tensor) -> Tensor:
        return (x @ x.transpose(1, 2) + m.table[m.index]).softmax(-1) @ x

    return Fn(rule, table=par(2 * s[0] - 1), index=t[:, None] - t[None] + s[0] - 1)


def masked_scores(d: Draw, s: Shape) -> nn.Module:
    mask, learned = torch.ones(s[0], s[0]).triu(1).bool(), d.flip()

    def rule(m: Any, x: Tensor) -> Tensor:
        scores = m.w.expand(len(x), -1, -1) if learned else m.f(x) @ x.transpose(1, 2)
        return scores.masked_fill(m.mask, -math.inf).softmax(-1) @ x

    members = {"w": par(s[0], s[0])} if learned else {"f": lin(d, s, s[1])}
    return Fn(rule, mask=mask, **members)


def experts(d: Draw, s: Shape) -> nn.Module:
    out, count, skip = d.size(), d.randint(2, 3), d.flip()

    def rule(m: Any, x: Tensor) -> Tensor:
        odds = m.gate(x).softmax(-1)
        y = x.new_zeros(*x.shape[:-1], out)
        for number, expert in enumerate(m.experts):
            hit = odds.argmax(-1) == number
            if hit.any() or not skip:
                y[hit] = expert(x[hit]) * odds[hit][:, number, None]
        return y

    listed = nn.ModuleList(lin(d, s, out) for _ in range(count))
    return Fn(rule, gate=lin(d, s, count), experts=listed)


def residual(d: Draw, s: Shape) -> nn.Module:
    in_place = d.tag("residual-in-place", d.flip())

    def rule(m: Any, x: Tensor) -> Tensor:
        y = m.f(x)
        if not in_place:
            return x + y
        y += x
        return y

    return Fn(rule, f=keep(d, s))


def squeeze_excite(d: Draw, s: Shape) -> nn.Module:
    def rule(m: Any, x: Tensor) -> Tensor:
        gate = torch.sigmoid(m.b(torch.relu(m.a(x.flatten(2).mean(2)))))
        return x * gate.reshape(*gate.shape, *[1] * (x.ndim - 2))

    middle = d.size(1, 3)
    return Fn(rule, a=nn.Linear(s[0], middle), b=nn.Linear(middle, s[0]))


def windows(d: Draw, s: Shape) -> nn.Module:
    count = d.divisor(s[0])
    inner = d.choice([lin, raw, positional, layer_norm, batch_norm, keep, attention, experts])(
        d, (s[0] // count, s[1])
    )

    def rule(m: Any, x: Tensor) -> Tensor:
        n = len(x)
        return m.f(x.reshape(n * count, s[0] // count, s[1])).reshape(n, s[0], -1)

    return Fn(rule, f=inner)


def fold(d: Draw, s: Shape) -> nn.Module:
    """[N, T, ...] as a batch of N T samples, with the sample as the slow or the fast index."""
    inner = d.choice([lin, raw, batch_norm, layer_norm, positional, keep, experts])(d, s[1:])
    fast = d.flip()

    def rule(m: Any, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        if fast:
            return m.f(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (t, n)).transpose(0, 1)
        return m.f(x.flatten(0, 1)).unflatten(0, (n, t))

    return Fn(rule, f=inner)


def sequence_first(d: Draw, s: Shape) -> nn.Module:
    inner = nn.Sequential(lin(d, s, 3), d.choice([nn.Tanh(), nn.ReLU(True)]), nn.Linear(3, s[1]))
    return Fn(lambda m, x: m.f(x.transpose(0, 1)).transpose(0, 1), f=inner)


def layer_norm(d: Draw, s: Shape) -> nn.Module:
    if d.tag("rms-norm", d.flip(0.3)):
        return nn.RMSNorm(s[-1], eps=1e-3)
    return nn.LayerNorm(s[-1:] if d.flip() else s, elementwise_affine=d.flip(0.8))


def outside(d: Draw, s: Shape) -> nn.Module:
    rules = [
        lambda m, x: m.f(x) * m.f.weight.norm(),
        lambda m, x: m.f(x) + m.f.weight.mean() * x.sum(-1, keepdim=True),
        lambda m, x: F.linear(torch.tanh(m.f(x)), m.f.weight.t()),
        lambda m, x: m.f(x) * torch.sigmoid(m.f.bias),
    ]
    return Fn(d.choice(rules), f=lin(d, s))


def tied(d: Draw, s: Shape) -> nn.Module:
    a, b = lin(d, s, s[-1]), lin(d, s, s[-1], bias=d.flip())
    b.weight = a.weight
    return nn.Sequential(a, nn.Tanh(), b)


def hooked(d: Draw, s: Shape) -> nn.Module:
    layer = keep(d, s)
    kind = d.choice(["hook-output", "hook-in-place", "hook-input", "patched-forward"])
    d.tag(kind)
    if kind == "hook-output":
        layer.register_forward_hook(lambda m, i, o: torch.sin(o) + i[0])
    elif kind == "hook-in-place":
        layer.register_forward_hook(lambda m, i, o: setattr(m, "last", o.mul_(1.5)))
    elif kind == "hook-input":
        layer.register_forward_pre_hook(lambda m, i: (torch.cos(i[0]),))
    else:
        plain = layer.forward
        layer.forward = lambda x: 2 * torch.tanh(plain(x))
    return layer


def benign(d: Draw, s: Shape) -> nn.Module:
    layer, log = keep(d, s), []
    layer.register_forward_hook(lambda m, i, o: log.append(o.shape))
    layer.register_forward_pre_hook(lambda m, i: log.append(i[0].mean().detach()))
    if d.tag("hook-backward", d.flip(0.3)):
        layer.register_full_backward_hook(lambda m, i, o: None)
    return layer


def reparametrised(d: Draw, s: Shape) -> nn.Module:
    layer = keep(d, s)
    kinds: dict[str, Callable[[], Any]] = {
        "old-weight-norm": lambda: old_weight_norm(layer, dim=d.choice([0, None])),
        "old-spectral-norm": lambda: old_spectral_norm(layer),
        "prune": lambda: prune.random_unstructured(layer, d.choice(["weight", "bias"]), 0.3),
        "weight-norm": lambda: parametrizations.weight_norm(layer),
        "spectral-norm": lambda: parametrizations.spectral_norm(layer),
        "orthogonal": lambda: parametrizations.orthogonal(layer),
        "parametrize": lambda: parametrize.register_parametrization(layer, "weight", Symmetric()),
    }
    kind = d.choice(list(kinds))
    d.tag(kind)
    kinds[kind]()
    return layer


def memory(d: Draw, s: Shape) -> nn.Module:
    """Constant rows, perhaps as many as samples, that a module without a batch embeds."""
    rows = torch.randn(d.size(), s[-1])
    keys = nn.Parameter(rows) if d.flip() else rows
    rule = lambda m, x: (x @ m.f(m.keys).t()).softmax(-1) @ m.f(m.keys)  # noqa: E731
    return Fn(rule, f=lin(d, s, s[-1]), keys=keys)


def hyper(d: Draw, s: Shape) -> nn.Module:
    rule = lambda m, x: torch.bmm(m.f(x).view(len(x), -1, s[0]), x[:, :, None])[:, :, 0]  # noqa: E731
    return Fn(rule, f=lin(d, s, s[0] * d.size(1, 2)))


def fourier(d: Draw, s: Shape) -> nn.Module:
    rule = lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(m.w), n=s[-1])  # noqa: E731
    return Fn(rule, w=par(s[-1] // 2 + 1, 2))


def parameterless(d: Draw, s: Shape) -> nn.Module:
    rules = [
        lambda m, x: x.sort(-1).values,
        lambda m, x: x.cumsum(-1),
        lambda m, x: F.normalize(x, dim=-1),
        lambda m, x: x.roll(1, -1) * x.softmax(-1),
        lambda m, x: torch.cat([x, x.amax(-1, keepdim=True)], -1),
        lambda m, x: x.transpose(1, -1).contiguous(),
        lambda m, x: F.dropout(x, 0.5, m.training),
        lambda m, x: torch.where(x > 0, x, x.flip(-1)),
    ]
    return Fn(d.choice(rules))


def activation(d: Draw, s: Shape) -> nn.Module:
    makes = [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Hardswish, nn.ELU, nn.Dropout]
    return d.choice(makes)()


def in_place(d: Draw, s: Shape) -> nn.Module:
    makes = [nn.ReLU, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.Hardtanh, nn.Dropout]
    act = d.choice(makes)(inplace=True)
    rules = [lambda m, x: m.act(m.f(x)), lambda m, x: torch.relu_(m.f(x)), _added]
    return Fn(d.choice(rules), f=keep(d, s), act=act)


def _added(m: Any, x: Tensor) -> Tensor:
    y = m.f(x)
    y[..., 0] *= 2
    return y.add_(1.0)


def dead(d: Draw, s: Shape) -> nn.Module:
    layer = lin(d, s)
    nn.init.constant_(layer.bias, -60.0)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(layer.out_features, d.size()))


ANY, VECTOR, SEQUENCE, SPATIAL = (1, 2, 3, 4), (1,), (2,), (2, 3, 4)
BLOCKS: dict[str, tuple[tuple[int, ...], Callable[[Draw, Shape], nn.Module]]] = {
    "linear": (ANY, lambda d, s: lin(d, s, bias=d.flip(0.8))),
    "conv": (SPATIAL, conv),
    "conv-transposed": (SPATIAL, lambda d, s: conv(d, s, True)),
    "batch-norm": (ANY, batch_norm),
    "layer-norm": (ANY, layer_norm),
    "group-norm": (ANY, lambda d, s: nn.GroupNorm(d.divisor(s[0]), s[0])),
    "instance-norm": (SPATIAL, instance_norm),
    "functional-norm": (ANY, functional_norm),
    "pool": (SPATIAL, pool),
    "activation": (ANY, activation),
    "in-place": (ANY, in_place),
    "dead-relu": (ANY, dead),
    "prelu": (ANY, lambda d, s: nn.PReLU(d.choice([1, s[0]]))),
    "prelu-functional": (ANY, lambda d, s: Fn(lambda m, x: F.prelu(x, m.w), w=par(s[0]))),
    "flatten": (SPATIAL, lambda d, s: nn.Flatten()),
    "image-to-sequence": ((3, 4), lambda d, s: Fn(lambda m, x: x.flatten(2).transpose(1, 2))),
    "vector-to-sequence": (
        VECTOR,
        lambda d, s: Fn(lambda m, x: x[:, :, None] * m.w, w=par(s[0], d.size())),
    ),
    "attention": (SEQUENCE, attention),
    "encoder-layer": (SEQUENCE, encoder),
    "perceiver": (SEQUENCE, perceiver),
    "recurrent": (SEQUENCE, recurrent),
    "recurrent-cell": (SEQUENCE, cell),
    "bilinear": (
        (1, 2),
        lambda d, s: Fn(lambda m, x: m.f(x, torch.tanh(x)), f=nn.Bilinear(s[-1], s[-1], d.size())),
    ),
    "parameter-list": (
        ANY,
        lambda d, s: Fn(
            lambda m, x: sum(torch.tanh(x @ w) for w in m.ws),
            ws=nn.ParameterList(par(s[-1], d.favourite) for _ in range(2)),
        ),
    ),
    "positional": (ANY, positional),
    "scalar": (ANY, lambda d, s: Fn(lambda m, x: x * m.w + m.b, w=par(), b=par(1))),
    "class-token": (SEQUENCE, class_token),
    "raw-parameter": (ANY, raw),
    "tokenwise": (SEQUENCE, tokenwise),
    "cdist": ((1, 2), lambda d, s: Fn(lambda m, x: torch.cdist(x, m.c), c=par(d.size(), s[-1]))),
    "relative-position": (SEQUENCE, relative_position),
    "mask": (SEQUENCE, masked_scores),
    "autograd-function": (
        ANY,
        lambda d, s: Fn(lambda m, x: Cube.apply(x, m.w), w=par(d.choice([1, s[-1]]))),
    ),
    "experts": ((1, 2), experts),
    "residual": (ANY, residual),
    "squeeze-excite": (SPATIAL, squeeze_excite),
    "windows": (SEQUENCE, windows),
    "fold": (SPATIAL, fold),
    "sequence-first": (SEQUENCE, sequence_first),
    "used-twice": (
        ANY,
        lambda d, s: Fn(lambda m, x: m.f(torch.tanh(m.f(x))), f=keep(d, s)),
    ),
    "tied": (ANY, tied),
    "used-outside": (ANY, outside),
    "hooked": (ANY, hooked),
    "benign-hooks": (ANY, benign),
    "reparametrised": (ANY, reparametrised),
    "memory": (ANY, memory),
    "hyper": (VECTOR, hyper),
    "fourier": (ANY, fourier),
    "parameterless": (ANY, parameterless),
    "checkpoint": (
        ANY,
        lambda d, s: Fn(lambda m, x: checkpoint(m.f, x, use_reentrant=False), f=keep(d, s)),
    ),
    "detach": (ANY, lambda d, s: Fn(lambda m, x: m.f(x) * x.detach(), f=keep(d, s))),
    "keyword-call": (ANY, lambda d, s: Fn(lambda m, x: m.f(input=x), f=keep(d, s))),
    "unused-parameter": (ANY, lambda d, s: Fn(lambda m, x: x, w=par(2), f=nn.Linear(2, 1))),
}

OFTEN = ("conv", "hooked", "reparametrised", "residual")


def stash(d: Draw, s: Shape) -> nn.Module:
    """The second module reads the whole batch where the first has left it."""
    first = Fn(lambda m, x: m.__dict__.update(seen=x) or x)
    return Fn(lambda m, x: torch.tanh(m.a(x)) * m.a.seen.mean(0), a=first)


def trained(d: Draw, s: Shape) -> nn.Module:
    return d.choice([batch_norm(d, s), nn.Dropout(0.5)]).train()


COUPLED: dict[str, Callable[[Draw, Shape], nn.Module]] = {
    "random": lambda d, s: Fn(
        d.choice([lambda m, x: F.dropout(x, 0.5, True), lambda m, x: x + 0.3 * torch.randn_like(x)])
    ),
    "centred": lambda d, s: Fn(lambda m, x: x - x.mean(0)),
    "train-mode": trained,
    "stash": stash,
    "batch-size": lambda d, s: Fn(lambda m, x: x * len(x)),
    "rolled": lambda d, s: Fn(lambda m, x: x + x.roll(1, 0)),
    "contrasted": lambda d, s: Fn(
        lambda m, x: torch.mm((x.flatten(1) @ x.flatten(1).t()).softmax(-1), x.flatten(1)).view_as(
            x
        )
    ),
    "branch": lambda d, s: Fn(lambda m, x: torch.tanh(x) if x.sum() > 0 else -x),
}


class Focal(nn.CrossEntropyLoss):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        odds = torch.exp(-F.cross_entropy(outputs, targets, reduction="none"))
        return ((1 - odds) ** 2 * -odds.log()).mean()


class Quartic(nn.MSELoss):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 4).mean()


@dataclass
class Case:
    number: int
    attempt: int
    model: nn.Module
    loss: nn.Module
    inputs: Tree
    targets: Tensor
    features: set[str] = field(default_factory=set)
    refusal: str | None = None
    """Why the case cannot be answered."""

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype


def stem(d: Draw, samples: int) -> tuple[Tree, list[nn.Module]]:
    """Inputs, and what turns them into one float tensor."""
    kind = d.choice(["vector", "tokens", "sequence", "sequence", "1d", "2d", "2d", "3d"])
    d.tag(f"input-{kind}")
    n = samples
    if kind == "tokens":
        t, vocabulary, e = d.size(2), d.size(3, 6), d.size(2, 4)
        tokens = torch.randint(vocabulary, (n, t))
        d.tag(how := d.choice(["embedding", "embedding", "embedding-raw", "embedding-bag"]))
        if how == "embedding":
            pad = d.randrange(vocabulary) if d.tag("padding-idx", d.flip(0.3)) else None
            d.embedding = nn.Embedding(vocabulary, e, pad)
            return tokens, [d.embedding]
        if how == "embedding-bag":
            return tokens, [nn.EmbeddingBag(vocabulary, e, mode=d.choice(["sum", "mean", "max"]))]
        rules = [
            lambda m, x: m.w[x],
            lambda m, x: F.embedding(x, m.w),
            lambda m, x: F.one_hot(x, vocabulary).to(m.w.dtype) @ m.w,
        ]
        return tokens, [Fn(d.choice(rules), w=par(vocabulary, e))]
    spatial = {"1d": 1, "2d": 2, "3d": 3}.get(kind)
    if spatial:
        shape: Shape = (d.size(1, 3), *(d.size(2, 5 - spatial // 2) for _ in range(spatial)))
    else:
        shape = (d.size(),) if kind == "vector" else (d.size(2), d.size(1, 4))
    x = torch.randn(n, *shape)
    if d.flip(0.25):
        scale, choice = torch.rand(n, *[1] * len(shape)), d.choice(["dict", "tuple", "list"])
        d.tag(f"input-{choice}")
        if choice == "dict":
            return {"x": x, "scale": scale}, [Fn(lambda m, b: b["x"] * b["scale"])]
        pair = (x, scale > 0.5)
        rule = lambda m, b: b[0].masked_fill(~b[1], 0.0)  # noqa: E731
        return pair if choice == "tuple" else list(pair), [Fn(rule)]
    return x, []


def head(d: Draw, s: Shape, classes: int, dense_output: bool) -> list[nn.Module]:
    """To [N, C], or [N, C, ...] where each position has outputs of its own."""
    if d.embedding is not None and s[-1] == d.embedding.embedding_dim and d.flip(0.8):
        d.tag("tied-embedding")
        table, kept = d.embedding, nn.Linear(s[-1], d.embedding.num_embeddings, bias=False)
        kept.weight = table.weight
        last = kept if d.flip() else Fn(lambda m, x: F.linear(x, m.e.weight), e=table)
        if dense_output and len(s) == 2:
            return [last, Fn(lambda m, x: x.transpose(1, 2))]
        return [Fn(lambda m, x: x.flatten(1, -2).mean(1) if x.ndim > 2 else x), last]
    if dense_output and len(s) > 1:
        if d.flip():
            return [nn.Linear(s[-1], classes), Fn(lambda m, x: x.transpose(1, -1))]
        return [(nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(s) - 2](s[0], classes, 1)]
    if math.prod(s) > 30:
        return [Fn(lambda m, x: x.flatten(2).mean(2)), nn.Linear(s[0], classes)]
    return [nn.Flatten(), nn.Linear(math.prod(s), classes)]


def loss_of(d: Draw, kind: str, outputs: Tensor) -> tuple[nn.Module, Tensor]:
    shape, classes = outputs.shape, outputs.shape[1] if outputs.ndim > 1 else 1
    options: dict[str, Any] = {"reduction": "sum"} if d.tag("sum", d.flip(0.25)) else {}
    d.tag(f"{kind}-{outputs.ndim}d")
    if kind == "mse":
        return nn.MSELoss(**options), torch.randn(shape)
    if kind == "bce":
        if d.tag("bce-weight", d.flip(0.3)):
            options["weight"] = torch.rand(d.choice([shape, shape[-1:], shape[1:], (1,)]))
        if d.tag("bce-pos-weight", d.flip(0.3)):
            options["pos_weight"] = torch.rand(shape[-1:]) + 0.5
        soft = torch.rand(shape)
        return nn.BCEWithLogitsLoss(**options), soft if d.flip(0.3) else soft.round()
    if d.tag("ce-weight", d.flip(0.25)):
        options["weight"] = torch.rand(classes) + 0.2
    if d.tag("ce-smoothing", d.flip(0.25)):
        options["label_smoothing"] = 0.2
    if d.tag("ce-probabilities", d.flip(0.2)):
        targets = torch.randn(shape).double().softmax(1)
        if d.tag("ce-not-normalised", d.flip(0.3)):
            targets *= 0.5 + torch.rand(targets[:, :1].shape)
        return nn.CrossEntropyLoss(**options), targets
    targets = torch.randint(classes, (shape[0], *shape[2:]))
    if targets.numel() > 1 and d.tag("ce-ignore", d.flip(0.25)):
        ignored = options["ignore_index"] = d.choice([-100, 0])
        targets[torch.rand(targets.shape) < 0.4] = ignored
        targets.view(-1)[d.randrange(targets.numel())] = 1
    return nn.CrossEntropyLoss(**options), targets


def refuse_loss(d: Draw, loss: nn.Module) -> nn.Module:
    d.tag("refuse-loss")
    if isinstance(loss, nn.CrossEntropyLoss):
        weight = loss.weight
        if weight is not None and d.flip():
            weight[0] *= -1
            return loss
        return Focal()
    if isinstance(loss, nn.MSELoss):
        return d.choice([Quartic(), nn.HuberLoss(), nn.MSELoss(reduction="none")])
    return nn.BCEWithLogitsLoss(weight=torch.tensor([-1.0]))


def propose(number: int, attempt: int, dtype: torch.dtype | None) -> Case:
    """One network, perhaps an invalid one."""
    d = Draw(f"{number} {attempt}")
    torch.manual_seed(d.randrange(2**31))
    drawn = torch.float32 if d.flip(0.15) else torch.float64
    dtype = dtype or drawn
    refusal = d.choice(["loss", *COUPLED]) if d.flip(0.12) else None
    n = d.favourite if d.flip() else d.randint(2 if refusal else 1, 9)
    inputs, layers = stem(d, n)
    x = inputs
    for layer in layers:
        x = layer(x)
    depth = d.randint(1, 5)
    where = d.randrange(depth) if refusal not in (None, "loss") else None
    training: list[nn.Module] = []
    for position in range(depth):
        shape = tuple(x.shape[1:])
        fits = [name for name, (ranks, _) in BLOCKS.items() if len(shape) in ranks]
        special = [name for name in fits if 1 not in BLOCKS[name][0]]
        fits += [name for name in OFTEN if name in fits] * 2
        d.features.add(name := d.choice(special if special and d.flip() else fits))
        layers.append(BLOCKS[name][1](d, shape))
        x = layers[-1].eval()(x.clone())
        if math.prod(x.shape[1:]) > MAX_FEATURES:
            raise ValueError("too many features")
        if position == where:
            layers.append(COUPLED[str(refusal)](d, tuple(x.shape[1:])))
            training = [layers[-1]] if refusal == "train-mode" else []
            x = layers[-1](x)
    kind = d.choice(["ce", "ce", "mse", "bce"])
    classes = d.size(2, 4) if kind == "ce" else d.size(1, 4)
    positions = len(x[0].flatten()) <= 20 and d.flip(0.35)
    if kind == "ce" or not (len(x[0].flatten()) <= MAX_ENTRIES and d.flip(0.2)):
        layers += head(d, tuple(x.shape[1:]), classes, positions)
    if kind != "ce" and d.flip(0.3) and d.tag("scalar-output"):
        layers.append(Fn(lambda m, x: x.flatten(1).sum(1)))
    model: nn.Module = nn.Sequential(*layers)
    if d.flip(0.5):  # a root with parameters of its own
        d.tag("root-parameter")
        model = Fn(lambda m, x: m.net(x) * m.scale, net=model, scale=par(1))
    model.eval()
    for module in training:
        module.train()
    x = model(inputs)
    entries = math.prod(x.shape[1:])
    if len(x) != n or entries > MAX_ENTRIES or n * entries > 60 or not 0 < x.abs().max() < 100:
        raise ValueError("outputs")
    loss, targets = loss_of(d, kind, x)
    if "ce-not-normalised" in d.features:
        refusal = refusal or "targets"
    if refusal == "loss":
        loss = refuse_loss(d, loss)
    for p in model.parameters():
        if bool((p == p.flatten()[0]).all()):
            p += 0.2 * torch.randn_like(p)
    if (same := d.random()) < 0.15:
        d.tag("equal-samples")
        rows = torch.zeros(n, dtype=torch.long) if same < 0.07 else torch.arange(n) // 2
        inputs, targets = tree_map(lambda t: t[rows], inputs), targets[rows]
    if d.flip(0.2) and d.tag("frozen"):
        for p in model.parameters():
            p.requires_grad_(d.flip(0.6))
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    if not sizes or sum(sizes) > MAX_PARAMETERS:
        raise ValueError("parameters")
    d.tag("more-columns-than-parameters", n * entries > sum(sizes))
    for name, size in (("one-sample", 1), ("samples-coincide", d.favourite)):
        d.tag(name, n == size)
    d.tag(str(dtype).removeprefix("torch."))
    cast = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
    d.tag(f"refuse-{refusal}", refusal is not None)
    inputs, targets = tree_map(cast, inputs), cast(targets)
    model, loss = model.to(dtype), loss.to(dtype)
    return Case(number, attempt, model, loss, inputs, targets, d.features, refusal)


def parameters(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield


def build(number: int, dtype: torch.dtype | None = None) -> Case:
    """The first valid network of a case number."""
    for attempt in itertools.count():
        with quiet(), contextlib.suppress(RuntimeError, ValueError, IndexError):
            with torch.no_grad():
                case = propose(number, attempt, dtype)
            before = state(case)
            if case.refusal is None and not torch_agrees(case):
                continue
            outputs = case.model(case.inputs)
            grads = torch.autograd.grad(outputs.sum(), parameters(case.model), allow_unused=True)
            values = [case.loss(outputs, case.targets), *(g for g in grads if g is not None)]
            finite = all(bool(v.isfinite().all()) for v in values)
            if finite and not any(d.startswith("input") for d in differences(before, state(case))):
                return case
    raise AssertionError


def torch_agrees(case: Case) -> bool:
    """Whether PyTorch differentiates samples one by one as it does together.

    PyTorch 2.14's normalisation layers do not, where a lone sample's gradient has the strides
    of a channels-last tensor (behind a transposition).
    """
    ps, inputs = parameters(case.model), case.inputs

    def slopes(batch: Tree, weights: Tensor) -> Tensor:
        value = (case.model(batch) * weights).sum()
        grads = torch.autograd.grad(value, ps, allow_unused=True)
        return flat(
            [torch.zeros_like(p) if g is None else g for p, g in zip(ps, grads, strict=True)]
        )

    with torch.no_grad():
        weights = torch.randn_like(case.model(inputs))
    together = slopes(tree_map(lambda t: torch.cat([t, t]), inputs), torch.cat([weights] * 2)) / 2
    alone = sum(
        slopes(tree_map(lambda t, n=n: t[n : n + 1], inputs), weights[n : n + 1])
        for n in range(len(weights))
    )
    tolerance = 1e-9 if case.dtype == torch.float64 else 1e-3
    return bool((together - alone).abs().max() <= tolerance * together.abs().max() + tolerance)


def twin(case: Case) -> Case:
    """The same case once more, its numbers in float64."""
    with quiet(), torch.no_grad():
        again = propose(case.number, case.attempt, case.dtype)
    again.model, again.loss = again.model.double(), again.loss.double()
    again.inputs, again.targets = to_double(again.inputs), to_double(again.targets)
    return again


def state(case: Case) -> dict[str, Any]:
    """Everything that a call must leave as it was."""
    seen: dict[str, Any] = {"targets": case.targets.clone(), "RNG": torch.get_rng_state()}
    tree_map(lambda t: seen.setdefault(f"input {len(seen)}", t.clone()), case.inputs)
    seen["threads"], seen["grad mode"] = torch.get_num_threads(), torch.is_grad_enabled()
    for name, p in case.model.named_parameters():
        seen[name], seen[f"{name} requires_grad"] = p.detach().clone(), p.requires_grad
        seen[f"{name}.grad"] = None if p.grad is None else p.grad.clone()
    for name, b in [*case.model.named_buffers(), *case.loss.named_buffers()]:
        seen[f"buffer {name}"] = b.clone()
    for name, m in case.model.named_modules():
        seen[f"{name} mode"], seen[f"{name} attributes"] = m.training, sorted(vars(m))
        hooks = {k: list(v) for k, v in vars(m).items() if "hooks" in k and isinstance(v, dict)}
        seen[f"{name} hooks"], seen[f"{name} forward"] = hooks, vars(m).get("forward")
    return seen


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b

    names = before.keys() | after.keys()
    return sorted(n for n in names if not same(before.get(n), after.get(n)))


class WrongAnswerError(Exception):
    pass


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors])


def as_double(number: Any) -> Tensor:
    tensor = number if isinstance(number, Tensor) else torch.tensor(number, dtype=torch.float64)
    return tensor.detach().double()


def belongs(name: str, block: str) -> int:
    """How closely: blocks are called by modules, "a+b" where parameters are tied."""
    owner = name if "." in name else f"model.{name}"
    return max(len(p) if owner.startswith(f"{p}.") else 0 for p in block.split("+"))


@dataclass
class Judge:
    """One request, and what its answer should be."""

    case: Case
    rng: Draw
    options: dict[str, Any]
    chosen: list[nn.Parameter]
    reference: Dense
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        double = self.case.dtype == torch.float64
        self.tolerance, self.floor = (1e-8, 1e-6) if double else (2e-3, 1e-3)
        self.apart = 1e-3 if double else 1e-2
        n = tree_len(self.case.inputs)
        self.count = n if self.options["samples"] == "full" else max(n // 8, 1)
        self.exact = self.options["curvature"] == "exact"
        self.layers = "layer" if self.rng.flip(0.4) else "none"
        self.asked = self.rng.flip()

    def ask(self, name: str, *more: Any, **extra: Any) -> Any:
        from vivit_bench import curvature

        case, options = self.case, self.options | extra
        self.log.append(f"{name}({', '.join(f'{k}={v!r}' for k, v in options.items())})")
        function = getattr(curvature, name)
        return function(case.model, case.loss, case.inputs, case.targets, *more, **options)

    def close(self, what: str, found: Any, expected: Any, scale: float = 0.0) -> None:
        found, expected = (as_double(t) for t in (found, expected))
        if found.shape != expected.shape:
            raise WrongAnswerError(
                f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}"
            )
        if found.numel():
            scale = max(scale, expected.abs().max().item(), self.floor)
            error = (found - expected).abs().max().item() / scale
            if not error < self.tolerance:
                raise WrongAnswerError(f"{what}: off by {error:.1e} of {scale:.1e}")

    def check_gradient(self, found: list[Tensor] | None) -> None:
        if (found is not None) != self.asked:
            raise WrongAnswerError(f"gradient: asked for {self.asked}, found {found is not None}")
        if found is not None:
            scale = self.reference.gradients.abs().max().item() / 100
            self.close("gradient", flat(found), self.reference.mean_gradient, scale)

    def check_spectrum(
        self, what: str, found: Tensor, ggn: Tensor, columns: int, scale: float = 0.0
    ) -> None:
        expected = torch.linalg.eigvalsh(ggn).flip(0)
        count = min(columns, len(ggn))
        # The reference's loss Hessian is the difference of numbers near 1 where p is.
        rounding = self.floor * self.reference.jacobians.square().sum((1, 2)).max().item()
        scale = max(scale, ggn.trace().item(), rounding) / 10
        self.close(what, found, expected[:count], scale)
        self.close(f"{what}: what is left out", expected[count:], 0 * expected[count:], scale)

    def ggn(self) -> Tensor:
        """The dense GGN; under ``mc`` put together from the engine's own eigenvectors."""
        dense_ggn = self.reference.ggn(self.count)
        if self.exact:
            return dense_ggn
        tiny = self.tolerance / 10 * max(dense_ggn.trace().item(), self.floor)
        e, values = self.basis(cutoff=tiny)
        self.tolerance *= 10
        if not len(values):
            return torch.zeros_like(dense_ggn)
        v = e * values.sqrt()
        rows = self.reference.jacobians[: self.count].flatten(0, 1)
        _, s, axes = torch.linalg.svd(rows, full_matrices=False)
        axes = axes[s > 1e-12 * s[0]]
        self.close("columns of mc outside of the Jacobians'", axes.t() @ (axes @ v), v)
        return v @ v.t()

    def basis(self, **extra: Any) -> tuple[Tensor, Tensor]:
        result = self.ask("eigenvectors", **extra)
        vectors = [flat(vector) for chunk in result.chunks() for vector in chunk]
        none = torch.zeros(sum(self.reference.sizes), 0, dtype=torch.float64)
        return torch.stack(vectors, 1) if vectors else none, result.eigenvalues.double()

    def blocks(self, ggn: Tensor) -> tuple[dict[str, Tensor], Any]:
        """Places of every block's parameters among all, and the spectrum by blocks."""
        result = self.ask("eigenvalues", blocks="layer", with_gradient=self.asked)
        owners: list[str] = []
        for name, size in zip(self.reference.names, self.reference.sizes, strict=True):
            # Without a block is what no output depends on.
            owner = max(["", *result.blocks], key=lambda key: belongs(name, key))
            owners += [owner] * size
        places = {
            key: torch.tensor([at for at, owner in enumerate(owners) if owner == key]).long()
            for key in ["", *result.blocks]
        }
        nowhere = ggn[places.pop("")]
        self.close("GGN without a block", nowhere, 0 * nowhere, ggn.trace().item())
        return places, result

    def block_ggn(self, ggn: Tensor) -> Tensor:
        masked = torch.zeros_like(ggn)
        for at in self.blocks(ggn)[0].values():
            masked[at[:, None], at] = ggn[at[:, None], at]
        return masked

    def gap(self, spectrum: Tensor) -> tuple[float, int]:
        """A cutoff that no eigenvalue is near, and how many are above it."""
        largest = spectrum[0].item()
        if largest < self.floor:
            return 10 * self.floor, 0
        ends = torch.cat([spectrum, spectrum.new_zeros(1)])
        wide = (ends[:-1] - ends[1:] > self.apart * largest) & (ends[:-1] > self.apart * largest)
        if not wide.any():
            return 2 * largest, 0
        last = self.rng.choice(wide.nonzero().flatten().tolist())
        return (ends[last] + ends[last + 1]).item() / 2, last + 1

    def eigen(self, ggn: Tensor) -> tuple[float, Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(ggn)
        cutoff, kept = self.gap(values.flip(0))
        return cutoff, values.flip(0)[:kept], vectors.flip(1)[:, :kept]

    # -- the quantities ---------------------------------------------------------------------

    def eigenvalues(self) -> None:
        ggn = self.ggn()
        if self.layers == "layer":
            places, result = self.blocks(ggn)
            self.check_spectrum_of_blocks(places, result, ggn)
        else:
            result = self.ask("eigenvalues", with_gradient=self.asked)
            self.check_spectrum("eigenvalues", result.eigenvalues, ggn, result.info.num_columns)
        info = result.info
        numbers = (info.num_params, info.batch_size, info.num_samples)
        if numbers != (len(ggn), tree_len(self.case.inputs), self.count):
            raise WrongAnswerError(f"info: {numbers}")
        rounding = self.floor * self.reference.jacobians.square().sum((1, 2)).max().item()
        self.close("trace", result.trace, ggn.trace(), rounding)
        self.close("sum of the eigenvalues", result.eigenvalues.sum(), result.trace)
        self.close("loss", info.loss, self.reference.loss)
        self.check_gradient(result.gradient)

    def check_spectrum_of_blocks(self, places: dict[str, Tensor], result: Any, g: Tensor) -> None:
        for key, at in places.items():
            columns = result.info.num_columns
            scale = 0.0 if self.exact else g.trace().item()
            block = g[at[:, None], at]
            self.check_spectrum(f"block {key!r}", result.blocks[key], block, columns, scale)
        together = torch.cat(list(result.blocks.values())).sort(descending=True).values
        self.close("eigenvalues of all blocks", result.eigenvalues, together)

    def directional_derivatives(self) -> None:
        cutoff, values, vectors = self.eigen(self.ggn())
        result = self.ask("directional_derivatives", cutoff=cutoff, with_gradient=self.asked)
        self.close("eigenvalues", result.eigenvalues, values)
        self.check_gradient(result.gradient)
        gammas, lambdas = result.gammas.double(), result.lambdas.double()
        slopes = self.reference.gradients @ vectors
        self.close("shape of gammas", torch.tensor(gammas.shape), torch.tensor(slopes.shape))
        self.close("mean lambdas", lambdas.mean(0), values)
        curvatures = self.reference.curvatures(vectors, self.count)
        starts = [k for k in range(len(values)) if self.starts_group(values, k)]
        for first, end in itertools.pairwise([*starts, len(values)]):
            group = slice(first, end)
            name, size = f"of eigenvalues {first} to {end - 1}", slopes.square().sum().item()
            here, expected = gammas[:, group], slopes[:, group]
            self.close(f"gammas {name}", here @ here.t(), expected @ expected.t(), size)
            if self.exact:
                sums = lambdas[:, group].sum(1), curvatures[:, group].sum(1)
                self.close(f"lambdas {name}", *sums, curvatures.abs().max().item())

    def starts_group(self, values: Tensor, k: int) -> bool:
        return k == 0 or bool(values[k - 1] - values[k] > self.apart * values[0])

    def damping(self, ggn: Tensor) -> float:
        largest = max(torch.linalg.eigvalsh(ggn)[-1].item(), self.floor)
        return self.rng.choice([largest, 0.1 * largest, 0.02 * largest])

    def newton_step(self) -> None:
        ggn, whole = self.ggn(), self.rng.flip()
        if self.layers == "layer":
            ggn = self.block_ggn(ggn)
        damping, gradient = self.damping(ggn), self.reference.mean_gradient
        cutoff, values, e = self.eigen(ggn)
        if whole:
            damped = ggn + damping * torch.eye(len(ggn), dtype=ggn.dtype)
            expected = -torch.linalg.solve(damped, gradient)
        else:
            expected = -e @ (e.t() @ gradient / (values + damping))
        result = self.ask(
            "newton_step",
            damping=damping,
            cutoff=None if whole else cutoff,
            blocks=self.layers,
            with_gradient=self.asked,
        )
        if [s.shape for s in result.step] != [p.shape for p in self.chosen]:
            raise WrongAnswerError(f"shapes of the step: {[tuple(s.shape) for s in result.step]}")
        # A gradient that is all rounding is a step of its size over the damping.
        scale = max(self.reference.gradients.abs().max().item() / 100, self.floor) / damping
        self.close("Newton step", flat(result.step), expected, scale)
        self.check_gradient(result.gradient)

    def eigenvectors(self) -> None:
        ggn = self.ggn()
        cutoff, values, _ = self.eigen(ggn)
        k = self.rng.choice([None, 1, 2, 4])
        e, found = self.basis(k=k, cutoff=cutoff)
        self.close("eigenvalues", found, values[:k])
        self.close("G e", ggn @ e, e * found, ggn.abs().max().item())
        self.close("inner products", e.t() @ e, torch.eye(len(found)))

    def inverse_product(self) -> None:
        ggn = self.ggn()
        if self.layers == "layer":
            ggn = self.block_ggn(ggn)
        damping = self.damping(ggn)
        numbers = torch.Generator().manual_seed(self.case.number)
        vectors = [
            [torch.randn(p.shape, generator=numbers).to(p) for p in self.chosen] for _ in range(2)
        ]
        found = self.ask("inverse_product", vectors, damping=damping, blocks=self.layers)
        for y, x in zip(found, vectors, strict=True):
            self.close("(G + d I) y", ggn @ flat(y) + damping * flat(y), flat(x))


QUANTITIES = (
    "eigenvalues",
    "eigenvalues",
    "directional_derivatives",
    "newton_step",
    "newton_step",
    "eigenvectors",
    "inverse_product",
)


def pick_parameters(d: Draw, model: nn.Module) -> tuple[Any, list[str]]:
    """Patterns (None: all) and the names of the trainable parameters they pick."""
    every = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    some = d.choice(names)
    patterns: str | list[str] = d.choice(
        [some, "*weight*", [some, "*bias*"], some.rpartition(".")[0] + "*"]
    )
    listed = [patterns] if isinstance(patterns, str) else patterns
    hits = [{n for n in every if fnmatch.fnmatch(n, pattern)} for pattern in listed]
    picked = [n for n in names if any(n in some for some in hits)]
    # A tied parameter that only its second name matches is left to other tests.
    first = {n for n, _ in model.named_parameters()}
    if d.flip(0.15) and all(some & set(names) and some <= first for some in hits):
        return patterns, picked
    return None, names


def loss_of_precision(case: Case, reference: Case) -> float:
    """How far the float32 gradient is from the float64 one."""
    with quiet():
        grads = [
            flat([torch.zeros_like(p) if g is None else g for p, g in zip(ps, gs, strict=True)])
            for c in (case, reference)
            for ps in [parameters(c.model)]
            for gs in [
                torch.autograd.grad(c.loss(c.model(c.inputs), c.targets), ps, allow_unused=True)
            ]
        ]
    return ((grads[0] - grads[1]).abs().max() / grads[1].abs().max().clamp_min(1e-3)).item()


@dataclass
class Outcome:
    kind: str
    """right, wrong, refused or crashed."""
    reason: str = ""
    log: list[str] = field(default_factory=list)


def run(case: Case) -> Outcome:
    """Ask the engine for one quantity of a case and judge the answer."""
    from vivit_bench.curvature import Memory
    from vivit_bench.errors import VivitBenchError

    d = Draw(f"request {case.number}")
    patterns, names = pick_parameters(d, case.model)
    options = {
        "curvature": d.choice(["exact", "exact", "mc"]),
        "samples": d.choice(["full", "full", "frac"]),
        "certify": d.choice([True, "all"] if case.refusal else [True, "all", "all", False]),
    }
    if options["curvature"] == "mc":
        options |= {"mc_samples": d.randint(1, 3), "seed": d.randrange(1000)}
    if patterns is not None:
        options["params"] = patterns
        case.features.add("params")
    if d.flip():
        options["working_bytes"] = d.choice([1, 4096])
    if Draw(f"memory {case.number}").flip(0.4):  # many passes, and parts of layers
        options["memory"] = Memory(1, strict=False)
        case.features.add("leanest-plan")
    quantity, held, inside = d.choice(QUANTITIES), d.flip(0.1), d.flip(0.1)
    case.features |= {quantity, str(options["curvature"]), str(options["samples"])}
    for p in case.model.parameters():
        p.grad = torch.ones_like(p) if held else None
    with quiet():
        reference: Dense | None = None
        with contextlib.suppress(RuntimeError, ValueError, IndexError):
            other = twin(case)
            reference = dense(other.model, other.loss, other.inputs, other.targets, names)
        if reference is None and case.refusal is None:
            raise AssertionError(f"case {case.number}: the oracle fails")
        chosen = [p for n, p in case.model.named_parameters() if n in names]
        judge = Judge(case, d, options, chosen, reference)
        before = state(case)
        try:
            with torch.no_grad() if inside else contextlib.nullcontext():
                if reference is None:
                    judge.ask("eigenvalues")
                    raise WrongAnswerError("answered, where the oracle cannot")
                getattr(judge, quantity)()
            outcome = Outcome("right")
        except WrongAnswerError as error:
            outcome = Outcome("wrong", str(error))
        except VivitBenchError as error:
            outcome = Outcome("refused", f"{type(error).__name__}: {error}")
        except Exception as error:
            last = traceback.format_exc()
            outcome = Outcome("crashed", f"{type(error).__name__}: {error}", [last])
        if left := differences(before, state(case)):
            outcome = Outcome("wrong", f"leaves a trace: {', '.join(left)} ({outcome.kind})")
    outcome.log += judge.log
    return outcome


def run_number(number: int, only: str | None = None) -> tuple[Case, Outcome | None]:
    case = build(number)
    if only is not None and only not in case.features:
        return case, None
    if (
        case.dtype == torch.float32
        and case.refusal is None
        and loss_of_precision(build(number), twin(case)) > 1e-4
    ):
        case = build(number, torch.float64)
    return case, run(case)


def headline(reason: str) -> str:
    """A message without its names and numbers, to count by."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|[\d.]+(e[+-]?\d+)?", "_", reason.splitlines()[0])[:110]


def table(title: str, rows: Sequence[tuple[Any, str]]) -> str:
    return "\n".join([title, *(f"  {count!s:>11}  {name}" for count, name in rows)])


def summarise(done: list[tuple[Case, Outcome]]) -> tuple[str, bool]:
    """The tables, and whether the engine passes."""
    plain = [(c, o) for c, o in done if c.refusal is None]
    other = [(c, o) for c, o in done if c.refusal is not None]
    kinds, others = Counter(o.kind for _, o in plain), Counter(o.kind for _, o in other)
    bad = [o for _, o in done if o.kind in ("wrong", "crashed")]
    share = (kinds["right"] + kinds["wrong"]) / max(len(plain), 1)
    seen, answered = Counter[str](), Counter[str]()
    for c, o in plain:
        seen.update(c.features)
        answered.update(c.features if o.kind == "right" else ())
    refused = Counter(headline(o.reason) for _, o in plain if o.kind == "refused")
    declined = Counter(f"{c.refusal}: {o.kind}" for c, o in other)
    faults = Counter(f"{o.kind}: {headline(o.reason)}" for o in bad)
    parts = [
        table(
            "answered rightly, by feature", [(f"{answered[f]}/{seen[f]}", f) for f in sorted(seen)]
        ),
        table("cannot be answered rightly", [(n, k) for k, n in sorted(declined.items())]),
        table("refused", [(n, k) for k, n in refused.most_common()]),
        table("wrong or crashed", [(n, k) for k, n in faults.most_common()]),
        f"{len(plain)} cases: {kinds['right']} right, {kinds['wrong']} wrong, "
        f"{kinds['refused']} refused, {kinds['crashed']} crashed; answered {share:.1%}",
        f"{len(other)} cases without a right answer: {others['refused']} refused, "
        f"{others['right']} right all the same, {others['wrong']} wrong, "
        f"{others['crashed']} crashed",
    ]
    return "\n".join(parts), not bad and share >= 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", metavar="FEATURE", help="skip the cases without it")
    parser.add_argument("--case", type=int, help="repeat one case")
    parser.add_argument("--verbose", action="store_true", help="print refusals, networks, requests")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.cases)
    if options.case is not None:
        numbers = range(options.case, options.case + 1)
    done: list[tuple[Case, Outcome]] = []
    started = time.monotonic()
    for number in numbers:
        case, outcome = run_number(number, options.only)
        if outcome is None:
            continue
        done.append((case, outcome))
        if options.verbose and options.case is not None:
            print(case.model, case.loss, f"features: {', '.join(sorted(case.features))}", sep="\n")
            print(*(f"{n}: {tuple(p.shape)}" for n, p in case.model.named_parameters()), sep="\n")
            print("inputs", tree_map(lambda t: t.shape, case.inputs), "targets", case.targets.shape)
            print(*outcome.log, sep="\n")
        if outcome.kind in ("wrong", "crashed") or options.verbose:
            why = f", cannot be answered: {case.refusal}" if case.refusal else ""
            print(
                f"case {number}: {outcome.kind}: {outcome.reason.splitlines()[:1]}{why}", flush=True
            )
        if len(done) % 50 == 0:
            pace = (time.monotonic() - started) / len(done)
            print(f"{len(done)} cases, {1e3 * pace:.0f} ms each", file=sys.stderr, flush=True)
    text, passed = summarise(done)
    print(text)
    return 0 if passed else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
