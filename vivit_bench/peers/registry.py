"""Engines by name; a library that is not installed is named with its remedy."""

import importlib
from difflib import get_close_matches

from vivit_bench.errors import UsageError
from vivit_bench.peers.engine import Engine

_ENGINES = {
    "vivit-bench": ("vivit_bench.peers.own", "OwnEngine"),
    "vivit-for-pytorch": ("vivit_bench.peers.vivit_for_pytorch", "VivitForPytorch"),
    "backpack": ("vivit_bench.peers.backpack_engine", "BackpackEngine"),
    "curvlinops": ("vivit_bench.peers.curvlinops_engine", "CurvlinopsEngine"),
}


def engine_names() -> list[str]:
    """All engines, the project's own first."""
    return list(_ENGINES)


def get_engine(name: str) -> Engine:
    """The engine called ``name``.

    Raises:
        UsageError: For an unknown name or a missing library.
    """
    if name not in _ENGINES:
        near = get_close_matches(name, _ENGINES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"unknown engine {name!r}; {hint}engines: {', '.join(_ENGINES)}")
    module, attribute = _ENGINES[name]
    try:
        engine: Engine = getattr(importlib.import_module(module), attribute)()
    except ModuleNotFoundError as error:
        raise UsageError(
            f"engine {name!r} needs the package {error.name!r}; install it with "
            "pip install 'vivit-bench[peers]'"
        ) from error
    return engine
