"""Weights from a file."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.errors import UsageError

_SHOWN = 3
_KEYS = ("model", "model_state_dict")
"""Under which training scripts keep a state dict beside other things."""


def load_checkpoint(model: nn.Module, file: Path) -> None:
    """Load weights and running statistics into a model.

    A DeepOBS problem has DeepOBS's own names (``conv1.0.weight``, ``dense1.bias``, ...),
    so a state dict of DeepOBS's network fits; ``quadratic_deep`` has ``theta.weight``
    [1, 100]. All names must be there, and no others.

    Args:
        model: Changed in place.
        file: Written by ``torch.save``: a state dict, one under the key ``model`` or
            ``model_state_dict``, or what a Lightning trainer writes under ``state_dict``, in
            which the model is an attribute of a module: names then begin with the attribute's,
            and others are left out. Read with ``weights_only=True``: no code of the file runs.

    Raises:
        UsageError: No such file, not such a file, or other names or shapes.
    """
    own = model.state_dict()
    state = _read(file, list(own))
    problems = [
        *_listed("lacks", [name for name in own if name not in state]),
        *_listed("has unknown", [name for name in state if name not in own]),
        *_listed(
            "has other shapes for",
            [
                f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
                for name in own
                if name in state and state[name].shape != own[name].shape
            ],
        ),
    ]
    if problems:
        raise UsageError(f"checkpoint {file} is of another model: it {', '.join(problems)}")
    model.load_state_dict(state)


def _read(file: Path, names: list[str]) -> dict[str, Tensor]:
    if not file.is_file():
        raise UsageError(f"checkpoint {file} does not exist or is no file")
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling garbage raises almost anything
        # torch's message is a page on the risks of pickle; its type says enough.
        raise UsageError(
            f"checkpoint {file} cannot be read as tensors ({type(error).__name__}): "
            "write it with torch.save(model.state_dict(), file)"
        ) from error
    found = content if isinstance(content, dict) else {}
    if key := next((key for key in _KEYS if isinstance(found.get(key), dict)), None):
        content = found[key]
    elif isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = _of_attribute(file, content["state_dict"], names)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise UsageError(
            f"checkpoint {file} holds {_what(content)}, not a state dict, nor one under "
            f"{', '.join(_KEYS)} or state_dict: write it with torch.save(model.state_dict(), file)"
        )
    return content


def _what(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dict of {', '.join(map(str, list(content)[:_SHOWN])) or 'nothing'}"
    return f"a {type(content).__name__}"


def _of_attribute(file: Path, state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The part of a Lightning module's state that is the model's, by the model's names.

    Raises:
        UsageError: Several attributes have such names.
    """
    prefixes = {name.removesuffix(names[0]) for name in state if name.endswith(names[0])}
    whole = sorted(p for p in prefixes if all(f"{p}{name}" in state for name in names))
    if len(whole) > 1:
        raise UsageError(
            f"checkpoint {file} holds several such models: {', '.join(map(repr, whole))}; write "
            "the one that is meant with torch.save(model.state_dict(), file)"
        )
    if not whole:
        return state
    (prefix,) = whole
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _listed(verb: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{verb} {', '.join(names[:_SHOWN])}{more}"]
