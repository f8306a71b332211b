"""Arguments and options that several command groups share."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vivit_bench.curvature.options import Curvature, Precision, Samples
from vivit_bench.problems.sources import DataSource

if TYPE_CHECKING:
    from vivit_bench.curvature import Certificate
    from vivit_bench.curvature.certificate import Certify


class Check(StrEnum):
    """Samples on which a result is compared with plain autograd."""

    TWO = "two"
    ALL = "all"
    NONE = "none"

    @property
    def certify(self) -> "Certify":
        """As the engine takes it."""
        return "all" if self is Check.ALL else self is Check.TWO


def print_certificate(certificate: "Certificate | None") -> None:
    """What was checked, in one line on stderr."""
    typer.echo("not certified" if certificate is None else certificate.line(), err=True)


ProblemArgument = Annotated[
    str,
    typer.Argument(
        metavar="PROBLEM", help="DeepOBS name, or path/to/file.py:function for your own."
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(min=1, help="Mini-batch size N.", show_default="the problem's, mostly 128"),
]
CurvatureOption = Annotated[
    Curvature, typer.Option(help="Exact loss Hessian or its Monte-Carlo approximation.")
]
SamplesOption = Annotated[
    Samples, typer.Option(help="Curvature of the whole mini-batch or of its first N // 8.")
]
McSamplesOption = Annotated[
    int, typer.Option(min=1, help="Label draws per sample for --curvature mc.")
]
BlocksOption = Annotated[
    list[str] | None,
    typer.Option(
        help="none: the full GGN. layer: its diagonal blocks, one a layer. NAME=PATTERN, "
        "repeatable: blocks by parameter names, such as 'head=fc.*'.",
        show_default="none",
    ),
]
ParamsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Names of the parameters that count, such as 'layer4.*'; repeatable.",
        show_default="all trainable ones",
    ),
]
CertifyOption = Annotated[
    Check, typer.Option(help="Samples on which the result is compared with plain autograd.")
]
CutoffOption = Annotated[
    float, typer.Option(help="Eigenvalues above it are counted as directions.")
]
DataOption = Annotated[
    DataSource | None,
    typer.Option(
        help="Where the mini-batch comes from.",
        show_default="deepobs; own for a problem of your own",
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the data sets.", show_default="$VIVIT_BENCH_DATA or the user's cache"
    ),
]
SeedOption = Annotated[
    int, typer.Option(help="Seed of parameters, mini-batch and Monte-Carlo draws.")
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(help="Parameters of a trained model.", show_default="initial parameters"),
]
DtypeOption = Annotated[Precision, typer.Option(help="Precision of model and matrix products.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:i.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads.", show_default="PyTorch's choice")
]
