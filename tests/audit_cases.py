"""A stored run of every experiment, made by the code that makes real ones."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from noise_cases import CHOICES, write_tiny

from vivit_bench.comparison import compare
from vivit_bench.comparison.stored import Comparison, run_comparison
from vivit_bench.critical_batch import MemoryLimit, make_cell, run_search
from vivit_bench.curvature.options import Approximation
from vivit_bench.errors import VivitBenchError
from vivit_bench.measure import Observation, Outcome, Reading, Spec, Trial, TrialReport, TrialRun
from vivit_bench.measure.protocol import Measured, Ready
from vivit_bench.noise import run_noise
from vivit_bench.peers import Quantity
from vivit_bench.problems.workload import WorkloadSpec, load_workload
from vivit_bench.quadratic import Settings, run_experiment
from vivit_bench.spectrum import SpectrumSettings
from vivit_bench.spectrum.stored import store_spectrum
from vivit_bench.store import StoredRun
from vivit_bench.store.stored import HEADER

TINY = "tiny.py:tiny"


def search(results: Path, *, fits: int = 21, peak: int = 1000) -> Path:
    """A search that found N = ``fits``."""

    def run(spec: Spec, timeout: float, confirming: Any) -> TrialRun:
        outcome = Outcome.FITS if spec.n <= fits else Outcome.OUT_OF_MEMORY
        ended = "2026-01-01T00:00:00+00:00"
        made = Trial(spec.n, outcome, "", peak * spec.n, 5, 9, 2.0, timeout, False, ended)
        return TrialRun(made, "")

    def plan(spec: Spec, timeout: float) -> Observation:
        raise VivitBenchError("no plan here")

    cell, limit = make_cell("mnist_mlp", threads=1), MemoryLimit(21_500, True)
    return run_search(cell, limit, results_dir=results, max_batch=64, run=run, plan=plan).folder


def spectrum(results: Path) -> Path:
    """Of the tiny problem."""
    workload = load_workload(WorkloadSpec(TINY, batch_size=6))
    settings = SpectrumSettings(workload.spec, Approximation())
    folder = store_spectrum(workload, settings, results)[0].folder
    assert folder is not None
    return folder


def noise(results: Path) -> Path:
    """One epoch of the tiny problem."""
    return run_noise(replace(CHOICES, epochs=1, checkpoints=2), results).folder


def quadratic(results: Path) -> Path:
    """Two repetitions of one step."""
    small = Settings(
        repeats=2, steps=1, dampings=(1.0,), curvatures=(5.0,), batch_size=6, resamples=5
    )
    return run_experiment(small, results).folder


class Machine:
    """Stands in for child processes on a machine that drifts, its noise 0.5 %."""

    def __init__(
        self, seed: int = 0, *, slower: float = 1.0, peak: int = 7, referenced: bool = True
    ):
        self.random = random.Random(seed)
        self.speed = self.random.gauss(0, 0.15)
        self.slower, self.peak, self.referenced = slower, peak, referenced
        self.digest = {"eigenvalues": [2.0, 1.0]}

    def seconds(self, usual: float) -> float:
        return float(usual * self.random.lognormvariate(self.speed, 0.005))

    def __call__(self, spec: Spec, timeout: float) -> Observation:
        memory = spec.reading is Reading.MEMORY
        beside = [self.seconds(0.4), self.seconds(0.4)]
        fields = {"size": 2048, "products": 3, "wall_seconds": beside, "cpu_seconds": beside}
        digest = self.digest if memory else {"reference": fields} if self.referenced else {}
        wall, cpu = (self.slower * self.seconds(1.0) for _ in range(2))
        return Observation(
            outcome=Outcome.FITS,
            message="",
            ready=Ready(idle_bytes=5),
            measured=Measured(wall_seconds=wall, cpu_seconds=cpu, minor_faults=4),
            report=TrialReport(digest=digest),
            peak_bytes=self.peak if memory else None,
            absolute_peak_bytes=12 if memory else None,
            other_processes=0,
            stderr="",
        )


def comparison(results: Path, machine: Machine | None = None, **options: Any) -> Path:
    """Nine rounds of one engine at one N."""
    asked: dict[str, Any] = {"repeats": 9, "timeout_seconds": 60.0, "n": 8, **options}
    workload = WorkloadSpec("mnist_mlp", batch_size=asked.pop("n"), data="synthetic")
    compared = Comparison(workload, Quantity.EIGENVALUES, Approximation(), ("vivit-bench",), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "measure", machine or Machine())
        return run_comparison(compared, results, **asked).folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "critical_batch": search,
    "spectrum": spectrum,
    "noise": noise,
    "quadratic": quadratic,
    "comparison": comparison,
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the tiny problem; results go below it."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    return Path("results")


def rewrite(stored: StoredRun, **changes: Any) -> None:
    """Write another header, with a checksum that is right."""
    (stored.folder / HEADER).write_text(replace(stored, **changes).to_json())
