"""The training loop: steps, and records at checkpoints and ends of epochs."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.arguments import drop_trace, format_size
from vivit_bench.errors import (
    CertificateError,
    VivitBenchError,
    describe,
    is_library_failure,
    is_out_of_memory,
)
from vivit_bench.noise.data import RunData, chunks, is_small_for
from vivit_bench.noise.measurement import Measurement, evaluation_mode, measure
from vivit_bench.noise.records import Records
from vivit_bench.noise.settings import OptimizerName, Settings
from vivit_bench.problems import Problem
from vivit_bench.problems.batch import Batch
from vivit_bench.trees import Tree, leaves, map_tree

_EVALUATION_BATCH = 500


class Listener:
    """What a run tells whoever watches it; this one ignores everything."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def started(self, done: int, total: int, steps_per_epoch: int) -> None:
        """Training goes on after ``done`` of ``total`` steps."""

    def stepped(self, step: int, loss: float) -> None:
        """An optimizer step was taken at this loss of its mini-batch."""

    def evaluated(self, row: dict[str, Any]) -> None:
        """A row of ``curves.csv``."""

    def measured(self, row: dict[str, Any], seconds: float) -> None:
        """A row of ``checkpoints.csv``, and the time of the call."""


class Diverged(Exception):  # noqa: N818
    """The loss is no longer finite, after at least one step."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(step, loss)
        self.step, self.loss = step, loss


@dataclass
class Timing:
    """Wall-clock seconds, over all sittings of an interrupted run (work redone counts once)."""

    train_seconds: dict[str, float] = field(default_factory=dict)
    """Epoch from 0 -> its training steps."""
    evaluate_seconds: float = 0.0
    monitor_seconds: dict[str, float] = field(default_factory=dict)
    """Step -> one monitoring call."""

    def record(self) -> dict[str, Any]:
        """JSON-ready, in milliseconds' precision."""
        return {
            "train_seconds": {key: round(value, 3) for key, value in self.train_seconds.items()},
            "evaluate_seconds": round(self.evaluate_seconds, 3),
            "monitor_seconds": {k: round(value, 3) for k, value in self.monitor_seconds.items()},
        }


