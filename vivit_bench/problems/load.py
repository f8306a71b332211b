"""A problem by its name: DeepOBS's, or a function in a file of the user's."""

from pathlib import Path

import torch
from torch import Tensor, nn

from vivit_bench.problems import quadratic
from vivit_bench.problems.catalogue import ProblemSpec, find_spec, is_user_problem
from vivit_bench.problems.checkpoint import load_checkpoint
from vivit_bench.problems.deepobs_torch import deepobs_module
from vivit_bench.problems.plain import (
    STATISTICS_BATCHES,
    STATISTICS_SAMPLES,
    fill_statistics,
    make_plain,
    needs_statistics,
)
from vivit_bench.problems.problem import Problem, count_trainable
from vivit_bench.problems.sampling import generator, normal_inputs, seeded
from vivit_bench.problems.user import load_user_problem


def load_problem(name: str, seed: int = 0, checkpoint: Path | None = None) -> Problem:
    """Build a problem: the same name, seed and checkpoint give the same weights.

    Networks and losses are DeepOBS's, out of plain torch modules and in evaluation
    mode: dropout off, batch normalisation by running statistics. Statistics that were
    never updated are first filled by three forward passes of 32 inputs (synthetic ones;
    a user's problem: its own). There is no l2 term.

    Args:
        name: DeepOBS's name, or ``path/to/file.py:function`` (see `load_user_problem`).
        seed: Of the initialisation.
        checkpoint: Weights to start from (see `load_checkpoint`).

    Returns:
        The problem.

    Raises:
        UsageError: Unknown name, or a file or checkpoint that does not fit.
    """
    if is_user_problem(name):
        return load_user_problem(name, seed, checkpoint)
    spec = find_spec(name)
    with seeded(seed):
        model = build_network(spec)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    if needs_statistics(model):
        fill_statistics(model, _synthetic_inputs(spec, seed))
    labels = spec.loss == "CrossEntropyLoss"
    return Problem(
        name=name,
        model=model,
        loss=getattr(nn, spec.loss)(),
        num_params=count_trainable(model),
        input_shape=spec.data.shape,
        output_shape=(spec.num_outputs,),
        target_shape=() if labels else (spec.num_outputs,),
        target_dtype=torch.int64 if labels else torch.float32,
        default_batch_size=spec.batch_size,
        spectrum_batch_size=spec.spectrum_batch_size,
        default_epochs=spec.epochs,
    )


def build_network(spec: ProblemSpec) -> nn.Module:
    """DeepOBS's network with fresh weights, plain and in evaluation mode.

    Building fmnist_2c2d peaks near 1.4 GiB, in DeepOBS's initialiser.

    Args:
        spec: The problem.

    Returns:
        The network; it maps [n, *spec.data.shape] to [n, C].
    """
    if spec.name == "quadratic_deep":
        return quadratic.build_network().eval()
    modules = deepobs_module("testproblems.testproblems_modules")
    return make_plain(getattr(modules, spec.network)(**spec.arguments), spec.data.shape)


def _synthetic_inputs(spec: ProblemSpec, seed: int) -> list[Tensor]:
    source = generator(seed)
    return [
        normal_inputs(STATISTICS_SAMPLES, spec.data.shape, spec.data.moments, source)
        for _ in range(STATISTICS_BATCHES)
    ]
