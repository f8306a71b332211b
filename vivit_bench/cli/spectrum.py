"""``vivit-bench spectrum``: compute, sweep, plot and compare GGN spectra."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vivit_bench.arguments import (
    DEFAULT_CUTOFF,
    DEFAULT_RESULTS_DIR,
    check_cutoff,
    parse_blocks,
)
from vivit_bench.cli.options import (
    BatchSizeOption,
    BlocksOption,
    CertifyOption,
    Check,
    CheckpointOption,
    CurvatureOption,
    CutoffOption,
    DataDirOption,
    DataOption,
    DeviceOption,
    DtypeOption,
    McSamplesOption,
    ParamsOption,
    ProblemArgument,
    SamplesOption,
    SeedOption,
    ThreadsOption,
)
from vivit_bench.curvature.options import Blocks, Curvature, Precision, Samples
from vivit_bench.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from vivit_bench.spectrum import SpectrumRecord, SweepStep

DEFAULT_TOP = 10

app = typer.Typer(
    no_args_is_help=True,
    help="Spectra of the GGN: compute, sweep over approximations, plot, compare.",
)

LayerBlocksOption = Annotated[
    Blocks, typer.Option(help="The full GGN, or its diagonal blocks, one a layer.")
]
ResultsDirOption = Annotated[
    Path, typer.Option(help="Folder of all results; spectra go to its folder 'spectrum'.")
]


@app.command()
def compute(
    problem: ProblemArgument,
    batch_size: BatchSizeOption = None,
    curvature: CurvatureOption = Curvature.EXACT,
    samples: SamplesOption = Samples.FULL,
    mc_samples: McSamplesOption = 1,
    blocks: BlocksOption = None,
    params: ParamsOption = None,
    cutoff: CutoffOption = DEFAULT_CUTOFF,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    certify: CertifyOption = Check.TWO,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Where to store the eigenvalues; a JSON of the same name goes beside them.",
            show_default="named after problem and variant, below --results-dir",
        ),
    ] = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    eigenvectors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.pt",
            help="Also write the leading eigenvectors of the full GGN: eigenvalues [k], and "
            "parameter name -> [k, *shape] (torch.load). About doubles the time.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many eigenvectors, by eigenvalue.", show_default=str(DEFAULT_TOP)
        ),
    ] = None,
) -> None:
    """Compute all non-trivial GGN eigenvalues on one mini-batch and store them."""
    from vivit_bench.cli.tensors import check_tensor_file, save_tensors
    from vivit_bench.hardware import cpu_threads
    from vivit_bench.spectrum import compute_spectrum, leading_eigenvectors, load_workload
    from vivit_bench.spectrum.paths import default_path
    from vivit_bench.spectrum.record import check_output
    from vivit_bench.spectrum.sweep import replacement_note

    if output is not None:
        check_output(output)
    structure = parse_blocks(blocks or [])
    if eigenvectors is not None:
        if structure != Blocks.NONE:
            raise UsageError(
                f"--eigenvectors {eigenvectors}: they are those of the full GGN; "
                f"leave out --blocks {' '.join(blocks or [])}"
            )
        check_tensor_file(eigenvectors)
    elif top is not None:
        raise UsageError(f"--top {top}: counts eigenvectors; add --eigenvectors FILE.pt")
    progress = Console(emoji=False, stderr=True, highlight=False)
    loading: dict[str, Any] = {
        "batch_size": batch_size,
        "data": data,
        "data_dir": data_dir,
        "seed": seed,
        "checkpoint": checkpoint,
        "dtype": dtype,
        "device": device,
    }
    with progress.status(f"{problem}: {curvature}, {samples}"):
        record = compute_spectrum(
            problem,
            curvature=curvature,
            samples=samples,
            mc_samples=mc_samples,
            blocks=structure,
            params=params,
            cutoff=cutoff,
            certify=certify.certify,
            threads=threads,
            **loading,
        )
    path = output or default_path(record.settings, results_dir)
    if note := replacement_note(path, record.settings):
        progress.print(note, soft_wrap=True, markup=False)
    record.save(path)
    _print_summary(record, path)
    if eigenvectors is not None:
        with progress.status(f"{problem}: eigenvectors"), cpu_threads(threads):
            work = load_workload(problem, **loading)
            number = top or DEFAULT_TOP
            vectors, _ = leading_eigenvectors(work, record.settings, number, certify.certify)
        save_tensors(vectors, eigenvectors)


@app.command()
def sweep(
    problem: ProblemArgument,
    batch_size: BatchSizeOption = None,
    mc_samples: McSamplesOption = 1,
    blocks: LayerBlocksOption = Blocks.NONE,
    cutoff: CutoffOption = DEFAULT_CUTOFF,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Compute again what is stored already.")
    ] = False,
) -> None:
    """Compute the paper's four approximations: exact and mc, each full and frac.

    Every spectrum is stored the moment it exists. A stored one is used again if settings,
    model, data, code and libraries are the same.
    """
    from rich.progress import Progress

    from vivit_bench.curvature.options import VARIANTS
    from vivit_bench.hardware import cpu_threads
    from vivit_bench.spectrum import load_workload, sweep_spectra

    check_cutoff(cutoff)
    console = Console(emoji=False, stderr=True, highlight=False)
    steps = []
    with (
        cpu_threads(threads),
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("loading", total=len(VARIANTS))
        workload = load_workload(
            problem,
            batch_size=batch_size,
            data=data,
            data_dir=data_dir,
            seed=seed,
            checkpoint=checkpoint,
            dtype=dtype,
            device=device,
        )
        for step in sweep_spectra(
            workload,
            mc_samples=mc_samples,
            blocks=blocks,
            cutoff=cutoff,
            results_dir=results_dir,
            fresh=fresh,
        ):
            _show_step(progress, step)
            progress.update(
                task, description=step.settings.variant, advance=step.record is not None
            )
            steps.append(step)
    _print_sweep(steps)


@app.command()
def plot(
    spectra: Annotated[
        list[str],
        typer.Argument(
            metavar="PROBLEM|FILE.csv...",
            help="Problems, each for its four stored variants, or files of single spectra.",
        ),
    ],
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="N of a problem's spectra.", show_default="the stored one"),
    ] = None,
    blocks: LayerBlocksOption = Blocks.NONE,
    cutoff: Annotated[
        float | None,
        typer.Option(help="Left end of the axis.", show_default="that of the spectra"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="STEM",
            help="Path of the figure without .png and .pdf.",
            show_default="<results-dir>/spectrum/<problem>_n<N>, or beside the files",
        ),
    ] = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
) -> None:
    """Draw histograms of stored spectra (Figures S.4a and S.5a), one panel a spectrum."""
    from vivit_bench.report.spectrum import plot_spectra
    from vivit_bench.spectrum import load_spectrum
    from vivit_bench.spectrum.paths import figure_stem, is_file_name

    if cutoff is not None:
        check_cutoff(cutoff)
    paths = []
    for name in spectra:
        if is_file_name(name):
            paths.append(Path(name))
        else:
            paths += _stored_variants(name, blocks, batch_size, results_dir)
    records = [load_spectrum(path) for path in paths]
    for path, record in zip(paths, records, strict=True):
        _warn_if_not_finite(path, record)
    stem = output or figure_stem(spectra, paths, records[0].settings, results_dir)
    if stem.suffix in {".png", ".pdf"}:
        stem = stem.with_suffix("")
    for figure in plot_spectra(records, stem, cutoff=cutoff):
        typer.echo(figure)


@app.command()
def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="The reference: FILE.csv, or a stored one, e.g. mnist_mlp_exact_full."
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The other spectrum.")],
    top: Annotated[int, typer.Option(min=1, help="Number of leading eigenvalues.")] = 10,
    cutoff: Annotated[
        float,
        typer.Option(help="Smaller eigenvalues are equal to it in counts and distance."),
    ] = DEFAULT_CUTOFF,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the table as CSV.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write it as Markdown.")
    ] = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
) -> None:
    """Compare spectrum B with spectrum A.

    Relative errors |b - a| / |a| of the leading eigenvalues, traces, and the Wasserstein-1
    distance of the densities of log10 eigenvalues over all D (in decades).
    """
    from vivit_bench.report.files import write_report
    from vivit_bench.report.spectrum_comparison import (
        comparison_csv,
        comparison_markdown,
        comparison_table,
    )
    from vivit_bench.spectrum import compare_spectra, load_spectrum
    from vivit_bench.spectrum.paths import find_stored

    check_cutoff(cutoff)
    first, second = (load_spectrum(find_stored(name, results_dir)) for name in (a, b))
    comparison = compare_spectra(first, second, top=top, cutoff=cutoff)
    if first.settings.problem != second.settings.problem:
        typer.echo(
            f"warning: different problems: A is {first.settings.problem}, "
            f"B is {second.settings.problem}",
            err=True,
        )
    stdout = Console(emoji=False, highlight=False)
    for letter, record in (("A", first), ("B", second)):
        settings = record.settings
        weights = f", {settings.checkpoint}" if settings.checkpoint else ""
        stdout.print(
            f"{letter}: {settings.problem}, {settings.variant}, N = {settings.batch_size}, "
            f"D = {record.num_params:,}, data {settings.data}, seed {settings.seed}, "
            f"{settings.dtype}{weights}",
            soft_wrap=True,
            markup=False,
        )
    stdout.print(comparison_table(comparison))
    if csv is not None:
        write_report(csv, comparison_csv(comparison))
    if markdown is not None:
        write_report(markdown, comparison_markdown(comparison))


def _stored_variants(
    problem: str, blocks: Blocks, batch_size: int | None, results_dir: Path
) -> list[Path]:
    """Paths of a problem's stored variants; names those that are missing."""
    from vivit_bench.spectrum.paths import stored_variants, sweep_command

    stored = stored_variants(problem, blocks, batch_size, results_dir)
    if missing := [variant for variant, path in stored.items() if path is None]:
        names = "; ".join(f"{curvature}, {samples}" for curvature, samples in missing)
        typer.echo(
            f"{problem}: not stored and left out: {names}; make them with: "
            f"{sweep_command(problem, blocks, batch_size, results_dir)}",
            err=True,
        )
    return [path for path in stored.values() if path is not None]


