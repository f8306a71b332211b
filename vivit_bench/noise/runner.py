"""Run a monitored training durably: interrupted, the same call goes on."""

import statistics
from pathlib import Path
from typing import Any

import torch

from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.noise import records
from vivit_bench.noise.choices import Choices, check_choices, resolve
from vivit_bench.noise.data import RunData, load_run_data, training_seed
from vivit_bench.noise.listener import Listener
from vivit_bench.noise.records import DIVERGED, FINISHED, RUNNING, NoiseRun, Store, open_store
from vivit_bench.noise.settings import Settings
from vivit_bench.noise.table_s2 import hyperparameters
from vivit_bench.noise.training import Diverged, Timing, Training
from vivit_bench.problems import Problem, default_source, load_problem
from vivit_bench.problems.fingerprint import batch_fingerprint, model_fingerprint
from vivit_bench.problems.seeding import seeded
from vivit_bench.store import differences, provenance
from vivit_bench.store.provenance import code_fingerprint

_ROOMS = ("noise", "curvature", "problems")
"""Code that can change a run's numbers."""
_LIBRARIES = ("python", "torch", "numpy", "deepobs", "host", "cpu")


def run_noise(
    choices: Choices, folder: Path, *, fresh: bool = False, listener: Listener | None = None
) -> NoiseRun:
    """Train a problem and record what a held-out mini-batch shows at every checkpoint.

    Args:
        choices: What to run.
        folder: Of this run alone; holds ``run.json`` and the tables of `NoiseRun`.
        fresh: Start over, and replace whatever run is there.
        listener: Told of every step.

    Returns:
        The finished run. A run that is finished already is returned as it is.

    Raises:
        UsageError: A value that makes no sense, or a folder with a run of other settings.
        VivitBenchError: The data are missing, the loss became NaN or infinite, or the folder
            has an interrupted run by other code.
    """
    listener = listener or Listener()
    chosen = hyperparameters(choices.problem, choices.optimizer, choices.lr, choices.momentum)
    device = check_choices(choices)
    problem = load_problem(choices.problem, seed=choices.seed)
    source = default_source(problem, "real") if choices.data is None else choices.data
    data = load_run_data(problem, source, choices.data_dir, choices.seed)
    settings = resolve(choices, chosen, problem, data, source)
    listener.note(f"learning rate {settings.lr:.6g}: {chosen.source}")
    listener.note(
        f"{len(data.train):,} training samples, {settings.monitor_batch_size} of "
        f"{len(data.held_out):,} held out for the monitor, {data.num_test:,} test samples"
    )
    header = _header(settings, problem, data)
    with open_store(folder) as store:
        if fresh:
            store.clear()
        finished = _earlier_run(store, header)
        if finished is not None:
            listener.note(f"finished already, in {folder}; --fresh runs it again")
            return finished
        store.write_header({**header, "state": RUNNING})
        with seeded(training_seed(settings.seed)):
            if device.type == "cuda":
                torch.cuda.manual_seed_all(training_seed(settings.seed))
            training = Training(problem, data, settings, store, listener, device)
            if training.resume():
                listener.note(f"going on from step {training.step} of {training.total}")
            _train(training, header)
    return records.load_run(folder)


def monitoring_cost(run: NoiseRun) -> dict[str, float]:
    """What monitoring cost, from the times of a finished or diverged run.

    Returns:
        ``calls``, ``seconds_per_call``, ``seconds_per_epoch`` (training steps alone; medians, so
        that a pause of the process does not count), ``call_in_epochs`` (their ratio), and
        ``share`` of the whole run's time.
    """
    timing = run.header["timing"]
    calls, epochs = list(timing["monitor"].values()), list(timing["train"].values())
    epoch = statistics.median(epochs) if epochs else 0.0
    call = statistics.median(calls) if calls else 0.0
    return {
        "calls": len(calls),
        "seconds_per_call": call,
        "seconds_per_epoch": epoch,
        "call_in_epochs": call / epoch if epoch else float("nan"),
        "share": sum(calls) / (sum(calls) + sum(epochs) + timing["evaluate"]),
    }


def _train(training: Training, header: dict[str, Any]) -> None:
    store = training.store
    try:
        training.run()
    except Diverged as diverged:
        where = {"step": diverged.step, "loss": str(diverged.loss)}
        header = {**header, "diverged_at": where, "timing": _seconds(training.timing)}
        store.write_header({**header, "state": DIVERGED})
        (store.folder / records.STATE).unlink(missing_ok=True)
        raise VivitBenchError(_diverged_line(store.folder, header)) from None
    except OSError as error:
        raise VivitBenchError(
            f"cannot write to {store.folder} ({error.strerror or error}): make room, then the "
            "same command goes on from the last checkpoint or epoch"
        ) from error
    store.write_header({**header, "state": FINISHED, "timing": _seconds(training.timing)})
    (store.folder / records.STATE).unlink(missing_ok=True)


def _diverged_line(folder: Path, header: dict[str, Any]) -> str:
    where = header["diverged_at"]
    return (
        f"the training diverged: loss {where['loss']} at step {where['step']}, with --lr "
        f"{header['settings']['lr']:g}; the records before it are in {folder}, for noise table "
        "and plot; try a smaller --lr with --fresh or another --name"
    )


def _header(settings: Settings, problem: Problem, data: RunData) -> dict[str, Any]:
    """What describes a run before it has begun."""
    facts = provenance()
    steps_per_epoch = data.steps_per_epoch(settings.batch_size)
    return {
        "settings": settings.record(),
        "sizes": {
            "num_params": problem.num_params,
            "num_outputs": problem.num_outputs,
            "train_samples": len(data.train),
            "held_out_samples": len(data.held_out),
            "test_samples": data.num_test,
            "steps_per_epoch": steps_per_epoch,
            "total_steps": steps_per_epoch * settings.epochs,
        },
        "environment": {
            "code": code_fingerprint(_ROOMS),
            **{name: facts[name] for name in _LIBRARIES},
            "threads": torch.get_num_threads(),
            "model": model_fingerprint(problem.name, problem.model, problem.loss),
            "train_data": batch_fingerprint(data.inputs, data.targets),
            "test_data": batch_fingerprint(*data.test),
        },
        "provenance": facts,
    }


def _earlier_run(store: Store, header: dict[str, Any]) -> NoiseRun | None:
    """The folder's finished run; None if there is none, or one to go on with.

    Raises:
        UsageError: It is a run of other settings, or an unfinished one by other code.
        VivitBenchError: It diverged.
    """
    earlier = records.read_header(store.folder)
    if earlier is None:
        return None
    remedy = "choose another --name, or --fresh to replace it"
    if changed := differences(earlier["settings"], header["settings"]):
        raise UsageError(f"{store.folder} holds a run of other settings ({changed}): {remedy}")
    if earlier["state"] == DIVERGED:
        raise VivitBenchError(_diverged_line(store.folder, earlier))
    changed = differences(earlier["environment"], header["environment"])
    if earlier["state"] == FINISHED:
        return records.load_run(store.folder)
    if changed:
        raise UsageError(
            f"{store.folder} holds an interrupted run under other conditions ({changed}), whose "
            f"numbers would not go together: {remedy}"
        )
    return None


def _seconds(timing: Timing) -> dict[str, Any]:
    return {
        "train": {epoch: round(seconds, 3) for epoch, seconds in timing.train.items()},
        "evaluate": round(timing.evaluate, 3),
        "monitor": {step: round(seconds, 3) for step, seconds in timing.monitor.items()},
    }
