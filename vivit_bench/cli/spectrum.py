"""``vivit-bench spectrum``: compute, sweep, plot and compare GGN spectra."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vivit_bench.arguments import (
    DEFAULT_CUTOFF,
    DEFAULT_RESULTS_DIR,
    check_cutoff,
    check_drop_columns,
    parse_blocks,
)
from vivit_bench.cli.executor import (
    Executor,
    ExecutorOption,
    SlurmOption,
    engine_request,
    slurm_options,
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
    DropColumnsOption,
    DtypeOption,
    EngineMemoryOption,
    FormatOption,
    FreshOption,
    McSamplesOption,
    NameOption,
    OutputOption,
    ParamsOption,
    ProblemArgument,
    QuietOption,
    ResultsDirOption,
    SamplesOption,
    SeedOption,
    ThreadsOption,
    complete_stored,
    engine_on,
    examples,
    parse_engine_memory,
    print_certificate,
    print_dropped,
    progress_console,
)
from vivit_bench.cli.output import check_table_file, check_tensor_file, hand_out, save_tensors
from vivit_bench.curvature.options import Approximation, Blocks, Curvature, Precision, Samples
from vivit_bench.errors import UsageError
from vivit_bench.problems.sources import DataSource
from vivit_bench.problems.workload import WorkloadSpec
from vivit_bench.report.tables import TableFormat
from vivit_bench.store import check_name, write_output
from vivit_bench.store.run import HEADER

if TYPE_CHECKING:
    from rich.progress import Progress

    from vivit_bench.spectrum import SpectrumRecord, SweepStep
    from vivit_bench.store import StoredRun

DEFAULT_TOP = 10
_COMMAND = "vivit-bench spectrum compute PROBLEM"

app = typer.Typer(
    no_args_is_help=True,
    help="Spectra of the GGN: compute, sweep over approximations, plot, compare.",
)

StoredDataOption = Annotated[
    DataSource | None,
    typer.Option("--data", help="Of the spectra.", rich_help_panel=MODEL_AND_DATA),
]
StoredSeedOption = Annotated[
    int | None, typer.Option("--seed", help="Of the spectra.", rich_help_panel=MODEL_AND_DATA)
]
StoredDtypeOption = Annotated[
    Precision | None,
    typer.Option("--dtype", help="Of the spectra.", rich_help_panel=MODEL_AND_DATA),
]
StoredCheckpointsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--checkpoint",
        help="Of the spectra, none for the initial parameters; repeatable with --over-training, in "
        "the order of the figure.",
        rich_help_panel=MODEL_AND_DATA,
    ),
]
CheckpointsOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Parameters of a trained model; repeatable, a spectrum each.",
        show_default="initial parameters",
        rich_help_panel=MODEL_AND_DATA,
    ),
]
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
        "spectrum compute net.py:make --checkpoint epoch_1.pt --checkpoint epoch_9.pt",
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
    drop_columns: DropColumnsOption = None,
    certify: CertifyOption = Check.TWO,
    batch_size: BatchSizeOption = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointsOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    engine_memory: EngineMemoryOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Also write the eigenvalues to this file.",
            show_default="stored below --results-dir only",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    name: NameOption = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
    fresh: FreshOption = False,
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
    """Compute all non-trivial GGN eigenvalues on one mini-batch and store them.

    A spectrum of the same settings, model, data, code and libraries is not computed again.
    """
    from vivit_bench.curvature import Certificate, Dropped
    from vivit_bench.problems.workload import load_workload
    from vivit_bench.report.spectrum import checkpoints_table, spectrum_table
    from vivit_bench.spectrum import SpectrumSettings, leading_eigenvectors, store_spectrum

    files: Sequence[Path | None] = checkpoint or [None]
    specs = [
        WorkloadSpec(problem, batch_size, data, data_dir, seed, file, dtype, device)
        for file in files
    ]
    approximation = Approximation(curvature, samples, mc_samples, seed)
    check_cutoff(cutoff)
    check_drop_columns(drop_columns)
    if name is not None:
        check_name(name)
    structure = parse_blocks(blocks or [])
    if len(specs) > 1:
        of_one = {"name": name, "output": output, "eigenvectors": eigenvectors}
        _check_several(checkpoint or [], of_one)
    check_table_file(output)
    if eigenvectors is not None and structure != Blocks.NONE:
        raise UsageError(
            f"--eigenvectors {eigenvectors}: they are those of the full GGN; "
            f"leave out --blocks {' '.join(blocks or [])}"
        )
    if eigenvectors is None and top is not None:
        raise UsageError(f"--top {top}: counts eigenvectors; add --eigenvectors FILE.pt")
    check_tensor_file(eigenvectors)
    memory = parse_engine_memory(engine_memory)
    progress = progress_console(quiet)
    records: list[SpectrumRecord] = []
    with engine_on(problem, device, threads), _told_if_stopped(records, len(specs)):
        for spec in specs:
            of = f" of {spec.checkpoint}" if len(specs) > 1 else ""
            with progress.status(f"{problem}: {approximation.label}{of}"):
                workload = load_workload(spec)
                settings = SpectrumSettings(
                    workload.spec, approximation, structure, params, cutoff, drop_columns
                )
                record, _ = store_spectrum(
                    workload,
                    settings,
                    results_dir,
                    certify=certify.certify,
                    memory=memory,
                    name=name,
                    fresh=fresh,
                    note=lambda text: progress.print(text, soft_wrap=True, markup=False),
                )
                records.append(record)
                if output is not None:
                    write_output(output, record.table())
                if eigenvectors is not None:
                    number = top or DEFAULT_TOP
                    vectors, _ = leading_eigenvectors(
                        workload, settings, number, certify.certify, memory
                    )
                    save_tensors(vectors, eigenvectors, quiet)
    if len(records) > 1:
        hand_out(checkpoints_table(records), format)
        return
    (record,) = records
    hand_out(spectrum_table(record), format)
    dropped = Dropped(**record.dropped) if record.dropped else None
    print_dropped(dropped, record.num_columns, quiet)
    print_certificate(Certificate(**record.certificate) if record.certificate else None, quiet)


@app.command(
    epilog=examples(
        "spectrum sweep mnist_2c2d --data mnist5k",
        "spectrum sweep cifar10_3c3d --blocks layer",
        "spectrum sweep cifar10_3c3d --threads 8 --engine-memory 8GiB --executor slurm "
        "--slurm partition=long",
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
    engine_memory: EngineMemoryOption = None,
    executor: ExecutorOption = Executor.LOCAL,
    slurm: SlurmOption = None,
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
    memory = parse_engine_memory(engine_memory)
    options = slurm_options(executor, slurm)
    console = progress_console(quiet)
    if executor is Executor.SLURM:
        from vivit_bench.cluster import Slurm
        from vivit_bench.spectrum.cluster import failures, load_here, sweep_spectra_in_queue

        def note(text: str) -> None:
            console.print(text, soft_wrap=True, markup=False)

        request, memory = engine_request(options, threads, memory)
        scheduler = Slurm()
        note(f"each job asks for {request.line()}")
        with engine_on(problem, device, None):
            workload = load_here(spec)
        steps = sweep_spectra_in_queue(
            workload,
            spec.device,
            request,
            scheduler,
            mc_samples=mc_samples,
            blocks=blocks,
            cutoff=cutoff,
            results_dir=results_dir,
            memory=memory,
            fresh=fresh,
            note=note,
        )
        if records := [step.record for step in steps if step.record is not None]:
            hand_out(sweep_table(records), format)
        if (failed := failures(steps)) is not None:
            raise failed
        return
    stored = []
    is_live = console.is_terminal and not quiet
    progress = Progress(console=console, transient=True, disable=not is_live)
    # rich < 14.3 ends also a display that is disabled with an empty line.
    with engine_on(problem, device, threads), progress if is_live else nullcontext():
        task = progress.add_task("loading", total=len(VARIANTS))
        for step in sweep_spectra(
            load_workload(spec),
            mc_samples=mc_samples,
            blocks=blocks,
            cutoff=cutoff,
            results_dir=results_dir,
            memory=memory,
            fresh=fresh,
            note=lambda text: progress.console.print(text, soft_wrap=True, markup=False),
        ):
            _show_step(progress, step)
            progress.update(
                task, description=step.settings.variant, advance=step.record is not None
            )
            if step.record is not None:
                stored.append(step.record)
    hand_out(sweep_table(stored), format)


@app.command(
    epilog=examples(
        "spectrum plot mnist_2c2d",
        "spectrum plot mnist_2c2d_exact_full_n128 mnist_2c2d_mc_full_n128 --output figures/two",
        "spectrum plot net.py:make --over-training",
    )
)
def plot(
    spectra: Annotated[
        list[str],
        typer.Argument(
            metavar="PROBLEM|SPECTRUM...",
            help="Problems, each for its four stored variants, or names of single spectra.",
            autocompletion=complete_stored("spectrum"),
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
    mc_samples: McSamplesOption = 1,
    data: StoredDataOption = None,
    seed: StoredSeedOption = None,
    dtype: StoredDtypeOption = None,
    checkpoint: StoredCheckpointsOption = None,
    over_training: Annotated[
        bool,
        typer.Option(
            "--over-training",
            help="Leading eigenvalues, trace and number above the cutoff of one approximation "
            "against the checkpoint, in the order of --checkpoint or of the names' numbers.",
        ),
    ] = False,
    curvature: Annotated[
        Curvature | None,
        typer.Option(
            help="With --over-training.", show_default="exact", rich_help_panel=APPROXIMATION
        ),
    ] = None,
    samples: Annotated[
        Samples | None,
        typer.Option(
            help="With --over-training.", show_default="full", rich_help_panel=APPROXIMATION
        ),
    ] = None,
    cutoff: Annotated[
        float | None,
        typer.Option(
            help="Left end of the axis; with --over-training what is counted.",
            show_default="that of the spectra",
            rich_help_panel=APPROXIMATION,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="STEM",
            help="Path of the figure without .png and .pdf.",
            show_default="in <results-dir>/spectrum",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    results_dir: ResultsDirOption = DEFAULT_RESULTS_DIR,
) -> None:
    """Draw histograms of stored spectra (Figures S.4a and S.5a), one panel a spectrum.

    With --over-training: what becomes of one problem's spectrum from checkpoint to checkpoint.
    """
    from vivit_bench.report.spectrum_figures import plot_spectra
    from vivit_bench.report.spectrum_training_figures import plot_over_training
    from vivit_bench.spectrum import load_spectrum
    from vivit_bench.spectrum.over_training import APART
    from vivit_bench.spectrum.stored import figure_stem

    if cutoff is not None:
        check_cutoff(cutoff)
    chosen = {
        "blocks": blocks.value,
        "batch_size": batch_size,
        "data": data,
        "seed": seed,
        "dtype": dtype,
    }
    if over_training:
        of = {"curvature": curvature or Curvature.EXACT, "samples": samples or Samples.FULL}
        any_cutoff = cutoff is not None
        runs = _stored_over_training(
            spectra,
            results_dir,
            checkpoints=checkpoint or [],
            mc_samples=mc_samples,
            any_cutoff=any_cutoff,
            **of,
            **chosen,
        )
    else:
        _check_not_over_training(checkpoint or [], {"curvature": curvature, "samples": samples})
        chosen["checkpoint"] = str(checkpoint[0]) if checkpoint else None
        runs = [run for name in spectra for run in _stored(name, results_dir, mc_samples, chosen)]
    records = [load_spectrum(run) for run in runs]
    for record in records:
        _warn_if_not_finite(record)
    _warn_of_differences(runs, APART if over_training else ())
    stem = output or figure_stem(
        records,
        results_dir,
        over_training=over_training,
        names_weights=bool(checkpoint) or not over_training,
    )
    if stem.suffix in {".png", ".pdf"}:
        stem = stem.with_suffix("")
    draw = plot_over_training if over_training else plot_spectra
    for figure in draw(records, stem, cutoff=cutoff):
        typer.echo(figure)


@app.command(
    epilog=examples(
        "spectrum compare mnist_2c2d_exact_full mnist_2c2d_mc_full",
        "spectrum compare mnist_2c2d_exact_full_n128 mnist_2c2d_mc_full_n128 --format markdown",
    )
)
def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="The reference: a stored spectrum, e.g. mnist_mlp_exact_full_n128.",
            autocompletion=complete_stored("spectrum"),
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(
            metavar="B", help="The other spectrum.", autocompletion=complete_stored("spectrum")
        ),
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
    from vivit_bench.spectrum.record import EXPERIMENT
    from vivit_bench.store import find_run

    check_cutoff(cutoff)
    check_table_file(output)
    runs = [find_run(name, results_dir, EXPERIMENT, _COMMAND) for name in (a, b)]
    first, second = map(load_spectrum, runs)
    comparison = compare_spectra(first, second, top=top, cutoff=cutoff)
    _warn_of_differences(runs)
    hand_out(comparison_table(comparison, first, second, cutoff), format, output, quiet)


def _check_several(checkpoints: Sequence[Path], of_one: dict[str, Any]) -> None:
    """Refuse options that are of one spectrum, and files that would end the command half-way."""
    from vivit_bench.spectrum.over_training import check_checkpoints

    check_checkpoints(checkpoints)
    for option, value in of_one.items():
        if value is not None:
            raise UsageError(
                f"--{option} {value}: is of one spectrum, and --checkpoint is given "
                f"{len(checkpoints)} times; leave it out, or give one --checkpoint"
            )
    for file in checkpoints:
        if not file.is_file():
            raise UsageError(f"checkpoint {file} does not exist or is no file")


@contextmanager
def _told_if_stopped(records: "Sequence[SpectrumRecord]", wanted: int) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if wanted > 1 and not isinstance(error, Exception):
            error.add_note(
                f"{len(records)} of {wanted} spectra are stored; the same command goes on"
            )
        raise


def _check_not_over_training(checkpoints: Sequence[Path], of_it: dict[str, Any]) -> None:
    """Refuse what chooses among spectra of a training run where none is drawn."""
    if len(checkpoints) > 1:
        given = " ".join(f"--checkpoint {file}" for file in checkpoints)
        raise UsageError(f"{given}: several make a figure with --over-training; add it")
    for option, value in of_it.items():
        if value is not None:
            raise UsageError(
                f"--{option} {value}: chooses with --over-training; without it a problem's four "
                "approximations are drawn, or the spectra that are named"
            )


def _stored_over_training(
    spectra: Sequence[str], results_dir: Path, **chosen: Any
) -> "list[StoredRun]":
    """The stored spectra of a problem's checkpoints, in their order."""
    from vivit_bench.spectrum.over_training import stored_over_training

    if len(spectra) > 1:
        raise UsageError(
            f"{' '.join(spectra)} --over-training: a figure over training is of one problem; "
            "name one"
        )
    runs, notes = stored_over_training(spectra[0], results_dir, **chosen)
    for line in notes:
        typer.echo(f"warning: {line}", err=True)
    return runs


