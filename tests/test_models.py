"""Every quantity of the engine on the networks of the zoo, against V column by column.

The reference is plain autograd without the package: one backward pass for every sample and every
column of a square root of its loss Hessian gives V, whole, in float64. It is held against
difference quotients, which need no derivative at all. The networks of real size run under
``pytest -m models``.
"""

import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from model_zoo import ZOO, Entry, N, Problem
from oracle import Tree, dense, relative_error, tree_len, tree_map
from torch import Tensor, nn

from vivit_bench.curvature import (
    DirectionalDerivatives,
    Spectrum,
    directional_derivatives,
    eigenvalues,
    eigenvectors,
    newton_step,
)

TOLERANCE = 1e-8
DENSE_PARAMETERS = 2000
"""D up to which the oracle's dense GGN is compared as well."""

entries = pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.name, marks=[] if entry.quick else [pytest.mark.models])
        for entry in ZOO
    ],
)

Vector = Sequence[Tensor]
"""A vector in parameter space, one tensor for every parameter."""


@dataclass
class Reference:
    """V and the samples' gradients, parameter by parameter."""

    columns: list[Tensor]
    """[M, size] for every parameter; G = sum of the columns' outer products."""
    gradients: list[Tensor]
    """[N, size] for every parameter; their mean is the gradient."""
    owners: Tensor
    """[M], the sample of every column."""
    loss: float

    def part(self, parameters: list[int]) -> "Reference":
        """Of some parameters."""
        return Reference(
            [self.columns[i] for i in parameters],
            [self.gradients[i] for i in parameters],
            self.owners,
            self.loss,
        )

    def gram(self) -> Tensor:
        return sum(c @ c.t() for c in self.columns)  # type: ignore[return-value]

    def slopes(self) -> Tensor:
        """[M, N], V^T g_n."""
        pairs = zip(self.columns, self.gradients, strict=True)
        return sum(c @ g.t() for c, g in pairs)  # type: ignore[return-value]

    def transposed_times(self, vector: Vector) -> Tensor:
        """[M], V^T x."""
        pairs = zip(self.columns, vector, strict=True)
        return sum(c @ v.flatten() for c, v in pairs)  # type: ignore[return-value]

    def times(self, weights: Tensor) -> list[Tensor]:
        """V w."""
        return [weights @ c for c in self.columns]

    def gradient(self) -> list[Tensor]:
        return [g.mean(0) for g in self.gradients]


def chosen_parameters(model: nn.Module, pattern: str | None) -> list[nn.Parameter]:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [p for n, p in named if pattern is None or fnmatch(n, pattern)]


def sample(inputs: Tree, n: int) -> Tree:
    """A batch of one."""
    return tree_map(lambda t: t[n : n + 1], inputs)


def loss_roots(loss: nn.Module, outputs: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
    """N times the loss's slope [N, C], and for every sample S_n^T [rank, C]: N times the Hessian's.

    Samples do not interact in the loss, so one product serves all of them.
    """
    count = len(outputs)
    outputs = outputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(outputs, targets), outputs, create_graph=True)
    rows = []
    for entry in slope.reshape(count, -1).unbind(1):
        (row,) = torch.autograd.grad(entry.sum(), outputs, retain_graph=True)
        rows.append(row.reshape(count, -1))
    values, vectors = torch.linalg.eigh(count * torch.stack(rows, 1))
    keep = values > 1e-13 * values.max()
    scaled = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
    roots = [scaled[n][:, keep[n]].t() for n in range(count)]
    return count * slope.detach().reshape(count, -1), roots


def reference(problem: Problem, pattern: str | None) -> Reference:
    model, loss, inputs, targets = problem
    parameters = chosen_parameters(model, pattern)
    count = tree_len(inputs)

    def fill(rows: list[Tensor], row: int, output: Tensor, weights: Tensor) -> None:
        found = torch.autograd.grad(
            output, parameters, weights.reshape(output.shape), retain_graph=True, allow_unused=True
        )
        for matrix, grad in zip(rows, found, strict=True):
            matrix[row] = 0.0 if grad is None else grad.flatten()

    with torch.no_grad():
        outputs = model(inputs)
    slopes, roots = loss_roots(loss, outputs, targets)
    owners = torch.cat([torch.full((len(root),), n) for n, root in enumerate(roots)])
    columns = [torch.empty(len(owners), p.numel(), dtype=p.dtype) for p in parameters]
    gradients = [torch.empty(count, p.numel(), dtype=p.dtype) for p in parameters]
    row = 0
    for n, root in enumerate(roots):
        output = model(sample(inputs, n))
        fill(gradients, n, output, slopes[n])
        for weights in root / count**0.5:
            fill(columns, row, output, weights)
            row += 1
        del output
    return Reference(columns, gradients, owners, loss(outputs, targets).item())


