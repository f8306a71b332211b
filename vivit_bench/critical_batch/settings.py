"""What a search is asked for, and under which name its records are kept."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vivit_bench.arguments import problem_slug
from vivit_bench.curvature.options import Approximation, Curvature, Precision, Samples
from vivit_bench.errors import UsageError
from vivit_bench.hardware import (
    CUDA_ENVIRONMENT,
    OPENMP_WAITING,
    check_threads,
    device_name,
    parse_device,
)
from vivit_bench.imported import imported_files
from vivit_bench.measure import Observation, Reading, Spec, measure
from vivit_bench.measure.steps import LEAST_CALLS
from vivit_bench.measure.work import work_of
from vivit_bench.peers import Quantity, get_engine
from vivit_bench.problems.catalogue import is_user_problem
from vivit_bench.problems.sources import DataSource, check_source, default_source
from vivit_bench.problems.workload import WorkloadSpec
from vivit_bench.store import environment
from vivit_bench.store.provenance import library_version

DEFAULT_MAX_BATCH = 32_768
DEFAULT_TRIAL_TIMEOUT = 1_800.0
DEFAULT_ENGINE = "vivit-bench"
NO_ENGINE = "none"
"""Of a training step of the user's own."""
_STEP_WORK = "vivit_bench.measure.steps:StepWork"
_KIND_WORK = "vivit_bench.measure.steps:KindWork"
_PLAN_WORK = "vivit_bench.measure.planning:PlanWork"

# What every trial's process needs of the package; of `curvature`, where that is not measured.
_NOT_CURVATURE = ("curvature/options", "curvature/loss_checks", "curvature/available")
_MEASURING_ROOMS = (
    "measure",
    "peers",
    "problems",
    "hardware",
    "precision",
    "trees",
    "errors",
)
_LIBRARIES = (
    *("vivit_bench", "python", "torch", "torchvision", "backpack", "deepobs", "numpy", "scipy"),
    *("host", "cpu", "cores", "ram_bytes"),
)
_ENGINE_DISTRIBUTIONS = {
    "vivit-for-pytorch": "vivit-for-pytorch",
    "curvlinops": "curvlinops-for-pytorch",
}


def measuring_environment(
    engines: Sequence[str], device: str, problem: str, quantity: str | None = None
) -> dict[str, Any]:
    """What must be the same for measurements of some engines to be comparable.

    Args:
        engines: Names.
        device: ``cpu`` or ``cuda:i``.
        problem: Name.
        quantity: What is measured, if it is one: the gradient and a user's own step do without
            this package's curvature, as other engines do.

    Returns:
        Flat JSON types. ``code`` is that of the parts of the package that a measured process
        needs; how its threads wait, and its allocator on a CUDA device, is set outside of them.
    """
    ours = DEFAULT_ENGINE in engines and quantity not in (Quantity.GRADIENT, Quantity.STEP)
    rooms = (*_MEASURING_ROOMS, *(("curvature",) if ours else _NOT_CURVATURE))
    others: dict[str, Any] = {**OPENMP_WAITING, **imported_files(problem)}
    if device != "cpu":
        others |= CUDA_ENVIRONMENT
    for engine in engines:
        if distribution := _ENGINE_DISTRIBUTIONS.get(engine):
            others[distribution] = library_version(distribution)
    return environment(rooms, _LIBRARIES, device=device, **others)


