"""DeepOBS's PyTorch modules without the TensorFlow its top level imports."""

import functools
import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from vivit_bench.errors import VivitBenchError

# Their __init__ files import TensorFlow (the first) or runners and plotting (the rest).
_PACKAGES = (
    "deepobs",
    "deepobs.pytorch",
    "deepobs.pytorch.testproblems",
    "deepobs.pytorch.datasets",
)


@functools.cache
def deepobs_module(name: str) -> Any:
    """Import one module of DeepOBS, running no ``__init__`` of its packages.

    Packages on the way stand in as bare objects while the module is imported. Only the
    stand-in for ``deepobs`` itself stays in ``sys.modules``, so that the packages below
    it can still be imported in full, by anybody, without TensorFlow. A ``deepobs`` that
    somebody has already imported is used as it is.

    Args:
        name: Below ``deepobs.pytorch``, e.g. ``testproblems.testproblems_modules``.

    Returns:
        The module.

    Raises:
        VivitBenchError: DeepOBS is not installed.
    """
    stand_ins = [package for package in _PACKAGES if package not in sys.modules]
    for package in stand_ins:
        sys.modules[package] = _bare_package(package)
    try:
        return importlib.import_module(f"deepobs.pytorch.{name}")
    finally:
        for package in stand_ins[::-1]:
            if package != "deepobs":
                del sys.modules[package]


def _bare_package(name: str) -> ModuleType:
    module = ModuleType(name)
    if name == "deepobs":
        module.__getattr__ = _submodule  # type: ignore[method-assign]
    module.__path__ = [str(_root().joinpath(*name.split(".")[1:]))]
    module.__spec__ = ModuleSpec(name, loader=None, is_package=True)
    module.__spec__.submodule_search_locations = module.__path__
    return module


def _submodule(name: str) -> ModuleType:
    """Import what ``import deepobs.pytorch.x as y`` looks up as an attribute."""
    if name.startswith("_") or importlib.util.find_spec(f"deepobs.{name}") is None:
        raise AttributeError(f"module 'deepobs' has no attribute '{name}'")
    return importlib.import_module(f"deepobs.{name}")


@functools.cache
def _root() -> Path:
    present = sys.modules.get("deepobs")
    if present is not None:
        return Path(present.__path__[0])
    spec = importlib.util.find_spec("deepobs")
    if spec is None or not spec.submodule_search_locations:
        raise VivitBenchError("the package deepobs is not installed: pip install 'deepobs>=1.1.2'")
    return Path(spec.submodule_search_locations[0])