def _stored(
    name: str, results_dir: Path, mc_samples: int, chosen: dict[str, Any]
) -> "list[StoredRun]":
    """A single stored spectrum, or a problem's stored variants; names those that are missing."""
    from vivit_bench.problems.catalogue import PROBLEMS
    from vivit_bench.spectrum.record import EXPERIMENT
    from vivit_bench.spectrum.stored import stored_variants, sweep_command
    from vivit_bench.store import find_run

    # Problems of one's own have a colon; so may the name that somebody gave a run.
    folders = (results_dir / EXPERIMENT / name, Path(name))
    is_run = any(os.path.lexists(folder / HEADER) for folder in folders)
    if is_run or not (name in PROBLEMS or ":" in name):
        run = find_run(name, results_dir, EXPERIMENT, _COMMAND)
        _check_choice(name, run, chosen)
        return [run]
    stored, damaged = stored_variants(name, results_dir, mc_samples=mc_samples, **chosen)
    for line in damaged:
        typer.echo(f"warning: {line}", err=True)
    found = [run for run in stored.values() if run is not None]
    if missing := [variant for variant, run in stored.items() if run is None]:
        names = "; ".join(f"{curvature}, {samples}" for curvature, samples in missing)
        typer.echo(
            f"{name}: not stored and left out: {names}; make them with: "
            f"{sweep_command(found[0], results_dir, mc_samples)}",
            err=True,
        )
    return found


