"""The work of a trial: a quantity of a problem, or a stand-in for tests."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from vivit_bench.critical_batch.failures import BatchLimitError
from vivit_bench.trees import map_tree

if TYPE_CHECKING:
    from vivit_bench.curvature import Certificate

ENGINE = "engine"

WARM_UP_SAMPLES = 2


class Workload(Protocol):
    """Set up by its constructor, outside the budget."""

    def warm_up(self) -> "Certificate | None":
        """Do the whole work once on a few samples: libraries then have their buffers.

        Returns:
            The certificate of what was computed, where the work has one.
        """

    def run(self, n: int) -> object:
        """Make a mini-batch of N samples and do the work, inside the budget."""

    def check(self, result: object) -> str:
        """Why a result is unusable; empty if it is sound."""


def load_workload(name: str, work: dict[str, Any]) -> Workload:
    """Import and construct a workload.

    Args:
        name: ``engine``, or ``module:callable`` or ``path/to/file.py:callable``.
        work: Its arguments.

    Returns:
        The workload, set up.
    """
    if name == ENGINE:
        return EngineWorkload(**work)
    module, _, attribute = name.rpartition(":")
    make = cast(Callable[..., Workload], getattr(_import(module), attribute))
    return make(**work)


def _import(module: str) -> Any:
    if not module.endswith(".py"):
        return importlib.import_module(module)
    spec = importlib.util.spec_from_file_location(Path(module).stem, module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class EngineWorkload:
    """A quantity of the GGN, with the gradient of the whole mini-batch."""

    def __init__(
        self,
        *,
        problem: str,
        quantity: str,
        curvature: str,
        samples: str,
        mc_samples: int,
        engine: str,
        data: str,
        data_dir: str | None,
        seed: int,
        checkpoint: str | None,
        device: str,
    ):
        """Load problem and engine.

        Args:
            problem: DeepOBS name or ``path/to/file.py:function``.
            quantity: Value of `vivit_bench.peers.Quantity`.
            curvature: Value of `Curvature`.
            samples: Value of `Samples`.
            mc_samples: M.
            engine: Name of an engine.
            data: Value of `DataSource`.
            data_dir: Folder of the data sets; None for the default.
            seed: Of parameters, mini-batch and Monte-Carlo draws.
            checkpoint: File of parameters; None for initial ones.
            device: ``cpu`` or ``cuda:i``.
        """
        from vivit_bench.curvature.options import Curvature, Samples
        from vivit_bench.peers import Quantity, get_engine
        from vivit_bench.problems import DataSource, load_problem

        self._quantity = Quantity(quantity)
        self._options: dict[str, Any] = {
            "curvature": Curvature(curvature),
            "samples": Samples(samples),
            "mc_samples": mc_samples,
            "seed": seed,
        }
        self._engine = get_engine(engine)
        self._problem = load_problem(problem, seed=seed, checkpoint=_path(checkpoint))
        self._source = DataSource(data)
        self._data_dir = _path(data_dir)
        self._seed = seed
        self._device = device
        model = self._problem.model.to(device)
        self._model, self._loss = self._engine.prepare(model, self._problem.loss.to(device))

    def warm_up(self) -> "Certificate | None":
        """See `Workload`. Gradients are dropped: those of the trial are to count."""
        certificate = self.certify(WARM_UP_SAMPLES)
        self.run(WARM_UP_SAMPLES)
        for parameter in self._model.parameters():
            parameter.grad = None
        return certificate

    def certify(self, n: int) -> "Certificate | None":
        """Do the work on N samples with its check by plain autograd.

        Raises:
            CertificateError: The check failed.
        """
        return self._engine.certify(
            self._quantity, self._model, self._loss, *self._batch(n), **self._options
        )

    def run(self, n: int) -> object:
        """See `Workload`; returns the engine's named tensors. They are not checked."""
        result = self._engine.run(
            self._quantity, self._model, self._loss, *self._batch(n), **self._options
        )
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize(self._device)
        return result

    def check(self, result: object) -> str:
        """See `Workload`: all numbers of the results and the gradient must be finite."""
        assert isinstance(result, dict)
        named = self._model.named_parameters()
        gradients = {f"gradient of {name}": p.grad for name, p in named if p.grad is not None}
        for name, tensor in {**result, **gradients}.items():
            if not tensor.isfinite().all():
                count = int((~tensor.isfinite()).sum())
                return f"{name}: {count} of {tensor.numel()} numbers are NaN or infinite"
        return ""

    def _batch(self, n: int) -> Any:
        """Inputs and targets on the device."""
        from vivit_bench.problems import load_batch
        from vivit_bench.problems.sampling import TooFewSamplesError

        try:
            inputs, targets = load_batch(self._problem, n, self._source, self._data_dir, self._seed)
        except TooFewSamplesError as error:
            if n <= WARM_UP_SAMPLES:
                raise
            raise BatchLimitError(str(error)) from error
        inputs = map_tree(lambda tensor: tensor.to(self._device), inputs)
        return inputs, targets.to(self._device)


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None
