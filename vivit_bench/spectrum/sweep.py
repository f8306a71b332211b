"""All variants of a problem's spectrum, each stored the moment it exists."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vivit_bench.arguments import DEFAULT_CUTOFF
from vivit_bench.curvature.options import VARIANTS, Approximation, Blocks, Curvature
from vivit_bench.errors import UsageError
from vivit_bench.problems.workload import Workload
from vivit_bench.spectrum.compute import compute_on
from vivit_bench.spectrum.paths import default_path
from vivit_bench.spectrum.record import SpectrumRecord, load_spectrum
from vivit_bench.spectrum.settings import SpectrumSettings
from vivit_bench.store import Provenance, provenance

# Another version of one of these may give other numbers.
_RELEVANT_PROVENANCE = (
    "vivit_bench",
    "code",
    "torch",
    "backpack",
    "deepobs",
    "torchvision",
    "numpy",
)


class SweepEvent(StrEnum):
    """What just happened to a variant."""

    REUSED = "stored already"
    STARTED = "computing"
    STORED = "stored"


@dataclass(frozen=True)
class SweepStep:
    """One event of a sweep."""

    event: SweepEvent
    settings: SpectrumSettings
    path: Path
    """The variant's CSV."""
    record: SpectrumRecord | None = None
    """The spectrum, once it exists."""
    stale: str = ""
    """Why an existing file is not reused; empty if there is none."""


def sweep_spectra(
    workload: Workload,
    *,
    mc_samples: int = 1,
    blocks: Blocks = Blocks.NONE,
    cutoff: float = DEFAULT_CUTOFF,
    results_dir: Path,
    fresh: bool = False,
) -> Iterator[SweepStep]:
    """Compute the paper's four variants, skipping those that are stored and still hold.

    Args:
        workload: Model and mini-batch, shared by all variants.
        mc_samples: M of the Monte-Carlo variants.
        blocks: The full GGN or its diagonal blocks, one a layer.
        cutoff: Eigenvalues above it are counted as directions.
        results_dir: Folder of all results.
        fresh: Compute every variant again.

    Yields:
        ``REUSED``, or ``STARTED`` and then ``STORED``, for every variant in turn.

    Raises:
        UsageError: A wrong value or a model the engine cannot handle.
        VivitBenchError: The memory does not suffice, or a result is not finite.
    """
    for curvature, samples in VARIANTS:
        draws = mc_samples if curvature is Curvature.MC else 1
        approximation = Approximation(curvature, samples, draws, workload.spec.seed)
        settings = SpectrumSettings(workload.spec, approximation, blocks, cutoff=cutoff)
        path = default_path(settings, results_dir)
        stored, stale = (None, "") if fresh else find_reusable(path, settings, workload)
        if stored is not None:
            yield SweepStep(SweepEvent.REUSED, settings, path, stored)
            continue
        yield SweepStep(SweepEvent.STARTED, settings, path, stale=stale)
        record = compute_on(workload, settings)
        record.save(path)
        yield SweepStep(SweepEvent.STORED, settings, path, record)


def find_reusable(
    path: Path, settings: SpectrumSettings, workload: Workload
) -> tuple[SpectrumRecord | None, str]:
    """Load a stored spectrum if it is what computing it again would give.

    Returns:
        The record and an empty string; or None and the reason against reusing the file
        (empty if there is no file).
    """
    if not path.exists() and not path.with_suffix(".json").exists():
        return None, ""
    try:
        record = load_spectrum(path)
    except UsageError as error:
        return None, str(error)
    changes = stale_reasons(record, settings, provenance())
    if record.model_fingerprint != workload.model_fingerprint:
        changes.append("another model or other parameters")
    if record.batch_fingerprint != workload.batch_fingerprint:
        changes.append("another mini-batch")
    return (None, f"made with {', '.join(changes)}") if changes else (record, "")


def stale_reasons(
    record: SpectrumRecord, settings: SpectrumSettings, current: Provenance
) -> list[str]:
    """Differences of a stored spectrum's settings, code and libraries from the present ones."""
    differences: dict[str, tuple[object, object]] = {
        **record.settings.differences(settings),
        **{
            key: (record.provenance.get(key), current[key])
            for key in _RELEVANT_PROVENANCE
            if record.provenance.get(key) != current[key]
        },
    }
    return [f"{key} {old} (now {new})" for key, (old, new) in differences.items()]


def replacement_note(path: Path, settings: SpectrumSettings) -> str:
    """One line for a spectrum of other settings about to be replaced; empty if none is."""
    try:
        differences = load_spectrum(path).settings.differences(settings)
    except UsageError:
        return ""
    changes = ", ".join(f"{key} {old} (now {new})" for key, (old, new) in differences.items())
    return f"{path}: replaced, it was made with {changes}" if changes else ""