class Training:
    """A training run under a monitor.

    Args:
        problem: Its model is trained in place.
        data: Samples.
        settings: What to do.
        records: Where records go; they are empty, or those that `resume` goes on from.
        listener: Told what happens.
        device: Of model and mini-batches; also of all samples, if they are small for it.
        memory: Bytes that a look through the monitor batch may take; None: no bound.
    """

    def __init__(
        self,
        problem: Problem,
        data: RunData,
        settings: Settings,
        records: Records,
        listener: Listener,
        device: torch.device,
        memory: int | None = None,
    ) -> None:
        self.settings, self.records, self.listener = settings, records, listener
        self.device, self._memory = device, memory
        self.data = data
        if is_small_for(device, data.num_bytes):
            self.data = data.on(device)
            listener.note(f"all samples are kept on {device}: {format_size(data.num_bytes)}")
        self.model, self.loss = problem.model.to(device), problem.loss.to(device)
        self.optimizer = make_optimizer(self.model, settings)
        self.steps_per_epoch = data.steps_per_epoch(settings.batch_size)
        self.total = self.steps_per_epoch * settings.epochs
        self.monitor_batch = self._move(*self.data.monitor_batch(settings.monitor_batch_size))
        self.step, self._resumed = 0, False
        self.timing = Timing()
        self.dropped: dict[str, dict[str, Any]] = {}
        """Step -> columns that the monitor left out there, and their trace."""

    def resume(self) -> bool:
        """Go on from a saved state, if there is one, else from the start.

        Returns:
            Whether there was one.

        Raises:
            VivitBenchError: It is damaged, or a file that it counts on.
        """
        progress = self.records.load_state(self.model, self.optimizer)
        if progress is None:
            return False
        self.step, self.timing = progress["step"], Timing(**progress["timing"])
        self.dropped = progress["dropped"]
        self._resumed = True
        return True

    def run(self) -> None:
        """Train to the end. Records up to an error are kept.

        Raises:
            Diverged: The loss is not finite.
            VivitBenchError: Model or loss fail, or the loss is not finite for what the data are or
                the untrained model is.
            CertificateError: What the engine computed failed its check.
        """
        self.model.train()
        self.listener.started(self.step, self.total, self.steps_per_epoch)
        if not self._resumed:
            self._record()
        while self.step < self.total:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            batches = self.data.epoch(self.settings.seed, epoch, self.settings.batch_size)
            for batch in batches[done:]:
                start = time.perf_counter()
                loss = self._train_step(batch)
                self._count(epoch, time.perf_counter() - start)
                self.step += 1
                self.listener.stepped(self.step, loss)
                if self.step in self.settings.checkpoints or self.step % self.steps_per_epoch == 0:
                    self._record()

    def _count(self, epoch: int, seconds: float) -> None:
        times = self.timing.train_seconds
        times[str(epoch)] = times.get(str(epoch), 0.0) + seconds

    def _train_step(self, batch: Tensor) -> float:
        inputs, targets = self._move(*self.data.samples(batch))
        self.optimizer.zero_grad()
        with self._blamed_on_model("in"):
            loss = self.loss(self.model(inputs), targets)
        value = loss.item()
        self._check_finite(value, inputs, targets, "the mini-batch")
        with self._blamed_on_model("in"):
            loss.backward()
            self.optimizer.step()
        return value

    @contextmanager
    def _blamed_on_model(self, when: str) -> Iterator[None]:
        """Turn what model or loss raise inside the block into one line.

        Too little memory and failures of libraries are not their fault and pass, for
        `library_errors` to tell. The engine's own ``blamed_on_model`` would blame the latter, and
        the request (exit code 2), which a model that fails in mid-training was not.

        Args:
            when: What was done, before "step", for the message.

        Raises:
            VivitBenchError: In one line.
        """
        try:
            yield
        except VivitBenchError:
            raise
        except Exception as error:
            if is_out_of_memory(error) or is_library_failure(error):
                raise
            raise VivitBenchError(
                f"{self.settings.problem}: model or loss failed {when} step {self.step}, "
                f"{describe(error)}"
            ) from error

    def _check_finite(self, loss: float, inputs: Tree, targets: Tensor, what: str) -> None:
        """Tell a training that diverged from data, and from a model, that none could start from.

        Args:
            loss: Of the model as it is.
            inputs: What it is the loss of.
            targets: Theirs.
            what: They are, for the message.

        Raises:
            VivitBenchError: The loss is not finite, and no label counts, the data are not finite,
                or no step has been taken yet.
            Diverged: It is not finite for none of these reasons.
        """
        if math.isfinite(loss):
            return
        if not _weight(self.loss, targets):
            reason = (
                "no label counts (each is ignored or has weight 0); try larger batches, or leave "
                "such samples out of the data"
            )
        elif _has_nan(inputs) or not bool(targets.isfinite().all()):
            reason = "there are NaN in the inputs, or targets that are not finite; mend the data"
        elif self.step == 0:
            reason = "the model is not trained yet; check its initial parameters and the data"
        else:
            raise Diverged(self.step, loss)
        raise VivitBenchError(
            f"{self.settings.problem}: the loss of {what} is {loss} at step {self.step}: {reason}"
        )

    def _record(self) -> None:
        """Write this step's records, then the state that counts on them."""
        place = {"step": self.step, "epoch": self.step / self.steps_per_epoch}
        start = time.perf_counter()
        row = {**place, **self._evaluate()}
        self.timing.evaluate_seconds += time.perf_counter() - start
        if self.step in self.settings.checkpoints:
            seen = self._measure()
            summary = {**place, **seen.summary()}
            self.timing.monitor_seconds[str(self.step)] = seen.seconds
            if seen.derivatives.dropped is not None:
                self.dropped[str(self.step)] = asdict(seen.derivatives.dropped)
            self.records.add_measurement(summary, seen, self.settings.per_sample)
            self.listener.measured(summary, seen.seconds)
        self.records.add_curves(row)
        self.listener.evaluated(row)
        progress = {
            "step": self.step,
            "timing": asdict(self.timing),
            "dropped": self.dropped,
        }
        self.records.save_state(self.model, self.optimizer, progress)

    def _measure(self) -> Measurement:
        """Look through the monitor batch, unless the engine would refuse what overflowed.

        Raises:
            Diverged: The loss is not finite.
            VivitBenchError: See `run`.
            CertificateError: What the engine computed failed its check.
        """
        inputs, targets = self.monitor_batch
        with (
            self._blamed_on_model("on the monitor batch at"),
            evaluation_mode(self.model),
            torch.no_grad(),
        ):
            loss = float(self.loss(self.model(inputs), targets))
        self._check_finite(loss, inputs, targets, "the monitor batch")
        try:
            return measure(
                self.model,
                self.loss,
                inputs,
                targets,
                self.settings.approximation,
                cutoff=self.settings.cutoff,
                drop_trace=drop_trace(self.settings.drop_columns, self.settings.cutoff),
                memory=self._memory,
            )
        except CertificateError as error:
            raise CertificateError(
                f"step {self.step}: {error} (earlier checkpoints are kept in {self.records.folder})"
            ) from error

    def _evaluate(self) -> dict[str, float]:
        """Loss and accuracy in evaluation mode, on a fixed part of the training set and the test.

        Returns:
            ``train_loss``, ``train_accuracy``, ``test_loss`` and ``test_accuracy``; the loss of
            samples without a label that counts is NaN.

        Raises:
            Diverged: The training loss is not finite.
            VivitBenchError: See `run`.
        """
        row = {}
        for name, what, part in (
            ("train", "the training samples that are evaluated", self.data.train_subset()),
            ("test", "the test samples", self.data.test),
        ):
            with self._blamed_on_model("in the evaluation at"):
                loss, accuracy = evaluate(self.model, self.loss, *part, self.device)
            row[f"{name}_loss"], row[f"{name}_accuracy"] = loss, accuracy
            if not _weight(self.loss, part[1]):
                if self.step == 0:
                    self.listener.note(f"{what} have no label that counts: their loss is NaN")
            elif name == "train" or self.step == 0:
                self._check_finite(loss, *part, what)
        return row

    def _move(self, inputs: Tree, targets: Tensor) -> Batch:
        return map_tree(lambda t: t.to(self.device), inputs), targets.to(self.device)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters, without l2 regularisation."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.optimizer is OptimizerName.SGD:
        return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum or 0.0)
    assert settings.betas is not None
    return torch.optim.Adam(parameters, lr=settings.lr, betas=settings.betas)


