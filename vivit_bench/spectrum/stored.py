"""Stored spectra: computed if they are not there, and found again by problem or name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivit_bench.arguments import DEFAULT_CUTOFF, DEFAULT_RESULTS_DIR, problem_slug
from vivit_bench.curvature.options import VARIANTS, Approximation, Blocks, Curvature, Samples
from vivit_bench.errors import UsageError
from vivit_bench.problems.catalogue import find_spec, is_user_problem
from vivit_bench.problems.workload import Workload
from vivit_bench.spectrum.compute import compute_on
from vivit_bench.spectrum.record import (
    EIGENVALUES,
    EXPERIMENT,
    SpectrumRecord,
    load_spectrum,
    without_fingerprint,
)
from vivit_bench.spectrum.settings import SpectrumSettings
from vivit_bench.store import (
    Identity,
    StoredRun,
    differences,
    environment,
    nothing_found,
    open_run,
    stored_runs,
)

if TYPE_CHECKING:
    from vivit_bench.curvature.certificate import Certify

Variant = tuple[Curvature, Samples]
Note = Callable[[str], None]

_ROOMS = ("spectrum", "curvature", "problems", "trees", "errors")
_LIBRARIES = ("python", "torch", "torchvision", "deepobs", "numpy", "scipy", "host", "cpu")
_OF_THE_VARIANT = ("curvature", "samples", "mc_samples")


class SweepEvent(StrEnum):
    """What just happened to a variant."""

    STARTED = "computing"
    REUSED = "stored already"
    STORED = "stored"


@dataclass(frozen=True)
class SweepStep:
    """One event of a sweep."""

    event: SweepEvent
    settings: SpectrumSettings
    record: SpectrumRecord | None = None
    """The spectrum, once it exists."""


def identity_of(workload: Workload, settings: SpectrumSettings) -> Identity:
    """What a spectrum is determined by, and under which name it is kept.

    The model's fingerprint is part of its address; how many threads computed it is not: it
    changes the rounding alone.
    """
    blocks = "" if settings.blocks is Blocks.NONE else "_blocks"
    blocks = "_layer" if settings.blocks is Blocks.LAYER else blocks
    params = "_params" if settings.params else ""
    return Identity(
        experiment=EXPERIMENT,
        label=f"{problem_slug(settings.problem)}_{settings.curvature}_{settings.samples}"
        f"{blocks}{params}_n{settings.batch_size}",
        settings={**settings.to_json(), "model": workload.model_fingerprint},
        environment=environment(_ROOMS, _LIBRARIES, batch=workload.batch_fingerprint),
        owns=(EIGENVALUES,),
    )


def store_spectrum(
    workload: Workload,
    settings: SpectrumSettings,
    results_dir: Path,
    *,
    certify: "Certify" = True,
    name: str | None = None,
    fresh: bool = False,
    note: Note = lambda text: None,
) -> tuple[SpectrumRecord, bool]:
    """Compute a variant's spectrum and store it, or return the one that is stored.

    Args:
        workload: Model and mini-batch.
        settings: Those of ``workload.spec``.
        results_dir: Folder of all results.
        certify: See ``compute_spectrum``. A stored spectrum with less of a check than is asked
            for is computed again.
        name: Of the run's folder; default: an address of its own for every settings.
        fresh: Compute it again in any case.
        note: Told what is done with a spectrum that is there.

    Returns:
        The spectrum, and whether it was stored already.

    Raises:
        UsageError: A model the engine cannot handle, or a stored spectrum of other conditions.
        CertificateError: The result failed its check; nothing is stored.
        VivitBenchError: The memory does not suffice, or the result is not finite.
        StorageError: It cannot be written.
    """

    def is_checked_less(stored: StoredRun) -> bool:
        checked = len(stored.results["certificate"].get("samples", ()))
        wanted = {True: 1, False: 0, "all": stored.results["num_samples"]}
        return bool(checked < wanted[certify])

    with open_run(
        results_dir,
        identity_of(workload, settings),
        name=name,
        fresh=fresh,
        more_wanted=is_checked_less,
        note=note,
    ) as run:
        if not run.is_returned:
            record = compute_on(workload, settings, certify)
            run.write(EIGENVALUES, record.table())
            run.finish(record.facts(), [EIGENVALUES])
        return load_spectrum(run.stored), run.is_returned


def sweep_spectra(
    workload: Workload,
    *,
    mc_samples: int = 1,
    blocks: Blocks = Blocks.NONE,
    cutoff: float = DEFAULT_CUTOFF,
    results_dir: Path,
    fresh: bool = False,
    note: Note = lambda text: None,
) -> Iterator[SweepStep]:
    """Compute and store the paper's four variants; those that are stored are returned.

    Args:
        workload: Model and mini-batch, shared by all variants.
        mc_samples: M of the Monte-Carlo variants.
        blocks: The full GGN or its diagonal blocks, one a layer.
        cutoff: Eigenvalues above it are counted as directions.
        results_dir: Folder of all results.
        fresh: Compute every variant again.
        note: See `store_spectrum`.

    Yields:
        ``STARTED``, then ``REUSED`` or ``STORED``, for every variant in turn.

    Raises:
        UsageError: As in `store_spectrum`, as the others.
        VivitBenchError: See there.
    """
    for curvature, samples in VARIANTS:
        draws = mc_samples if curvature is Curvature.MC else 1
        approximation = Approximation(curvature, samples, draws, workload.spec.seed)
        settings = SpectrumSettings(workload.spec, approximation, blocks, cutoff=cutoff)
        yield SweepStep(SweepEvent.STARTED, settings)
        record, reused = store_spectrum(workload, settings, results_dir, fresh=fresh, note=note)
        yield SweepStep(SweepEvent.REUSED if reused else SweepEvent.STORED, settings, record)


def stored_variants(
    problem: str, results_dir: Path, *, mc_samples: int = 1, **chosen: Any
) -> tuple[dict[Variant, StoredRun | None], list[str]]:
    """Find the paper's four variants of a problem among the stored spectra.

    Args:
        problem: DeepOBS name or ``path/to/file.py:function``.
        results_dir: Folder of all results.
        mc_samples: M of the Monte-Carlo variants.
        chosen: Settings that they must have; None: those of the only ones that are stored.

    Returns:
        Variant -> its run, None for a variant that is not stored; and a line on each stored
        spectrum that is damaged.

    Raises:
        UsageError: An unknown name, nothing stored, or spectra that differ in more than the
            approximation, and no choice.
    """
    runs, notes = stored_runs(results_dir, EXPERIMENT)
    wanted = {name: value for name, value in chosen.items() if value is not None}
    fitting = [
        run
        for run in runs
        if run.is_finished
        and run.settings["problem"] == problem
        and (run.settings["curvature"] == "exact" or run.settings["mc_samples"] == mc_samples)
        and all(run.settings[name] == value for name, value in wanted.items())
    ]
    groups: dict[str, list[StoredRun]] = {}
    for run in fitting:
        groups.setdefault(repr(_shared(run)), []).append(run)
    if not groups:
        if not is_user_problem(problem):
            find_spec(problem)  # A misspelt name is told so, with the nearest one.
        raise nothing_found(
            f"{problem}: no such spectrum in {results_dir / EXPERIMENT}",
            notes,
            f"make them with: {sweep_command(problem, results_dir, wanted)}",
        )
    if len(groups) > 1:
        first, *others = (_shared(group[0]) for group in groups.values())
        listed = "; ".join(differences(first, other) for other in others[:4])
        raise UsageError(
            f"{problem}: the stored spectra differ in more than their approximation ({listed}); "
            "choose with --batch-size, --data, --seed, --dtype or --checkpoint, or name single runs"
        )
    (group,) = groups.values()
    by_variant = {(run.settings["curvature"], run.settings["samples"]): run for run in group}
    return {variant: by_variant.get(variant) for variant in VARIANTS}, notes


def sweep_command(problem: str, results_dir: Path, chosen: dict[str, Any]) -> str:
    """Return the command that computes a problem's four variants."""
    options = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in chosen.items()
        if not (name == "blocks" and value == Blocks.NONE)
    ]
    if results_dir != DEFAULT_RESULTS_DIR:
        options.append(f"--results-dir {results_dir}")
    return " ".join(["vivit-bench spectrum sweep", problem, *options])


def figure_stem(records: Sequence[SpectrumRecord], results_dir: Path) -> Path:
    """Default path of a figure without its ending: it says problem, N, data and seed."""
    first = records[0].settings
    problems = {record.settings.problem for record in records}
    name = problem_slug(first.problem) if len(problems) == 1 else "spectra"
    layer = "_layer" if first.is_blocked else ""
    spec = first.workload
    stem = f"{name}{layer}_n{spec.batch_size}_{spec.data}_seed{spec.seed}"
    return results_dir / EXPERIMENT / stem


def _shared(run: StoredRun) -> dict[str, Any]:
    """Settings that all variants of one figure have in common."""
    settings = without_fingerprint(run.settings)
    shared = {name: value for name, value in settings.items() if name not in _OF_THE_VARIANT}
    return {**shared, "model": run.settings["model"]}
