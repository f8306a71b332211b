"""``vivit-bench curvature``: Newton steps, directions and eigenvectors of one mini-batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vivit_bench.arguments import DEFAULT_CUTOFF, check_cutoff, parse_blocks
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
    print_certificate,
)
from vivit_bench.cli.tensors import check_tensor_file, save_tensors
from vivit_bench.curvature.options import Approximation, Blocks, Curvature, Precision, Samples
from vivit_bench.store import check_writable

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    no_args_is_help=True,
    help="Quantities of one mini-batch's GGN: Newton steps, directions, eigenvectors.",
)


def _request(problem: str, **loading: Any) -> tuple[Any, Any, Any, Any]:
    """(model, loss, inputs, targets) of a problem, as the engine takes them."""
    from vivit_bench.spectrum import load_workload

    return load_workload(problem, **loading).request


@contextmanager
def _engine(problem: str, device: str, threads: int | None) -> Iterator[None]:
    """Run the engine inside: its threads, and one line where memory runs out."""
    from vivit_bench.hardware import cpu_threads, memory_errors

    advice = "try a smaller --batch-size, or --samples frac"
    with cpu_threads(threads), memory_errors(f"{problem} on {device}", advice):
        yield


def _write_table(table: "pd.DataFrame", output: Path | None) -> None:
    """To a CSV file, or to stdout."""
    from vivit_bench.report.files import write_report

    text = table.to_csv(index=False)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_report(output, text)
        typer.echo(f"wrote {output}", err=True)


@app.command()
def newton(
    problem: ProblemArgument,
    damping: Annotated[
        str, typer.Option(help="A number, or bootstrap: chosen per direction from the noise.")
    ] = "1.0",
    whole_space: Annotated[
        bool,
        typer.Option("--whole-space", help="-(G + damping I)^-1 grad L, without a cutoff."),
    ] = False,
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
        typer.Option(help="Write the step to this file: parameter name -> tensor (torch.load)."),
    ] = None,
) -> None:
    """Compute a damped Newton step and what it does to the loss of the mini-batch."""
    import pandas as pd
    import torch

    from vivit_bench.curvature import newton_step
    from vivit_bench.curvature.damping import damping_policy
    from vivit_bench.curvature.minibatch import named_parameters

    check_cutoff(cutoff)
    approximation = Approximation(curvature, samples, mc_samples, seed)
    structure = parse_blocks(blocks or [])
    if output is not None:
        check_tensor_file(output)
    policy = damping_policy(damping, seed)
    with _engine(problem, device, threads):
        model, loss, inputs, targets = _request(
            problem,
            batch_size=batch_size,
            data=data,
            data_dir=data_dir,
            seed=seed,
            checkpoint=checkpoint,
            dtype=dtype,
            device=device,
        )
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
        )
    named = named_parameters(model, params)
    if output is not None:
        step = {n: s.cpu() for (n, _), s in zip(named, result.step, strict=True)}
        save_tensors(step, output)
    with torch.no_grad():
        for (_, parameter), change in zip(named, result.step, strict=True):
            parameter.add_(change)
        after = float(loss(model(inputs), targets))
    norm = float(torch.cat([s.flatten() for s in result.step]).double().norm())
    directions = sum(len(v) for v in result.eigenvalues.values())
    row = {
        "loss": result.info.loss,
        "loss_after_step": after,
        "step_norm": norm,
        "directions": result.info.num_params if whole_space else directions,
    }
    _write_table(pd.DataFrame([row]), None)
    print_certificate(result.certificate)


@app.command()
def directional(
    problem: ProblemArgument,
    batch_size: BatchSizeOption = None,
    curvature: CurvatureOption = Curvature.EXACT,
    samples: SamplesOption = Samples.FULL,
    mc_samples: McSamplesOption = 1,
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
        Path | None, typer.Option(help="CSV file.", show_default="standard output")
    ] = None,
) -> None:
    """Slope, curvature and their signal-to-noise ratios along every GGN eigenvector."""
    import pandas as pd

    from vivit_bench.curvature import directional_derivatives, signal_to_noise

    check_cutoff(cutoff)
    approximation = Approximation(curvature, samples, mc_samples, seed)
    if output is not None:
        check_writable(output)
    with _engine(problem, device, threads):
        request = _request(
            problem,
            batch_size=batch_size,
            data=data,
            data_dir=data_dir,
            seed=seed,
            checkpoint=checkpoint,
            dtype=dtype,
            device=device,
        )
        result = directional_derivatives(
            *request,
            approximation,
            cutoff=cutoff,
            params=params,
            certify=certify.certify,
        )
    table = pd.DataFrame(
        {
            "index": range(len(result.eigenvalues)),
            "eigenvalue": result.eigenvalues,
            "gamma": result.gammas.mean(0),
            "gamma_snr": signal_to_noise(result.gammas),
            "lambda": result.lambdas.mean(0),
            "lambda_snr": signal_to_noise(result.lambdas),
        }
    )
    _write_table(table, output)
    print_certificate(result.certificate)


@app.command()
def eigenvectors(
    problem: ProblemArgument,
    output: Annotated[
        Path,
        typer.Option(help="File: eigenvalues [k], and parameter name -> [k, *shape] (torch.load)."),
    ],
    k: Annotated[int, typer.Option("--top", min=1, help="How many, by eigenvalue.")] = 10,
    batch_size: BatchSizeOption = None,
    curvature: CurvatureOption = Curvature.EXACT,
    samples: SamplesOption = Samples.FULL,
    mc_samples: McSamplesOption = 1,
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
) -> None:
    """Write the leading GGN eigenvectors in parameter format to a file."""
    from vivit_bench.spectrum import leading_eigenvectors, load_workload

    check_cutoff(cutoff)
    Approximation(curvature, samples, mc_samples, seed)
    check_tensor_file(output)
    with _engine(problem, device, threads):
        work = load_workload(
            problem,
            batch_size=batch_size,
            data=data,
            data_dir=data_dir,
            seed=seed,
            checkpoint=checkpoint,
            dtype=dtype,
            device=device,
        )
        settings = work.settings(curvature, samples, mc_samples, Blocks.NONE, cutoff, params)
        vectors, certificate = leading_eigenvectors(work, settings, k, certify.certify)
    save_tensors(vectors, output)
    print_certificate(certificate)


@app.command()
def explain(
    problem: ProblemArgument,
    batch_size: BatchSizeOption = None,
    curvature: CurvatureOption = Curvature.EXACT,
    samples: SamplesOption = Samples.FULL,
    mc_samples: McSamplesOption = 1,
    blocks: BlocksOption = None,
    params: ParamsOption = None,
    seed: SeedOption = 0,
) -> None:
    """Show how the engine would compute each layer, and why, without computing."""
    import humanize
    from rich.console import Console
    from rich.table import Table

    from vivit_bench.curvature import explain as plan
    from vivit_bench.problems import default_source

    approximation = Approximation(curvature, samples, mc_samples, seed)
    request = _request(
        problem, batch_size=batch_size, data=default_source(problem, "memory"), seed=seed
    )
    found = plan(*request, approximation, blocks=parse_blocks(blocks or []), params=params)
    table = Table(box=None, pad_edge=False)
    for name in ("layer", "tier", "D", "contraction", "GFLOP", "kept"):
        right = name in ("D", "GFLOP", "kept")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for unit in found.units:
        table.add_row(
            unit.name,
            unit.tier.value,
            f"{unit.num_params:,}",
            unit.contraction.value,
            f"{unit.flops / 1e9:.2f}",
            humanize.naturalsize(unit.bytes, binary=True),
        )
    table.add_row(
        "all",
        "",
        f"{sum(unit.num_params for unit in found.units):,}",
        "",
        f"{sum(unit.flops for unit in found.units) / 1e9:.2f}",
        humanize.naturalsize(sum(unit.bytes for unit in found.units), binary=True),
    )
    Console(emoji=False).print(table)
    for unit in found.units:
        typer.echo(f"{unit.name} ({unit.layer_type}): {unit.reason}")
    several = "one sample at a time" if found.one_sample_at_a_time else "in micro-batches"
    typer.echo(f"samples run {several}")
    for line in [*found.notes, *dict.fromkeys(u.advice for u in found.units if u.advice)]:
        typer.echo(f"- {line}")
