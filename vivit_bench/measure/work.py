"""The work of a child: a quantity of a problem by some engine, or anything else with `run`."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vivit_bench.measure.protocol import ENGINE
from vivit_bench.trees import num_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from vivit_bench.curvature import Certificate
    from vivit_bench.curvature.options import Approximation
    from vivit_bench.peers import Quantity
    from vivit_bench.problems.workload import Workload, WorkloadSpec

WARM_UP_SAMPLES = 2

LEADING = 10
"""Eigenvalues of a digest."""
PROJECTIONS = 16
"""Random projections of a step in a digest."""


class Work:
    """Set up by its constructor, outside of what is measured. Only `run` must be defined."""

    def load(self) -> None:
        """Have what may take long to get, a data set's download."""

    def warm_up(self) -> "Certificate | None":
        """Do the whole work once on a few samples: libraries then have their buffers.

        Returns:
            The certificate of what was computed, where the work has one.
        """
        return None

    def run(self, n: int) -> object:
        """Make a mini-batch of N samples and do the work; this is measured."""
        raise NotImplementedError

    def check(self, result: object) -> str:
        """Why a result is unusable; empty if it is sound."""
        return ""

    def certify(self, n: int) -> "Certificate | None":
        """Do the work once more with its check, where it has one.

        Raises:
            CertificateError: The check failed.
        """
        return None

    def digest(self, result: object) -> dict[str, Any]:
        """Some numbers that tell whether two results agree; plain JSON types."""
        return {}


def load_work(name: str, arguments: dict[str, Any]) -> Work:
    """Import and construct a work.

    Args:
        name: ``engine``, or ``module:callable`` or ``path/to/file.py:callable``.
        arguments: Its keywords.

    Returns:
        The work, set up.
    """
    if name == ENGINE:
        return EngineWork(**arguments)
    module, _, attribute = name.rpartition(":")
    make = cast(Callable[..., Work], getattr(_import(module), attribute))
    return make(**arguments)


