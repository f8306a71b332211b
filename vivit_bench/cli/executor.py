"""``--executor`` and ``--slurm``: on which machines a command's runs are made."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from vivit_bench.arguments import format_size
from vivit_bench.cli.options import MACHINE
from vivit_bench.errors import UsageError

if TYPE_CHECKING:
    from vivit_bench.cluster import Request


class Executor(StrEnum):
    """Who runs it."""

    LOCAL = "local"
    SLURM = "slurm"


ExecutorOption = Annotated[
    Executor,
    typer.Option(
        help="This machine, or Slurm: a job a run, which is waited for (docs/clusters.md).",
        rich_help_panel=MACHINE,
    ),
]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm",
        metavar="KEY=VALUE,...",
        help="What each job asks for: account, constraint, exclude, exclusive, gres, mem, "
        "nodelist, partition, qos, reservation, time. CPUs are those of --threads.",
        show_default="mem: the budget and 4 GiB for the processes themselves",
        rich_help_panel=MACHINE,
    ),
]


def slurm_options(executor: Executor, slurm: list[str] | None) -> dict[str, str]:
    """Keys and values of ``--slurm``; empty for this machine.

    Raises:
        UsageError: They are given for this machine, or make no sense.
    """
    from vivit_bench.cluster import parse_options

    if executor is Executor.LOCAL and slurm:
        raise UsageError(f"--slurm {','.join(slurm)[:60]}: for Slurm; add --executor slurm")
    return parse_options(slurm or [])


def engine_request(
    options: dict[str, str], threads: int | None, memory: int | None
) -> "tuple[Request, int]":
    """What a job asks for that runs the engine itself, and the memory that the engine has there.

    Either is made of the other, and of what the process takes beside it.

    Raises:
        UsageError: Neither is given, or ``mem`` leaves the engine nothing.
    """
    from vivit_bench.cluster import make_request
    from vivit_bench.cluster.request import IDLE_BYTES, parse_memory

    if memory is None:
        if "mem" not in options:
            raise UsageError(
                "--executor slurm: how much memory a job asks for is not said; add --engine-memory "
                f"SIZE (it asks for {format_size(IDLE_BYTES)} more) or --slurm mem=SIZE"
            )
        memory = parse_memory(options["mem"]) - IDLE_BYTES
        if memory <= 0:
            raise UsageError(
                f"--slurm mem={options['mem']}: {format_size(IDLE_BYTES)} are set aside for the "
                "process itself, and nothing is left for the engine; ask for more, or say with "
                "--engine-memory SIZE what it may take"
            )
    return make_request(options, threads, memory), memory
