"""Problems of the user's: a function in a file that returns (model, loss, data)."""

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.errors import UsageError, describe
from vivit_bench.problems.batch import a_type, sample_shape
from vivit_bench.problems.checkpoint import load_checkpoint
from vivit_bench.problems.guest import users_code
from vivit_bench.problems.own_data import OwnData, OwnTensors, as_own_data
from vivit_bench.problems.plain import (
    STATISTICS_BATCHES,
    STATISTICS_SAMPLES,
    fill_statistics,
    needs_statistics,
)
from vivit_bench.problems.problem import Problem, count_trainable
from vivit_bench.problems.sampling import seeded
from vivit_bench.problems.user_checks import check_loss, check_model, check_outputs, check_targets

_MOST_DEFAULT_SAMPLES = 128


def load_user_problem(name: str, seed: int = 0, checkpoint: Path | None = None) -> Problem:
    """Load ``path/to/file.py:function``.

    The function takes no required argument and returns ``(model, loss, data)``:

    - a torch module in float32, called with a batch's inputs as its one argument;
    - ``CrossEntropyLoss``, ``MSELoss`` or ``BCEWithLogitsLoss``, reduction mean or sum;
    - tensors ``(inputs, targets)``; or a map-style ``Dataset`` of items (input, target); or a
      ``DataLoader``, whose dataset and ``collate_fn`` are used; or a function
      ``batch(n, seed)`` that returns ``(inputs, targets)``.

    Inputs are a tensor [n, ...] of any real dtype, or a dict, list or tuple of such; targets
    are one tensor: integer labels, or numbers or probabilities of the outputs' shape. Floating
    point of another precision becomes float32, so do the weights of the loss. Samples of a
    Dataset are chosen by the seed, and so is whatever random augmentation they get.

    The file is run anew at each call, with its folder on the import path and torch,
    numpy and ``random`` seeded. The model is put into evaluation mode on the CPU; batch
    normalisation that never saw a batch is filled by three forward passes over its own
    data first, any other keeps its running statistics. What the file prints goes to stderr;
    the working directory and torch's default device are those of before afterwards.

    Args:
        name: File (relative to the working directory) and function.
        seed: Of the random numbers the file and the function may draw.
        checkpoint: Weights to load into the model.

    Returns:
        The problem, after one forward pass of up to two samples.

    Raises:
        UsageError: One line on whatever is wrong with it.
    """
    with users_code(name):
        with _default_device():
            returned = run_user_function(name, seed)
        return _checked(name, returned, seed, checkpoint)


def _checked(name: str, returned: Any, seed: int, checkpoint: Path | None) -> Problem:
    model, loss, data = _unpack(name, returned)
    check_model(name, model)
    check_loss(name, loss)
    own_data = as_own_data(name, data)
    model, loss = model.cpu().eval(), loss.cpu().float()
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    most = own_data.size or _MOST_DEFAULT_SAMPLES
    if needs_statistics(model):
        _fill(name, model, own_data, min(STATISTICS_SAMPLES, most))
    inputs, targets = own_data.batch(min(2, most), seed)
    output_shape = check_outputs(name, model, loss, (inputs, targets))
    if isinstance(own_data, OwnTensors):
        check_targets(name, loss, output_shape, own_data.targets)
    default_batch_size = min(_MOST_DEFAULT_SAMPLES, most)
    return Problem(
        name=name,
        model=model,
        loss=loss,
        num_params=count_trainable(model),
        input_shape=sample_shape(inputs),
        output_shape=output_shape,
        default_batch_size=default_batch_size,
        spectrum_batch_size=default_batch_size,
        default_epochs=None,
        target_shape=tuple(targets.shape[1:]),
        target_dtype=torch.float32 if targets.is_floating_point() else torch.int64,
        float_inputs=isinstance(inputs, Tensor) and inputs.is_floating_point(),
        own_data=own_data,
    )


def run_user_function(name: str, seed: int = 0) -> Any:
    """What ``path/to/file.py:function`` returns; the file is run anew, see `load_user_problem`.

    Raises:
        UsageError: There is none, it requires arguments, or it raised an exception.
    """
    file, function_name = _split(name)
    with users_code(name), _import_path(file), seeded(seed):
        function = _find(_run_file(file), function_name, file)
        try:
            return function()
        except (Exception, SystemExit) as error:
            raise UsageError(f"{name} raised {describe(error)}") from error


def _split(name: str) -> tuple[Path, str]:
    file, colon, function = name.rpartition(":")
    if not colon or not function.isidentifier() or not file.endswith(".py"):
        raise UsageError(f"'{name}' is no problem: write path/to/file.py:function")
    if not Path(file).is_file():
        raise UsageError(f"no file {file} (asked for as '{name}', from folder {Path.cwd()})")
    return Path(file).resolve(), function


@contextmanager
def _default_device() -> Iterator[None]:
    """Restore where tensors are made; the engine's own would be made there too."""
    # PyTorch 2.6 cannot tell its default device once that has been set to none.
    before = torch.empty(0).device
    try:
        yield
    finally:
        if torch.empty(0).device != before:
            torch.set_default_device(None if before.type == "cpu" else before)


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
            f"{file}:{function_name} requires {', '.join(required)}: give every argument a default "
            "(a training step step(n, seed) is what such a function returns)"
        )
    return function


def _unpack(name: str, returned: Any) -> tuple[Any, Any, Any]:
    if callable(returned) and not isinstance(returned, nn.Module | type):
        raise UsageError(
            f"{name} must return (model, loss, data), got a function; the largest batch of a "
            f"training step is found by: vivit-bench critical-batch search {name}"
        )
    if not isinstance(returned, tuple | list) or len(returned) != 3:
        raise UsageError(f"{name} must return (model, loss, data), got {a_type(returned)}")
    model, loss, data = returned
    return model, loss, data


def _fill(name: str, model: nn.Module, data: OwnData, samples: int) -> None:
    batches = [data.batch(samples, seed) for seed in range(STATISTICS_BATCHES)]
    try:
        fill_statistics(model, [inputs for inputs, _ in batches])
    except Exception as error:
        raise UsageError(
            f"{name}: the model failed in a forward pass of {samples} samples, {describe(error)}"
        ) from error
