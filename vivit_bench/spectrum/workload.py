"""A problem's model and one mini-batch, loaded once for all variants of its spectrum."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vivit_bench.arguments import DEFAULT_CUTOFF, check_cutoff
from vivit_bench.curvature.options import Blocks, Curvature, Precision, Samples
from vivit_bench.hardware import parse_device
from vivit_bench.problems.fingerprint import batch_fingerprint, model_fingerprint
from vivit_bench.spectrum.settings import SpectrumSettings
from vivit_bench.trees import Tree, map_tree, num_samples

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from vivit_bench.problems import DataSource


@dataclass(frozen=True)
class Workload:
    """A model and one mini-batch on their device, in their precision."""

    problem: str
    model: "Module"
    loss: "Module"
    inputs: Tree
    """[N, ...], a tensor or a dict, list or tuple of tensors."""
    targets: "Tensor"
    """[N, ...]; labels in int64."""
    num_params: int
    """D."""
    data: str
    data_dir: Path | None
    seed: int
    checkpoint: Path | None
    dtype: Precision
    device: str
    model_fingerprint: str
    batch_fingerprint: str

    @property
    def request(self) -> "tuple[Module, Module, Tree, Tensor]":
        """(model, loss, inputs, targets), as the engine takes them."""
        return self.model, self.loss, self.inputs, self.targets

    def settings(
        self,
        curvature: Curvature = Curvature.EXACT,
        samples: Samples = Samples.FULL,
        mc_samples: int = 1,
        blocks: Blocks | dict[str, list[str]] = Blocks.NONE,
        cutoff: float = DEFAULT_CUTOFF,
        params: list[str] | None = None,
    ) -> SpectrumSettings:
        """Full settings of one variant on this workload.

        Raises:
            UsageError: ``mc_samples``, ``seed`` or ``cutoff`` makes no sense.
        """
        check_cutoff(cutoff)
        settings = SpectrumSettings(
            problem=self.problem,
            batch_size=num_samples(self.inputs),
            curvature=curvature,
            samples=samples,
            mc_samples=mc_samples,
            blocks=blocks,
            cutoff=cutoff,
            data=self.data,
            seed=self.seed,
            checkpoint=None if self.checkpoint is None else str(self.checkpoint),
            dtype=self.dtype,
            device=self.device,
            params=params,
        )
        settings.approximation  # noqa: B018  checks itself
        return settings


def load_workload(
    problem: str,
    *,
    batch_size: int | None = None,
    data: "DataSource | None" = None,
    data_dir: Path | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    dtype: Precision = Precision.FLOAT32,
    device: str = "cpu",
) -> Workload:
    """Load a problem and its mini-batch; arguments and errors as in ``compute_spectrum``."""
    import torch

    from vivit_bench.problems import default_source, load_batch, load_problem

    device = parse_device(device)
    target_device = torch.device(device)
    loaded = load_problem(problem, seed=seed, checkpoint=checkpoint)
    size = loaded.spectrum_batch_size if batch_size is None else batch_size
    source = default_source(loaded, "real") if data is None else data
    inputs, targets = load_batch(loaded, size, source=source, data_dir=data_dir, seed=seed)
    float_type = torch.float64 if dtype is Precision.FLOAT64 else torch.float32
    # Hashed before the conversion: precision and device are settings of their own.
    model_hash = model_fingerprint(problem, loaded.model, loaded.loss)
    batch_hash = batch_fingerprint(inputs, targets)

    def convert(tensor: "Tensor") -> "Tensor":
        dtype = float_type if tensor.is_floating_point() else tensor.dtype
        return tensor.to(target_device, dtype)

    return Workload(
        problem=problem,
        model=_module(loaded.model, target_device, dtype),
        loss=_module(loaded.loss, target_device, dtype),
        inputs=map_tree(convert, inputs),
        targets=convert(targets),
        num_params=loaded.num_params,
        data=str(source),
        data_dir=data_dir,
        seed=seed,
        checkpoint=checkpoint,
        dtype=dtype,
        device=device,
        model_fingerprint=model_hash,
        batch_fingerprint=batch_hash,
    )


def _module(module: "Module", device: "torch.device", dtype: Precision) -> "Module":
    """In place. Unlike ``to(dtype)``, complex buffers (rotary embeddings) stay complex."""
    module = module.to(device)
    return module.double() if dtype is Precision.FLOAT64 else module.float()
