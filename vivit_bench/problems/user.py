"""Problems of the user's: a function in a file that returns (model, loss, data)."""

import difflib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from vivit_bench.errors import UsageError
from vivit_bench.problems.batchnorm import (
    STATISTICS_BATCHES,
    STATISTICS_SAMPLES,
    fill_statistics,
    needs_statistics,
)
from vivit_bench.problems.checkpoint import load_checkpoint
from vivit_bench.problems.messages import describe
from vivit_bench.problems.problem import Batch, OwnData, Problem, count_trainable
from vivit_bench.problems.sampling import own_batch
from vivit_bench.problems.seeding import seeded
from vivit_bench.problems.user_checks import (
    check_batch,
    check_loss,
    check_model,
    check_outputs,
    check_targets,
)

_MOST_DEFAULT_SAMPLES = 128


def load_user_problem(name: str, seed: int = 0, checkpoint: Path | None = None) -> Problem:
    """Load ``path/to/file.py:function``.

    The function takes no required argument and returns ``(model, loss, data)``: a torch
    module in float32, ``CrossEntropyLoss`` or ``MSELoss`` with mean reduction, and
    either tensors ``(inputs [n, ...], targets)`` or a function ``batch(n, seed)`` that
    returns such tensors. Targets are class indices [n] in int64 (cross-entropy; outputs
    [n, C]) or float32 of the outputs' shape (MSE; C is the number of outputs per sample).

    The file is run anew at each call, with its folder on the import path and torch,
    numpy and ``random`` seeded. The model is put into evaluation mode on the CPU; batch
    normalisation that never saw a batch is filled by three forward passes over its own
    data first, any other keeps its running statistics.

    Args:
        name: File (relative to the working directory) and function.
        seed: Of the random numbers the file and the function may draw.
        checkpoint: Weights to load into the model.

    Returns:
        The problem, after one forward pass of up to two samples.

    Raises:
        UsageError: One line on whatever is wrong with it.
    """
    file, function_name = _split(name)
    with _import_path(file), seeded(seed):
        function = _find(_run_file(file), function_name, file)
        try:
            returned = function()
        except (Exception, SystemExit) as error:
            raise UsageError(f"{name} raised {describe(error)}") from error
    model, loss, data = _unpack(name, returned)
    check_model(name, model)
    check_loss(name, loss)
    model = model.cpu().eval()
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    size = len(data[0]) if isinstance(data, tuple) else None
    if needs_statistics(model):
        _fill(name, model, data, size)
    inputs, targets = own_batch(name, data, min(2, size or 2), seed)
    output_shape = check_outputs(name, model, loss, inputs, targets)
    if isinstance(data, tuple):
        check_targets(name, loss, data[1], output_shape)
    default_batch_size = min(_MOST_DEFAULT_SAMPLES, size or _MOST_DEFAULT_SAMPLES)
    return Problem(
        name=name,
        model=model,
        loss=loss,
        num_params=count_trainable(model),
        num_outputs=math.prod(output_shape),
        input_shape=tuple(inputs.shape[1:]),
        target_shape=tuple(targets.shape[1:]),
        default_batch_size=default_batch_size,
        spectrum_batch_size=default_batch_size,
        default_epochs=None,
        own_data=data,
    )


def _split(name: str) -> tuple[Path, str]:
    file, colon, function = name.rpartition(":")
    if not colon or not function.isidentifier() or not file.endswith(".py"):
        raise UsageError(f"'{name}' is no problem: write path/to/file.py:function")
    if not Path(file).is_file():
        raise UsageError(f"no file {file} (asked for as '{name}', from folder {Path.cwd()})")
    return Path(file).resolve(), function


@contextmanager
def _import_path(file: Path) -> Iterator[None]:
    before = sys.path.copy()
    sys.path.insert(0, str(file.parent))
    try:
        yield
    finally:
        sys.path[:] = before


def _run_file(file: Path) -> ModuleType:
    module_name = f"vivit_bench_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look it up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"importing {file} raised {describe(error)}") from error
    return module


def _find(module: ModuleType, function_name: str, file: Path) -> Callable[[], Any]:
    function = getattr(module, function_name, None)
    if not callable(function):
        own = [
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        near = difflib.get_close_matches(function_name, own, n=1)
        hint = f": did you mean '{near[0]}'?" if near else f" (it has: {', '.join(own) or 'none'})"
        raise UsageError(f"{file} has no function '{function_name}'{hint}")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin; calling it tells
        return function
    required = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise UsageError(
            f"{file}:{function_name} requires {', '.join(required)}: give every argument a default"
        )
    return function


def _unpack(name: str, returned: Any) -> tuple[nn.Module, nn.Module, OwnData]:
    if not isinstance(returned, tuple | list) or len(returned) != 3:
        got = f"{len(returned)} values" if isinstance(returned, tuple | list) else type(returned)
        raise UsageError(f"{name} must return (model, loss, data), got {_type_name(got)}")
    model, loss, data = returned
    if isinstance(data, list):
        data = tuple(data)
    pair = isinstance(data, tuple) and len(data) == 2
    if pair and all(isinstance(part, Tensor) for part in data):
        return model, loss, check_batch(name, data)
    if not callable(data):
        raise UsageError(
            f"{name}: data must be tensors (inputs, targets) or a function batch(n, seed), "
            f"got {_type_name(type(data))}"
        )
    return model, loss, data


def _type_name(got: object) -> str:
    return f"a {got.__name__}" if isinstance(got, type) else str(got)


def _fill(name: str, model: nn.Module, data: OwnData, size: int | None) -> None:
    samples = min(STATISTICS_SAMPLES, size or STATISTICS_SAMPLES)
    batches: list[Batch] = [
        own_batch(name, data, samples, seed) for seed in range(STATISTICS_BATCHES)
    ]
    try:
        fill_statistics(model, [inputs for inputs, _ in batches])
    except Exception as error:
        raise UsageError(
            f"{name}: the model failed in a forward pass of {samples} samples, {describe(error)}"
        ) from error
