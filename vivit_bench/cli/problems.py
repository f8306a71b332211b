"""``vivit-bench problems``: what can be benchmarked, and where its data is."""

from dataclasses import asdict
from typing import Any

import typer

from vivit_bench.cli.options import (
    CheckpointOption,
    DataDirOption,
    FormatOption,
    ProblemArgument,
    SeedOption,
    examples,
)
from vivit_bench.cli.output import hand_out
from vivit_bench.report.tables import Column, Table, TableFormat, json_text

app = typer.Typer(
    no_args_is_help=True,
    help="The problems there are: networks, losses, data.",
)


def _shape(shape: Any) -> str:
    if isinstance(shape, dict):
        return ", ".join(f"{place} {_shape(axes)}" for place, axes in shape.items())
    return "x".join(map(str, shape))


_LIST = (
    Column("name", "problem", left=True),
    Column("num_params", "D", ","),
    Column("num_outputs", "C"),
    Column("input_shape", "input", _shape, left=True),
    Column("loss", is_detail=True),
    Column("default_batch_size", "batch"),
    Column("spectrum_batch_size", is_detail=True),
    Column("default_epochs", is_detail=True),
    Column("dataset", "data set", left=True),
    Column("data_path", is_detail=True),
    Column("data_present", is_detail=True),
    Column("data_state", "its data", left=True),
)
_FACTS = (
    Column("name", "problem"),
    Column("model"),
    Column("loss"),
    Column("num_params", "parameters D", ","),
    Column("num_outputs", "outputs C"),
    Column("input_shape", "input", _shape),
    Column("default_batch_size", "batch size, training"),
    Column("spectrum_batch_size", "batch size, spectrum"),
    Column("default_epochs", "epochs"),
    Column("dataset", "data"),
    Column("data_path", "data folder"),
    Column("data_present", "data present", lambda present: "yes" if present else "no"),
    Column("sources", "--data", ", ".join),
)
_LAYERS = (
    Column("layer", left=True),
    Column("type", left=True),
    Column("output_shape", "output", _shape, left=True),
    Column("num_params", "parameters", ","),
)


@app.command("list", epilog=examples("problems list", "problems list --format json"))
def list_command(data_dir: DataDirOption = None, format: FormatOption = TableFormat.TABLE) -> None:
    """Print DeepOBS's problems with their sizes and where their data is.

    A problem of your own is path/to/file.py:function wherever a name is asked for.
    """
    from vivit_bench.problems import data_folder, list_problems

    states = {True: "present", False: "missing"}
    rows = [
        asdict(row) | {"data_state": states[row.data_present] if row.data_path else "built in"}
        for row in list_problems(data_dir)
    ]
    notes = [
        f"Data folder: {data_folder(data_dir)}",
        "D: parameters; C: outputs; batch: DeepOBS's training batch size. Missing data is "
        "downloaded on first use; --data synthetic needs none, and --data mnist5k has 5,000 real "
        "digits for the problems of input 1x28x28.",
    ]
    hand_out(Table(_LIST, rows, notes=notes), format)


@app.command(
    "show",
    epilog=examples("problems show cifar10_3c3d", "problems show net.py:make --format json"),
)
def show_command(
    problem: ProblemArgument,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    format: FormatOption = TableFormat.TABLE,
) -> None:
    """Build one problem and print its sizes, its data and its layers.

    As CSV its facts come first, then an empty line and the layers.
    """
    from vivit_bench.problems.describe import describe_problem, layer_rows
    from vivit_bench.problems.guest import users_code
    from vivit_bench.problems.workload import WorkloadSpec, load_workload

    spec = WorkloadSpec(problem, data_dir=data_dir, seed=seed, checkpoint=checkpoint)
    with users_code(problem):
        loaded = load_workload(spec, "memory").problem
        facts, layers = describe_problem(loaded, data_dir), layer_rows(loaded)
    if format is TableFormat.JSON:
        typer.echo(json_text({**facts, "layers": layers}), nl=False)
        return
    hand_out(Table(_FACTS, [facts], is_record=True), format)
    typer.echo("")
    hand_out(Table(_LAYERS, layers), format)
