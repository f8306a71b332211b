"""Real data sets from the data folder, fetched through torchvision where they are missing."""

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor

from vivit_bench.errors import VivitBenchError, describe
from vivit_bench.problems.datasets import DATA_VARIABLE, DatasetSpec

Split = Literal["train", "test"]

_NETWORK_TIMEOUT = 30.0  # seconds without a byte; urllib's own default is to wait for ever
_SHOWN = 2


def load_raw(
    spec: DatasetSpec, folder: Path, split: Split, other_sources: str
) -> tuple[Tensor, Tensor]:
    """Read one split, downloading the data set first if it is missing or damaged.

    Args:
        spec: A data set torchvision has.
        folder: Data folder, in torchvision's layout.
        split: Which part.
        other_sources: What an error proposes instead, e.g. ``--data synthetic``.

    Returns:
        Pixels [n, channels, height, width] uint8 and class indices [n] int64.

    Raises:
        VivitBenchError: It is not there and cannot be downloaded.
    """
    missing = spec.missing(folder)
    if not missing:
        try:
            return _read(spec, folder, split)
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            missing = [f"damaged files: {describe(error)}"]
    try:
        _download(spec, folder)
        return _read(spec, folder, split)
    except Exception as error:  # anything: no network, a proxy's web page, a full disk
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise VivitBenchError(
            f"{spec.title} is not in {folder} ({'; '.join(missing[:_SHOWN])}{more}) and "
            f"downloading it failed ({describe(error)}): put torchvision's "
            f"{spec.torchvision_class} files there, name their folder by --data-dir or "
            f"{DATA_VARIABLE}, or use {other_sources}"
        ) from error


def _read(
    spec: DatasetSpec, folder: Path, split: Split, download: bool = False
) -> tuple[Tensor, Tensor]:
    import torchvision

    data_class = getattr(torchvision.datasets, str(spec.torchvision_class))
    choice = {"split": split} if spec.key == "svhn" else {"train": split == "train"}
    data = data_class(root=str(folder), download=download, **choice)
    pixels = torch.as_tensor(data.data)
    if spec.key.startswith("cifar"):
        pixels = pixels.permute(0, 3, 1, 2)
    labels = data.labels if spec.key == "svhn" else data.targets
    return pixels.reshape(-1, *spec.shape), torch.as_tensor(labels).long()


def _download(spec: DatasetSpec, folder: Path) -> None:
    """Fetch into a folder aside and move finished files only.

    torchvision takes any MNIST file that exists for a complete one, so a download that
    was cut short must not leave its files where it looks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as name:
        Console(emoji=False, stderr=True, highlight=False, soft_wrap=True).print(
            f"downloading {spec.title} to {folder}", markup=False
        )
        with _quiet(), _network_timeout():
            for split in ("train", "test"):
                _read(spec, Path(name), split, download=True)
        for file in spec.files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(name) / file, folder / file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep stdout for results, and progress bars off a stderr that is no terminal."""
    with contextlib.ExitStack() as stack:
        sink = sys.stderr
        if not sys.stderr.isatty():
            sink = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stderr(sink))
        stack.enter_context(contextlib.redirect_stdout(sink))
        yield


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
