"""What can be said about a problem once it is built."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vivit_bench.problems.batch import TreeShape
from vivit_bench.problems.catalogue import list_problems
from vivit_bench.problems.data import load_batch
from vivit_bench.problems.problem import Problem
from vivit_bench.problems.sources import available_sources, default_source


def describe_problem(problem: Problem, data_dir: Path | None = None) -> dict[str, Any]:
    """Sizes, defaults and data of a problem.

    Args:
        problem: Of DeepOBS or the user.
        data_dir: Data folder; default as in `data_folder`.

    Returns:
        JSON-ready values by name; ``input_shape`` is a list, or for several inputs a
        dictionary of lists by place.
    """
    facts: dict[str, Any] = {
        "name": problem.name,
        "model": type(problem.model).__name__,
        "loss": type(problem.loss).__name__,
        "num_params": problem.num_params,
        "num_outputs": problem.num_outputs,
        "input_shape": _lists(problem.input_shape),
        "default_batch_size": problem.default_batch_size,
        "spectrum_batch_size": problem.spectrum_batch_size,
        "default_epochs": problem.default_epochs,
        "sources": [str(source) for source in available_sources(problem)],
    }
    if problem.own_data is None:
        row = next(row for row in list_problems(data_dir) if row.name == problem.name)
        dataset, path, present = row.dataset, row.data_path, row.data_present
    else:
        dataset, path, present = problem.own_data.description, None, True
    return facts | {"dataset": dataset, "data_path": path, "data_present": present}


def _lists(shape: TreeShape) -> list[int] | dict[str, list[int]]:
    if isinstance(shape, tuple):
        return list(shape)
    return {place: list(axes) for place, axes in shape.items()}


def layer_rows(problem: Problem) -> list[dict[str, Any]]:
    """The layers in the order they run for one sample; then those that another one runs itself.

    Args:
        problem: Of DeepOBS or the user.

    Returns:
        For each module without children, or with parameters of its own: name, type,
        output shape without the batch axis (None unless a tensor), trainable parameters.
    """
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    counted: set[int] = set()

    def record(name: str, module: nn.Module, output: Any) -> None:
        if name in seen:  # a module that is used twice
            return
        seen.add(name)
        own = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        counted.update(map(id, own))  # tied weights count where they are used first
        is_tensor = isinstance(output, torch.Tensor)
        rows.append(
            {
                "layer": name or "(model)",
                "type": type(module).__name__,
                "output_shape": list(output.shape[1:]) if is_tensor else None,
                "num_params": sum(p.numel() for p in own if p.requires_grad),
            }
        )

    handles = [
        module.register_forward_hook(lambda m, _, out, name=name: record(name, m, out))
        for name, module in problem.model.named_modules()
        if not list(module.children()) or list(module.parameters(recurse=False))
    ]
    inputs, _ = load_batch(problem, 1, default_source(problem, "memory"))
    try:
        with torch.no_grad():
            problem.model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for name, module in problem.model.named_modules():
        if list(module.parameters(recurse=False)):
            record(name, module, None)
    return rows
