"""kill -9 at any moment of every command that stores something; then the same command again.

python scripts/torture/kills.py --count 200 --seed 0 --real 40
"""

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from common import (
    EXPERIMENTS,
    MARK,
    ROOT,
    Case,
    Ended,
    Experiment,
    Series,
    Zygote,
    contents,
    left_after,
    main,
    results,
    run_cases,
    workshop,
    zygotes,
)
from faults import Fault

_REAL = {
    "spectrum": 5.0,
    "sweep": 6.0,
    "noise": 6.0,
    "quadratic": 4.0,
    "search": 14.0,
    "comparison": 16.0,
    "series": 40.0,
}
"""Seconds within which a process of its own is killed."""
_ENDS_SECONDS = 2.0


def _expected(experiment: Experiment, zygote: Zygote) -> tuple[dict[str, object], int]:
    """Results of an uninterrupted run, and how many write-like calls it makes."""
    with workshop() as folder:
        log = folder / "log"
        ended = zygote.run(experiment.command, folder, fault=Fault(str(folder / "r"), log=str(log)))
        if ended.code != 0:
            raise RuntimeError(f"{experiment.name} fails undisturbed: {ended.err[-300:]}")
        return results(experiment, folder), len(log.read_text().split())


def _journal_lines(experiment: Experiment, folder: Path) -> dict[str, list[bytes]]:
    """Whole lines of the journals."""
    found = contents(folder / "r" / experiment.place, experiment.journals)
    return {name: content.splitlines(True) for name, content in found.items()}


def _resumed(
    experiment: Experiment, folder: Path, before: dict[str, list[bytes]], again: Ended
) -> list[str]:
    wrong = [f"then: {text}" for text in again.complaints(0)]
    after = _journal_lines(experiment, folder)
    for name, lines in before.items():
        whole = [line for line in lines if line.endswith(b"\n")]
        if after.get(name, [])[: len(whole)] != whole:
            wrong.append(f"then: {name} lost or changed a line")
    left = [p for p in (folder / "r").rglob("*") if p.name.endswith((".vivit-bench-tmp", ".lock"))]
    # A killed process's lock file is taken and removed by the next one.
    return [*wrong, *(f"then: left behind {path}" for path in left)]


def forked(
    experiment: Experiment, expected: dict[str, object], kills: Sequence[Fault | float]
) -> Case:
    """A fork that kills itself at a call, or is killed after some seconds; several in turn."""

    def case(zygote: Zygote, folder: Path) -> Sequence[str]:
        wrong: list[str] = []
        for kill in kills:
            before = _journal_lines(experiment, folder)
            if isinstance(kill, Fault):
                fault = Fault(str(folder / "r"), kill.index, kill=kill.kill)
                ended = zygote.run(experiment.command, folder, fault=fault)
            else:
                process = zygote.start(experiment.command, folder)
                select.select([], [], [], kill)
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    os.kill(process, signal.SIGKILL)
                ended = zygote.wait(process)
            wrong += ended.complaints(0, -9)
            after = _journal_lines(experiment, folder)
            lost = [k for k, v in before.items() if after.get(k, [])[: len(v)] != v]
            wrong += [f"{name} lost a line" for name in lost if before[name][-1:] != [b""]]
        before = _journal_lines(experiment, folder)
        wrong += _resumed(experiment, folder, before, zygote.run(experiment.command, folder))
        if results(experiment, folder) != expected:
            wrong.append("then: other results")
        return wrong

    moments = [f"{k.kill} call {k.index}" if isinstance(k, Fault) else f"{k:.2f} s" for k in kills]
    return f"{experiment.name} killed at {', '.join(moments)}", case


def real(experiment: Experiment, expected: dict[str, object], seconds: float, group: bool) -> Case:
    """A process of its own with its real children, killed alone or with its group."""

    def case(zygote: Zygote, folder: Path) -> Sequence[str]:
        mark = uuid.uuid4().hex
        command = [sys.executable, "-m", "vivit_bench", *experiment.command]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARK: mark}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, cwd=folder, env=env, process_group=0, **quiet) as process:
            descriptor = os.pidfd_open(process.pid)
            select.select([descriptor], [], [], seconds)
            os.close(descriptor)
            (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        left = left_after(mark, _ENDS_SECONDS)
        wrong = [f"{len(left)} processes are alive"] if left else []
        before = _journal_lines(experiment, folder)
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, check=False)
        err = done.stderr.decode(errors="backslashreplace")
        wrong += _resumed(experiment, folder, before, Ended(done.returncode, "", err))
        found = results(experiment, folder)
        if experiment.name in ("search", "comparison"):  # the fakes have made-up sizes
            return wrong + ([] if _sizes(found) == 1 else ["then: no finished run"])
        return wrong + ([] if found == expected else ["then: other results"])

    return f"{experiment.name}, {'group' if group else 'parent'} killed after {seconds:.2f} s", case


def _sizes(found: dict[str, object]) -> int:
    """Finished runs; of searches those with the size that is right, 16."""
    heads = [v for k, v in found.items() if k.endswith("run.json") and isinstance(v, tuple)]
    return sum(
        head[0] == "finished" and head[2]["critical_batch_size"] in (16, None) for head in heads
    )


def series(
    count: int,
    seed: int,
    workers: int,
    names: Sequence[str] = tuple(EXPERIMENTS),
    share: float = 0.2,
) -> Series:
    draw = random.Random(seed)
    known = {name: _expected(EXPERIMENTS[name], zygotes(1)[0]) for name in names}
    cases = []
    for k in range(count):
        experiment = EXPERIMENTS[names[k % len(names)]]
        expected, calls = known[experiment.name]
        if draw.random() < share:
            seconds = draw.uniform(0.3, 1.0) * _REAL[experiment.name]
            cases.append(real(experiment, expected, seconds, draw.random() < 0.5))
            continue
        kills: list[Fault | float] = []
        for _ in range(draw.choice((1, 1, 2, 3))):
            place = Fault("", draw.randrange(calls), kill=draw.choice(("before", "after")))
            kills.append(place if draw.random() < 0.7 else draw.uniform(0.05, 1.0))
        cases.append(forked(experiment, expected, kills))
    return run_cases(cases, workers)


if __name__ == "__main__":
    raise SystemExit(main(series, 200))
