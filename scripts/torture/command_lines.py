"""Random bad command lines over all commands: a line on stderr and the right exit code.

python scripts/torture/command_lines.py --count 400 --seed 0
"""

import importlib
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from common import EXPERIMENTS, Case, Series, Zygote, main, run_cases, workshop, zygotes

HUGE, LONG = str(2**64), "x" * 5000
_TEXTS = ["", " ", "a/b", "../a", "/", ".", "\x07bell", "\udcff\udcfe", "\n", "é" * 150, LONG]
_NUMBERS = ["", "x", "nan", "1e999", "-1", HUGE, "-" + HUGE, "1.5.2", "0x10", "٣", "1,5", LONG]
_INTEGERS = [*_NUMBERS, "1.5", "1e3"]
_SIZES = ["", "x", "-1", "0", "nan", "1XiB", "inf", "1e-30GiB", HUGE, "99999GiB", LONG]
_PATHS = ["folder", "file/x", "", LONG, "\udcff/x", "/proc/nothing", "/dev/full", "tiny.py/x"]

_LISTS = ["", "x", "nan", "1,nan", "inf", "-1,2", "1;2", ",", HUGE + "x"]
_PLACES = ["", "x", "-1", "5epoch", "nansteps", "1.5steps", "9" * 40, "0,,", "٣steps"]
_GRIDS = ["", "1", "1:2", "1:2:x", "2:1:5", "0:1:5", "nan:1:3", "1:inf:3", "1:2:0", "1:2:-3"]

BAD: dict[str, list[str]] = {
    "--seed": _INTEGERS,
    "--batch-size": [*_INTEGERS, "0", "61", "100000"],
    "--threads": [*_INTEGERS, "0", "100000"],
    "--mc-samples": [*_INTEGERS, "0"],
    "--cutoff": _NUMBERS,
    "--lr": [*_NUMBERS, "0"],
    "--momentum": _NUMBERS,
    "--epochs": [*_INTEGERS, "0"],
    "--checkpoints": [*_INTEGERS, "0", "1"],
    "--monitor-batch-size": [*_INTEGERS, "0", "60"],
    "--at": _PLACES,
    "--repeats": ["", "x", "0", "-1", "nan", "1.5"],
    "--steps": ["", "x", "0", "-1", "nan", "1.5"],
    "--resamples": ["", "x", "0", "-1", "nan", HUGE],
    "--percentile": ["", "x", "-1", "101", "nan", "inf"],
    "--learning-rate": ["", "x", "nan", "inf"],
    "--theta-init": ["", "x", "nan", "inf"],
    "--curvatures": _LISTS,
    "--dampings": _LISTS,
    "--optimizers": ["", "x", "sgd;constant", "SGD", ","],
    "--grid": _GRIDS,
    "--gradient-variance": ["", "x", "-1", "nan", "inf"],
    "--curvature-variance": ["", "x", "-1", "nan", "inf"],
    "--curvature": ["", "x", "Exact", "exact,mc", LONG],
    "--samples": ["", "x", "half", "\x07"],
    "--quantity": ["", "x", "newtons"],
    "--engine": ["", "x", LONG, "\udcff", "../vivit"],
    "--data": ["", "x", "mnist6k", "deepobs"],
    "--dtype": ["", "float16", "x"],
    "--device": ["", "x", "cuda", "cuda:99", "cpu:1", "cuda:-1", "mps", "meta", "cuda:" + HUGE],
    "--optimizer": ["", "x", "adamw"],
    "--memory-limit": _SIZES,
    "--engine-memory": _SIZES,
    "--method": ["", "x", "Gram"],
    "--tolerance": ["", "x", "nan", "0", "-1", "1"],
    "--max-products": ["", "x", "0", "-1", "1.5"],
    "--max-directions": ["", "x", "0", "-1", "1.5"],
    "--max-batch": ["", "x", "0", "-1", "nan", "1.5"],
    "--trial-timeout": ["", "x", "0", "-1", "nan", "inf"],
    "--timeout": ["", "x", "0", "-1", "nan"],
    "--name": _TEXTS,
    "--format": ["", "x", "CSV", "\udcff"],
    "--blocks": ["", "x", "a=", "=b", "a=nothing", "\udcff=*", "a=[", LONG],
    "--params": ["", "nothing", "[", "\udcff", LONG],
    "--certify": ["", "x", "3"],
    "--top": ["", "x", "0", "-1", "1.5"],
    "--checkpoint": [*_PATHS, "binary"],
    "--results-dir": ["file", "file/x", LONG, "/proc/nothing", "/dev/null", "\0"],
    "--plot": ["o.txt", "x", "o.png"],
    "--output": [*_PATHS, "o.txt", "file/x.csv", "folder.csv", LONG + ".csv"],
    "--damping": ["", "x", "nan", "-1", "inf", "0"],
}
_LINES = [
    *(each.run for each in EXPERIMENTS.values()),
    *(reader for each in EXPERIMENTS.values() for reader in each.readers),
    "curvature newton tiny.py:tiny --batch-size 8",
    "curvature directional tiny.py:tiny --batch-size 8",
    "curvature eigenvectors tiny.py:tiny --batch-size 8 --output v.pt",
    "curvature explain tiny.py:tiny",
    "curvature eigenvalues tiny.py:tiny --method lanczos",
    "critical-batch sweep --problem mnist_logreg --max-batch 2 --memory-limit 64MiB",
    "problems show tiny.py:tiny",
    "problems list",
]
_NAMES = [
    *("", " ", "x", LONG, "\udcff", "\x07", "tiny.py", "tiny.py:", ":tiny"),
    *("tiny.py:nothing", "folder:f", "nothing.py:f", "binary:f", "tiny.py:X", "../tiny.py:tiny"),
    *("tiny.py:torch", "mnist_logreg2", "mnist logreg", "/", "~", "*", "tiny.py:tiny:tiny"),
]
_JUNK = ["--nothing", "--", "-", "extra", "--seed", "--help=1", "-zq", "\udcff", "--name=", ""]


