"""``vivit-bench spectrum``: compute, sweep, plot and compare GGN spectra."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vivit_bench.arguments import (
    DEFAULT_CUTOFF,
    DEFAULT_RESULTS_DIR,
    check_cutoff,
    parse_blocks,
)
from vivit_bench.cli.options import (
    APPROXIMATION,
    MODEL_AND_DATA,
    OUTPUT,
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
    FormatOption,
    FreshOption,
    McSamplesOption,
    OutputOption,
    ParamsOption,
    ProblemArgument,
    QuietOption,
    ResultsDirOption,
    SamplesOption,
    SeedOption,
    ThreadsOption,
    complete_problem,
    complete_spectrum,
    engine_on,
    examples,
    print_certificate,
    progress_console,
)
from vivit_bench.cli.output import check_table_file, check_tensor_file, hand_out, save_tensors
from vivit_bench.curvature.options import Approximation, Blocks, Curvature, Precision, Samples
from vivit_bench.errors import UsageError
from vivit_bench.problems.workload import WorkloadSpec
from vivit_bench.report.tables import TableFormat

if TYPE_CHECKING:
    from rich.progress import Progress

    from vivit_bench.spectrum import SpectrumRecord, SweepStep

DEFAULT_TOP = 10

app = typer.Typer(
    no_args_is_help=True,
    help="Spectra of the GGN: compute, sweep over approximations, plot, compare.",
)

LayerBlocksOption = Annotated[
    Blocks,
    typer.Option(
        help="The full GGN, or its diagonal blocks, one a layer.", rich_help_panel=APPROXIMATION
    ),
]


@app.command(
    epilog=examples(
        "spectrum compute mnist_2c2d --data mnist5k --curvature mc",
        "spectrum compute net.py:make --blocks layer --output spectrum.csv",
    )
)
def compute(
    problem: ProblemArgument,
    curvature: CurvatureOption = Curvature.EXACT,
    samples: SamplesOption = Samples.FULL,
    mc_samples: McSamplesOption = 1,
    blocks: BlocksOption = None,
    params: ParamsOption = None,
    cutoff: CutoffOption = DEFAULT_CUTOFF,
    certify: CertifyOption = Check.TWO,
    batch_size: BatchSizeOption = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Where to store the eigenvalues; a JSON of the same name goes beside them.",
            show_default="named after problem and variant, below --results-dir",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    eigenvectors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.pt",
            help=r"Also write the leading eigenvectors of the full GGN: eigenvalues \[k], and "
            r"parameter name -> \[k, *shape] (torch.load). About doubles the time.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many eigenvectors, by eigenvalue.",
            show_default=str(DEFAULT_TOP),
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Compute all non-trivial GGN eigenvalues on one mini-batch and store them."""
    from vivit_bench.curvature import Certificate
    from vivit_bench.problems.workload import load_workload
    from vivit_bench.report.spectrum import spectrum_table
    from vivit_bench.spectrum import SpectrumSettings, compute_on, leading_eigenvectors
    from vivit_bench.spectrum.paths import default_path
    from vivit_bench.spectrum.record import check_output
    from vivit_bench.spectrum.sweep import replacement_note

    spec = WorkloadSpec(problem, batch_size, data, data_dir, seed, checkpoint, dtype, device)
    approximation = Approximation(curvature, samples, mc_samples, seed)
    check_cutoff(cutoff)
    structure = parse_blocks(blocks or [])
    if output is not None:
        check_output(output)
    if eigenvectors is not None and structure != Blocks.NONE:
        raise UsageError(
            f"--eigenvectors {eigenvectors}: they are those of the full GGN; "
            f"leave out --blocks {' '.join(blocks or [])}"
        )
    if eigenvectors is None and top is not None:
        raise UsageError(f"--top {top}: counts eigenvectors; add --eigenvectors FILE.pt")
    check_tensor_file(eigenvectors)
    progress = progress_console(quiet)
    with engine_on(problem, device, threads), progress.status(f"{problem}: {approximation.label}"):
        workload = load_workload(spec)
        settings = SpectrumSettings(workload.spec, approximation, structure, params, cutoff)
        record = compute_on(workload, settings, certify.certify)
        path = output or default_path(record.settings, results_dir)
        if note := replacement_note(path, record.settings):
            progress.print(note, soft_wrap=True, markup=False)
        record.save(path)
        if eigenvectors is not None:
            number = top or DEFAULT_TOP
            vectors, _ = leading_eigenvectors(workload, settings, number, certify.certify)
            save_tensors(vectors, eigenvectors, quiet)
    hand_out(spectrum_table(record, path), format)
    print_certificate(Certificate(**record.certificate) if record.certificate else None, quiet)