@torch.no_grad()
def check_by_differences(problem: Problem, pattern: str | None, found: Reference) -> None:
    """x^T G x and the slope along some x, from values of the network and of the loss alone."""
    model, loss, inputs, targets = problem
    parameters = chosen_parameters(model, pattern)
    generator = torch.Generator().manual_seed(1)
    direction = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.square().mean().sqrt()
        for p in parameters
    ]
    before = [p.clone() for p in parameters]
    h = 1e-9  # Fewer kinks between the two sides than with a longer step.
    outputs = []
    for side in (h, -h):
        for p, start, x in zip(parameters, before, direction, strict=True):
            p.copy_(start + side * x)
        outputs.append(model(inputs))
    for p, start in zip(parameters, before, strict=True):
        p.copy_(start)
    product = (outputs[0] - outputs[1]) / (2 * h)
    scale = product.abs().max()
    t = 1e-3 / scale
    middle = model(inputs)
    values = [loss(middle + shift * product, targets) for shift in (-t, 0, t)]
    curvature = ((values[0] - 2 * values[1] + values[2]) / t**2).item()
    slope = ((values[2] - values[0]) / (2 * t)).item()
    expected = found.transposed_times(direction).square().sum().item()
    assert expected == pytest.approx(curvature, rel=1e-5)
    pairs = zip(found.gradient(), direction, strict=True)
    expected = sum((g @ x.flatten()).item() for g, x in pairs)
    assert expected == pytest.approx(slope, rel=1e-5, abs=1e-6 * scale.item())


def gap(values: Tensor) -> float:
    """A cutoff in the widest gap (of ratios) in the lower half of the eigenvalues above 1e-5 l_1.

    Descending ones.
    """
    floor = 1e-5 * values[0]
    above = values[values > floor]
    below = torch.cat([values[1:], values.new_zeros(1)])[: len(above)].clamp(min=floor / 10)
    half = len(above) // 2
    widest = half + int((above / below)[half:].argmax())
    return (above[widest] * below[widest]).sqrt().item()


def clusters(values: Tensor) -> list[slice]:
    """Runs of descending eigenvalues closer than 1e-5 l_1: only sums over them are unique."""
    breaks = (torch.where(-values.diff() > 1e-5 * values[0])[0] + 1).tolist()
    return [slice(a, b) for a, b in zip([0, *breaks], [*breaks, len(values)], strict=True)]


def vector_error(found: Vector, expected: Vector, scale: float | None = None) -> float:
    """Largest deviation over ``scale``, or the largest expected entry (1 where all are zero)."""
    pairs = list(zip(found, expected, strict=True))
    largest = max((a.detach().flatten() - b.flatten()).abs().max().item() for a, b in pairs)
    return largest / (scale or max(b.abs().max().item() for b in expected) or 1.0)


def padded(values: Tensor, count: int) -> Tensor:
    """With zeros up to ``count``."""
    return torch.cat([values.double(), torch.zeros(count - len(values), dtype=torch.float64)])


def eigenvalue_error(found: Tensor, expected: Tensor) -> float:
    count = max(len(found), len(expected))
    return relative_error(padded(found, count), padded(expected, count))


def layer_names(model: nn.Module, parameters: Sequence[nn.Parameter]) -> list[str]:
    """For every parameter its block: its module, or modules; a parametrization is its layer's."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        module = name.rpartition(".")[0].partition(".parametrizations")[0]
        owners.setdefault(parameter, []).append(module or "model")
    return ["+".join(owners[p]) for p in parameters]


@dataclass
class Answers:
    """All that the engine says about one model."""

    spectrum: Spectrum
    first: Spectrum
    """Of the first sample alone."""
    layers: Spectrum
    """Layer by layer."""
    cutoff: float
    derivatives: DirectionalDerivatives
    step: list[Tensor]
    """Above the cutoff."""
    whole_step: list[Tensor]
    """Over the whole space."""
    layer_step: list[Tensor]
    """Over the whole space, layer by layer."""
    values: Tensor
    vectors: list[list[Tensor]]
    """The three leading eigenvalues above the cutoff, and their eigenvectors."""


def ask(problem: Problem, pattern: str | None) -> Answers:
    options: dict[str, Any] = {} if pattern is None else {"params": pattern}
    spectrum = eigenvalues(*problem, with_gradient=True, certify=True, **options)
    cutoff = gap(spectrum.eigenvalues)
    options["certify"] = False  # Once is enough.
    by_layer = {**options, "blocks": "layer"}
    basis = eigenvectors(*problem, k=3, cutoff=cutoff, **options)
    return Answers(
        spectrum,
        eigenvalues(*problem, samples="frac", **options),
        eigenvalues(*problem, **by_layer),
        cutoff,
        directional_derivatives(*problem, cutoff=cutoff, **options),
        newton_step(*problem, damping=1.0, cutoff=cutoff, **options).step,
        newton_step(*problem, damping=1.0, cutoff=None, **options).step,
        newton_step(*problem, damping=1.0, cutoff=None, **by_layer).step,
        basis.eigenvalues,
        [vector for chunk in basis.chunks() for vector in chunk],
    )


def check_spectrum(found: Answers, expected: Reference) -> None:
    gram, spectrum = expected.gram(), found.spectrum
    values = torch.linalg.eigvalsh(gram).flip(0)
    assert len(spectrum.eigenvalues) <= sum(c.shape[1] for c in expected.columns)
    assert eigenvalue_error(spectrum.eigenvalues, values) < TOLERANCE
    assert spectrum.trace == pytest.approx(gram.trace().item(), rel=TOLERANCE)
    assert spectrum.info.loss == pytest.approx(expected.loss, rel=TOLERANCE)
    assert spectrum.gradient is not None
    assert vector_error(spectrum.gradient, expected.gradient()) < TOLERANCE

    rows = expected.owners == 0
    alone = N * gram[rows][:, rows]
    values = torch.linalg.eigvalsh(alone).flip(0)
    assert eigenvalue_error(found.first.eigenvalues, values) < TOLERANCE


def whole_space_step(expected: Reference) -> list[Tensor]:
    """-(G + I)^-1 grad L, with the Gram matrix's inverse instead."""
    gram = expected.gram()
    inner = torch.linalg.solve(torch.eye(len(gram)).to(gram) + gram, expected.slopes().mean(1))
    pairs = zip(expected.times(inner), expected.gradient(), strict=True)
    return [v - g for v, g in pairs]


