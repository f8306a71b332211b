"""DeepOBS's and the user's problems, and the data they run on.

Names are loaded on first use, so that asking for a table row or a `DataSource`
does not import torch.
"""

from typing import TYPE_CHECKING

from vivit_bench.lazy import lazy_getattr
from vivit_bench.problems.catalogue import ProblemInfo, list_problems
from vivit_bench.problems.datasets import data_folder
from vivit_bench.problems.sources import (
    DataSource,
    available_sources,
    default_source,
)

if TYPE_CHECKING:
    from vivit_bench.problems.data import load_batch, load_dataset
    from vivit_bench.problems.load import load_problem
    from vivit_bench.problems.problem import Problem

_LAZY = {
    "Problem": "problem",
    "load_batch": "data",
    "load_dataset": "data",
    "load_problem": "load",
}

__all__ = [
    "DataSource",
    "Problem",
    "ProblemInfo",
    "available_sources",
    "data_folder",
    "default_source",
    "list_problems",
    "load_batch",
    "load_dataset",
    "load_problem",
]

__getattr__ = lazy_getattr(__name__, _LAZY)
