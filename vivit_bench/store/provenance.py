"""What is recorded with every result: machine, libraries, code, time."""

import ast
import functools
import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import vivit_bench

Provenance = dict[str, Any]

_LIBRARIES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "backpack": "backpack-for-pytorch",
    "deepobs": "deepobs",
    "vivit_for_pytorch": "vivit-for-pytorch",
    "numpy": "numpy",
    "scipy": "scipy",
}


CARD = ("gpu", "gpu_bytes", "cuda", "cudnn", "driver")
"""Facts that decide, beside the libraries, what is computed on a CUDA device."""
_RAM = "ram_bytes"
_RAM_UNIT = 2**26
"""A kernel's own share differs by some KiB from version to version: still the same machine."""


def provenance(device: str | None = None) -> Provenance:
    """Describe this machine, its libraries, this code and the time, JSON-ready.

    Args:
        device: ``cuda:i`` for the facts of that card; else they are those of the first.

    Returns:
        Flat dictionary. ``None`` stands for what is absent (no GPU, no git, a library
        that is not installed). ``cuda_allocator`` is how this process's allocator is set.
        ``started_at`` is now, UTC in ISO 8601.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {**_static_provenance(), **_gpu(device), "started_at": now}


@functools.cache
def _static_provenance() -> Provenance:
    return {
        "vivit_bench": vivit_bench.__version__,
        "code": code_fingerprint(),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        **{key: library_version(name) for key, name in _LIBRARIES.items()},
        "os": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        _RAM: rounded_ram(psutil.virtual_memory().total),
        "float32": "ieee",  # see `vivit_bench.precision`
    }


def rounded_ram(size: int) -> int:
    """A machine's memory to 64 MiB, in bytes; records of earlier versions have every byte."""
    return round(size / _RAM_UNIT) * _RAM_UNIT


def library_version(distribution: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def code_fingerprint(rooms: tuple[str, ...] = ("",)) -> str:
    """Hash of the package's own syntax, without docstrings and comments (12 hex digits).

    Unlike the git commit it changes with uncommitted edits of the code, not with those of its
    layout and words, and it exists in an installation without git.

    Args:
        rooms: Subpackages and modules (without ``.py``) that can change a result.
    """
    root = Path(vivit_bench.__file__).parent
    files = {file for room in rooms for file in (root / room).rglob("*.py")}
    files |= {path for room in rooms if (path := root / f"{room}.py").is_file()}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(str(file.relative_to(root)).encode())
        digest.update(ast.dump(_without_docstrings(file)).encode())
    return digest.hexdigest()[:12]


def environment(
    rooms: tuple[str, ...], libraries: tuple[str, ...], *, device: str = "cpu", **others: Any
) -> Provenance:
    """What must be the same for results to belong together.

    Args:
        rooms: See `code_fingerprint`.
        libraries: Names of `provenance`'s facts.
        device: Where it is computed. Of a CUDA device its `CARD` is added, and the memory of the
            host does not count.
        others: Further facts, such as fingerprints of data.

    Returns:
        Flat, JSON-ready.
    """
    facts = provenance(device)
    if device != "cpu":
        libraries = (*(name for name in libraries if name not in (_RAM, *CARD)), *CARD)
    return {"code": code_fingerprint(rooms), **{name: facts[name] for name in libraries}, **others}


def _without_docstrings(file: Path) -> ast.Module:
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return tree


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is a lone string: a docstring, or one below an attribute."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _git_commit() -> str | None:
    root = Path(vivit_bench.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu(device: str | None) -> Provenance:
    import torch

    nothing: Provenance = dict.fromkeys((*CARD, "cuda_allocator"))
    if not torch.cuda.is_available():
        return nothing
    index = torch.device(device).index or 0 if device is not None else 0
    if index >= torch.cuda.device_count():
        return nothing
    properties = torch.cuda.get_device_properties(index)
    return {
        "gpu": properties.name,
        "gpu_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver(),
        "cuda_allocator": os.environ.get("PYTORCH_ALLOC_CONF")
        or os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
    }


@functools.cache
def _driver() -> str | None:
    """Version of NVIDIA's driver; without its tool, of the CUDA that it has, such as 13.0."""
    import torch

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        number = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)()
        return f"CUDA {number // 1000}.{number % 1000 // 10}" if number else None