def _parameters() -> dict[str, set[str]]:
    """The options of every command, by its words."""
    main_module = importlib.import_module("vivit_bench.cli.main")
    app = typer.Typer()
    for name, module in main_module._GROUPS.items():
        app.add_typer(importlib.import_module(module).app, name=name)
    for name, (module, function) in main_module._COMMANDS.items():
        app.command(name)(getattr(importlib.import_module(module), function))
    found: dict[str, set[str]] = {}

    def walk(command: Any, words: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{words} {name}".strip())
        found[words] = {option for each in command.params for option in each.opts}

    walk(typer.main.get_command(app), "")
    return found


def _words(line: str, known: dict[str, set[str]]) -> str:
    two = " ".join(line.split()[:2])
    return two if two in known else line.split()[0]


def bad_line(draw: random.Random, known: dict[str, set[str]]) -> tuple[list[str], bool]:
    """A command line, and whether it is bad without doubt."""
    line = draw.choice(_LINES)
    words = _words(line, known)
    parts = line.split()
    if "--results-dir" in known[words]:
        parts += ["--results-dir", "r"]
    kind = draw.random()
    if kind < 0.12:
        parts.insert(draw.randint(len(words.split()), len(parts)), draw.choice(_JUNK))
        return parts, False
    if kind < 0.17:
        parts[draw.randrange(len(words.split()))] += draw.choice(["x", "\udcff", " ", LONG])
        return parts, True
    place = len(words.split())
    takes_name = len(parts) > place and not parts[place].startswith("-")
    if kind < 0.32 and takes_name:
        parts[place] = draw.choice(_NAMES)
        return parts, False
    if kind < 0.36 and len(parts) > place:
        del parts[draw.randrange(place, len(parts)) :]
        return parts, False
    options = sorted(known[words] & set(BAD))
    for option in draw.sample(options, min(len(options), draw.choice((1, 1, 1, 2)))):
        value = draw.choice(BAD[option])
        if "\0" in value:  # no process can be given it
            continue
        if option in parts:
            parts[parts.index(option) + 1] = value
        else:
            parts += [option, value]
    return parts, False


def _case(parts: list[str], bad: bool, stage: Path) -> Case:
    def case(zygote: Zygote, folder: Path) -> Sequence[str]:
        shutil.copytree(stage, folder, dirs_exist_ok=True)
        (folder / "folder").mkdir()
        (folder / "folder.csv").mkdir()
        (folder / "file").write_text("text")
        (folder / "binary").write_bytes(bytes(range(256)))
        ended = zygote.run(parts, folder)
        if ended.code is None:
            return ["did not end in its time"]
        wrong = ended.complaints(0, 1, 2)
        if bad and ended.code != 2:
            wrong.append(f"exit code {ended.code}, not 2")
        if len(ended.last) > 1600:
            wrong.append(f"a message of {len(ended.last)} characters")
        if any(ord(character) < 32 and character not in "\t" for character in ended.last):
            wrong.append("control characters in the message")
        if ended.code == 1 and not _fails(ended.err):
            wrong.append(f"exit code 1 for what was typed: {ended.last[:200]}")
        return wrong

    return ascii([part[:30] for part in parts]), case


_FAILURES = (
    *("No space left", "cannot write", "data", "diverged", "disagree", "not enough memory"),
    *("set-up failed", "failed", "No such", "does not suffice", "certif", "finite"),
)


def _fails(err: str) -> bool:
    return any(words in err for words in _FAILURES)


def series(count: int, seed: int, workers: int) -> Series:
    draw, known = random.Random(seed), _parameters()
    (zygote,) = zygotes(1)
    with workshop() as stage:
        for experiment in EXPERIMENTS.values():
            zygote.run(experiment.command, stage)
        return run_cases([_case(*bad_line(draw, known), stage) for _ in range(count)], workers)


if __name__ == "__main__":
    raise SystemExit(main(series, 400))
