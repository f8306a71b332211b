"""Critical batch sizes: the largest mini-batch whose work fits a memory budget.

Every trial is a child process under the budget; the search is a pure function of its trials,
which are recorded durably. Names are loaded on first use: a trial's process must be small.
"""

from typing import TYPE_CHECKING

from vivit_bench.lazy import lazy_getattr

if TYPE_CHECKING:
    from vivit_bench.critical_batch.outcomes import Outcome, Trial
    from vivit_bench.critical_batch.runner import (
        FinishedSearch,
        Listener,
        MemoryLimit,
        choose_limit,
        run_search,
    )
    from vivit_bench.critical_batch.search import SearchResult, StoppedBy, TrialError
    from vivit_bench.critical_batch.settings import Cell, make_cell

_LAZY = {
    "Cell": "settings",
    "FinishedSearch": "runner",
    "Listener": "runner",
    "MemoryLimit": "runner",
    "Outcome": "outcomes",
    "SearchResult": "search",
    "StoppedBy": "search",
    "Trial": "outcomes",
    "TrialError": "search",
    "choose_limit": "runner",
    "make_cell": "settings",
    "run_search": "runner",
}

__all__ = [
    "Cell",
    "FinishedSearch",
    "Listener",
    "MemoryLimit",
    "Outcome",
    "SearchResult",
    "StoppedBy",
    "Trial",
    "TrialError",
    "choose_limit",
    "make_cell",
    "run_search",
]

__getattr__ = lazy_getattr(__name__, _LAZY)
