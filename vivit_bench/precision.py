"""Products of float32 numbers in float32, whatever a user has asked for elsewhere.

On CUDA, cuDNN rounds the inputs of convolutions and recurrent layers to TF32 (10 bits) unless it
is told otherwise, and matrix products follow on request; oneDNN does the same on CPUs that can.
Eigenvalues are then off by percents.
"""

from collections.abc import Iterable, Iterator
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
    settings = [setting for device in sorted(set(devices)) for setting in _settings(device)]
    reduced = [(name, setting) for name, setting in settings if _is_reduced(setting)]
    products = any(name == "matmul" for name, _ in reduced)
    if products:  # the older setting is of both devices' products
        reduced += [each for device in _DEVICES for each in _settings(device)[:1]]
    legacy = _legacy_matmul()
    changed = [(setting, setting.fp32_precision) for _, setting in reduced]
    try:
        if products:
            # The older setting, too: PyTorch refuses to read either where they differ.
            torch.set_float32_matmul_precision("highest")
        for setting, _ in changed:
            setting.fp32_precision = "ieee"
        for name, setting in settings:
            if _is_reduced(setting):
                raise RuntimeError(f"PyTorch keeps float32 at {setting.fp32_precision} for {name}")
        yield
    finally:
        if products and legacy is not None:
            torch.set_float32_matmul_precision(legacy)
        for setting, before in changed:
            setting.fp32_precision = "none"  # what it inherits
            if setting.fp32_precision != before:
                setting.fp32_precision = before


def _is_reduced(setting: Any) -> bool:
    return setting.fp32_precision in _REDUCED


def _settings(device: str) -> list[tuple[str, Any]]:
    """Objects whose ``fp32_precision`` counts on a device, by their names; products first."""
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


def _legacy_matmul() -> str | None:
    """The older setting; None where the newer one differs from it, and it is at its default."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
