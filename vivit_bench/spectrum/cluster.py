"""The spectra of a sweep as jobs of a cluster, one a variant."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from vivit_bench.arguments import DEFAULT_CUTOFF
from vivit_bench.cluster import (
    EndedJob,
    QueueJob,
    QueueListener,
    Request,
    Scheduler,
    Standing,
    run_in_queue,
)
from vivit_bench.curvature.options import Blocks
from vivit_bench.errors import VivitBenchError
from vivit_bench.hardware import cpu_threads, library_errors
from vivit_bench.problems.workload import Workload, WorkloadSpec, load_workload
from vivit_bench.spectrum.record import SpectrumRecord, load_spectrum
from vivit_bench.spectrum.settings import SpectrumSettings
from vivit_bench.spectrum.stored import (
    Note,
    SweepEvent,
    SweepStep,
    identity_of,
    is_checked_less,
    store_spectrum,
    variants_of,
)
from vivit_bench.store import Action, Identity, as_elsewhere, foresee_run, made_on


@dataclass(frozen=True)
class SpectrumTask:
    """A spectrum, for the process of a job; it can be pickled."""

    settings: SpectrumSettings
    identity: Identity = field(compare=False)
    """Of the settings, with the facts of the machine where the user types."""
    results_dir: Path
    memory: int
    threads: int
    fresh: bool

    def look(self) -> Standing:
        """See `Task`."""
        identity = as_elsewhere(self.results_dir, self.identity)
        action, stored = foresee_run(
            self.results_dir,
            identity,
            fresh=self.fresh,
            more_wanted=lambda found: is_checked_less(found, True),
            resumable=False,
        )
        if action is Action.RETURN and stored is not None:
            return Standing(partial(load_spectrum, stored))
        # One that is checked less gives way to one of its own machine; an unfinished one to any.
        gives_way = stored is not None and stored.is_finished and not self.fresh
        return Standing(node=made_on(self.results_dir, identity) if gives_way else None)

    def __call__(self) -> SpectrumRecord:
        """Compute it on this node, or return what is stored.

        Raises:
            VivitBenchError: See `store_spectrum`.
        """
        spec = self.settings.workload
        advice = "try a smaller --batch-size, or --slurm mem=SIZE with more"
        work = f"{spec.problem} on {spec.device}"
        with cpu_threads(self.threads), library_errors(work, advice):
            record, _ = store_spectrum(
                load_workload(spec),
                self.settings,
                self.results_dir,
                memory=self.memory,
                fresh=self.fresh,
                note=lambda text: print(text, file=sys.stderr, flush=True),
            )
        return record


def load_here(spec: WorkloadSpec) -> Workload:
    """A workload for what is known before any job: its defaults, fingerprints and data.

    It is loaded on the CPU, as this machine need not have the device.
    """
    return load_workload(replace(spec, device="cpu"))


def sweep_spectra_in_queue(
    workload: Workload,
    device: str,
    request: Request,
    scheduler: Scheduler,
    *,
    mc_samples: int = 1,
    blocks: Blocks = Blocks.NONE,
    cutoff: float = DEFAULT_CUTOFF,
    results_dir: Path,
    memory: int,
    fresh: bool = False,
    at_once: int | None = None,
    note: Note,
    pause: Callable[[float], None] = time.sleep,
) -> list[SweepStep]:
    """Compute and store the paper's four variants, each in a job of its own.

    Args:
        workload: From `load_here`.
        device: On which they are computed.
        request: What each job asks for.
        scheduler: Slurm.
        mc_samples: M of the Monte-Carlo variants.
        blocks: The full GGN or its diagonal blocks, one a layer.
        cutoff: Eigenvalues above it are counted as directions.
        results_dir: Folder of all results.
        memory: Bytes that the engine may take in a job.
        fresh: Compute every variant again.
        at_once: Most jobs in the queue at a time; None for all.
        note: Is told what happens.
        pause: Sleeps for some seconds.

    Returns:
        ``REUSED`` or ``STORED`` for every variant, in their order; without a record one that
        failed, whose reason is in ``error``.

    Raises:
        UsageError: A stored spectrum of other conditions, or with ``fresh`` a job in the queue.
        VivitBenchError: Slurm does not answer, or refuses the first job.
    """
    spec = replace(workload.spec, device=device)
    wanted = variants_of(spec, mc_samples, blocks, cutoff)
    steps: dict[SpectrumSettings, SweepStep] = {}
    jobs: dict[QueueJob, SpectrumSettings] = {}
    for settings in wanted:
        identity = identity_of(workload, settings)
        folder = results_dir / identity.experiment / identity.address
        task = SpectrumTask(settings, identity, results_dir, memory, request.cpus, fresh)
        stored = task.look()
        if stored.result is not None:
            note(f"finished already: {folder} (--fresh runs it again)")
            steps[settings] = SweepStep(SweepEvent.REUSED, settings, stored.result())
        else:
            jobs[QueueJob(folder, f"{settings.problem} {settings.variant}", task)] = settings
    told = _Told(note)
    for ended in run_in_queue(
        scheduler, list(jobs), request, told, at_once=at_once, fresh=fresh, pause=pause
    ):
        settings = jobs[ended.job]
        steps[settings] = SweepStep(SweepEvent.STORED, settings, ended.value, ended.error)
    return [steps[settings] for settings in wanted]


def failures(steps: Sequence[SweepStep]) -> VivitBenchError | None:
    """The error that a sweep ends with where spectra failed, which it names with reasons."""
    named = [f"{step.settings.variant}: {step.error}" for step in steps if step.error is not None]
    if not named:
        return None
    return VivitBenchError(
        f"{len(named)} of {len(steps)} spectra failed, the same command tries them again: "
        f"{'; '.join(named)}"
    )


class _Told(QueueListener):
    def __init__(self, note: Note) -> None:
        self._note = note

    def note(self, text: str) -> None:
        """See `QueueListener`."""
        self._note(text)

    def running(self, job: QueueJob, number: str, node: str) -> None:
        """See `QueueListener`."""
        self._note(f"{job.label}: job {number} runs{f' on {node}' if node else ''}")

    def ended(self, ended: EndedJob) -> None:
        """See `QueueListener`."""
        if ended.error is not None:
            self._note(f"{ended.job.label}: {ended.error}")
        elif ended.number is not None:
            self._note(f"{ended.job.label}: stored ({ended.seconds:.0f} s)")