@app.command(
    epilog=examples(
        "spectrum sweep mnist_2c2d --data mnist5k", "spectrum sweep cifar10_3c3d --blocks layer"
    )
)
def sweep(
    problem: ProblemArgument,
    mc_samples: McSamplesOption = 1,
    blocks: LayerBlocksOption = Blocks.NONE,
    cutoff: CutoffOption = DEFAULT_CUTOFF,
    batch_size: BatchSizeOption = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    fresh: FreshOption = False,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Compute the paper's four approximations: exact and mc, each full and frac.

    Every spectrum is stored the moment it exists. A stored one is used again if settings,
    model, data, code and libraries are the same.
    """
    from rich.progress import Progress

    from vivit_bench.curvature.options import VARIANTS
    from vivit_bench.problems.workload import load_workload
    from vivit_bench.report.spectrum import sweep_table
    from vivit_bench.spectrum import sweep_spectra

    spec = WorkloadSpec(problem, batch_size, data, data_dir, seed, checkpoint, dtype, device)
    Approximation(Curvature.MC, Samples.FULL, mc_samples, seed)
    check_cutoff(cutoff)
    console = progress_console(quiet)
    stored = []
    with (
        engine_on(problem, device, threads),
        Progress(
            console=console, transient=True, disable=quiet or not console.is_terminal
        ) as progress,
    ):
        task = progress.add_task("loading", total=len(VARIANTS))
        for step in sweep_spectra(
            load_workload(spec),
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
            if step.record is not None:
                stored.append((step.path, step.record))
    hand_out(sweep_table(stored), format)


@app.command(
    epilog=examples(
        "spectrum plot mnist_2c2d", "spectrum plot a.csv b.csv --cutoff 1e-3 --output figures/ab"
    )
)
def plot(
    spectra: Annotated[
        list[str],
        typer.Argument(
            metavar="PROBLEM|FILE.csv...",
            help="Problems, each for its four stored variants, or files of single spectra.",
            autocompletion=complete_problem,
        ),
    ],
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="N of a problem's spectra.",
            show_default="the stored one",
            rich_help_panel=MODEL_AND_DATA,
        ),
    ] = None,
    blocks: LayerBlocksOption = Blocks.NONE,
    cutoff: Annotated[
        float | None,
        typer.Option(
            help="Left end of the axis.",
            show_default="that of the spectra",
            rich_help_panel=APPROXIMATION,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="STEM",
            help="Path of the figure without .png and .pdf.",
            show_default="<results-dir>/spectrum/<problem>_n<N>, or beside the files",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
) -> None:
    """Draw histograms of stored spectra (Figures S.4a and S.5a), one panel a spectrum."""
    from vivit_bench.report.spectrum_figures import plot_spectra
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


@app.command(
    epilog=examples(
        "spectrum compare mnist_2c2d_exact_full mnist_2c2d_mc_full",
        "spectrum compare a.csv b.csv --top 3 --format markdown",
    )
)
def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="The reference: FILE.csv, or a stored one, e.g. mnist_mlp_exact_full.",
            autocompletion=complete_spectrum,
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(metavar="B", help="The other spectrum.", autocompletion=complete_spectrum),
    ],
    top: Annotated[
        int,
        typer.Option(min=1, help="Number of leading eigenvalues.", rich_help_panel=APPROXIMATION),
    ] = 10,
    cutoff: Annotated[
        float,
        typer.Option(
            help="Eigenvalues above it are counted and make up the distance.",
            rich_help_panel=APPROXIMATION,
        ),
    ] = DEFAULT_CUTOFF,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    output: OutputOption = None,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Compare spectrum B with spectrum A.

    Relative errors |b - a| / |a| of the leading eigenvalues, traces, numbers above the cutoff,
    and the distance in decades: the mean of |log10 a - log10 b| over the eigenvalues above
    the cutoff, largest with largest. Where one spectrum has fewer, it goes on at the cutoff.
    """
    from vivit_bench.report.spectrum import comparison_table
    from vivit_bench.spectrum import compare_spectra, load_spectrum
    from vivit_bench.spectrum.paths import find_stored

    check_cutoff(cutoff)
    check_table_file(output)
    first, second = (load_spectrum(find_stored(name, results_dir)) for name in (a, b))
    comparison = compare_spectra(first, second, top=top, cutoff=cutoff)
    if first.settings.problem != second.settings.problem:
        typer.echo(
            f"warning: different problems: A is {first.settings.problem}, "
            f"B is {second.settings.problem}",
            err=True,
        )
    hand_out(comparison_table(comparison, first, second, cutoff), format, output, quiet)


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