def _check_choice(name: str, run: "StoredRun", chosen: dict[str, Any]) -> None:
    """Refuse options that say of a single spectrum what it is not."""
    from vivit_bench.spectrum.stored import has_setting

    for setting, value in chosen.items():
        # What is drawn of a problem by default is no choice.
        is_choice = value != Blocks.NONE or setting == "checkpoint"
        if is_choice and not has_setting(run, setting, value):
            raise UsageError(
                f"{name}: --{setting.replace('_', '-')} {value} is asked for, but this spectrum "
                f"is of {run.settings.get(setting)}; leave the option out, or name another"
            )


def _warn_if_not_finite(record: "SpectrumRecord") -> None:
    import numpy as np

    if count := int((~np.isfinite(record.eigenvalues)).sum()):
        typer.echo(f"warning: {record.folder}: {count} eigenvalues are not finite", err=True)


def _warn_of_differences(runs: "Sequence[StoredRun]", apart: Collection[str] = ()) -> None:
    """Say in what spectra differ beside their approximation: they stand side by side."""
    from vivit_bench.spectrum.stored import side_by_side

    for line in side_by_side(runs, apart):
        typer.echo(f"warning: {line}", err=True)


def _show_step(progress: "Progress", step: "SweepStep") -> None:
    if step.event == "stored already":
        return  # the store has said so, and where
    seconds = f" ({step.record.compute_seconds:.1f} s)" if step.record is not None else ""
    line = f"{step.settings.problem} {step.settings.variant}: {step.event}{seconds}"
    progress.console.print(line, soft_wrap=True, markup=False)
