"""Deterministic algorithms on CUDA devices, and word of each operation that has none."""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch

WORKSPACE, REPEATING_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
"""Variable that cuBLAS reads when CUDA starts, and a value under which its products repeat."""

_WARNING = re.compile(r"(?s).*determinis")
_OPERATION = re.compile(r"(\S+) does not have a deterministic implementation")
_LONGEST = 80


@contextmanager
def deterministic(found: Callable[[str], None]) -> Iterator[None]:
    """Inside, operations on CUDA devices repeat bit by bit, on one device and one software.

    PyTorch then takes a deterministic algorithm wherever it has one. It warns of an operation that
    has none, and does it all the same: this is what ``found`` is told of. All flags, and the
    environment variable of cuBLAS, are put back at the end.

    Args:
        found: Given the name of each operation that has no deterministic algorithm, once, from
            inside that operation.
    """
    with _cublas_workspace(), _flags(), _warnings_to(found):
        yield


def workspace() -> str:
    """What cuBLAS's variable is inside; what the user has set counts."""
    return os.environ.get(WORKSPACE, REPEATING_WORKSPACE)


@contextmanager
def _cublas_workspace() -> Iterator[None]:
    """PyTorch reads the variable at its first product on a device."""
    missing = WORKSPACE not in os.environ
    os.environ[WORKSPACE] = workspace()
    try:
        yield
    finally:
        if missing:
            del os.environ[WORKSPACE]


@contextmanager
def _flags() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    before = cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory
    always = torch.is_warn_always_enabled()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        cudnn.deterministic, cudnn.benchmark = True, False
        memory.fill_uninitialized_memory = False  # nobody reads it, and it takes a launch each
        torch.set_warn_always(True)  # some operations warn once in a process, of an earlier run
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = before
        torch.set_warn_always(always)


@contextmanager
def _warnings_to(found: Callable[[str], None]) -> Iterator[None]:
    """Take the warnings of operations that do not repeat; all others are shown as before."""
    seen = set[str]()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def take(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            text = str(message)
            if not _WARNING.match(text):
                show(message, category, filename, lineno, file, line)
            elif (name := _operation(text)) not in seen:
                seen.add(name)
                found(name)

        warnings.filterwarnings("always", message=_WARNING.pattern, category=UserWarning)
        warnings.showwarning = take
        yield


def _operation(text: str) -> str:
    """Which operation a warning is about."""
    if named := _OPERATION.match(text):
        return named[1]
    if "uses CuBLAS" in text:
        return f"cuBLAS (it started without {WORKSPACE}={REPEATING_WORKSPACE})"
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
