"""Run a monitored training durably: interrupted, the same call goes on."""

import contextlib
import io
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vivit_bench.arguments import DEFAULT_RESULTS_DIR, problem_slug
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.imported import imported_files
from vivit_bench.noise.choices import Choices, check_choices, resolve
from vivit_bench.noise.data import RunData, load_run_data, training_seed
from vivit_bench.noise.deterministic import WORKSPACE, deterministic, workspace
from vivit_bench.noise.records import EXPERIMENT, OWNS, STATE, NoiseRun, Records, read_run
from vivit_bench.noise.settings import Settings, hyperparameters
from vivit_bench.noise.training import Diverged, Listener, Training
from vivit_bench.precision import ieee_float32
from vivit_bench.problems import Problem, default_source, load_problem
from vivit_bench.problems.sampling import seeded
from vivit_bench.problems.workload import batch_fingerprint, model_fingerprint
from vivit_bench.store import (
    Identity,
    Run,
    State,
    StoredRun,
    check_name,
    environment,
    open_run,
    write_output,
)
from vivit_bench.store.files import sha256

SAVED = "saved_model"
"""Result of a run whose last weights were written to a file: their SHA-256."""

_ROOMS = ("noise", "curvature", "problems", "precision", "trees", "errors")
"""Code that can change a run's numbers."""
_LIBRARIES = ("python", "torch", "torchvision", "numpy", "deepobs", "host", "cpu")
_IS_DETERMINISTIC, _NOT_DETERMINISTIC = "deterministic", "not_deterministic"
"""Results of a run on a CUDA device: whether it repeats bit by bit, and which operations do not."""


def run_noise(
    choices: Choices,
    results_dir: Path = DEFAULT_RESULTS_DIR,
    *,
    name: str | None = None,
    fresh: bool = False,
    listener: Listener | None = None,
    save_model: Path | None = None,
) -> NoiseRun:
    """Train a problem and record what a held-out mini-batch shows at every checkpoint.

    Args:
        choices: What to run.
        results_dir: Folder of all results; the run gets a folder below its ``noise``.
        name: Of the run's folder; default: problem, optimizer and a hash of the settings.
        fresh: Start over, and replace whatever run is there.
        listener: Told of every step.
        save_model: File for the last weights and running statistics, which `load_checkpoint`
            reads. A run keeps none when it is finished, so that they are written at its end.

    Returns:
        The finished run. A run that is finished already is returned as it is.

    Raises:
        UsageError: A value that makes no sense, or a folder that is no run, or one of other
            settings, code, libraries, data or another machine.
        VivitBenchError: The data are missing, model or loss fail, the loss is or became NaN or
            infinite, a stored file is damaged, or another process has the run.
        StorageError: The disk is full or read-only, or the folder was removed.
    """
    listener = listener or Listener()
    if name is not None:
        check_name(name)
    settings, problem, data, device, source_of_lr = _prepare(choices)
    listener.note(f"learning rate {settings.lr:.6g}: {source_of_lr}")
    listener.note(
        f"{len(data.train):,} training samples, {settings.monitor_batch_size} of "
        f"{len(data.held_out):,} held out for the monitor, {data.num_test:,} test samples"
    )
    identity = _identity(settings, problem, data, device)
    with open_run(results_dir, identity, name=name, fresh=fresh, note=listener.note) as run:
        if run.is_returned:
            run.remove(STATE)  # a kill right after the end leaves it
            if save_model is not None:
                check_saved(run.stored, save_model)
            return read_run(run.stored)
        facts: dict[str, Any] = {"sizes": _sizes(settings, problem, data)}
        if _is_cuda(device):
            known = run.stored.results.get(_NOT_DETERMINISTIC, [])
            facts |= {_IS_DETERMINISTIC: not known, _NOT_DETERMINISTIC: known}
        run.update(**facts)
        with (
            ieee_float32([device.type]),
            _repeating(device, run, listener),
            seeded(training_seed(settings.seed)),
        ):
            if device.type == "cuda":
                torch.cuda.manual_seed_all(training_seed(settings.seed))
            training = Training(
                problem, data, settings, Records(run), listener, device, choices.memory
            )
            if training.resume():
                listener.note(f"going on from step {training.step} of {training.total}")
            return read_run(_train(training, run, save_model))


def monitoring_cost(run: NoiseRun) -> dict[str, float]:
    """What monitoring cost, from the times of a finished or diverged run.

    Returns:
        ``calls``, ``seconds_per_call``, ``seconds_per_epoch`` (training steps alone; medians, so
        that a pause of the process does not count), ``call_in_epochs`` (their ratio), and
        ``share`` of the whole run's time.
    """
    timing = run.stored.results["timing"]
    calls, epochs = list(timing["monitor_seconds"].values()), list(timing["train_seconds"].values())
    epoch = statistics.median(epochs) if epochs else 0.0
    call = statistics.median(calls) if calls else 0.0
    return {
        "calls": len(calls),
        "seconds_per_call": call,
        "seconds_per_epoch": epoch,
        "call_in_epochs": call / epoch if epoch else float("nan"),
        "share": sum(calls) / (sum(calls) + sum(epochs) + timing["evaluate_seconds"]),
    }


