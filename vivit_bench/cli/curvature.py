"""``vivit-bench curvature``: Newton steps, directions and eigenpairs of one mini-batch."""

from pathlib import Path
from typing import Annotated

import typer

from vivit_bench.arguments import (
    DEFAULT_CUTOFF,
    check_cutoff,
    check_drop_columns,
    drop_trace,
    parse_blocks,
)
from vivit_bench.cli.options import (
    APPROXIMATION,
    MACHINE,
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
    MaxProductsOption,
    McSamplesOption,
    MemoryDataOption,
    MethodOption,
    OutputOption,
    ParamsOption,
    ProblemArgument,
    QuietOption,
    SamplesOption,
    SeedOption,
    ThreadsOption,
    ToleranceOption,
    engine_on,
    examples,
    parse_engine_memory,
    print_certificate,
    print_dropped,
    print_method,
)
from vivit_bench.cli.output import check_table_file, check_tensor_file, hand_out, save_tensors
from vivit_bench.curvature.options import Approximation, Curvature, Goal, Method, Precision, Samples
from vivit_bench.errors import UsageError
from vivit_bench.problems.workload import WorkloadSpec
from vivit_bench.report.tables import TableFormat

app = typer.Typer(
    no_args_is_help=True,
    help="Quantities of one mini-batch's GGN: Newton steps, directions, eigenvalues, eigenvectors.",
)

TopOption = Annotated[
    int,
    typer.Option("--top", min=1, help="How many, by eigenvalue.", rich_help_panel=APPROXIMATION),
]


