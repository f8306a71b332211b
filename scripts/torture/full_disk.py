"""A disk that fails at every write-like call of every command, and a really full one.

python scripts/torture/full_disk.py --count 400 --seed 0
"""

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common import (
    EXPERIMENTS,
    Case,
    Ended,
    Experiment,
    Series,
    Zygote,
    contents,
    main,
    pick,
    results,
    run_cases,
    workshop,
    zygotes,
)
from faults import CALLS, Fault

RUN, FRESH = "run", "fresh"
_MANNERS = [
    Fault("", error=errno.ENOSPC),
    Fault("", error=errno.ENOSPC, sticky=True),
    Fault("", error=errno.ENOSPC, sticky=True, short=True),
    Fault("", error=errno.EIO),
    Fault("", error=errno.EROFS),
    Fault("", error=errno.EROFS, sticky=True),
]
_HARMLESS = {"unlink", "mkdir"}
"""Calls that a command may do without: a lock's removal, making a folder that is there."""


class Stage:
    """Folders in which a command is about to start, and what comes out undisturbed."""

    def __init__(self, zygote: Zygote, experiment: Experiment, act: str, folder: Path) -> None:
        self.experiment, self.act = experiment, act
        self.folder = folder
        other = [*experiment.run.split(), *experiment.other.split(), "--results-dir", "r"]
        _must(zygote.run(other, folder))
        self.earlier = contents(folder / "r")
        if act != RUN:
            _must(zygote.run(experiment.command, folder))
        self.before = contents(folder / "r")
        self.command = {
            RUN: experiment.command,
            FRESH: [*experiment.command, "--fresh"],
        }.get(act) or [*act.split(), *self._named(), "--results-dir", "r"]
        with workshop() as place:
            shutil.copytree(folder / "r", place / "r")
            log = place / "log"
            _must(zygote.run(self.command, place, fault=Fault(str(place / "r"), log=str(log))))
            self.calls = log.read_text().split()
            self.expected = results(experiment, place)

    def _named(self) -> list[str]:
        """Readers that name a run need the one of seed 0; two runs share the readable start."""
        return ["--seed", "0"] if self.act.startswith("spectrum plot tiny.py") else []


def _must(ended: Ended) -> None:
    if ended.code != 0:
        raise RuntimeError(f"a command failed undisturbed: {ended.err[-500:]}")


def _case(stage: Stage, fault: Fault) -> Case:
    def case(zygote: Zygote, folder: Path) -> Sequence[str]:
        shutil.copytree(stage.folder / "r", folder / "r")
        first = zygote.run(stage.command, folder, fault=replace(fault, root=str(folder / "r")))
        call = stage.calls[fault.index]
        wrong = first.complaints(1, 0) if call in _HARMLESS else first.complaints(1)
        return [*wrong, *_afterwards(stage, zygote, folder, first)]

    manner = f"{errno.errorcode[fault.error]}{', from then on' * fault.sticky}"
    name = f"{stage.experiment.name} {stage.act}, call {fault.index} {stage.calls[fault.index]}"
    return f"{name}: {manner}{', half written' * fault.short}", case


def _afterwards(stage: Stage, zygote: Zygote, folder: Path, first: Ended) -> list[str]:
    """What is wrong after a command that met a fault, and after the same command without it."""
    wrong = []
    now = contents(folder / "r")
    if any(now.get(name) != content for name, content in stage.earlier.items()):
        wrong.append("an earlier run has changed")
    if stage.act == FRESH and first.code != 0:
        kept, finished = set(now.values()), set(_finished(folder))
        old = {k: v for k, v in stage.before.items() if k not in stage.earlier}
        if any(v not in kept and str(Path(k).parent) not in finished for k, v in old.items()):
            wrong.append("the run that --fresh was to replace is lost")
    elif stage.act not in (RUN, FRESH) and any(
        now.get(name) != content for name, content in stage.before.items()
    ):
        wrong.append("a stored file has changed")
    again = zygote.run(stage.command, folder)
    wrong += [f"then: {text}" for text in again.complaints(0)]
    found = results(stage.experiment, folder)
    if found != stage.expected:
        differing = [k for k in {*found, *stage.expected} if found.get(k) != stage.expected.get(k)]
        wrong.append(f"then: other results ({', '.join(differing[:3])})")
    left = [str(path) for path in (folder / "r").rglob("*") if _is_litter(path.name)]
    if again.code == 0 and stage.act in (RUN, FRESH) and left:
        wrong.append(f"then: left behind {left[0]}")
    return wrong


def _finished(folder: Path) -> list[str]:
    headers = [
        path for path in (folder / "r").rglob("run.json") if b'"finished"' in path.read_bytes()
    ]
    return [str(path.parent.relative_to(folder / "r")) for path in headers]


def _is_litter(name: str) -> bool:
    return name.endswith(".vivit-bench-tmp") or ".replaced-" in name or name.endswith(".lock")


def _small_disk(stage: Stage, kib: int, real: bool) -> Case:
    def case(zygote: Zygote, folder: Path) -> Sequence[str]:
        place = folder / "r"
        place.mkdir()
        used = sum(-(-len(content) // 4096) * 4 + 8 for content in stage.before.values())
        if real:
            size = f"size={used + kib}k"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], check=True)
        try:
            shutil.copytree(stage.folder / "r", place, dirs_exist_ok=True)
            first = zygote.run(stage.command, folder, fsize=None if real else kib * 512)
            wrong = first.complaints(0, 1)
            if real:
                subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
            return [*wrong, *_afterwards(stage, zygote, folder, first)]
        finally:
            if real:
                subprocess.run(["umount", place], check=True)

    kind = f"a disk with {kib} KiB left" if real else f"files of at most {kib * 512} bytes"
    return f"{stage.experiment.name} {stage.act}, {kind}", case


def cases(stage: Stage, draw: random.Random) -> list[Case]:
    """Every call in every manner that concerns it, then small disks."""
    found = [
        _case(stage, replace(manner, index=index))
        for index in range(len(stage.calls))
        for manner in _MANNERS
        if manner.error != errno.ENOSPC or stage.calls[index] in {"write", "fsync", "open", "mkdir"}
        if not manner.short or stage.calls[index] == "write"
    ]
    for kib in sorted(draw.sample(range(4, 80, 4), 6)):
        found += [_small_disk(stage, kib, real) for real in (False, True)[: 1 + _may_mount()]]
    return found


def _may_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


def series(
    count: int, seed: int, workers: int, names: Sequence[str] = tuple(EXPERIMENTS)
) -> Series:
    (zygote,) = zygotes(1)
    found: list[Case] = []
    with workshop() as folder:
        for name in names:
            experiment = EXPERIMENTS[name]
            for act in (RUN, FRESH, *_quiet_readers(experiment)):
                place = folder / f"{name}-{len(found)}"
                place.mkdir()
                shutil.copy(folder / "tiny.py", place)
                found += cases(Stage(zygote, experiment, act, place), random.Random(seed))
        return run_cases(pick(found, count, seed), workers)


def _quiet_readers(experiment: Experiment) -> list[str]:
    """Commands that read and write reports, where their name is not ambiguous here."""
    return [
        each for each in experiment.readers if experiment.name in ("sweep", "search", "comparison")
    ]


if __name__ == "__main__":
    assert set(CALLS)
    raise SystemExit(main(series, 400))
