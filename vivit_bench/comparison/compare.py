"""Interleaved measurement of engines, and what is made of it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.hardware import thread_environment

AGREEMENT = {"eigenvalues": 1e-3, "step": 1e-2}
"""Largest relative deviation within which two engines agree, in float32: of the leading
eigenvalues, and of steps (LAPACK's float32 solver, which some use, is good to 2e-3)."""


@dataclass
class EngineRuns:
    """All runs of one engine."""

    engine: str
    wall_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    result: dict[str, Tensor] = field(default_factory=dict)
    certificate: dict[str, float] = field(default_factory=dict)
    """``certificate_seconds`` and ``certificate_error``, where the engine has a check."""
    exit_code: int = 0
    """Of the run that failed."""
    failure: str = ""
    """Why the engine has no figures; empty if it has."""


def compare_engines(
    work: dict[str, Any],
    engines: Sequence[str],
    n: int,
    *,
    threads: int,
    repeats: int,
    timeout: float = 600.0,
    progress: Callable[[str], None] = lambda _: None,
) -> list[EngineRuns]:
    """Run the engines in turn, A B A B ..., every run in a fresh process.

    Args:
        work: Arguments of `EngineWorkload` but the engine.
        engines: Names; the first is what the others are compared with.
        n: Mini-batch size.
        threads: CPU threads.
        repeats: Runs of each engine.
        timeout: Seconds one run may take.
        progress: Told of each run before it starts.

    Returns:
        One entry per engine. An engine that fails once is not run again.

    Raises:
        UsageError: The first engine cannot do the work.
        VivitBenchError: It failed.
    """
    runs = [EngineRuns(engine) for engine in engines]
    for repeat in range(repeats):
        for entry in runs:
            if not entry.failure:
                progress(f"run {repeat + 1} of {repeats}: {entry.engine}")
                told = {"work": {**work, "engine": entry.engine}, "n": n, "threads": threads}
                _run(entry, {**told, "certify": repeat == 0}, timeout)
    if runs[0].failure:
        usage = runs[0].exit_code == UsageError.exit_code
        kind = UsageError if usage else VivitBenchError
        raise kind(f"engine {runs[0].engine!r} failed: {runs[0].failure}")
    return runs


def _run(entry: EngineRuns, spec: dict[str, Any], timeout: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.pt"
        spec = {**spec, "result": str(result)}
        command = [sys.executable, "-W", "ignore", "-m", "vivit_bench.comparison.child"]
        try:
            done = subprocess.run(
                [*command, json.dumps(spec)],
                env={**os.environ, **thread_environment(spec["threads"])},
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            entry.failure = f"took longer than {timeout:g} s"
            return
        if done.returncode:
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            entry.failure, entry.exit_code = last, done.returncode
            return
        figures = json.loads(done.stdout.splitlines()[-1])
        entry.wall_seconds.append(figures["wall_seconds"])
        entry.cpu_seconds.append(figures["cpu_seconds"])
        entry.peak_bytes.append(figures["peak_bytes"])
        entry.certificate |= {k: v for k, v in figures.items() if k.startswith("certificate")}
        entry.result = torch.load(result, weights_only=True)


def summarise(runs: Sequence[EngineRuns], *, comparable: bool) -> list[dict[str, Any]]:
    """A row per engine: medians, their ratios to the first engine's, agreement with it.

    ``wall_ratio`` is the median over the rounds of the engine's time over the first
    engine's in the same round; ``difference`` the largest relative deviation of the
    leading eigenvalues or of the step, and ``agrees`` whether it is within `AGREEMENT`.

    Args:
        runs: The first is what the others are compared with.
        comparable: Whether the engines compute the same; Monte-Carlo draws differ.
    """
    base = runs[0]
    rows = []
    for entry in runs:
        row: dict[str, Any] = {"engine": entry.engine, "runs": len(entry.wall_seconds)}
        if not entry.failure:
            row |= {
                "wall_seconds": median(entry.wall_seconds),
                "wall_min": min(entry.wall_seconds),
                "wall_max": max(entry.wall_seconds),
                "cpu_seconds": median(entry.cpu_seconds),
                "peak_bytes": int(median(entry.peak_bytes)),
                "wall_ratio": _ratio(entry.wall_seconds, base.wall_seconds),
                "cpu_ratio": _ratio(entry.cpu_seconds, base.cpu_seconds),
                "peak_ratio": median(entry.peak_bytes) / max(median(base.peak_bytes), 1),
                **_agreement(entry.result, base.result, comparable),
                **entry.certificate,
            }
        rows.append(row | {"failure": entry.failure})
    return rows


def _ratio(times: Sequence[float], base: Sequence[float]) -> float:
    return median(a / b for a, b in zip(times, base, strict=False))


def _agreement(
    result: dict[str, Tensor], base: dict[str, Tensor], comparable: bool
) -> dict[str, Any]:
    """``difference`` relative to the largest entry (of the 10 leading eigenvalues), ``agrees``."""
    for name, leading in (("eigenvalues", 10), ("step", None)):
        if comparable and name in result and name in base:
            a, b = result[name].double()[:leading], base[name].double()[:leading]
            shared = min(len(a), len(b))
            deviation = (a[:shared] - b[:shared]).abs().max() / b.abs().max().clamp(min=1e-300)
            return {"difference": float(deviation), "agrees": bool(deviation <= AGREEMENT[name])}
    return {"difference": None, "agrees": None}
