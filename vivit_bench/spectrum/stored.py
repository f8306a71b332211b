"""Stored spectra: computed if they are not there, and found again by problem or name."""

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivit_bench.arguments import DEFAULT_CUTOFF, DEFAULT_RESULTS_DIR, problem_slug
from vivit_bench.curvature.options import VARIANTS, Approximation, Blocks, Curvature, Samples
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.imported import imported_files
from vivit_bench.problems.catalogue import find_spec, is_user_problem
from vivit_bench.problems.workload import Workload, WorkloadSpec
from vivit_bench.spectrum.compute import compute_on
from vivit_bench.spectrum.record import (
    EIGENVALUES,
    EXPERIMENT,
    SpectrumRecord,
    load_spectrum,
)
from vivit_bench.spectrum.settings import SpectrumSettings
from vivit_bench.store import (
    Identity,
    StoredRun,
    environment,
    nothing_found,
    open_run,
    stored_runs,
)
from vivit_bench.store.files import sha256

if TYPE_CHECKING:
    from vivit_bench.curvature.certificate import Certify

Variant = tuple[Curvature, Samples]
Note = Callable[[str], None]

# Code that can change a spectrum; comparing and finding stored ones cannot.
_ROOMS = (
    "spectrum/compute",
    "spectrum/record",
    "curvature",
    "problems",
    "precision",
    "trees",
    "errors",
)
_LIBRARIES = ("python", "torch", "torchvision", "deepobs", "numpy", "scipy", "host", "cpu")
_OF_THE_VARIANT = ("curvature", "samples", "mc_samples")
# Settings that a figure of a problem can be asked for by an option of the same name.
_CHOICES = ("batch_size", "data", "seed", "dtype", "checkpoint")
_LONGEST_PART = 60  # of a figure's name, in characters


UNTRAINED = "none"
"""Chooses, as a checkpoint, the spectra of the initial parameters."""


class SweepEvent(StrEnum):
    """What just happened to a variant."""

    STARTED = "computing"
    REUSED = "stored already"
    """Not computed: nothing was started."""
    STORED = "stored"


@dataclass(frozen=True)
class SweepStep:
    """One event of a sweep."""

    event: SweepEvent
    settings: SpectrumSettings
    record: SpectrumRecord | None = None
    """The spectrum, once it exists."""
    error: VivitBenchError | None = None
    """Why there is none, where others go on without it."""


def identity_of(workload: Workload, settings: SpectrumSettings) -> Identity:
    """What a spectrum is determined by, and under which name it is kept.

    The model's fingerprint is part of its address; how many threads computed it, and in how much
    memory, is not: that changes the rounding alone.
    """
    params = "_params" if settings.params else ""
    dropped = "" if settings.drop_columns is None else "_dropped"
    return Identity(
        experiment=EXPERIMENT,
        label=f"{problem_slug(settings.problem)}_{settings.curvature}_{settings.samples}"
        f"{_structure(settings)}{params}{dropped}_n{settings.batch_size}",
        settings={**settings.to_json(), "model": workload.model_fingerprint},
        environment=environment_of(
            settings.workload.device,
            batch=workload.batch_fingerprint,
            **imported_files(settings.problem),
        ),
        owns=(EIGENVALUES,),
    )


def environment_of(device: str, **data: str) -> dict[str, Any]:
    """What spectra hold under on a device, now and here, beside the fingerprints of their data."""
    return environment(_ROOMS, _LIBRARIES, device=device, **data)


