"""Noise along the eigenvectors while Hugging Face's Trainer trains: `NoiseCallback` for it."""

from typing import Any

from vivit_bench.errors import UsageError
from vivit_bench.noise.watched import Watch

try:
    from transformers.trainer_callback import TrainerCallback
except ModuleNotFoundError as missing:
    raise UsageError(
        f"vivit_bench.noise.transformers needs the package {str(missing.name).split('.')[0]!r}; "
        "install it with pip install 'vivit-bench[transformers]'"
    ) from missing


class NoiseCallback(Watch, TrainerCallback):
    """Looks at the model that a ``Trainer`` trains, and leaves the training bitwise as it is.

        >>> noise = NoiseCallback((inputs, targets), nn.CrossEntropyLoss(), at=[0, 10, 100])
        >>> Trainer(model, arguments, train_dataset=data, callbacks=[noise]).train()
        >>> noise.table()

    Inputs that are a mapping are the model's keywords; the ``logits`` of what it returns are the
    outputs. A language model's loss is per token and shifted, for example::

        NoiseCallback(
            (tokens, tokens["input_ids"][:, 1:]),
            nn.CrossEntropyLoss(),
            output=lambda found: found.logits[:, :-1].transpose(1, 2),
        )

    Steps are the trainer's ``global_step``: optimizer steps, whatever
    ``gradient_accumulation_steps``. A training that goes on from a checkpoint goes on counting.
    With ``bf16`` or ``fp16`` the look is at the weights, in their own precision.

    Args: See `Watch`.

    Raises:
        UsageError: No such mini-batch or step; while training also: processes that share one
            model, what the engine cannot compute.
        CertificateError: What it computed failed its check.
    """

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Look before the first step, if asked to."""
        ways = [way for way in ("fsdp", "deepspeed") if getattr(args, way, None)]
        divided_by = ways[0] if ways and args.world_size > 1 else None
        self._begin(model, state.global_step, args.process_index, divided_by)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the optimizer step."""
        self._count(state.global_step)