def _warn_if_not_finite(path: Path, record: "SpectrumRecord") -> None:
    import numpy as np

    if count := int((~np.isfinite(record.eigenvalues)).sum()):
        typer.echo(f"warning: {path}: {count} eigenvalues are not finite", err=True)


def _show_step(progress: "Progress", step: "SweepStep") -> None:
    name = f"{step.settings.problem} {step.settings.variant}"
    lines = [f"{step.path}: not reused: {step.stale}"] if step.stale else []
    seconds = f" ({step.record.seconds:.1f} s)" if step.event == "stored" and step.record else ""
    for line in [*lines, f"{name}: {step.event}{seconds}"]:
        progress.console.print(line, soft_wrap=True, markup=False)


def _print_summary(record: "SpectrumRecord", path: Path) -> None:
    settings = record.settings
    largest = f"{record.eigenvalues[0]:.6g}" if len(record.eigenvalues) else "none"
    rows = {
        "problem": f"{settings.problem} (data {settings.data}, N = {settings.batch_size})",
        "curvature": settings.variant,
        "D, C, columns": f"{record.num_params:,}, {record.num_outputs}, {record.num_columns:,}",
        "largest eigenvalue": largest,
        f"above {settings.cutoff:g}": f"{record.num_above_cutoff:,}",
        "exactly zero": f"{record.num_zeros:,}",
        "trace": f"{record.trace:.6g}",
        "loss": f"{record.loss:.6g}",
        "time": f"{record.seconds:.2f} s ({settings.dtype}, solver {record.solver_dtype})",
        "check": _certified(record.certificate),
        "stored": str(path),
    }
    for key, value in rows.items():
        typer.echo(f"{key:<20}{value}")


def _certified(certificate: dict[str, Any]) -> str:
    """A stored certificate in one line."""
    from vivit_bench.curvature import Certificate

    return Certificate(**certificate).line() if certificate else "no"


def _print_sweep(steps: "list[SweepStep]") -> None:
    table = Table("curvature", "largest", "above cutoff", "zero", "trace", "seconds", "check")
    for column in table.columns[1:]:
        column.justify = "right"
    finished = [(step.path, step.record) for step in steps if step.record is not None]
    for _, record in finished:
        largest = f"{record.eigenvalues[0]:.4g}" if len(record.eigenvalues) else ""
        table.add_row(
            record.settings.variant,
            largest,
            f"{record.num_above_cutoff:,}",
            f"{record.num_zeros:,}",
            f"{record.trace:.4g}",
            f"{record.seconds:.2f}",
            f"{max(record.certificate['errors'].values()):.0e}" if record.certificate else "no",
        )
    Console(emoji=False, highlight=False).print(table)
    for path, _ in finished:
        typer.echo(path)
