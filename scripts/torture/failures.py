"""Works that fail in every way at every place of a measured child: each has its outcome.

python scripts/torture/failures.py --count 200 --seed 0
"""

import os
import random
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import MARK, Series, left_after, main, workshop
from works import ENDINGS, batch_problem

from vivit_bench.measure import Outcome, Reading, Spec, measure

WORKS = Path(__file__).with_name("works.py")
MIB = 2**20
LIMIT = 64 * MIB
PLACES = ("set-up", "warm-up", "run", "thread", "check", "digest", "certify")

_FITS, _ERROR, _OUT = {Outcome.FITS}, {Outcome.ERROR}, {Outcome.OUT_OF_MEMORY}
_TIMEOUT, _LIMIT = {Outcome.TIMEOUT}, {Outcome.LIMIT}
_CLEAN = {
    *("nothing", "mapped", "daemon", "brood", "garbage out", "small hog", "holds 20"),
    "late thread",
}
_MEMORY = {"memory", "enomem", "words", "caused"}
_WAITS = {"waits", "deaf", "stopped"}
_BIG = {"private map", "hog", "hog away", "holds 100"}
"""Above the budget of 64 MiB, then right."""
_QUIET_IN_A_THREAD = {"sys.exit 0", "sys.exit text"}


def expected(ending: str, place: str, limited: bool) -> set[Outcome]:
    """The right outcomes."""
    if place in ("set-up", "warm-up"):
        clean = ending in _CLEAN | _BIG | {"nan"}
        return _FITS if clean else _ERROR
    if ending in _CLEAN or (place == "thread" and ending in _QUIET_IN_A_THREAD | {"nan"}):
        return _FITS
    if ending == "nan":
        return _ERROR if place == "run" else _FITS
    if ending in _BIG:
        return _OUT if limited and place in ("run", "thread") else _FITS
    if ending in _WAITS:
        return _TIMEOUT
    if ending == "grows":
        return _OUT
    if ending == "lapack":
        return _LIMIT
    return _OUT if ending in _MEMORY else _ERROR


def _spec(ending: str, place: str, limited: bool, reading: Reading) -> Spec:
    return Spec(
        n=4,
        threads=1,
        work=f"{WORKS}:At",
        arguments={"ending": ending, "place": place},
        limit_bytes=LIMIT if limited else None,
        reading=reading,
        certify=True,
        digest=True,
    )


def one(ending: str, place: str, limited: bool, reading: Reading) -> tuple[str, list[str]]:
    """Run one work to its end."""
    name = f"{ending} in {place}, {reading}, {'64 MiB' if limited else 'no limit'}"
    wrong = []
    timeout = 1.5 if ending in _WAITS else 60.0
    before = _descriptors()
    seen = measure(_spec(ending, place, limited, reading), timeout)
    right = expected(ending, place, limited)
    if seen.outcome not in right:
        wrong.append(f"{seen.outcome} instead of {'/'.join(right)}: {seen.message}")
    if (seen.message == "") != (seen.outcome is Outcome.FITS):
        wrong.append(f"message {seen.message!r} of {seen.outcome}")
    if "\n" in seen.message or len(seen.message) > 700:
        wrong.append(f"message of {len(seen.message)} characters on {seen.message.count(chr(10))}")
    if _descriptors() > before + 8:  # another case may be under way
        wrong.append("descriptors are left open")
    return name, wrong


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


_ENGINE: dict[str, set[Outcome]] = {
    "usage": _ERROR,
    "memory": _OUT,
    "nan": _ERROR,
    "exit": _ERROR,
    "words": _OUT,
    "sleep": _TIMEOUT,
    "short": {Outcome.DATA, Outcome.ERROR},
    "few": {Outcome.DATA},
    "fine": _FITS,
}


def engine(kind: str, folder: Path, quantity: str) -> tuple[str, list[str]]:
    """The engine on a problem of one's own whose batches fail."""
    path = folder / f"{kind}.py"
    path.write_text(batch_problem(kind))
    arguments: dict[str, Any] = {
        "problem": f"{path}:make",
        "quantity": quantity,
        "curvature": "exact",
        "samples": "full",
        "mc_samples": 1,
        "engine": "vivit-bench",
        "data": "own",
        "data_dir": None,
        "seed": 0,
        "checkpoint": None,
        "device": "cpu",
    }
    spec = Spec(n=8, threads=1, arguments=arguments, limit_bytes=LIMIT)
    seen = measure(spec, 3.0 if kind == "sleep" else 60.0)
    right = _ENGINE[kind]
    wrong = [] if seen.outcome in right else [f"{seen.outcome}, not {right}: {seen.message}"]
    return f"{quantity} of batches that end with {kind!r}", wrong


def series(
    count: int, seed: int, workers: int, endings: Sequence[str] = tuple(ENDINGS), own: bool = True
) -> Series:
    draw, result = random.Random(seed), Series()
    grid = [
        (ending, place, limited, reading)
        for ending in endings
        for place in PLACES
        for limited, reading in (
            (True, Reading.MEMORY),
            (False, Reading.MEMORY),
            (False, Reading.TIME),
        )
        if _makes_sense(ending, place, limited)
    ]
    chosen = grid if count >= len(grid) else draw.sample(grid, count)
    os.environ[MARK] = mark = uuid.uuid4().hex
    with workshop() as folder, ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(one, *case) for case in chosen]
        if own:
            quantities = ("gradient", "eigenvalues", "full-newton")
            jobs += [pool.submit(engine, kind, folder, draw.choice(quantities)) for kind in _ENGINE]
        for job in jobs:
            try:
                result.add(*job.result())
            except Exception as error:
                result.add("measure", [f"raised {type(error).__name__}: {error}"])
    del os.environ[MARK]
    left = [pid for pid in left_after(mark, 2.0) if pid != os.getpid()]
    result.add("all together", [f"{len(left)} processes are left"] if left else [])
    return result


def _makes_sense(ending: str, place: str, limited: bool) -> bool:
    """What has a right outcome: nobody can wait for a set-up that hangs, or fill the machine."""
    if ending in _WAITS | {"grows"} and place in ("set-up", "warm-up"):
        return False
    if ending == "grows":
        return limited and place in ("run", "thread")
    # An exception in a thread that has no message, or signals a thread cannot meet alone.
    return not (place == "thread" and ending in {"closed", "many files"})


if __name__ == "__main__":
    raise SystemExit(main(series, 200))