@dataclass(frozen=True)
class Cell:
    """Everything that determines a critical batch size but the memory limit."""

    workload: WorkloadSpec
    """Without a batch size; the data source is filled in."""
    quantity: Quantity
    approximation: Approximation | None
    """None for the gradient, which has none; else its seed is that of the workload."""
    engine: str
    threads: int
    """CPU threads of a trial."""
    calls: int = 0
    """Of a training step of the user's own in a trial; 0 for other quantities."""

    @property
    def is_step(self) -> bool:
        """Whether a training step of the user's own is run, in a budget for all of its process."""
        return self.quantity is Quantity.STEP

    @property
    def is_planned(self) -> bool:
        """Whether the engine plans its memory."""
        return not self.is_step and self.quantity in get_engine(self.engine).planned

    @property
    def largest_matrix(self) -> int | None:
        """Rows of the largest matrix that the engine's solver takes; None if it takes any."""
        return None if self.is_step else get_engine(self.engine).largest_matrix.get(self.quantity)

    @property
    def problem(self) -> str:
        """DeepOBS name or ``path/to/file.py:function``, as the user typed it."""
        return self.workload.problem

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:i``."""
        return self.workload.device

    @property
    def variant(self) -> str:
        """Short name of quantity and approximation, e.g. ``eigenvalues, mc (M = 2), frac``."""
        approximation = f", {self.approximation.label}" if self.approximation else ""
        return f"{self.quantity}{approximation}"

    @property
    def label(self) -> str:
        """Name for people: problem, variant, engine, device."""
        about = self.device if self.is_step else f"{self.engine}, {self.device}"
        return f"{self.problem}: {self.variant} ({about})"

    @property
    def slug(self) -> str:
        """Readable start of the records' address."""
        parts: list[object] = [problem_slug(self.problem), self.quantity]
        if self.approximation is not None:
            parts += [self.approximation.curvature, self.approximation.samples]
        if not self.is_step:
            parts.append(self.engine)
        return "_".join(map(str, parts))

    def work(self) -> dict[str, Any]:
        """Arguments of `vivit_bench.measure.work.EngineWork`."""
        work = work_of(self.workload, self.quantity, self.approximation)
        return {**work, "engine": self.engine}

    def spec(self, n: int, *, memory_bytes: int | None = None, **others: Any) -> Spec:
        """What a child is to do for N samples.

        Args:
            n: Batch size.
            memory_bytes: That an engine may take, see `EngineWork`; a step is not told.
            others: Further fields.
        """
        if self.is_step:
            arguments = {
                "step": self.problem,
                "seed": self.workload.seed,
                "device": self.device,
                "calls": self.calls,
            }
            others |= {"work": _STEP_WORK, "whole_process": True}
        else:
            arguments = {**self.work(), "memory_bytes": memory_bytes}
        return Spec(n=n, threads=self.threads, arguments=arguments, device=self.device, **others)

    def small_spec(self, n: int, **fields: Any) -> Spec:
        """Of a small trial, all of whose threads are on one CPU, where its peak is exact."""
        return self.spec(n, one_cpu=self.device == "cpu", **fields)

    def small_timeout(self, seconds: float) -> float:
        """Of a small trial, where one CPU does the work of all threads."""
        return seconds * self.threads if self.device == "cpu" else seconds

    def of_all_threads(self, seconds: float) -> float:
        """About what a small trial's seconds are where each thread has a CPU."""
        return seconds / self.threads if self.device == "cpu" else seconds

    def plan_spec(self, memory_bytes: int, max_batch: int, costs_of: Sequence[int] = ()) -> Spec:
        """Of a child that tells of the engine's plan; the last two are those of `PlanWork`."""
        spec = self.spec(
            max_batch, memory_bytes=memory_bytes, work=_PLAN_WORK, reading=Reading.TIME, digest=True
        )
        return replace(spec, arguments={**spec.arguments, "costs_of": list(costs_of)})

    def record(self) -> dict[str, Any]:
        """What tells this cell's records from others', as plain JSON types.

        Files count by their contents, and not by where the data folder is.
        """
        values = self.workload.record()
        values.pop("batch_size")
        none = dict.fromkeys(Approximation().record())
        return {
            **values,
            "quantity": self.quantity.value,
            **(none if self.approximation is None else self.approximation.record()),
            "engine": self.engine,
            "threads": self.threads,
            **({"calls": self.calls} if self.is_step else {}),
            **self.workload.files(),
        }

    def environment(self) -> dict[str, Any]:
        """What must be the same for two trials of this cell to be comparable, flat JSON types."""
        return measuring_environment([self.engine], self.device, self.problem, self.quantity)


def make_cell(
    problem: str,
    *,
    quantity: Quantity = Quantity.EIGENVALUES,
    curvature: Curvature | None = None,
    samples: Samples | None = None,
    mc_samples: int = 1,
    device: str = "cpu",
    engine: str = DEFAULT_ENGINE,
    data: DataSource | None = None,
    seed: int = 0,
    threads: int | None = None,
    checkpoint: Path | None = None,
    data_dir: Path | None = None,
    dtype: Precision = Precision.FLOAT32,
    calls: int | None = None,
    runs_here: bool = True,
) -> Cell:
    """Check what was asked for and fill in defaults.

    Args:
        problem: DeepOBS name or ``path/to/file.py:function``.
        quantity: What is computed, beside the gradient of the whole mini-batch.
        curvature: Default exact; None for the gradient.
        samples: Default full; None for the gradient.
        mc_samples: M, with ``curvature`` mc only.
        device: ``cpu``, ``cuda`` or ``cuda:i``.
        engine: Its name.
        data: Default ``synthetic``; ``own`` for a user's problem.
        seed: Of parameters, mini-batch and Monte-Carlo draws.
        threads: CPU threads of a trial; None for all this process may use.
        checkpoint: File of parameters; None for initial ones.
        data_dir: Folder of the data sets; None for the default.
        dtype: Precision of model and matrix products.
        calls: Of a training step in a trial; default `LEAST_CALLS`.
        runs_here: Whether this machine must have the device; a job is run by another one.

    Returns:
        The cell.

    Raises:
        UsageError: A value that is not allowed, with those that are.
    """
    quantity = Quantity(quantity)
    if quantity is Quantity.STEP:
        options = {
            "--curvature": curvature,
            "--samples": samples,
            "--mc-samples": None if mc_samples == 1 else mc_samples,
            "--engine": None if engine == DEFAULT_ENGINE else engine,
            "--data": data,
            "--data-dir": data_dir,
            "--checkpoint": checkpoint,
            "--dtype": None if dtype is Precision.FLOAT32 else dtype,
        }
        return _step_cell(problem, options, device, seed, threads, calls)
    if calls is not None:
        raise UsageError(f"--calls {calls}: of a training step; leave the option out")
    if quantity not in (offered := get_engine(engine).quantities):
        names = ", ".join(sorted(offered))
        raise UsageError(f"--quantity {quantity}: the engine {engine} has {names}")
    if checkpoint is not None and not checkpoint.is_file():
        raise UsageError(f"--checkpoint {checkpoint}: no such file")
    _check_problem_file(problem)
    source = default_source(problem, "memory") if data is None else DataSource(data)
    check_source(problem, source)
    return Cell(
        workload=WorkloadSpec(
            problem,
            data=source,
            data_dir=data_dir,
            seed=seed,
            checkpoint=checkpoint,
            dtype=dtype,
            device=parse_device(device) if runs_here else device_name(device),
        ),
        quantity=quantity,
        approximation=_approximation(quantity, curvature, samples, mc_samples, seed),
        engine=engine,
        threads=threads_of_a_run(threads),
    )


