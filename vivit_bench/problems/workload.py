"""A problem with its data, device and precision: what every experiment computes on; its hashes."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vivit_bench.curvature.options import Precision
from vivit_bench.errors import FilesChangedError, UsageError
from vivit_bench.hardware import device_name, parse_device
from vivit_bench.imported import IMPORTED, imported_files
from vivit_bench.problems.catalogue import is_user_problem
from vivit_bench.problems.sources import DataSource, check_source, default_source
from vivit_bench.trees import Tree, leaves, map_tree

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from vivit_bench.problems.problem import Problem

Purpose = Literal["memory", "real"]
MOST_SAMPLES = 2**31 - 1
"""Sizes of tensors overflow for absurd numbers of samples."""


@dataclass(frozen=True)
class WorkloadSpec:
    """What a user says of model and data; None stands for a default of the problem.

    Raises:
        UsageError: A value that needs no problem to be refused.
    """

    problem: str
    """DeepOBS name or ``path/to/file.py:function``, as the user typed it."""
    batch_size: int | None = None
    """N."""
    data: DataSource | None = None
    data_dir: Path | None = None
    seed: int = 0
    """Of parameters and mini-batch."""
    checkpoint: Path | None = None
    """File with the parameters of a trained model."""
    dtype: Precision = Precision.FLOAT32
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size}: must be at least 1")
        if self.batch_size is not None and self.batch_size > MOST_SAMPLES:
            raise UsageError(f"--batch-size {self.batch_size}: more than 2^31 - 1 make no sense")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed}: must lie in 0 .. 2^63 - 1")
        object.__setattr__(self, "device", device_name(self.device))
        object.__setattr__(self, "dtype", Precision(self.dtype))
        if self.data is not None:
            object.__setattr__(self, "data", DataSource(self.data))
            check_source(self.problem, self.data)

    def files(self) -> dict[str, str | None]:
        """Hashes of the user's files by their content: ``problem_file``, ``checkpoint_file``.

        Raises:
            UsageError: One cannot be read.
        """
        problem = self.problem.rpartition(":")[0] if is_user_problem(self.problem) else None
        return {"problem_file": _hash_of(problem), "checkpoint_file": _hash_of(self.checkpoint)}

    def check_files(
        self, settings: Mapping[str, Any], environment: Mapping[str, Any], what: str
    ) -> None:
        """Refuse to go on under hashes that are of other files by now.

        Args:
            settings: Of the run under way, with `files`.
            environment: Of the run under way, with `imported_files`.
            what: Is not recorded, for the message.

        Raises:
            FilesChangedError: With the file.
            UsageError: One cannot be read.
        """
        hashes = {**self.files(), IMPORTED: imported_files(self.problem).get(IMPORTED)}
        before = {**settings, IMPORTED: environment.get(IMPORTED)}
        changed = next((name for name, value in hashes.items() if value != before.get(name)), None)
        if changed is None:
            return
        file = self.problem.rpartition(":")[0]
        names = {"problem_file": file, "checkpoint_file": self.checkpoint}
        raise FilesChangedError(
            f"{names.get(changed, f'what {file} imports from beside it')} was changed while its "
            f"measurements were under way: {what} is not recorded; the same command goes on once "
            "it is as it was, and with --fresh it measures what is there now"
        )

    def record(self) -> dict[str, Any]:
        """The settings that determine numbers, JSON-ready (not where the data folder is)."""
        return {
            "problem": self.problem,
            "batch_size": self.batch_size,
            "data": None if self.data is None else self.data.value,
            "seed": self.seed,
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "dtype": self.dtype.value,
            "device": self.device,
        }


@dataclass(frozen=True, eq=False)
class Workload:
    """A loaded problem on its device, in its precision; `load_workload` makes it."""

    spec: WorkloadSpec
    """With every default filled in."""
    problem: "Problem"
    """Its model and loss are those of the workload."""
    model_fingerprint: str
    """Hash of model, parameters, buffers and loss, before any conversion."""

    @property
    def model(self) -> "Module":
        """In evaluation mode."""
        return self.problem.model

    @property
    def loss(self) -> "Module":
        """The loss."""
        return self.problem.loss

    @property
    def num_params(self) -> int:
        """D."""
        return self.problem.num_params

    @property
    def batch_size(self) -> int:
        """N of `request`."""
        assert self.spec.batch_size is not None
        return self.spec.batch_size

    @property
    def request(self) -> "tuple[Module, Module, Tree, Tensor]":
        """(model, loss, inputs, targets), as the engine takes them; the batch is kept."""
        return self.model, self.loss, *self._converted(self._own_batch)

    @property
    def batch_fingerprint(self) -> str:
        """Hash of the mini-batch of `request`, before any conversion."""
        return batch_fingerprint(*self._own_batch)

    @cached_property
    def _own_batch(self) -> "tuple[Tree, Tensor]":
        return self._raw_batch(self.batch_size)

    def batch(self, n: int) -> "tuple[Tree, Tensor]":
        """Inputs [n, ...] and targets [n, ...], on the device; labels in int64.

        Raises:
            TooFewSamplesError: The data end before.
            UsageError: The data are not what they should be.
            VivitBenchError: The data set is missing and cannot be downloaded.
        """
        return self._converted(self._raw_batch(n))

    def _converted(self, batch: "tuple[Tree, Tensor]") -> "tuple[Tree, Tensor]":
        inputs, targets = batch
        return map_tree(self._convert, inputs), self._convert(targets)

    def _raw_batch(self, n: int) -> "tuple[Tree, Tensor]":
        from vivit_bench.problems.data import load_batch

        assert self.spec.data is not None
        return load_batch(self.problem, n, self.spec.data, self.spec.data_dir, self.spec.seed)

    def _convert(self, tensor: "Tensor") -> "Tensor":
        kind = _float_type(self.spec.dtype) if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.spec.device, kind)


def load_workload(spec: WorkloadSpec, purpose: Purpose = "real") -> Workload:
    """Load a problem, and fill in the defaults of what its user did not say.

    Args:
        spec: What was said.
        purpose: See `default_source`.

    Returns:
        The workload. No mini-batch is made before it is asked for.

    Raises:
        UsageError: A wrong name, value, file or device.
    """
    from vivit_bench.problems.load import load_problem

    parse_device(spec.device)
    problem = load_problem(spec.problem, seed=spec.seed, checkpoint=spec.checkpoint)
    source = default_source(problem, purpose) if spec.data is None else spec.data
    check_source(problem, source)
    size = problem.spectrum_batch_size if spec.batch_size is None else spec.batch_size
    fingerprint = model_fingerprint(spec.problem, problem.model, problem.loss)
    converted = replace(
        problem,
        model=_module(problem.model, spec),
        loss=_module(problem.loss, spec),
    )
    return Workload(replace(spec, data=source, batch_size=size), converted, fingerprint)


def _module(module: "Module", spec: WorkloadSpec) -> "Module":
    """In place. Unlike ``to(dtype)``, complex buffers (rotary embeddings) stay complex."""
    module = module.to(spec.device)
    return module.double() if spec.dtype is Precision.FLOAT64 else module.float()


def _float_type(dtype: Precision) -> "torch.dtype":
    import torch

    return torch.float64 if dtype is Precision.FLOAT64 else torch.float32


def _hash_of(file: str | Path | None) -> str | None:
    if not file:
        return None
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{str(file)[:200]} cannot be read: {reason}") from error


_LOSS_DEFAULTS = {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.0}


def model_fingerprint(problem: str, model: "Module", loss: "Module") -> str:
    """Hash a model: structure, parameters, buffers, loss, and the user's file if there is one.

    Args:
        problem: DeepOBS name or ``path/to/file.py:function``.
        model: The model.
        loss: Its loss, with its settings and weights.

    Returns:
        12 hex digits.
    """
    digest = hashlib.sha256(f"{model!r}\n{loss!r}\n".encode())
    for name, default in _LOSS_DEFAULTS.items():  # what repr(loss) does not show
        if (value := getattr(loss, name, default)) != default:
            digest.update(f"loss {name} {value}\n".encode())
    _update(digest, [(f"loss {name}", weight) for name, weight in loss.state_dict().items()])
    if ":" in problem:
        digest.update(Path(problem.rsplit(":", 1)[0]).read_bytes())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    digest.update("\n".join(sorted(trainable)).encode())
    _update(digest, model.state_dict().items())
    return digest.hexdigest()[:12]


def batch_fingerprint(inputs: Tree, targets: "Tensor") -> str:
    """Hash a mini-batch: places, types, shapes and content of its tensors, in order.

    Args:
        inputs: [N, ...] tensors.
        targets: [N, ...].

    Returns:
        12 hex digits.
    """
    digest = hashlib.sha256()
    _update(digest, [(f"inputs{place}", leaf) for place, leaf in leaves(inputs)])
    _update(digest, [("targets", targets)])
    return digest.hexdigest()[:12]


def _update(digest: "hashlib._Hash", tensors: Iterable[tuple[str, "Tensor"]]) -> None:
    import torch

    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(content.view(torch.uint8).numpy().tobytes())
