"""Products of float32 numbers in float32, whatever a user has asked for elsewhere.

On CUDA, cuDNN rounds the inputs of convolutions and recurrent layers to TF32 (10 bits) unless it
is told otherwise, and matrix products follow on request; oneDNN does the same on CPUs that can.
Eigenvalues are then off by percents.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_DEVICES = ("cpu", "cuda")
_REDUCED = ("tf32", "bf16")


@contextmanager
def ieee_float32(devices: Iterable[str]) -> Iterator[None]:
    """Inside, products, convolutions and recurrent layers take all 24 bits of float32.

    Settings that reduce the precision of one of the devices are changed, and changed back; others
    are left alone. (PyTorch does not tell its default for cuDNN, TF32, from the same value set by
    a user: where it was the default, a later ``torch.backends.fp32_precision`` leaves it be.)

    Args:
        devices: Types of the devices that are computed on, ``cpu`` or ``cuda``.

    Raises:
        RuntimeError: PyTorch keeps to a reduced precision.
    """
    devices = sorted(set(devices))
    settings = [setting for device in devices for setting in _settings(device)]
    names = {name for name, setting in settings if _is_reduced(setting)}
    # The older settings follow, each with all that it is of: PyTorch refuses to read them where
    # they differ from the newer ones.
    older = [old for old in _OLDER if names & old.names and not old.devices.isdisjoint(devices)]
    asked = [(old, value) for old in older if (value := old.read()) is not None]
    concerned = names.union(*(old.names for old, _ in asked))
    every = [each for device in _DEVICES for each in _settings(device)]
    before = [(each, each.fp32_precision) for name, each in every if name in concerned]
    try:
        for old, _ in asked:
            old.write(old.exact)
        for name, setting in settings:
            if _is_reduced(setting):
                setting.fp32_precision = "ieee"
            if _is_reduced(setting):
                raise RuntimeError(f"PyTorch keeps float32 at {setting.fp32_precision} for {name}")
        yield
    finally:
        for old, value in asked:
            old.write(value)
        for setting, value in before:
            if setting.fp32_precision != value:
                setting.fp32_precision = "none"  # what it inherits
            if setting.fp32_precision != value:
                setting.fp32_precision = value


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Inside, PyTorch's own kernels compute what cuDNN's would.

    ``torch.backends.cudnn.flags`` would also ask for TF32 anew.
    """
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def _is_reduced(setting: Any) -> bool:
    return setting.fp32_precision in _REDUCED


def _settings(device: str) -> list[tuple[str, Any]]:
    """Objects whose ``fp32_precision`` counts on a device, by their names."""
    backends: Any = torch.backends
    if device == "cpu":
        new = hasattr(backends.mkldnn, "conv")
        room = backends.mkldnn
        return [(name, getattr(room, name)) for name in ("matmul", "conv", "rnn")] if new else []
    if hasattr(backends.cudnn, "conv"):
        cudnn = [(name, getattr(backends.cudnn, name)) for name in ("conv", "rnn")]
        return [("matmul", backends.cuda.matmul), *cudnn]
    return [("matmul", _Flag(backends.cuda.matmul)), ("conv", _Flag(backends.cudnn))]


class _Flag:
    """An ``allow_tf32`` of PyTorch before 2.9, read and written as ``fp32_precision``."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    @property
    def fp32_precision(self) -> str:
        return "tf32" if self.owner.allow_tf32 else "ieee"

    @fp32_precision.setter
    def fp32_precision(self, value: str) -> None:
        self.owner.allow_tf32 = value == "tf32"


class _Older:
    """A setting of PyTorch before 2.9, which changes some of the newer ones."""

    def __init__(
        self,
        devices: set[str],
        names: set[str],
        exact: Any,
        get: Callable[[], Any],
        write: Callable[[Any], None],
    ) -> None:
        self.devices, self.names, self.exact = devices, names, exact
        self._get, self.write = get, write

    def read(self) -> Any:
        """Its value; None where a newer one was set to something else."""
        try:
            return self._get()
        except RuntimeError:
            return None


def _allow_cudnn(value: bool) -> None:
    torch.backends.cudnn.allow_tf32 = value


_OLDER = (
    _Older(
        {"cpu", "cuda"},
        {"matmul"},
        "highest",
        lambda: torch.get_float32_matmul_precision(),
        lambda value: torch.set_float32_matmul_precision(value),
    ),
    _Older({"cuda"}, {"conv", "rnn"}, False, lambda: torch.backends.cudnn.allow_tf32, _allow_cudnn),
)
