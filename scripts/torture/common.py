"""What the series share: experiments of seconds, processes that run them, a count of outcomes."""

import argparse
import atexit
import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ZYGOTE = Path(__file__).with_name("zygote.py")
sys.path.insert(0, str(ZYGOTE.parent))

from faults import Fault  # noqa: E402

MARK = "VIVIT_BENCH_TORTURE"
PROBLEM = """
import torch
from torch import nn

G = torch.Generator().manual_seed(3)
X = torch.randn(60, 6, generator=G)
S = X @ torch.randn(6, 3, generator=G)

def tiny():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, nn.CrossEntropyLoss(), (X, S.argmax(1))
"""


@dataclass(frozen=True)
class Experiment:
    """A command that stores something, and those that read it."""

    name: str
    run: str
    other: str
    """What makes other settings of it."""
    tables: tuple[str, ...]
    """Files that come out bit by bit."""
    readers: tuple[str, ...]
    folder: str = ""
    journals: tuple[str, ...] = ()
    """Files that lose a damaged line alone."""
    apart: tuple[str, ...] = ()
    """Files that are no part of the result."""
    fake: bool = False
    """Whether its trials are made up in forks."""

    @property
    def command(self) -> list[str]:
        return [*self.run.split(), "--results-dir", "r"]

    @property
    def place(self) -> str:
        return self.folder or self.name


EXPERIMENTS = {
    each.name: each
    for each in (
        Experiment(
            "spectrum",
            "spectrum compute tiny.py:tiny --batch-size 8 --threads 1",
            "--seed 1",
            ("eigenvalues.csv",),
            ("spectrum plot tiny-tiny_exact_full", "spectrum compare tiny-tiny tiny-tiny"),
        ),
        Experiment(
            "sweep",
            "spectrum sweep tiny.py:tiny --batch-size 8 --threads 1",
            "--seed 1",
            ("eigenvalues.csv",),
            ("spectrum plot tiny.py:tiny",),
            folder="spectrum",
        ),
        Experiment(
            "noise",
            "noise run tiny.py:tiny --optimizer sgd --lr 0.1 --epochs 2 --batch-size 16 "
            "--monitor-batch-size 5 --checkpoints 3 --per-sample --threads 1",
            "--seed 1",
            ("directions.csv", "checkpoints.csv", "curves.csv", "per_sample/*.npz"),
            ("noise table tiny-tiny_sgd", "noise plot tiny-tiny_sgd"),
            apart=("state.pt",),
        ),
        Experiment(
            "quadratic",
            "quadratic run --repeats 4 --steps 2 --resamples 10 --batch-size 16",
            "--seed 1",
            ("losses.csv", "dampings.csv"),
            ("quadratic table", "quadratic plot"),
            journals=("repetitions.jsonl",),
        ),
        Experiment(
            "search",
            "critical-batch search tiny.py:tiny --max-batch 16 --memory-limit 64MiB --threads 1",
            "--seed 1",
            (),
            (
                "critical-batch list --format json",
                "critical-batch table --problem tiny.py:tiny",
                "critical-batch plot --problem tiny.py:tiny",
            ),
            folder="critical_batch",
            journals=("trials.jsonl",),
            apart=("stderr.txt",),
            fake=True,
        ),
        Experiment(
            "comparison",
            "compare-engines tiny.py:tiny --batch-size 4 --repeats 2 --threads 1 "
            "--engine vivit-bench --engine backpack",
            "--seed 1",
            (),
            ("compare-engines --stored", "compare-engines --stored --format json"),
            journals=("runs.jsonl",),
            fake=True,
        ),
        Experiment(
            "series",
            "compare-engines tiny.py:tiny --batch-size 2,4,8 --repeats 2 --threads 1 "
            "--engine vivit-bench --engine backpack",
            "--seed 1",
            (),
            (),  # a list of several runs says nothing of one that is gone
            folder="comparison",
            journals=("runs.jsonl",),
            fake=True,
        ),
    )
}


