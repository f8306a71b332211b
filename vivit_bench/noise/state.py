"""Everything a training needs to go on bit by bit: parameters, optimizer, random states."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vivit_bench.errors import VivitBenchError
from vivit_bench.store import write_atomic


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Replace ``path`` atomically.

    Args:
        path: The file.
        model: Parameters and running statistics.
        optimizer: Its buffers.
        progress: Numbers, texts, lists and dictionaries.
    """
    content = io.BytesIO()
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": _random_states(),
            "progress": progress,
        },
        content,
    )
    write_atomic(path, content.getvalue())


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restore what `save_state` saved, the global random states included.

    Returns:
        The progress; None without a file.

    Raises:
        VivitBenchError: The file is not such a state.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        _set_random_states(state["random"])
        return dict(state["progress"])
    except Exception as error:  # unpickling garbage raises almost anything
        raise VivitBenchError(
            f"{path} cannot be resumed from ({type(error).__name__}): start over with --fresh"
        ) from error


def _random_states() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "python": [version, list(words), gauss],
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_states(states: dict[str, Any]) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    key = states["numpy"]["state"]["key"].numpy().astype(np.uint32)
    numpy_state = {**states["numpy"], "state": {**states["numpy"]["state"], "key": key}}
    np.random.set_state(numpy_state)
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