def _import(module: str) -> Any:
    if not module.endswith(".py"):
        return importlib.import_module(module)
    spec = importlib.util.spec_from_file_location(Path(module).stem, module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class EngineWork(Work):
    """A quantity of the GGN, with the gradient of the whole mini-batch.

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
        dtype: Value of `Precision`.
        device: ``cpu`` or ``cuda:i``.
        memory_bytes: That the work may take, its mini-batch included; None: no bound. The engine
            runs its leanest plan where that is not enough.

    Raises:
        UsageError: A wrong name, value, file or device, or the engine cannot take the model.
    """

    def __init__(
        self,
        *,
        problem: str,
        quantity: str,
        curvature: str,
        samples: str,
        mc_samples: int,
        engine: str,
        data: str | None,
        data_dir: str | None,
        seed: int,
        checkpoint: str | None,
        dtype: str = "float32",
        device: str,
        memory_bytes: int | None = None,
    ):
        from vivit_bench.curvature.options import Approximation, Curvature, Samples
        from vivit_bench.peers import Quantity, get_engine

        self._quantity = Quantity(quantity)
        self._approximation = Approximation(
            Curvature(curvature), Samples(samples), mc_samples, seed
        )
        self._engine = get_engine(engine)
        self._memory_bytes = memory_bytes
        self._workload = load(problem, data, data_dir, seed, checkpoint, device, dtype)
        self._model, self._loss = self._engine.prepare(self._workload.model, self._workload.loss)
        self._warm_up_samples = WARM_UP_SAMPLES

    def load(self) -> None:
        """See `Work`: the data set, which the first mini-batch is made of."""
        from vivit_bench.problems.sampling import TooFewSamplesError

        try:
            self._workload.batch(WARM_UP_SAMPLES)
        except TooFewSamplesError as error:
            self._warm_up_samples = max(error.available, 1)

    def warm_up(self) -> "Certificate | None":
        """See `Work`. Gradients are dropped: those of the work itself are to count."""
        certificate = self.certify(self._warm_up_samples)
        self.run(self._warm_up_samples)
        for parameter in self._model.parameters():
            parameter.grad = None
        return certificate

    def certify(self, n: int) -> "Certificate | None":
        """See `Work`: a check by plain autograd."""
        return self._engine.certify(
            self._quantity,
            self._model,
            self._loss,
            *self._workload.batch(n),
            self._approximation,
        )

    def run(self, n: int) -> object:
        """See `Work`; returns the engine's named tensors. They are not checked.

        All engines multiply float32 numbers as such.

        Raises:
            TooFewSamplesError: The data end before.
        """
        from vivit_bench.precision import ieee_float32

        inputs, targets = self._workload.batch(n)
        memory = self._memory_bytes
        if memory is not None:
            memory -= num_bytes(inputs, targets)
        with ieee_float32([self._workload.spec.device.partition(":")[0]]):
            result = self._engine.run(
                self._quantity,
                self._model,
                self._loss,
                inputs,
                targets,
                self._approximation,
                memory,
            )
        if self._workload.spec.device != "cpu":
            import torch

            torch.cuda.synchronize(self._workload.spec.device)
        return result

    def check(self, result: object) -> str:
        """See `Work`: all numbers of the results and the gradient must be finite."""
        assert isinstance(result, dict)
        named = self._model.named_parameters()
        gradients = {f"gradient of {name}": p.grad for name, p in named if p.grad is not None}
        for name, tensor in {**result, **gradients}.items():
            if not tensor.isfinite().all():
                count = int((~tensor.isfinite()).sum())
                return f"{name}: {count} of {tensor.numel()} numbers are NaN or infinite"
        return ""

    def digest(self, result: object) -> dict[str, Any]:
        """See `Work`: ``eigenvalues``, the leading ones; or `project` of the step."""
        assert isinstance(result, dict)
        if "eigenvalues" in result:
            return {"eigenvalues": result["eigenvalues"][:LEADING].double().tolist()}
        return project(result["step"]) if "step" in result else {}


def work_of(
    workload: "WorkloadSpec",
    quantity: "Quantity",
    approximation: "Approximation | None",
) -> dict[str, Any]:
    """Arguments of `EngineWork` but the engine, plain JSON types.

    Args:
        workload: Its batch size is left out: every trial has its own.
        quantity: What is computed.
        approximation: None for the gradient, which has none.
    """
    from vivit_bench.curvature.options import Approximation

    options = (approximation or Approximation()).record()
    values = {name: value for name, value in workload.record().items() if name != "batch_size"}
    folder = None if workload.data_dir is None else str(workload.data_dir)
    return {**values, "data_dir": folder, "quantity": quantity.value, **options}


def project(step: "Tensor") -> dict[str, Any]:
    """Numbers by which two steps can be compared without keeping them.

    The differences d_k of two steps' projections on ``PROJECTIONS`` fixed directions with
    independent standard normal entries satisfy E[d_k^2] = |difference of the steps|^2. The root
    of their mean square estimates that norm with a relative standard deviation of 18 %.

    Args:
        step: [D].

    Returns:
        ``step_norm`` and ``step_projections``, floats.
    """
    import torch

    step = step.detach().cpu().double()
    generator = torch.Generator().manual_seed(0)
    projections = [0.0] * PROJECTIONS
    for part in step.split(2**20):  # a direction of a large model is larger than the model
        for k in range(PROJECTIONS):
            direction = torch.randn(len(part), generator=generator, dtype=torch.float64)
            projections[k] += float(direction @ part)
    return {"step_norm": float(step.norm()), "step_projections": projections}


def load(
    problem: str,
    data: str | None,
    data_dir: str | None,
    seed: int,
    checkpoint: str | None,
    device: str,
    dtype: str = "float32",
) -> "Workload":
    """Load model and loss; arguments are those of `EngineWork`.

    Raises:
        UsageError: A wrong name, value, file or device.
    """
    from vivit_bench.curvature.options import Precision
    from vivit_bench.problems.sources import DataSource
    from vivit_bench.problems.workload import WorkloadSpec, load_workload

    spec = WorkloadSpec(
        problem,
        data=None if data is None else DataSource(data),
        data_dir=_path(data_dir),
        seed=seed,
        checkpoint=_path(checkpoint),
        dtype=Precision(dtype),
        device=device,
    )
    return load_workload(spec, "memory")


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None
