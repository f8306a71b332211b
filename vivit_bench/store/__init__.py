"""Results on disk: the only room that opens result files for writing."""

from vivit_bench.store.elsewhere import as_elsewhere, made_on
from vivit_bench.store.files import check_writable, write_atomic, write_output
from vivit_bench.store.identity import Identity, State, check_name, differences
from vivit_bench.store.journal import Journal, read_journal
from vivit_bench.store.policy import Action, Decision, Found, decide
from vivit_bench.store.provenance import Provenance, code_fingerprint, environment, provenance
from vivit_bench.store.run import Run, check_run, foresee_run, open_run
from vivit_bench.store.stored import (
    DamagedRunError,
    StoredRun,
    find_run,
    finished_runs,
    load_run,
    nothing_found,
    stored_runs,
)

__all__ = [
    "Action",
    "DamagedRunError",
    "Decision",
    "Found",
    "Identity",
    "Journal",
    "Provenance",
    "Run",
    "State",
    "StoredRun",
    "as_elsewhere",
    "check_name",
    "check_run",
    "check_writable",
    "code_fingerprint",
    "decide",
    "differences",
    "environment",
    "find_run",
    "finished_runs",
    "foresee_run",
    "load_run",
    "made_on",
    "nothing_found",
    "open_run",
    "provenance",
    "read_journal",
    "stored_runs",
    "write_atomic",
    "write_output",
]
