"""Damaged files: every stored file of every experiment in every way, under every command.

python scripts/torture/damage.py --count 1000 --seed 0
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from common import (
    EXPERIMENTS,
    Case,
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
from faults import Fault

Damage = Callable[[Path], None]


def _rewrite(change: Callable[[bytes], bytes]) -> Damage:
    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def _edit(content: bytes) -> bytes:
    """Another digit in the last number but one."""
    places = [k for k, byte in enumerate(content) if byte in b"0123456789"]
    place = places[-len(places) // 3]
    return content[:place] + bytes([(content[place] - 47) % 10 + 48]) + content[place + 1 :]


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    away = path.with_name(f"away-{path.name}")
    path.rename(away)
    away.write_bytes(_edit(away.read_bytes()))
    path.symlink_to(away.name)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _shape(content: bytes) -> bytes:
    """JSON of another shape; of a table, other columns."""
    if content.lstrip()[:1] != b"{":
        return b"a,b\n1,2\n"
    try:
        return json.dumps({"format": list(json.loads(content)), "check": None}).encode()
    except ValueError:  # a line each
        return b'[1, 2]\n"text"\n{"check": 1, "entry": {"n": []}}\nnull\n' + b"[" * 5000 + b"\n"


DAMAGES: dict[str, Damage] = {
    "truncated": _rewrite(lambda content: content[: len(content) * 2 // 3]),
    "last byte gone": _rewrite(lambda content: content.rstrip()[:-1]),
    "empty": _rewrite(lambda content: b""),
    "not UTF-8": _rewrite(lambda content: content[:40] + b"\xff\xfe\x00" + content[40:]),
    "wrong shape": _rewrite(_shape),
    "edited": _rewrite(_edit),
    "doubled": _rewrite(lambda content: content * 2),
    "deleted": Path.unlink,
    "a folder": _folder,
    "a link to an edited file": _link,
    "a link to itself": _loop,
    "unreadable bytes": _rewrite(lambda content: os.urandom(len(content))),
}
_ABSENT = {"deleted", "a folder", "a link to itself"}


class Stage:
    """A run as it lies there before the damage, and what every command then says."""

    def __init__(self, zygote: Zygote, experiment: Experiment, stop: int, folder: Path) -> None:
        self.experiment, self.folder, self.finished = experiment, folder, not stop
        self.readers = [[*each.split(), "--results-dir", "r"] for each in experiment.readers]
        root = str(folder / "r")
        fault = Fault(root, index=stop, kill="before") if stop else None
        zygote.run(experiment.command, folder, fault=fault)
        self.said = {tuple(command): self._of(zygote, command) for command in self.readers}
        with workshop() as place:
            zygote.run(experiment.command, place)
            self.expected = results(experiment, place)

    def _of(self, zygote: Zygote, command: list[str]) -> tuple[int | None, str]:
        with workshop() as place:
            shutil.copytree(self.folder / "r", place / "r")
            ended = zygote.run(command, place)
            return ended.code, ended.out


def _case(stage: Stage, file: str, how: str, command: list[str]) -> Case:
    fresh = "--fresh" in command
    runs = command[: len(stage.experiment.command)] == stage.experiment.command

    def case(zygote: Zygote, folder: Path) -> Sequence[str]:
        shutil.copytree(stage.folder / "r", folder / "r")
        path = folder / "r" / file
        DAMAGES[how](path)
        before = contents(path.parent)
        ended = zygote.run(command, folder)
        wrong = ended.complaints(0, 1, 2)
        if ended.code == 2 and how not in _ABSENT and stage.finished:
            wrong.append(f"exit code 2: {ended.last}")
        named = path.name in ended.err or path.parent.name in ended.err
        if ended.code and not (named or (how == "deleted" and "no " in ended.err)):
            wrong.append(f"does not say which file: {ended.last}")
        after = contents(path.parent)
        if runs and ended.code == 0:
            if results(stage.experiment, folder) != stage.expected:
                wrong.append("accepted, and other results")
        elif ended.code and any(after.get(name) != before[name] for name in before):
            wrong.append("refused, and yet other files have changed")
        elif not runs and ended.code == 0 and not _is_apart(stage, file):
            usual = stage.said[tuple(command)]
            if (ended.code, ended.out) != usual and path.parent.name not in ended.err:
                wrong.append("other output, and nothing said about it")
            if stage.finished and ended.out == usual[1] and not named and not ended.err:
                wrong.append("accepted as it is")
        return [*wrong, *(_mend(stage, zygote, folder, file, how) if runs and not fresh else [])]

    state = "finished" if stage.finished else "unfinished"
    last = " ".join(command[-3:]) if fresh else " ".join(command[:2])
    return f"{stage.experiment.name} {state}, {file.split('/', 1)[1]} {how}: {last}", case


def _mend(stage: Stage, zygote: Zygote, folder: Path, file: str, how: str) -> list[str]:
    """--fresh gives the right results, except in a folder that is no longer known to be ours."""
    ended = zygote.run([*stage.experiment.command, "--fresh"], folder)
    if file.endswith("run.json") and how in _ABSENT and ended.code == 2:
        return []
    wrong = [f"--fresh: {text}" for text in ended.complaints(0)]
    if results(stage.experiment, folder) != stage.expected:
        wrong.append("--fresh: other results")
    return wrong


def _is_apart(stage: Stage, file: str) -> bool:
    """Whether readers may do without the file: a report, or a journal behind tables."""
    ours = (*stage.experiment.apart, *stage.experiment.journals, "*.npz")
    reports = ("*.png", "*.pdf", "*.md", "*.tex", "table.csv", "figure_*.csv")
    return any(fnmatchcase(Path(file).name, each) for each in (*ours, *reports))


def stages(zygote: Zygote, name: str, folder: Path) -> list[Stage]:
    """A finished run and, killed at two places, an unfinished one."""
    found = []
    experiment = EXPERIMENTS[name]
    log = folder / "log"
    place = folder / "count"
    for stop in (-1, 0, 6, 7):  # sevenths of the calls
        place = folder / f"{name}-{stop}"
        place.mkdir()
        shutil.copy(folder / "tiny.py", place)
        if stop < 0:
            zygote.run(experiment.command, place, fault=Fault(str(place / "r"), log=str(log)))
            calls = len(log.read_text().split())
        else:
            found.append(Stage(zygote, experiment, (7 - stop) % 7 * calls // 8 or 0, place))
    return found[:2] if name == "sweep" else found


def series(
    count: int, seed: int, workers: int, names: Sequence[str] = tuple(EXPERIMENTS)
) -> Series:
    (zygote,) = zygotes(1)
    found: list[Case] = []
    with workshop() as folder:
        for name in names:
            for stage in stages(zygote, name, folder):
                run = stage.experiment.command
                files = contents(stage.folder / "r")
                commands = [run, [*run, "--fresh"], *stage.readers]
                found += [
                    _case(stage, file, how, command)
                    for file in files
                    for how in DAMAGES
                    for command in commands
                ]
        return run_cases(pick(found, count, seed), workers)


if __name__ == "__main__":
    raise SystemExit(main(series, 1000))