@app.command(
    epilog=examples(
        "curvature newton mnist_2c2d --data mnist5k --damping 1.0 --output step.pt",
        "curvature newton net.py:make --damping bootstrap --blocks layer",
    )
)
def newton(
    problem: ProblemArgument,
    damping: Annotated[
        str, typer.Option(help="A number, or bootstrap: chosen per direction from the noise.")
    ] = "1.0",
    whole_space: Annotated[
        bool,
        typer.Option("--whole-space", help="-(G + damping I)^-1 grad L, without a cutoff."),
    ] = False,
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
    engine_memory: EngineMemoryOption = None,
    method: MethodOption = Method.AUTO,
    tolerance: ToleranceOption = None,
    max_products: MaxProductsOption = None,
    max_directions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Directions that iterations may find above the cutoff.",
            show_default="200, or as many as --engine-memory has room for",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.pt",
            help="Also write the step: parameter name -> tensor (torch.load).",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Compute a damped Newton step and what it does to the loss of the mini-batch."""
    import torch

    from vivit_bench.curvature import newton_step
    from vivit_bench.curvature.damping import damping_policy
    from vivit_bench.curvature.minibatch import named_parameters
    from vivit_bench.problems.workload import load_workload
    from vivit_bench.report.curvature import step_table

    spec = WorkloadSpec(problem, batch_size, data, data_dir, seed, checkpoint, dtype, device)
    approximation = Approximation(curvature, samples, mc_samples, seed)
    check_cutoff(cutoff)
    if whole_space and cutoff != DEFAULT_CUTOFF:
        raise UsageError(f"--cutoff {cutoff:g}: --whole-space has no cutoff; leave one of them out")
    structure = parse_blocks(blocks or [])
    check_tensor_file(output)
    policy = damping_policy(damping, seed)
    memory = parse_engine_memory(engine_memory)
    with engine_on(problem, device, threads):
        model, loss, inputs, targets = load_workload(spec).request
        result = newton_step(
            model,
            loss,
            inputs,
            targets,
            approximation,
            damping=policy,
            cutoff=None if whole_space else cutoff,
            blocks=structure,
            params=params,
            certify=certify.certify,
            memory=memory,
            method=method,
            tolerance=tolerance,
            max_products=max_products,
            max_directions=max_directions,
        )
        named = named_parameters(model, params)
        with torch.no_grad():
            for (_, parameter), change in zip(named, result.step, strict=True):
                parameter.add_(change)
            after = float(loss(model(inputs), targets))
        step = {n: s.cpu() for (n, _), s in zip(named, result.step, strict=True)}
    if output is not None:
        save_tensors(step, output, quiet)
    directions = sum(len(values) for values in result.eigenvalues.values())
    table = step_table(
        loss=result.info.loss,
        loss_after_step=after,
        step_norm=float(torch.cat([s.flatten() for s in step.values()]).double().norm()),
        num_directions=result.info.num_params if whole_space else directions,
    )
    hand_out(table, format)
    print_method(result, quiet)
    print_certificate(result.certificate, quiet)


@app.command(
    epilog=examples(
        "curvature directional mnist_2c2d --data mnist5k --output directions.csv",
        "curvature directional cifar10_3c3d --data synthetic --curvature mc --format json",
    )
)
def directional(
    problem: ProblemArgument,
    curvature: CurvatureOption = Curvature.EXACT,
    samples: SamplesOption = Samples.FULL,
    mc_samples: McSamplesOption = 1,
    params: ParamsOption = None,
    cutoff: CutoffOption = DEFAULT_CUTOFF,
    drop_columns: DropColumnsOption = None,
    certify: CertifyOption = Check.TWO,
    batch_size: BatchSizeOption = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    engine_memory: EngineMemoryOption = None,
    output: OutputOption = None,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Slope, curvature and their signal-to-noise ratios along every GGN eigenvector.

    Columns: direction from 1, eigenvalue, gamma (the slope; its sign is arbitrary), alignment
    (share of the gradient's squared norm), snr_gamma, snr_lambda.
    """
    from vivit_bench.curvature import directional_derivatives
    from vivit_bench.noise import direction_table
    from vivit_bench.problems.workload import load_workload
    from vivit_bench.report.curvature import directions_table

    spec = WorkloadSpec(problem, batch_size, data, data_dir, seed, checkpoint, dtype, device)
    approximation = Approximation(curvature, samples, mc_samples, seed)
    check_cutoff(cutoff)
    check_drop_columns(drop_columns)
    check_table_file(output)
    memory = parse_engine_memory(engine_memory)
    with engine_on(problem, device, threads):
        result = directional_derivatives(
            *load_workload(spec).request,
            approximation,
            cutoff=cutoff,
            params=params,
            with_gradient=True,
            certify=certify.certify,
            drop_trace=drop_trace(drop_columns, cutoff),
            memory=memory,
        )
        squared = sum(float(part.double().square().sum()) for part in result.gradient or [])
        rows = direction_table(result, squared).to_dict("records")
    hand_out(directions_table(rows), format, output, quiet)
    print_dropped(result.dropped, result.info.num_columns, quiet)
    print_certificate(result.certificate, quiet)


@app.command(
    epilog=examples(
        "curvature eigenvalues mnist_2c2d --data mnist5k --top 5",
        "curvature eigenvalues net.py:make --batch-size 4096 --engine-memory 2GiB",
    )
)
def eigenvalues(
    problem: ProblemArgument,
    k: TopOption = 10,
    curvature: CurvatureOption = Curvature.EXACT,
    samples: SamplesOption = Samples.FULL,
    mc_samples: McSamplesOption = 1,
    blocks: BlocksOption = None,
    params: ParamsOption = None,
    certify: CertifyOption = Check.TWO,
    batch_size: BatchSizeOption = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    engine_memory: EngineMemoryOption = None,
    method: MethodOption = Method.AUTO,
    tolerance: ToleranceOption = None,
    max_products: MaxProductsOption = None,
    output: OutputOption = None,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Print the leading GGN eigenvalues, also where the Gram matrix does not fit into memory.

    Columns: direction from 1, eigenvalue, residual (|G u - l u| over the largest eigenvalue, of
    iterations). For all eigenvalues, stored, see spectrum compute.
    """
    from vivit_bench.curvature import leading_eigenvalues
    from vivit_bench.problems.workload import load_workload
    from vivit_bench.report.curvature import eigenvalues_table

    spec = WorkloadSpec(problem, batch_size, data, data_dir, seed, checkpoint, dtype, device)
    approximation = Approximation(curvature, samples, mc_samples, seed)
    structure = parse_blocks(blocks or [])
    check_table_file(output)
    memory = parse_engine_memory(engine_memory)
    with engine_on(problem, device, threads):
        result = leading_eigenvalues(
            *load_workload(spec).request,
            approximation,
            k=k,
            method=method,
            blocks=structure,
            params=params,
            certify=certify.certify,
            memory=memory,
            tolerance=tolerance,
            max_products=max_products,
        )
    table = eigenvalues_table(result.eigenvalues, result.residuals)
    hand_out(table, format, output, quiet)
    print_method(result, quiet)
    print_certificate(result.certificate, quiet)


@app.command(
    epilog=examples("curvature eigenvectors mnist_2c2d --data mnist5k --top 10 --output v.pt")
)
def eigenvectors(
    problem: ProblemArgument,
    output: Annotated[
        Path,
        typer.Option(
            metavar="FILE.pt",
            help=r"File: eigenvalues \[k], and parameter name -> \[k, *shape] (torch.load).",
            rich_help_panel=OUTPUT,
        ),
    ],
    k: TopOption = 10,
    curvature: CurvatureOption = Curvature.EXACT,
    samples: SamplesOption = Samples.FULL,
    mc_samples: McSamplesOption = 1,
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
    engine_memory: EngineMemoryOption = None,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Write the leading GGN eigenvectors in parameter format to a file."""
    from vivit_bench.problems.workload import load_workload
    from vivit_bench.report.curvature import eigenvalues_table
    from vivit_bench.spectrum import SpectrumSettings, leading_eigenvectors

    spec = WorkloadSpec(problem, batch_size, data, data_dir, seed, checkpoint, dtype, device)
    approximation = Approximation(curvature, samples, mc_samples, seed)
    check_cutoff(cutoff)
    check_tensor_file(output)
    memory = parse_engine_memory(engine_memory)
    with engine_on(problem, device, threads):
        work = load_workload(spec)
        settings = SpectrumSettings(work.spec, approximation, params=params, cutoff=cutoff)
        vectors, certificate = leading_eigenvectors(work, settings, k, certify.certify, memory)
    save_tensors(vectors, output, quiet)
    hand_out(eigenvalues_table(vectors["eigenvalues"]), format)
    print_certificate(certificate, quiet)


@app.command(
    epilog=examples(
        "curvature explain cifar10_3c3d",
        "curvature explain net.py:make --quantity newton --blocks layer --engine-memory 512MiB",
    )
)
def explain(
    problem: ProblemArgument,
    quantity: Annotated[
        Goal,
        typer.Option(
            help="What would be computed; newton-policy is newton --damping bootstrap, inverse "
            "is newton --whole-space.",
            rich_help_panel=APPROXIMATION,
        ),
    ] = Goal.EIGENVALUES,
    curvature: CurvatureOption = Curvature.EXACT,
    samples: SamplesOption = Samples.FULL,
    mc_samples: McSamplesOption = 1,
    blocks: BlocksOption = None,
    params: ParamsOption = None,
    certify: CertifyOption = Check.TWO,
    batch_size: BatchSizeOption = None,
    data: MemoryDataOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    engine_memory: EngineMemoryOption = None,
    output: OutputOption = None,
    format: FormatOption = TableFormat.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Show how the engine would compute a quantity: passes, memory, FLOPs, expected seconds.

    A row a pass over the mini-batch, a layer (its contraction), a solver, the passes for gradients
    and steps, and all together (kind in CSV and JSON: pass, layer, solver, gradient, all).
    Nothing is computed; the seconds rest on one micro-batch and two small products, timed now.
    """
    from vivit_bench.curvature import explain as plan
    from vivit_bench.problems.workload import load_workload
    from vivit_bench.report.curvature import explanation_table

    spec = WorkloadSpec(problem, batch_size, data, data_dir, seed, checkpoint, dtype, device)
    approximation = Approximation(curvature, samples, mc_samples, seed)
    structure = parse_blocks(blocks or [])
    check_table_file(output)
    memory = parse_engine_memory(engine_memory)
    with engine_on(problem, device, threads):
        found = plan(
            *load_workload(spec, "memory").request,
            approximation,
            quantity=quantity,
            blocks=structure,
            params=params,
            certify=certify.certify,
            memory=memory,
        )
    hand_out(explanation_table(found), format, output, quiet)
