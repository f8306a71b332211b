"""Critical batch sizes: the largest mini-batch whose work fits a memory budget.

Every trial is a child process under the budget (`vivit_bench.measure`); the search is a pure
function of its trials, which are recorded durably. Names are loaded on first use.
"""

from typing import TYPE_CHECKING

from vivit_bench.lazy import lazy_getattr

if TYPE_CHECKING:
    from vivit_bench.critical_batch.listener import Listener
    from vivit_bench.critical_batch.predict import Prediction, predict_cell
    from vivit_bench.critical_batch.runner import (
        FinishedSearch,
        MemoryLimit,
        choose_limit,
        run_search,
    )
    from vivit_bench.critical_batch.search import SearchResult, StoppedBy, TrialError
    from vivit_bench.critical_batch.settings import Cell, make_cell

_LAZY = {
    "Cell": "settings",
    "FinishedSearch": "runner",
    "Listener": "listener",
    "MemoryLimit": "runner",
    "Prediction": "predict",
    "SearchResult": "search",
    "StoppedBy": "search",
    "TrialError": "search",
    "choose_limit": "runner",
    "make_cell": "settings",
    "predict_cell": "predict",
    "run_search": "runner",
}

__all__ = [
    "Cell",
    "FinishedSearch",
    "Listener",
    "MemoryLimit",
    "Prediction",
    "SearchResult",
    "StoppedBy",
    "TrialError",
    "choose_limit",
    "make_cell",
    "predict_cell",
    "run_search",
]

__getattr__ = lazy_getattr(__name__, _LAZY)
