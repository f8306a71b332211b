"""Where spectra are stored, and how a stored one is named on the command line."""

import difflib
import hashlib
import json
import re
from pathlib import Path

from vivit_bench.arguments import DEFAULT_RESULTS_DIR, problem_slug
from vivit_bench.curvature.options import VARIANTS, Blocks, Curvature, Samples
from vivit_bench.errors import UsageError
from vivit_bench.problems.catalogue import find_spec, is_user_problem
from vivit_bench.spectrum.settings import SpectrumSettings


def spectrum_folder(results_dir: Path) -> Path:
    """Folder of all stored spectra."""
    return results_dir / "spectrum"


def default_path(settings: SpectrumSettings, results_dir: Path) -> Path:
    """Path of a spectrum's CSV: ``<problem>_<curvature>_<samples>[_layer]_n<N>.csv``.

    Chosen parameters and blocks of one's own add a hash of their patterns at the end.
    """
    own = isinstance(settings.blocks, dict)
    blocks = Blocks.NONE if isinstance(settings.blocks, dict) else settings.blocks
    stem = _variant_stem(settings.problem, settings.curvature, settings.samples, blocks)
    stem += f"_n{settings.batch_size}"
    if own or settings.params:
        patterns = json.dumps([settings.params, settings.blocks], sort_keys=True)
        stem += f"_{hashlib.sha256(patterns.encode()).hexdigest()[:8]}"
    return spectrum_folder(results_dir) / f"{stem}.csv"


def stored_variants(
    problem: str, blocks: Blocks, batch_size: int | None, results_dir: Path
) -> dict[tuple[Curvature, Samples], Path | None]:
    """Find the paper's four variants of a problem among the stored spectra.

    Args:
        problem: DeepOBS name or ``path/to/file.py:function``.
        blocks: Block structure.
        batch_size: N; None takes the only one that is stored.
        results_dir: Folder of all results.

    Returns:
        Variant -> path of its CSV, None for a variant that is not stored.

    Raises:
        UsageError: An unknown name, nothing stored, or several batch sizes and no choice.
    """
    stored = {
        variant: _by_batch_size(problem, *variant, blocks, results_dir) for variant in VARIANTS
    }
    sizes = sorted({size for paths in stored.values() for size in paths})
    if batch_size is None and len(sizes) > 1:
        raise UsageError(
            f"{problem}: spectra of several batch sizes are stored "
            f"({', '.join(map(str, sizes))}); choose one with --batch-size"
        )
    size = sizes[0] if batch_size is None and sizes else batch_size
    if size not in sizes:
        if not is_user_problem(problem):
            find_spec(problem)  # A misspelt name is told so, with the nearest one.
        chosen = "" if size is None else f" of batch size {size}"
        raise UsageError(
            f"{problem}: no spectrum{chosen} in {spectrum_folder(results_dir)}; "
            f"make them with: {sweep_command(problem, blocks, batch_size, results_dir)}"
        )
    return {variant: paths.get(size) for variant, paths in stored.items()}


def figure_stem(
    names: list[str], paths: list[Path], settings: SpectrumSettings, results_dir: Path
) -> Path:
    """Default path of a figure without its ending.

    Args:
        names: The command-line arguments.
        paths: CSVs of the spectra drawn.
        settings: Those of the first spectrum.
        results_dir: Folder of all results.

    Returns:
        Beside the files if files were named; else in the folder of all spectra.
    """
    if is_file_name(names[0]):
        return paths[0].with_suffix("") if len(paths) == 1 else paths[0].with_name("spectra")
    if len(names) > 1:
        return spectrum_folder(results_dir) / "spectra"
    layer = "_layer" if settings.is_blocked else ""
    stem = f"{problem_slug(names[0])}{layer}_n{settings.batch_size}"
    return spectrum_folder(results_dir) / stem


def sweep_command(problem: str, blocks: Blocks, batch_size: int | None, results_dir: Path) -> str:
    """Return the command that computes a problem's four variants."""
    options = [
        f"--batch-size {batch_size}" if batch_size is not None else "",
        f"--blocks {blocks}" if blocks is not Blocks.NONE else "",
        f"--results-dir {results_dir}" if results_dir != DEFAULT_RESULTS_DIR else "",
    ]
    return " ".join(["vivit-bench spectrum sweep", problem, *filter(None, options)])


def find_stored(name: str, results_dir: Path) -> Path:
    """Find one stored spectrum by file, or by the name of a variant.

    Args:
        name: A ``.csv`` or ``.json`` file, or the start of a stored spectrum's name up to
            its batch size: ``cifar10_3c3d_mc_frac`` or ``cifar10_3c3d_mc_frac_n128``.
        results_dir: Folder of all results.

    Returns:
        Path of the CSV (which need not exist if a file was named).

    Raises:
        UsageError: No stored spectrum has this name, or several do.
    """
    if is_file_name(name):
        return Path(name)
    folder = spectrum_folder(results_dir)
    stems = sorted(path.with_suffix("").name for path in folder.glob("*_n*.json"))
    matches = [stem for stem in stems if re.fullmatch(re.escape(name) + r"(_n\d+)?", stem)]
    if len(matches) == 1:
        return folder / f"{matches[0]}.csv"
    if matches:
        raise UsageError(f"{name}: several spectra have this name: {', '.join(matches)}")
    close = difflib.get_close_matches(name, stems, n=3, cutoff=0.5)
    hint = (
        f"did you mean {', '.join(close)}?"
        if close
        else "make one with: vivit-bench spectrum compute PROBLEM"
    )
    raise UsageError(f"{name}: neither a .csv file nor a stored spectrum in {folder}; {hint}")


def is_file_name(name: str) -> bool:
    """Whether a command-line argument names a spectrum's file rather than a problem."""
    return Path(name).suffix in {".csv", ".json"}


def _variant_stem(problem: str, curvature: Curvature, samples: Samples, blocks: Blocks) -> str:
    layer = "_layer" if blocks is Blocks.LAYER else ""
    return f"{problem_slug(problem)}_{curvature}_{samples}{layer}"


def _by_batch_size(
    problem: str, curvature: Curvature, samples: Samples, blocks: Blocks, results_dir: Path
) -> dict[int, Path]:
    stem = _variant_stem(problem, curvature, samples, blocks)
    pattern = re.compile(re.escape(stem) + r"_n(\d+)\.json")
    found = {}
    # The JSON completes a pair, so a lone CSV is not a stored spectrum.
    for path in spectrum_folder(results_dir).glob("*.json"):
        if match := pattern.fullmatch(path.name):
            found[int(match[1])] = path.with_suffix(".csv")
    return found
