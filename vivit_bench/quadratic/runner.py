"""Run the whole experiment, durably: interrupted, the same call goes on."""

import time
from collections.abc import Callable
from pathlib import Path

from vivit_bench.errors import UsageError
from vivit_bench.quadratic.experiment import Repetition, run_repetition
from vivit_bench.quadratic.records import Journal, Results, read_run, results_from, save_results
from vivit_bench.quadratic.settings import Settings
from vivit_bench.store import differences


def run_experiment(
    settings: Settings,
    folder: Path,
    fresh: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Results:
    """Run all repetitions and store them in ``folder``.

    Args:
        settings: What to run.
        folder: Gets ``losses.csv``, ``dampings.csv``, ``run.json``.
        fresh: Start over, and replace a finished run of other settings.
        progress: Called with the number of finished repetitions, first with those an
            interrupted run left.

    Raises:
        UsageError: If the folder holds a finished run of other settings and not ``fresh``, or
            cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write to {folder} ({error.strerror}): choose another --results-dir"
        ) from error
    finished = None if fresh else read_run(folder)
    if finished is not None and finished["settings"] != settings.record():
        raise UsageError(
            f"{folder} holds a finished run of other settings "
            f"({differences(finished['settings'], settings.record())}): choose another "
            "--results-dir, or --fresh to replace it"
        )
    journal = Journal(folder, settings)
    if fresh:
        journal.remove()
    done = journal.read()
    progress(len(done))
    for index in range(settings.repeats):
        if index not in done:
            started = time.perf_counter()
            repetition = run_repetition(settings, index)
            done[index] = (repetition, time.perf_counter() - started)
            journal.append(*done[index])
            progress(len(done))
    repetitions: list[Repetition] = [done[index][0] for index in range(settings.repeats)]
    seconds = sum(spent for _, spent in done.values())
    results = results_from(settings, repetitions, seconds)
    save_results(results, folder)
    journal.remove()
    return results