def evaluate(
    model: nn.Module, loss: nn.Module, inputs: Tree, targets: Tensor, device: torch.device
) -> tuple[float, float]:
    """Loss of all samples, and share of labels that have the largest output; in evaluation mode.

    Args:
        model: Its modes are put back.
        loss: On the device. A mean is one over all samples with their weights, a sum their sum.
        inputs: [n, ...] tensors on the CPU or the device.
        targets: [n, ...].
        device: Of the model.

    Returns:
        Both. The accuracy is that of all positions whose label is not ignored, and NaN where
        there are no labels.
    """
    total, weights, hits, labels = 0.0, 0.0, 0, 0
    with evaluation_mode(model), torch.no_grad():
        for x, y in chunks(inputs, targets, _EVALUATION_BATCH):
            y = y.to(device)
            outputs = model(map_tree(lambda t: t.to(device), x))
            if weight := _weight(loss, y):
                total += float(loss(outputs, y)) * weight
                weights += weight
            if isinstance(loss, nn.CrossEntropyLoss) and not y.is_floating_point():
                counted = y != loss.ignore_index
                hits += int((outputs.argmax(1) == y)[counted].sum())
                labels += int(counted.sum())
    if loss.reduction != "sum":
        total = total / weights if weights else math.nan
    return total, hits / labels if labels else math.nan


def _has_nan(inputs: Tree) -> bool:
    """Infinities are no fault: masks have them."""
    return any(bool(leaf.isnan().any()) for _, leaf in leaves(inputs))


def _weight(loss: nn.Module, targets: Tensor) -> float:
    """What the loss of some samples counts for in that of all; 1 for a sum."""
    if loss.reduction == "sum":
        return 1.0
    if not isinstance(loss, nn.CrossEntropyLoss) or targets.is_floating_point():
        return float(targets.numel())
    counted = targets[targets != loss.ignore_index]
    return float(counted.numel() if loss.weight is None else loss.weight[counted].sum())
