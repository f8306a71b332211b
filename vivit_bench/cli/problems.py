"""``vivit-bench problems``: what can be benchmarked, and where its data is."""

import csv
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from vivit_bench.problems import ProblemInfo

app = typer.Typer(
    no_args_is_help=True,
    help="The problems there are: networks, losses, data.",
)

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the data sets.", show_default="$VIVIT_BENCH_DATA or the user's cache"
    ),
]


@app.command("list")
def list_command(
    data_dir: DataDir = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print DeepOBS's problems with their sizes and where their data is.

    A problem of your own is path/to/file.py:function wherever a name is asked for.
    """
    from vivit_bench.errors import UsageError
    from vivit_bench.problems import data_folder, list_problems

    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other: give one")
    rows = list_problems(data_dir)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    elif as_csv:
        _print_csv(rows)
    else:
        _print(_list_table(rows))
        _print(
            "\n"
            f"Data folder: {data_folder(data_dir)}\n"
            "D: parameters; C: outputs; batch: DeepOBS's training batch size.\n"
            "Missing data is downloaded on first use; --data synthetic needs none, and\n"
            "--data mnist5k has 5,000 real digits for the problems of input 1x28x28.",
        )


@app.command("show")
def show_command(
    name: Annotated[
        str, typer.Argument(help="A DeepOBS problem or path/to/file.py:function.", metavar="NAME")
    ],
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Build one problem and print its sizes, its data and its layers."""
    from vivit_bench.problems import load_problem
    from vivit_bench.problems.describe import describe_problem, layer_rows

    problem = load_problem(name)
    facts, layers = describe_problem(problem, data_dir), layer_rows(problem)
    if as_json:
        typer.echo(json.dumps({**facts, "layers": layers}, indent=2))
    else:
        _print(_facts_table(facts))
        _print("")
        _print(_layer_table(layers))


def _shape(shape: Any) -> str:
    if isinstance(shape, dict):
        return ", ".join(f"{place} {_shape(axes)}" for place, axes in shape.items())
    return "x".join(map(str, shape)) if shape is not None else "-"


def _print_csv(rows: list["ProblemInfo"]) -> None:
    records = [{**asdict(row), "input_shape": _shape(row.input_shape)} for row in rows]
    writer = csv.DictWriter(sys.stdout, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)


def _list_table(rows: list["ProblemInfo"]) -> "Table":
    table = _table(
        ("problem", "left"),
        ("D", "right"),
        ("C", "right"),
        ("input", "left"),
        ("batch", "right"),
        ("data set", "left"),
        ("its data", "left"),
    )
    for row in rows:
        where = "present" if row.data_present else "missing"
        table.add_row(
            row.name,
            f"{row.num_params:,}",
            str(row.num_outputs),
            _shape(row.input_shape),
            str(row.default_batch_size),
            row.dataset,
            where if row.data_path else "built in",
        )
    return table


def _facts_table(facts: dict[str, Any]) -> "Table":
    from rich.table import Table

    where = ""
    if facts["data_path"] is not None:
        where = f", {'present' if facts['data_present'] else 'missing'} in {facts['data_path']}"
    lines = {
        "problem": facts["name"],
        "model, loss": f"{facts['model']}, {facts['loss']}",
        "parameters D": f"{facts['num_params']:,}",
        "outputs C": facts["num_outputs"],
        "input": _shape(facts["input_shape"]),
        "batch sizes": f"{facts['default_batch_size']} (training), "
        f"{facts['spectrum_batch_size']} (spectrum)",
        "epochs": facts["default_epochs"],
        "data": f"{facts['dataset']}{where}",
        "--data": ", ".join(facts["sources"]),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in lines.items():
        if value is not None:
            table.add_row(label, str(value))
    return table


def _layer_table(layers: list[dict[str, Any]]) -> "Table":
    table = _table(("layer", "left"), ("type", "left"), ("output", "left"), ("parameters", "right"))
    for row in layers:
        table.add_row(
            row["layer"], row["type"], _shape(row["output_shape"]), f"{row['num_params']:,}"
        )
    return table


def _table(*columns: tuple[str, Any]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column, (header, justify) in enumerate(columns):
        table.add_column(header, justify=justify, overflow="fold", no_wrap=column == 0)
    return table


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console(emoji=False, highlight=False).print(
        renderable, markup=False, soft_wrap=isinstance(renderable, str)
    )
