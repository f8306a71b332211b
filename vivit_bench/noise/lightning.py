"""Noise along the eigenvectors while Lightning trains: `NoiseCallback` for its trainer."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from vivit_bench.errors import UsageError
from vivit_bench.noise.watched import Watch
from vivit_bench.trees import Tree

try:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.strategies import DDPStrategy
except ModuleNotFoundError as missing:
    raise UsageError(
        f"vivit_bench.noise.lightning needs the package {str(missing.name).split('.')[0]!r}; "
        "install it with pip install 'vivit-bench[lightning]'"
    ) from missing


class NoiseCallback(Watch, Callback):
    """Looks at the model that a Lightning trainer trains, and leaves the training bitwise as it is.

        >>> noise = NoiseCallback((inputs, targets), nn.CrossEntropyLoss(), at=[0, 10, 100])
        >>> Trainer(max_epochs=3, callbacks=[noise]).fit(module, batches)
        >>> noise.table()

    Steps are the trainer's ``global_step``: optimizer steps, whatever
    ``accumulate_grad_batches``. A training that goes on from a checkpoint goes on counting.

    Args:
        monitor_batch: (inputs, targets), best held out from training.
        loss: One that `vivit_bench.curvature` knows.
        at: Steps after which to look; 0 is before the first. None: all, and before the first.
        model: Attribute of the module that is looked at, such as ``"net"``, or a function of the
            module that returns it. None: the module itself, through its ``forward``.
        others: See `Watch`.

    Raises:
        UsageError: No such mini-batch or step; while training also: processes that share one
            model, no such attribute, several optimizer steps in one batch, what the engine cannot
            compute.
        CertificateError: What it computed failed its check.
    """

    def __init__(
        self,
        monitor_batch: tuple[Tree, Tensor],
        loss: nn.Module,
        at: Iterable[int] | None = None,
        *,
        model: str | Callable[[Any], nn.Module] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(monitor_batch, loss, at, **others)
        self._model = model

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look before the first step, if asked to."""
        strategy = type(trainer.strategy)  # DeepSpeed's is a kind of DDPStrategy
        whole = trainer.world_size == 1 or strategy is DDPStrategy
        model = _chosen(self._model, pl_module)
        divided_by = None if whole else strategy.__name__
        self._begin(model, trainer.global_step, trainer.global_rank, divided_by)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Count the optimizer step, if the batch made one."""
        self._count(trainer.global_step)


def _chosen(model: str | Callable[[Any], nn.Module] | None, module: Any) -> nn.Module:
    if model is None:
        found = module
    elif callable(model):
        found = model(module)
    else:
        found = module
        for name in model.split("."):
            found = getattr(found, name, None)
    if not isinstance(found, nn.Module):
        names = ", ".join(name for name, _ in module.named_children()) or "none"
        raise UsageError(
            f"NoiseCallback: model={model!r} of {type(module).__name__} is a "
            f"{type(found).__name__}, not a torch.nn.Module; its modules: {names}"
        )
    return found
