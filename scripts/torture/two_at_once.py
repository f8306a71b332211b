"""Two processes at once in one results folder, for every pair of commands.

python scripts/torture/two_at_once.py --count 300 --seed 0
"""

import itertools
import random
import select
from collections.abc import Sequence
from pathlib import Path

from common import (
    EXPERIMENTS,
    Case,
    Experiment,
    Series,
    Zygote,
    main,
    pick,
    results,
    run_cases,
    workshop,
    zygotes,
)

_BUSY = "another process"


class Command:
    """What one of the two does."""

    def __init__(self, experiment: Experiment, kind: str) -> None:
        self.experiment, self.kind = experiment, kind
        words = {
            "run": experiment.run,
            "fresh": f"{experiment.run} --fresh",
            "other": f"{experiment.run} {experiment.other}",
        }.get(kind, kind)
        self.words = [*words.split(), "--results-dir", "r"]
        self.reads = kind not in ("run", "fresh", "other")

    def __str__(self) -> str:
        return self.kind if self.reads else f"{self.experiment.name} {self.kind}"


def _case(pair: tuple[Command, Command], stored: bool, lag: float, partner: Zygote) -> Case:
    a, b = pair

    def case(zygote: Zygote, folder: Path) -> Sequence[str]:
        if stored:
            for each in {a.experiment.name: a.experiment, b.experiment.name: b.experiment}.values():
                zygote.run(each.command, folder)
        first = zygote.start(a.words, folder)
        select.select([], [], [], lag)
        other = partner.start(b.words, folder)
        both = [zygote.wait(first), partner.wait(other)]
        wrong = []
        for command, ended in zip(pair, both, strict=True):
            allowed = (0, 1, 2) if command.reads and not stored else (0, 1)
            if command.reads and "other" in (a.kind, b.kind):
                allowed = (0, 1, 2)  # the name has two runs now
            wrong += [f"{command}: {text}" for text in ended.complaints(*allowed)]
            if ended.code == 1 and _BUSY not in ended.err and not command.reads:
                wrong.append(f"{command}: {ended.last}")
        if all(ended.code for ended in both) and not (a.reads or b.reads):
            wrong.append("neither of the two got to its end")
        for command in pair:
            again = zygote.run(command.words, folder)
            if not (command.reads and "other" in (a.kind, b.kind)) and (
                stored or not command.reads
            ):
                wrong += [f"{command} again: {text}" for text in again.complaints(0)]
        for command in pair:
            if not command.reads:
                wrong += _check(zygote, command, folder)
        left = [p for p in (folder / "r").rglob("*") if ".replaced-" in p.name]
        left += list((folder / "r").rglob("*.vivit-bench-tmp"))
        return [*wrong, *(f"left behind {path.relative_to(folder)}" for path in left[:1])]

    return f"{a} + {b}, {'stored' if stored else 'empty'}, {lag * 1000:.0f} ms", case


def _check(zygote: Zygote, command: Command, folder: Path) -> list[str]:
    """The results of a command that ran beside another, against those of one that ran alone."""
    with workshop() as place:
        zygote.run(command.words, place)
        alone = results(command.experiment, place)
    found = results(command.experiment, folder)
    return [f"{command}: {k} is not as it should be" for k, v in alone.items() if found.get(k) != v]


def series(
    count: int, seed: int, workers: int, names: Sequence[str] = tuple(EXPERIMENTS)
) -> Series:
    draw = random.Random(seed)
    commands = [
        Command(EXPERIMENTS[name], kind)
        for name in names
        for kind in ("run", "fresh", "other", *EXPERIMENTS[name].readers)
    ]
    pairs = list(itertools.combinations_with_replacement(commands, 2))
    related = [(a, b) for a, b in pairs if a.experiment.place == b.experiment.place]
    unrelated = [pair for pair in pairs if pair not in related]
    chosen = related + draw.sample(unrelated, min(len(unrelated), 20))
    _, second = zygotes(2)
    cases = [
        _case(pair, stored, draw.choice((0.0, 0.0, 0.02, 0.1)), second)
        for pair in chosen
        for stored in (False, True)
    ]
    return run_cases(pick(cases, count, seed), 1)


if __name__ == "__main__":
    raise SystemExit(main(series, 300))
