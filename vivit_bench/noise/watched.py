"""What the callbacks of Lightning and Hugging Face share: a monitor that counts with a trainer."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from vivit_bench.curvature import Approximation
from vivit_bench.errors import UsageError
from vivit_bench.noise.measurement import Measurement
from vivit_bench.noise.monitor import NoiseMonitor
from vivit_bench.trees import Tree, map_tree, num_samples

Output = Callable[[Any], Tensor]


class Watch:
    """The `NoiseMonitor` of a callback, made when the training begins.

    A training that goes on where it was left, in the same model or in another one that a
    checkpoint was restored into, keeps its measurements. Of several processes, each with the
    whole model, the first alone looks; the others wait where gradients are exchanged next.

    Args:
        monitor_batch: (inputs, targets), best held out from training; for Hugging Face also a
            collated mini-batch with ``labels``. Moved to the model's device.
        loss: One that `vivit_bench.curvature` knows, of outputs and targets.
        at: Numbers of optimizer steps after which to look; 0 is before the first. None: after
            every step, and before the first.
        output: What the model returns -> the outputs that the loss takes. None: a tensor as it
            is, of other objects their ``logits``.
        approximation: As for `NoiseMonitor`.
        cutoff: As there.
        drop_trace: As there.
        memory: As there.

    Raises:
        UsageError: No such mini-batch.
    """

    def __init__(
        self,
        monitor_batch: tuple[Tree, Tensor] | Mapping[str, Tensor],
        loss: nn.Module,
        at: Iterable[int] | None = None,
        *,
        output: Output | None = None,
        approximation: Approximation | None = None,
        cutoff: float = 1e-4,
        drop_trace: float | None = None,
        memory: int | None = None,
    ) -> None:
        self._batch = _split(monitor_batch)
        self._loss, self._output = loss, output
        self._at = None if at is None else frozenset(at)
        if self._at and min(self._at) < 0:
            raise UsageError(f"at has step {min(self._at)}: steps are counted from 0, the start")
        self._options: dict[str, Any] = {
            "approximation": approximation,
            "cutoff": cutoff,
            "drop_trace": drop_trace,
            "memory": memory,
        }
        self._watched: nn.Module | None = None
        self.monitor: NoiseMonitor | None = None
        """None before the training begins."""

    @property
    def measurements(self) -> dict[int, Measurement]:
        """Step -> what was seen, with all per-sample values."""
        return {} if self.monitor is None else self.monitor.measurements

    def table(self) -> pd.DataFrame:
        """See `NoiseMonitor.table`; empty before the training begins."""
        return pd.DataFrame() if self.monitor is None else self.monitor.table()

    def summary(self) -> pd.DataFrame:
        """See `NoiseMonitor.summary`; empty before the training begins."""
        return pd.DataFrame() if self.monitor is None else self.monitor.summary()

    def _begin(
        self, model: nn.Module, step: int, process: int = 0, divided_by: str | None = None
    ) -> None:
        """Make the monitor, unless the training goes on that it has watched so far.

        Going on with another model, the step that it begins at is looked at once more, in it.

        Args:
            model: Of this process.
            step: Optimizer steps so far.
            process: Its number; the first looks.
            divided_by: What leaves each process a part of the model, if anything does.
        """
        if divided_by is None and any(hasattr(p, "device_mesh") for p in model.parameters()):
            divided_by = "a device mesh"
        if divided_by is not None:
            raise UsageError(
                f"NoiseCallback: with {divided_by} each process has a part of the model; it "
                "watches trainings in which each has all of it (such as strategy='ddp')"
            )
        if process > 0:
            return
        goes_on = self.monitor is not None and step == self.monitor.steps > 0
        if goes_on and model is self._watched:
            return
        before = self.measurements if goes_on else {}
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        inputs, targets = (map_tree(lambda t: t.to(device), part) for part in self._batch)
        self.monitor = NoiseMonitor(
            Outputs(model, self._output),
            self._loss,
            inputs,
            targets,
            self._at,
            start=step,
            **self._options,
        )
        self.monitor.measurements = before | self.monitor.measurements
        self._watched = model

    def _count(self, step: int) -> None:
        """Count the steps up to the trainer's own number; several batches may make one step."""
        monitor = self.monitor
        if monitor is None or step == monitor.steps:
            return
        if step != monitor.steps + 1:
            raise UsageError(
                f"NoiseCallback: one batch took the training from optimizer step {monitor.steps} "
                f"to {step}, and it sees the model only between batches; call "
                "vivit_bench.noise.NoiseMonitor.step() after each optimizer step instead"
            )
        monitor.step()


class Outputs(nn.Module):
    """A user's model as a function of one argument that returns one tensor.

    The model is held and called, and nothing of it is changed.
    """

    def __init__(self, model: nn.Module, output: Output | None = None) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, inputs: Tree) -> Tensor:
        """Call the model with a mapping's values by their names, or with the inputs."""
        # Accelerate casts within the forward that it puts in the place of the model's own.
        call = vars(self.model).get("_original_forward", self.model)
        found = call(**inputs) if isinstance(inputs, Mapping) else call(inputs)
        if self.output is not None:
            return self.output(found)
        outputs = found if isinstance(found, Tensor) else getattr(found, "logits", None)
        if not isinstance(outputs, Tensor):
            raise UsageError(
                f"NoiseCallback: the model returns a {type(found).__name__} without logits; give "
                "output=, a function that takes it and returns the tensor for the loss"
            )
        return outputs


def _split(batch: Any) -> tuple[Tree, Tensor]:
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise UsageError(
                f"monitor_batch has {', '.join(map(str, batch))} and no labels; give "
                "(inputs, targets)"
            )
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        batch = (inputs, batch["labels"])
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise UsageError(
            f"monitor_batch is a {type(batch).__name__}"
            f"{f' of {len(batch)}' if isinstance(batch, tuple | list) else ''}; give "
            "(inputs, targets)"
        )
    inputs, targets = batch
    if isinstance(inputs, Mapping):  # a tokenizer's, say, as keywords of the model
        inputs = dict(inputs)
    if not isinstance(targets, Tensor):
        raise UsageError(
            f"monitor_batch has targets of type {type(targets).__name__}; give a tensor"
        )
    num_samples(inputs)  # refuses what is no mini-batch here, and not after an hour of loading
    return inputs, targets