def _step_cell(
    problem: str,
    others: dict[str, Any],
    device: str,
    seed: int,
    threads: int | None,
    calls: int | None,
) -> Cell:
    """Of a training step, which has no other options than these."""
    if not is_user_problem(problem):
        raise UsageError(f"--quantity step: {problem} is no path/to/file.py:function")
    for option, value in others.items():
        if value is not None:
            raise UsageError(f"{option} {value}: a training step has none; leave the option out")
    calls = LEAST_CALLS if calls is None else calls
    if calls < LEAST_CALLS:
        raise UsageError(
            f"--calls {calls}: must be at least {LEAST_CALLS}, as an optimizer's state appears in "
            "the first"
        )
    _check_problem_file(problem)
    return Cell(
        workload=WorkloadSpec(
            problem, data=default_source(problem, "memory"), seed=seed, device=parse_device(device)
        ),
        quantity=Quantity.STEP,
        approximation=None,
        engine=NO_ENGINE,
        threads=threads_of_a_run(threads),
        calls=calls,
    )


def default_quantity(
    problem: str, seed: int, run: Callable[[Spec, float], Observation] = measure
) -> Quantity:
    """A training step where the user's function returns one, which a child finds out.

    Args:
        problem: DeepOBS name or ``path/to/file.py:function``.
        seed: Of the random numbers that the function may draw.
        run: Runs the child.

    Raises:
        UsageError: The function cannot be called.
    """
    if not is_user_problem(problem):
        return Quantity.EIGENVALUES
    _check_problem_file(problem)
    arguments = {"problem": problem, "seed": seed}
    spec = Spec(
        n=1, threads=1, arguments=arguments, work=_KIND_WORK, reading=Reading.TIME, digest=True
    )
    seen = run(spec, DEFAULT_TRIAL_TIMEOUT)
    if seen.report is None or "is_step" not in seen.report.digest:
        raise UsageError(seen.message.removeprefix("set-up failed: "))
    return Quantity.STEP if seen.report.digest["is_step"] else Quantity.EIGENVALUES


def threads_of_a_run(threads: int | None) -> int:
    """CPU threads of a measured process; None for all this process may use.

    Raises:
        UsageError: An absurd number.
    """
    check_threads(threads)
    return threads or len(os.sched_getaffinity(0))


def check_bounds(max_batch: int, trial_timeout: float, repeats: int = 1) -> None:
    """Refuse bounds of a search that cannot be.

    Raises:
        UsageError: With the values allowed.
    """
    if max_batch < 1:
        raise UsageError(f"--max-batch {max_batch}: must be at least 1")
    check_timeout(trial_timeout)
    if repeats < 1:
        raise UsageError(f"--repeats {repeats}: must be at least 1")


def check_timeout(seconds: float) -> None:
    """Refuse a ``--timeout`` that is none.

    Raises:
        UsageError: It is not above 0, or not finite.
    """
    if not 0 < seconds < math.inf:
        raise UsageError(
            f"--timeout {seconds:g}: must be a number of seconds above 0, for example 600"
        )


def _approximation(
    quantity: Quantity,
    curvature: Curvature | None,
    samples: Samples | None,
    mc_samples: int,
    seed: int,
) -> Approximation | None:
    if quantity is Quantity.GRADIENT:
        draws = None if mc_samples == 1 else mc_samples
        given = {"--curvature": curvature, "--samples": samples, "--mc-samples": draws}
        for option, value in given.items():
            if value is not None:
                raise UsageError(f"{option} {value}: the gradient has none; leave the option out")
        return None
    return Approximation(curvature or Curvature.EXACT, samples or Samples.FULL, mc_samples, seed)


def _check_problem_file(problem: str) -> None:
    """A missing file of the user's is told before a child is started for it."""
    if not is_user_problem(problem):
        return
    file, colon, function = problem.rpartition(":")
    if not colon or not file or not function:
        raise UsageError(f"{problem}: write path/to/file.py:function")
    if not Path(file).is_file():
        raise UsageError(f"{problem}: there is no file {file}")