def store_spectrum(
    workload: Workload,
    settings: SpectrumSettings,
    results_dir: Path,
    *,
    certify: "Certify" = True,
    memory: int | None = None,
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
            for is computed again, and kept until the new one is stored.
        memory: See there.
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
    *_, step = _steps(
        workload,
        settings,
        results_dir,
        certify=certify,
        memory=memory,
        name=name,
        fresh=fresh,
        note=note,
    )
    assert step.record is not None
    return step.record, step.event is SweepEvent.REUSED


def sweep_spectra(
    workload: Workload,
    *,
    mc_samples: int = 1,
    blocks: Blocks = Blocks.NONE,
    cutoff: float = DEFAULT_CUTOFF,
    results_dir: Path,
    memory: int | None = None,
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
        memory: See `store_spectrum`.
        fresh: Compute every variant again.
        note: See `store_spectrum`.

    Yields:
        ``REUSED``, or ``STARTED`` and then ``STORED``, for every variant in turn.

    Raises:
        UsageError: As in `store_spectrum`, as the others.
        VivitBenchError: See there.
    """
    for number, settings in enumerate(variants_of(workload.spec, mc_samples, blocks, cutoff)):
        try:
            yield from _steps(
                workload, settings, results_dir, memory=memory, fresh=fresh, note=note
            )
        except BaseException as error:
            if not isinstance(error, Exception):
                command = "the same command without --fresh" if fresh else "the same command"
                error.add_note(f"{number} of {len(VARIANTS)} spectra are stored; {command} goes on")
            raise


def variants_of(
    spec: WorkloadSpec, mc_samples: int, blocks: Blocks, cutoff: float
) -> list[SpectrumSettings]:
    """The paper's four variants on a workload whose defaults are filled in; see `sweep_spectra`."""
    return [
        SpectrumSettings(
            spec,
            Approximation(
                curvature, samples, mc_samples if curvature is Curvature.MC else 1, spec.seed
            ),
            blocks,
            cutoff=cutoff,
        )
        for curvature, samples in VARIANTS
    ]


def is_checked_less(stored: StoredRun, certify: "Certify") -> bool:
    """Whether a stored spectrum has less of a check than is asked for."""
    checked = len(stored.results["certificate"].get("samples", ()))
    return checked < (stored.results["num_samples"] if certify == "all" else int(certify))


def _steps(
    workload: Workload,
    settings: SpectrumSettings,
    results_dir: Path,
    *,
    certify: "Certify" = True,
    memory: int | None = None,
    name: str | None = None,
    fresh: bool = False,
    note: Note,
) -> Iterator[SweepStep]:
    """What happens to one variant; the last step has its record."""
    with open_run(
        results_dir,
        identity_of(workload, settings),
        name=name,
        fresh=fresh,
        more_wanted=lambda stored: is_checked_less(stored, certify),
        resumable=False,
        note=note,
    ) as run:
        if not run.is_returned:
            yield SweepStep(SweepEvent.STARTED, settings)
            record = compute_on(workload, settings, certify, memory)
            run.write(EIGENVALUES, record.table())
            run.finish(record.facts(), [EIGENVALUES])
        stored = load_spectrum(run.stored)
    yield SweepStep(SweepEvent.REUSED if run.is_returned else SweepEvent.STORED, settings, stored)


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
    if mc_samples != 1:
        wanted["mc_samples"] = mc_samples
    if wanted.get("checkpoint") == UNTRAINED:
        del wanted["checkpoint"]
    fitting = [run for run in runs if is_variant(run, problem, mc_samples, chosen)]
    if not fitting:
        if not is_user_problem(problem):
            find_spec(problem)  # A misspelt name is told so, with the nearest one.
        nothing = f"{problem}: no such spectrum in {results_dir / EXPERIMENT}"
        command = command_of(problem, results_dir, wanted)
        raise nothing_found(nothing, notes, f"make them with: {command}")
    if ways := clashes(fitting):
        raise UsageError(f"{problem}: the stored spectra differ in {ways}")
    by_variant = {(run.settings["curvature"], run.settings["samples"]): run for run in fitting}
    return {variant: by_variant.get(variant) for variant in VARIANTS}, notes


def side_by_side(runs: Sequence[StoredRun], apart: Collection[str] = ()) -> list[str]:
    """What people must know who see these spectra in one figure or table: a line on each point.

    Spectra differ in their approximation on purpose; the cutoff is chosen again there. ``apart``
    names further settings that differ on purpose.
    """
    settings = different_settings(runs)
    for name in ("cutoff", *apart):
        settings.pop(name, None)
    conditions = _different([run.environment for run in runs])
    if {"problem", "batch_size", "data", "seed"} & set(settings):
        conditions.pop("batch", None)  # it follows from them
    lines = []
    if settings:
        lines.append(f"the spectra differ in {_listed(settings)}")
    if conditions:
        lines.append(f"the spectra were made under different conditions: {_listed(conditions)}")
    return lines


def sweep_command(run: StoredRun, results_dir: Path, mc_samples: int) -> str:
    """Return the command that computes the variants which go with a stored one."""
    known = {name: run.settings[name] for name in (*_CHOICES, "device", "blocks", "cutoff")}
    usual = {"seed": 0, "dtype": "float32", "device": "cpu", "blocks": "none"}
    usual |= {"cutoff": DEFAULT_CUTOFF, "checkpoint": None, "mc_samples": 1}
    options = {**known, "mc_samples": mc_samples}
    chosen = {name: value for name, value in options.items() if value != usual.get(name, "")}
    return command_of(run.settings["problem"], results_dir, chosen)


def figure_stem(
    records: Sequence[SpectrumRecord],
    results_dir: Path,
    *,
    over_training: bool = False,
    names_weights: bool = True,
) -> Path:
    """Default path of a figure without its ending.

    It says problem, N, data and seed where all spectra have them in common, and of their other
    settings those that are not the defaults, so that one figure does not replace another.

    Args:
        records: What is drawn.
        results_dir: Folder of all results.
        over_training: Whether the spectra are those of one training.
        names_weights: Whether checkpoints are told apart; not where all that are stored are drawn.
    """
    every = [record.settings for record in records]
    workloads = [settings.workload for settings in every]
    draws = [s.approximation.mc_samples for s in every if s.curvature is Curvature.MC]
    variants = {(settings.curvature, settings.samples) for settings in every}
    parts = [
        _common(problem_slug(settings.problem) for settings in every) or "spectra",
        _unusual((_blocks(settings.blocks) for settings in every), "whole"),
        _common(f"n{settings.batch_size}" for settings in every),
        _common(str(workload.data) for workload in workloads),
        _common(f"seed{workload.seed}" for workload in workloads),
        _unusual((_weights(w.checkpoint) for w in workloads if names_weights), "initial"),
        _unusual((workload.dtype for workload in workloads), "float32"),
        _unusual((workload.device.replace(":", "") for workload in workloads), "cpu"),
        _unusual((f"m{number}" for number in draws), "m1"),
        _unusual((_hashed("params", s.params) if s.params else "all" for s in every), "all"),
        _unusual((f"dropped{settings.drop_columns or 0:g}" for settings in every), "dropped0"),
    ]
    if variants != set(VARIANTS):
        parts += ["_".join(variant) for variant in VARIANTS if variant in variants]
    if over_training:
        parts.append("over_training")
    return results_dir / EXPERIMENT / "_".join(filter(None, parts))


def _common(values: Iterable[str]) -> str:
    """The value that all have; empty if they have several."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else ""


def _unusual(values: Iterable[str], usual: str) -> str:
    """Every value there is; empty where all are the usual one."""
    distinct = list(dict.fromkeys(values))
    text = "" if distinct == [usual] else "-".join(distinct)
    return text if len(text) <= _LONGEST_PART else _hashed(text[: _LONGEST_PART // 2], text)


def _blocks(blocks: Blocks | dict[str, list[str]]) -> str:
    if isinstance(blocks, dict):
        return _hashed("blocks", blocks)
    return "whole" if blocks is Blocks.NONE else blocks


def _weights(checkpoint: Path | None) -> str:
    """A file's name, with a hash of its whole path: trainings call their checkpoints the same."""
    return "initial" if checkpoint is None else _hashed(checkpoint.stem, checkpoint)


def _hashed(name: str, value: object) -> str:
    return f"{name}-{sha256(str(value).encode())[:6]}"


def _structure(settings: SpectrumSettings) -> str:
    if isinstance(settings.blocks, dict):
        return "_blocks"
    return "" if settings.blocks is Blocks.NONE else f"_{settings.blocks}"


def command_of(
    problem: str, results_dir: Path, options: Mapping[str, Any], verb: str = "sweep"
) -> str:
    """What computes a problem's spectra with these options, as one would type it."""
    words = ["vivit-bench", "spectrum", verb, problem]
    for name, value in options.items():
        if not (name == "blocks" and value == Blocks.NONE):
            words += [f"--{name.replace('_', '-')}", str(value)]
    if results_dir != DEFAULT_RESULTS_DIR:
        words += ["--results-dir", str(results_dir)]
    return shlex.join(words)


def is_variant(run: StoredRun, problem: str, mc_samples: int, chosen: Mapping[str, Any]) -> bool:
    """Whether a run is one of the paper's approximations of what is asked for."""
    settings = run.settings
    return (
        run.is_finished
        and settings["problem"] == problem
        and settings["params"] is None
        and settings.get("drop_columns") is None
        and (settings["curvature"] == Curvature.EXACT or settings["mc_samples"] == mc_samples)
        and all(has_setting(run, name, value) for name, value in chosen.items())
    )


def has_setting(run: StoredRun, name: str, value: object) -> bool:
    """Whether a run has a setting that is asked for; None: any will do."""
    own = run.settings.get(name)
    if name == "checkpoint" and own is None:
        own = UNTRAINED
    return value is None or own == value


def clashes(runs: Sequence[StoredRun], apart: Collection[str] = ()) -> str:
    """In what spectra differ beside the approximation, and how to choose; empty if in nothing.

    ``apart`` names further settings in which they may.
    """
    different = {
        name: sorted(values, key=lambda value: (len(value), value))  # numbers as numbers
        for name, values in different_settings(runs).items()
        if name not in apart
    }
    if "checkpoint" in different:
        files = different["checkpoint"]
        different["checkpoint"] = [UNTRAINED if file == "None" else file for file in files]
    if not different:
        return ""
    options = [f"--{name.replace('_', '-')}" for name in _CHOICES if name in different]
    ways = [f"choose with {' and '.join(options)}"] if options else []
    if not set(different) <= set(_CHOICES):  # no option chooses a model or a cutoff
        ways.append(f"name single ones, such as {runs[-1].folder.name}")
    return f"{_listed(different)}: {' or '.join(ways)}"


def different_settings(runs: Sequence[StoredRun]) -> dict[str, list[str]]:
    """Settings that not all runs share, beside the approximation, with their values."""
    different = _different([run.settings for run in runs])
    if {"problem", "seed", "checkpoint"} & set(different):
        different.pop("model", None)  # it follows from them
    return {name: values for name, values in different.items() if name not in _OF_THE_VARIANT}


def _different(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    values = {
        name: list(dict.fromkeys(str(record.get(name)) for record in records))
        for name in {name: None for record in records for name in record}
    }
    return {name: found for name, found in values.items() if len(found) > 1}


def _listed(different: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name} {', '.join(values[:4])}" for name, values in different.items())