def identity_of(choices: Choices) -> Identity:
    """What a training is determined by, on as many threads as PyTorch has now.

    Its device need not be here.

    Raises:
        UsageError: See `run_noise`.
        VivitBenchError: The data are missing.
    """
    settings, problem, data, device, _ = _prepare(choices, runs_here=False)
    return _identity(settings, problem, data, device)


def check_saved(run: StoredRun, file: Path) -> None:
    """Refuse a finished run whose weights are wanted, unless they are in the file already.

    Raises:
        UsageError: They are not.
    """
    saved = run.results.get(SAVED)
    if saved is None or not file.is_file() or sha256(file.read_bytes()) != saved:
        raise UsageError(
            f"--save-model {file}: {run.folder} is finished, and its weights are not in this file "
            "nor anywhere else: --fresh trains again"
        )


def _prepare(
    choices: Choices, runs_here: bool = True
) -> tuple[Settings, Problem, RunData, torch.device, str]:
    """What is to be trained on what, and where the learning rate is from."""
    chosen = hyperparameters(choices.problem, choices.optimizer, choices.lr, choices.momentum)
    device = check_choices(choices, runs_here)
    problem = load_problem(choices.problem, seed=choices.seed)
    source = default_source(problem, "real") if choices.data is None else choices.data
    data = load_run_data(problem, source, choices.data_dir, choices.seed)
    return resolve(choices, chosen, problem, data, source), problem, data, device, chosen.source


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"


@contextlib.contextmanager
def _repeating(device: torch.device, run: Run, listener: Listener) -> Iterator[None]:
    """Make a CUDA device's numbers repeat; what does not is told, and written down at once."""
    if not _is_cuda(device):
        yield
        return

    def found(operation: str) -> None:
        known = run.stored.results[_NOT_DETERMINISTIC]
        if operation not in known:
            run.update(**{_IS_DETERMINISTIC: False, _NOT_DETERMINISTIC: [*known, operation]})
        listener.note(
            f"not bit for bit: {operation} has no deterministic algorithm on {device}, and another "
            "run may round otherwise (recorded as deterministic: false)"
        )

    with deterministic(found):
        yield


def _train(training: Training, run: Run, save_model: Path | None) -> StoredRun:
    """Train to the end, which is written down.

    Raises:
        VivitBenchError: The loss became NaN or infinite.
    """
    try:
        training.run()
    except Diverged as diverged:
        failure = (
            f"the training diverged: loss {diverged.loss} at step {diverged.step}, with --lr "
            f"{training.settings.lr:g}; the records before it are kept for noise table and plot; "
            "try a smaller --lr"
        )
        ending = {
            "failure": failure,
            "diverged_at": {"step": diverged.step, "loss": str(diverged.loss)},
            "timing": training.timing.record(),
        }
        training.records.finish(_results(training, run) | ending, State.FAILED)
        raise VivitBenchError(f"{failure} ({run.folder})") from None
    results = _results(training, run) | {"timing": training.timing.record()}
    if save_model is not None:  # before the end: killed here, the run still has its state
        content = io.BytesIO()
        torch.save({n: t.cpu() for n, t in training.model.state_dict().items()}, content)
        write_output(save_model, content.getvalue())
        results[SAVED] = sha256(content.getvalue())
        training.listener.note(f"wrote {save_model}")
    return training.records.finish(results, State.FINISHED)


def _results(training: Training, run: Run) -> dict[str, Any]:
    """What is known of a run that has come to an end, but how."""
    dropping = training.settings.drop_columns is not None
    return {**run.stored.results, **({"dropped": training.dropped} if dropping else {})}


def _identity(
    settings: Settings, problem: Problem, data: RunData, device: torch.device
) -> Identity:
    """What the numbers depend on; the model is read before it is trained."""
    return Identity(
        experiment=EXPERIMENT,
        label=f"{problem_slug(settings.problem)}_{settings.optimizer}",
        settings={
            **settings.record(),
            "threads": torch.get_num_threads(),
            "model": model_fingerprint(problem.name, problem.model, problem.loss),
        },
        environment=environment_of(
            device, **data_fingerprints(data), **imported_files(settings.problem)
        ),
        owns=OWNS,
    )


def environment_of(device: torch.device, **data: str) -> dict[str, Any]:
    """What a run holds under on a device, now and here, beside the fingerprints of its data."""
    space = {WORKSPACE: workspace()} if _is_cuda(device) else {}
    return environment(_ROOMS, _LIBRARIES, device=str(device), **space, **data)


def data_fingerprints(data: RunData) -> dict[str, str]:
    """The data that a run holds under."""
    return {
        "train_data": batch_fingerprint(data.inputs, data.targets),
        "test_data": batch_fingerprint(*data.test),
    }


def _sizes(settings: Settings, problem: Problem, data: RunData) -> dict[str, int]:
    steps_per_epoch = data.steps_per_epoch(settings.batch_size)
    return {
        "num_params": problem.num_params,
        "num_outputs": problem.num_outputs,
        "train_samples": len(data.train),
        "held_out_samples": len(data.held_out),
        "test_samples": data.num_test,
        "steps_per_epoch": steps_per_epoch,
        "total_steps": steps_per_epoch * settings.epochs,
    }