@dataclass(frozen=True)
class Ended:
    """How a command ended; code None: it did not in its time."""

    code: int | None
    out: str
    err: str

    @property
    def last(self) -> str:
        lines = [line for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def complaints(self, *codes: int) -> list[str]:
        """What is wrong with how it ended, whatever it did."""
        found = [] if self.code in codes else [f"exit code {self.code}, not {codes}: {self.last}"]
        if "Traceback" in self.err or "Traceback" in self.out:
            found.append(f"traceback: {self.last}")
        if self.code is not None and self.code > 0 and not self.last:
            found.append("nothing on stderr")
        if self.code == 1 and not self.last.startswith("vivit-bench: "):
            found.append(f"last line: {self.last}")
        return found


class Zygote:
    """See `zygote`; one command at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ZYGOTE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        self._read(300)

    def _read(self, seconds: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        answer = json.loads(self._process.stdout.readline())
        assert isinstance(answer, dict)
        return answer

    def start(
        self,
        arguments: Sequence[str],
        cwd: Path,
        *,
        fault: Fault | None = None,
        fake: bool = True,
        fsize: int | None = None,
        env: Mapping[str, str] = {},
    ) -> int:
        """Start a command and return its process."""
        request = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "env": dict(env),
            "fake": fake,
            "fsize": fsize,
            "fault": None if fault is None else asdict(fault),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._read(60)
        assert answer is not None
        return int(answer["pid"])

    def wait(self, pid: int, seconds: float = 120.0) -> Ended:
        """Wait for the command that was started."""
        answer = self._read(seconds)
        if answer is None:
            os.kill(pid, signal.SIGKILL)
            answer = {**(self._read(60) or {"out": "", "err": ""}), "code": None}
        return Ended(**answer)

    def run(self, arguments: Sequence[str], cwd: Path, **options: Any) -> Ended:
        return self.wait(self.start(arguments, cwd, **options))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


_zygotes: list[Zygote] = []


def zygotes(number: int) -> list[Zygote]:
    """So many, made once for all series of this process."""
    if not _zygotes:
        atexit.register(lambda: [each.close() for each in _zygotes])
    while len(_zygotes) < number:
        _zygotes.append(Zygote())
    return _zygotes[:number]


@dataclass
class Series:
    """Counts outcomes; a line for each wrong one."""

    attempted: int = 0
    wrong: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, case: str, complaints: Sequence[str]) -> None:
        self.attempted += 1
        if complaints:
            self.wrong += 1
            line = f"{case}: {'; '.join(complaints)}"
            self.lines.append(" ".join(line.split())[:700])
            print(self.lines[-1], flush=True)

    def end(self) -> int:
        right = self.attempted - self.wrong
        print(f"attempted {self.attempted}, survived {right}, wrong {self.wrong}", flush=True)
        return int(self.wrong > 0)


Case = tuple[str, Callable[[Zygote, Path], Sequence[str]]]
"""A case's name, and what does it in an empty folder and returns what is wrong."""


def run_cases(cases: Sequence[Case], workers: int = 2) -> Series:
    """Run every case in a folder of its own, so many at once."""
    series = Series()
    free: SimpleQueue[Zygote] = SimpleQueue()
    for zygote in zygotes(workers):
        free.put(zygote)

    def one(case: Case) -> tuple[str, Sequence[str]]:
        zygote = free.get()
        try:
            with workshop() as folder:
                return case[0], case[1](zygote, folder)
        except Exception as error:
            return case[0], [f"the case itself failed: {type(error).__name__}: {error}"]
        finally:
            free.put(zygote)

    with ThreadPoolExecutor(workers) as pool:
        for name, complaints in pool.map(one, cases):
            series.add(name, complaints)
    return series


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """A folder with the tiny problem."""
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        (folder / "tiny.py").write_text(PROBLEM)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def contents(folder: Path, patterns: Sequence[str] = ("*",)) -> dict[str, bytes]:
    """Files below a folder whose path ends like one of the patterns (locks are left out)."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.name.endswith(".lock")
        and any(fnmatchcase(str(path), f"*/{pattern}") for pattern in patterns)
    }


def results(experiment: Experiment, folder: Path) -> dict[str, object]:
    """What must come out the same, of every run that is in its place."""
    root = folder / "r" / experiment.place
    tables = contents(root, experiment.tables)
    found: dict[str, object] = {k: v for k, v in tables.items() if ".replaced-" not in k}
    for path in root.glob("*/run.json"):
        if ".replaced-" not in str(path):
            header = json.loads(path.read_text())
            facts = {name: header["results"].get(name) for name in ("critical_batch_size",)}
            found[str(path.relative_to(root))] = (header["state"], header["settings"], facts)
    return found


def processes_of(mark: str) -> list[int]:
    """Living processes that were started with a mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX" and f"{MARK}={mark}".encode() in (
                    entry / "environ"
                ).read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def left_after(mark: str, seconds: float) -> list[int]:
    """Those that are still there after so long."""
    deadline = time.monotonic() + seconds
    while (found := processes_of(mark)) and time.monotonic() < deadline:
        select.select([], [], [], 0.05)
    return found


def main(series: Callable[[int, int, int], Series], count: int) -> int:
    """The command line of a series."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    return series(options.count, options.seed, options.workers).end()


def pick(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """So many of the cases, or all."""
    draw = random.Random(seed)
    return list(cases) if count >= len(cases) else draw.sample(list(cases), count)