def check_directions(found: Answers, expected: Reference) -> None:
    """What depends on the eigenvectors above the cutoff, up to the basis of an eigenspace."""
    slopes = expected.slopes()
    values, weights = (t.flip(-1) for t in torch.linalg.eigh(expected.gram()))
    count = int((values > found.cutoff).sum())
    values, weights = values[:count], weights[:, :count]

    coefficients = weights.t() @ slopes.mean(1) / (values * (values + 1.0))
    step = expected.times(weights @ coefficients)
    assert vector_error(found.step, [-s for s in step]) < TOLERANCE

    assert len(found.derivatives.eigenvalues) == count
    assert relative_error(found.derivatives.eigenvalues, values) < TOLERANCE
    gammas = slopes.t() @ weights / values.sqrt()
    samples = torch.nn.functional.one_hot(expected.owners, N).to(weights).t()
    lambdas = N * values * (samples @ weights.square())
    for run in clusters(values):
        ours, theirs = found.derivatives.gammas[:, run], gammas[:, run]
        error = (ours @ ours.t() - theirs @ theirs.t()).abs().max()
        assert error < TOLERANCE * gammas.square().max()
        error = (found.derivatives.lambdas[:, run].sum(1) - lambdas[:, run].sum(1)).abs().max()
        assert error < TOLERANCE * lambdas.max()

    assert len(found.vectors) == min(3, count)
    scale = values[0].item()
    for value, vector in zip(found.values, found.vectors, strict=True):
        assert sum(v.square().sum().item() for v in vector) == pytest.approx(1.0, rel=TOLERANCE)
        product = expected.times(expected.transposed_times(vector))
        assert vector_error(product, [value * v for v in vector], scale) < TOLERANCE


def check_layers(found: Answers, expected: Reference, names: list[str]) -> None:
    """One block for every layer; ``names`` holds every parameter's."""
    assert list(found.layers.blocks) == list(dict.fromkeys(names))
    for name, values in found.layers.blocks.items():
        places = [i for i, owner in enumerate(names) if owner == name]
        block = expected.part(places)
        error = eigenvalue_error(values, torch.linalg.eigvalsh(block.gram()).flip(0))
        assert error < TOLERANCE, name
        step = [found.layer_step[i] for i in places]
        assert vector_error(step, whole_space_step(block)) < TOLERANCE, name


def check_against_oracle(
    problem: Problem, parameters: list[nn.Parameter], expected: Reference
) -> None:
    names = [n for n, p in problem[0].named_parameters() if any(p is q for q in parameters)]
    oracle = dense(*problem, names)
    v = torch.cat(expected.columns, 1)
    assert relative_error(v.t() @ v, oracle.ggn()) < TOLERANCE
    assert relative_error(torch.cat(expected.gradient()), oracle.mean_gradient) < TOLERANCE


@entries
@pytest.mark.one_in(4)
def test_every_quantity(entry: Entry) -> None:
    if entry.needs_compiler and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    problem = entry.build()
    model = problem[0]
    parameters = chosen_parameters(model, entry.params)
    # The engine first: the reference's V may take several GiB.
    found = ask(problem, entry.params)
    assert all(p.grad is None for p in model.parameters())
    assert [v.shape for v in found.step] == [p.shape for p in parameters]
    gc.collect()

    expected = reference(problem, entry.params)
    check_by_differences(problem, entry.params, expected)
    check_spectrum(found, expected)
    check_directions(found, expected)
    assert vector_error(found.whole_step, whole_space_step(expected)) < TOLERANCE
    check_layers(found, expected, layer_names(model, parameters))
    if sum(p.numel() for p in parameters) <= DENSE_PARAMETERS:
        check_against_oracle(problem, parameters, expected)
