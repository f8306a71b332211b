"""Records of trials and searches: durable, resumable, and never mixed silently."""

import ast
import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vivit_bench.critical_batch import Cell, MemoryLimit, make_cell, run_search
from vivit_bench.critical_batch import jobs as jobs_module
from vivit_bench.critical_batch import runner as runner_module
from vivit_bench.critical_batch import settings as settings_module
from vivit_bench.critical_batch.listener import Listener
from vivit_bench.critical_batch.records import EXPERIMENT, identity_of, search_rows
from vivit_bench.critical_batch.runner import FinishedSearch, choose_limit
from vivit_bench.critical_batch.search import StoppedBy, TrialError
from vivit_bench.critical_batch.sweep import table_cells
from vivit_bench.critical_batch.table_s1 import SUB_TABLES
from vivit_bench.curvature.options import Curvature, Samples
from vivit_bench.errors import FilesChangedError, StorageError, UsageError, VivitBenchError
from vivit_bench.measure import Observation, Outcome, Spec, Trial, TrialReport, TrialRun
from vivit_bench.measure.meters import DeviceMemory
from vivit_bench.measure.trial import Confirming
from vivit_bench.peers import Quantity
from vivit_bench.report.critical_batch import search_table
from vivit_bench.store import stored_runs

provenance_module = sys.modules["vivit_bench.store.provenance"]

LIMIT = MemoryLimit(21_500, True)
"""What the peaks of `make_trial` reach between N = 21 and 22."""


def make_trial(n: int, outcome: Outcome, message: str = "", timeout: float = 1_800.0) -> Trial:
    return Trial(
        n=n,
        outcome=outcome,
        message=message,
        peak_bytes=1000 * n,
        idle_bytes=5,
        absolute_peak_bytes=1000 * n + 5,
        elapsed_seconds=2.0,
        timeout_seconds=timeout,
        confirmed=False,
        ended_at="2026-01-01T00:00:00+00:00",
    )


class FakeTrials:
    """Stands in for child processes; batches up to ``threshold`` fit."""

    def __init__(self, threshold: int, endings: dict[int, Outcome] | None = None):
        self.threshold = threshold
        self.endings = endings or {}
        self.runs: list[int] = []
        self.interrupt_after: int | None = None

    def __call__(self, spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
        if len(self.runs) == self.interrupt_after:
            raise KeyboardInterrupt
        self.runs.append(spec.n)
        fits = Outcome.FITS if spec.n <= self.threshold else Outcome.OUT_OF_MEMORY
        outcome = self.endings.get(spec.n, fits)
        message = "" if outcome is Outcome.FITS else "the reason"
        return TrialRun(make_trial(spec.n, outcome, message, timeout), "Traceback: the reason")


def planning(points: list[list[int]]) -> Callable[[Spec, float], Observation]:
    """Stands in for the child that is asked for the plan; without points it is stopped."""

    def plan(spec: Spec, timeout: float) -> Observation:
        nothing = (None, None, None, None, None, 0, "")
        if not points:
            return Observation(Outcome.TIMEOUT, "stopped after 120 s", *nothing)
        told = {"planned_peaks": points, "plans": [[16, 16_000]], "limited_by": "eigenvalues"}
        report = TrialReport(digest={**told, "seconds": [[10, 1.0], [20, 4.0]]})
        return replace(Observation(Outcome.FITS, "", *nothing), report=report)

    return plan


def replace_trials(
    monkeypatch: pytest.MonkeyPatch,
    trials_of: Callable[[Cell], FakeTrials],
    points: list[list[int]] | None = None,
) -> None:
    """Let jobs of this process search with trials that are made up, see `planning`."""
    for name in ("run_search", "look_ahead"):
        real = getattr(runner_module, name)

        def run(cell: Cell, limit: MemoryLimit, *, real: Any = real, **options: Any) -> Any:
            return real(cell, limit, run=trials_of(cell), plan=planning(points or []), **options)

        monkeypatch.setattr(jobs_module, name, run)


def not_to_be_asked(spec: Spec, timeout: float) -> Observation:
    raise AssertionError("the plan is stored, or there is none")


class Notes(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def cell() -> Cell:
    return make_cell("mnist_mlp", threads=2)


@pytest.fixture
def search(tmp_path: Path, cell: Cell) -> Callable[..., FinishedSearch]:
    def run(trials: FakeTrials, **options: Any) -> FinishedSearch:
        settings = {"max_batch": 64, "results_dir": tmp_path, "plan": planning([]), **options}
        return run_search(settings.pop("cell", cell), LIMIT, run=trials, **settings)

    return run


Search = Callable[..., FinishedSearch]


def rows_of(results_dir: Path) -> list[dict[str, Any]]:
    return search_rows(results_dir)[0]


def predicted_of(finished: FinishedSearch) -> dict[str, Any]:
    return json.loads((finished.folder / "run.json").read_text())["results"]["predicted"]


def journals(results_dir: Path) -> list[Path]:
    return sorted((results_dir / EXPERIMENT).glob("*/trials.jsonl"))


UNGUIDED = [1, 2, 4, 8, 16, 32, 21, 22]
"""Sizes of a search for 21 that nothing guides."""


@pytest.mark.parametrize("survived", range(len(UNGUIDED)))
def test_an_interrupted_search_repeats_no_finished_trial(search: Search, survived: int) -> None:
    whole = FakeTrials(21)
    expected = UNGUIDED
    first = FakeTrials(21)
    first.interrupt_after = survived
    with pytest.raises(KeyboardInterrupt):
        search(first)
    finished = search(whole)
    assert first.runs + whole.runs == expected
    assert finished.result.critical_batch_size == 21
    assert finished.from_records == survived


@pytest.mark.parametrize("survived", range(4))
def test_a_search_is_guided_by_the_plan_it_began_with(
    search: Search, tmp_path: Path, survived: int
) -> None:
    """Stored once the small trials are done; the same sizes follow after an interruption."""
    first, rest, plan = FakeTrials(21), FakeTrials(21), planning([[1, 1_000], [64, 64_000]])
    first.interrupt_after = survived
    with contextlib.suppress(KeyboardInterrupt):
        search(first, plan=plan)
    finished = search(rest, plan=not_to_be_asked if survived else plan)
    assert first.runs + rest.runs == [16, 21, 22]
    assert finished.result.critical_batch_size == 21
    header = json.loads((finished.folder / "run.json").read_text())["results"]
    assert header["expected_seconds"] == [[10, 1.0], [20, 4.0]]
    assert header["predicted"]["limited_by"] == "eigenvalues"
    assert "planned_peaks" not in rows_of(tmp_path)[0]


def test_without_a_plan_a_search_says_why_and_doubles(search: Search) -> None:
    notes, first, rest = Notes(), FakeTrials(21), FakeTrials(21)
    first.interrupt_after = 2
    with pytest.raises(KeyboardInterrupt):
        search(first, listener=notes)
    (note,) = notes.notes
    assert note.startswith("nothing guides the search: mnist_mlp")
    assert note.endswith("stopped after 120 s")
    search(rest, plan=not_to_be_asked)
    assert first.runs + rest.runs == UNGUIDED


CONTINUED = [1, 4, 16, 8, 12, 21, 22]
"""Sizes of a search for 21 that the peaks of its small trials guide."""


@pytest.mark.parametrize("survived", range(8))
def test_without_a_plan_the_peaks_of_small_trials_guide(
    search: Search, tmp_path: Path, survived: int
) -> None:
    gradient = make_cell("mnist_mlp", quantity=Quantity.GRADIENT, threads=2)
    first, rest, notes = FakeTrials(21), FakeTrials(21), Notes()
    first.interrupt_after = survived
    with contextlib.suppress(KeyboardInterrupt):
        search(first, cell=gradient, plan=not_to_be_asked, listener=notes)
    finished = search(rest, cell=gradient, plan=not_to_be_asked)
    assert first.runs + rest.runs == CONTINUED
    assert (finished.result.critical_batch_size, finished.result.stopped_by) == (21, "memory")
    header = json.loads((finished.folder / "run.json").read_text())["results"]
    assert header["predicted"]["critical_batch_size"] == 21
    assert header["predicted"]["low"] <= 21 <= header["predicted"]["high"]
    if survived == 7:
        assert notes.notes[0].startswith("expected: N = 21 (")


def test_a_lower_bound_of_nothing_is_no_result(search: Search) -> None:
    stopped = dict.fromkeys(range(20), Outcome.TIMEOUT)
    for trials in (FakeTrials(9, stopped), FakeTrials(9)):  # the second one only asks for it
        with pytest.raises(VivitBenchError, match=r"^no batch .* N = 1: the reason; give a longer"):
            search(trials)


@pytest.mark.parametrize(
    ("peak", "said"),
    [
        (360 * 2**20, "one sample takes at least 360 MiB, above the limit"),
        (2**20 + 21_500, "one sample takes 1.021 MiB, above the limit"),
        (9, "one sample does not fit: the reason"),
    ],
)
def test_of_a_size_of_0_it_is_said_what_one_sample_takes(
    search: Search, peak: int, said: str
) -> None:
    def run(spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
        failed = make_trial(spec.n, Outcome.OUT_OF_MEMORY, "the reason", timeout)
        return TrialRun(replace(failed, peak_bytes=peak), "")

    finished = search(run)  # type: ignore[arg-type]
    assert search_table(finished).rows[0]["reason"] == said


def test_what_did_not_fit_bounds_what_is_expected(search: Search) -> None:
    """The peaks of 1 and 4 samples say 21, and 16 have failed."""
    gradient, trials = make_cell("mnist_mlp", quantity=Quantity.GRADIENT, threads=2), FakeTrials(9)
    told = predicted_of(search(trials, cell=gradient, plan=not_to_be_asked))
    assert trials.runs[:3] == [1, 4, 16]
    assert 4 <= told["low"] <= told["critical_batch_size"] <= told["high"] == 15


def test_what_takes_much_longer_than_the_time_out_is_not_started(search: Search) -> None:
    """N takes N seconds; half as much again as the time-out is what nothing is started for."""
    gradient = make_cell("mnist_mlp", quantity=Quantity.GRADIENT, threads=1)

    class Timed(FakeTrials):
        def __call__(self, spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
            run = super().__call__(spec, timeout, confirming)
            return replace(run, trial=replace(run.trial, work_seconds=float(spec.n)))

    short, long = Timed(21), Timed(21)
    finished = search(short, cell=gradient, trial_timeout=13.9)
    assert short.runs == [1, 4, 16, 8, 12]
    assert (finished.result.critical_batch_size, finished.result.stopped_by) == (16, "timeout")
    assert finished.result.message == "N = 21 is expected to take 21 s, and was not started"
    assert search(long, cell=gradient, trial_timeout=20).result.critical_batch_size == 21
    assert long.runs == [21, 22]


def test_a_bound_that_grows_is_looked_beyond(search: Search) -> None:
    """What was predicted up to --max-batch says nothing of memory."""
    gradient = make_cell("mnist_mlp", quantity=Quantity.GRADIENT, threads=1)
    first = search(FakeTrials(100), cell=gradient, max_batch=18)
    assert predicted_of(first)["limited_by"] == "--max-batch"
    assert (first.result.critical_batch_size, first.result.stopped_by) == (18, "max-batch")
    trials = FakeTrials(21)
    found = search(trials, cell=gradient, max_batch=64)
    assert predicted_of(found)["critical_batch_size"] == 21
    assert predicted_of(found)["limited_by"] == ""
    assert found.result.critical_batch_size == 21
    assert set(trials.runs) <= {19, 20, 21, 22}


def test_seconds_of_a_small_trial_are_those_of_one_cpu(search: Search) -> None:
    gradient = make_cell("mnist_mlp", quantity=Quantity.GRADIENT, threads=2)
    assert search(FakeTrials(100), cell=gradient, max_batch=16).facts["confirmed"]
    assert not search(FakeTrials(21), cell=gradient, fresh=True).facts["confirmed"]


def test_small_trials_have_the_time_of_all_threads(search: Search) -> None:
    given: dict[int, float] = {}

    class Keeps(FakeTrials):
        def __call__(self, spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
            given[spec.n] = timeout
            assert spec.one_cpu == (spec.n not in (21, 22))
            return super().__call__(spec, timeout, confirming)

    gradient = make_cell("mnist_mlp", quantity=Quantity.GRADIENT, threads=2)
    search(Keeps(21), cell=gradient, trial_timeout=100)
    assert given == {n: 100.0 if n in (21, 22) else 200.0 for n in CONTINUED}


def test_a_solver_s_largest_matrix_is_run_before_one_that_is_larger(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """190 rows are 19 samples of ten outputs."""

    def columns(spec: Spec, timeout: float) -> Observation:
        seen = Observation(Outcome.FITS, "", None, None, None, None, None, 0, "")
        return replace(seen, report=TrialReport(digest={"columns": 10}))

    monkeypatch.setattr(Cell, "largest_matrix", 190)
    peer = make_cell("mnist_mlp", engine="backpack", threads=1)
    trials = FakeTrials(100, dict.fromkeys(range(20, 100), Outcome.LIMIT))
    found = search(trials, cell=peer, plan=columns).result
    assert (found.critical_batch_size, found.stopped_by) == (19, StoppedBy.LIMIT)
    assert trials.runs[-2:] == [19, 20]


def test_repeats_run_the_deciding_sizes_again_and_are_recorded(search: Search) -> None:
    once, more, same = FakeTrials(21), FakeTrials(21), FakeTrials(21)
    search(once, plan=planning([[1, 1_000], [64, 64_000]]))
    finished = search(more, repeats=3)
    assert more.runs == [21, 21, 22, 22]
    assert (finished.result.critical_batch_size, finished.result.repeats) == (21, 3)
    assert search(same, repeats=2).result.repeats == 3  # there are more already
    assert same.runs == []


def test_a_size_that_fits_only_sometimes_is_too_large(search: Search) -> None:
    class Unsteady(FakeTrials):
        def __call__(self, spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
            self.threshold = 20 if self.runs.count(21) and spec.n == 21 else 21
            return super().__call__(spec, timeout, confirming)

    finished = search(Unsteady(21), repeats=2, plan=planning([[1, 1_000], [64, 64_000]]))
    assert finished.result.critical_batch_size == 20
    assert finished.result.message == "N = 21 fitted in 1 of 2 trials"


def test_a_finished_search_runs_nothing_again_and_fresh_runs_all(search: Search) -> None:
    search(FakeTrials(21))
    again, fresh = FakeTrials(21), FakeTrials(17)
    assert search(again).from_records == len(UNGUIDED)
    assert again.runs == []
    finished = search(fresh, fresh=True)
    assert finished.from_records == 0
    assert finished.result.critical_batch_size == 17


def test_a_finished_search_is_what_is_stored_whatever_would_be_run_now(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = search(FakeTrials(21)), FakeTrials(0)
    monkeypatch.setattr(runner_module, "find_critical_batch_size", not_to_be_asked)
    finished = search(again)
    assert finished.result == first.result
    assert finished.facts.items() >= first.facts.items()
    assert (finished.from_records, again.runs) == (len(UNGUIDED), [])


@pytest.mark.parametrize("line", [0, 3, 7])
def test_a_damaged_record_costs_itself_and_a_note(
    search: Search, tmp_path: Path, line: int
) -> None:
    """Also of a finished search: the trial is run again, its neighbours are not."""
    search(FakeTrials(21))
    (path,) = journals(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"peak_bytes": ', b'"peak_bytes": 9')
    path.write_bytes(b"".join(lines))
    assert "left out" in search_rows(tmp_path)[1][0]
    again, notes = FakeTrials(21), Notes()
    finished = search(again, listener=notes)
    assert again.runs == [UNGUIDED[line]]
    assert finished.result.critical_batch_size == 21
    assert any(f"line {line + 1} is damaged" in note for note in notes.notes)
    assert rows_of(tmp_path)[0]["critical_batch_size"] == 21


def test_each_trial_is_on_disk_before_the_next_begins(search: Search, tmp_path: Path) -> None:
    seen: list[int] = []

    class Reads(FakeTrials):
        def __call__(self, spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
            seen.append(len(journals(tmp_path)[0].read_bytes().splitlines()))
            return super().__call__(spec, timeout, confirming)

    search(Reads(3))
    assert seen == [0, 1, 2, 3]


def test_a_folder_deleted_during_a_search_is_not_said_to_be_stored(
    search: Search, tmp_path: Path
) -> None:
    class Deletes(FakeTrials):
        def __call__(self, spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
            if spec.n == 4:
                shutil.rmtree(tmp_path / EXPERIMENT)
            return super().__call__(spec, timeout, confirming)

    with pytest.raises(StorageError, match="was removed"):
        search(Deletes(21))


def test_the_same_search_twice_at_once_is_refused(search: Search) -> None:
    class Nested(FakeTrials):
        def __call__(self, spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
            with pytest.raises(VivitBenchError, match="another process is running"):
                search(FakeTrials(3))
            return super().__call__(spec, timeout, confirming)

    assert search(Nested(3)).result.critical_batch_size == 3


def test_a_timeout_is_tried_again_only_with_more_time(search: Search) -> None:
    slow = {8: Outcome.TIMEOUT}
    finished = search(FakeTrials(21, slow), trial_timeout=10.0)
    assert (finished.result.critical_batch_size, finished.result.stopped_by) == (
        4,
        StoppedBy.TIMEOUT,
    )
    same, more = FakeTrials(21, slow), FakeTrials(21)
    assert search(same, trial_timeout=10.0).result.stopped_by is StoppedBy.TIMEOUT
    assert same.runs == []
    assert search(more, trial_timeout=20.0).result.critical_batch_size == 21
    assert more.runs == UNGUIDED[3:]


def test_an_error_is_told_with_its_log_and_tried_again(
    search: Search, tmp_path: Path, cell: Cell
) -> None:
    notes = Notes()
    with pytest.raises(TrialError, match="which says nothing of its memory: the reason"):
        search(FakeTrials(21, {4: Outcome.ERROR}), listener=notes)
    assert not rows_of(tmp_path)
    log = journals(tmp_path)[0].with_name("stderr.txt")
    assert log.read_text() == "Traceback: the reason\n"
    assert notes.notes[1:] == [f"what the trial of N = 4 wrote to stderr: {log}"]
    mended = FakeTrials(21)
    search(mended)
    assert mended.runs[0] == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"torch": "0.0"}, r"torch 0\.0 -> "),
        ({"host": "elsewhere"}, "host elsewhere -> "),
        ({"cpu": "abacus"}, "cpu abacus -> "),
        ({"python": "2.7"}, r"python 2\.7 -> "),
    ],
)
def test_records_of_another_environment_are_kept_and_named(
    search: Search, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], words: str
) -> None:
    current = provenance_module.provenance()
    with monkeypatch.context() as patch:
        patch.setattr(provenance_module, "provenance", lambda device: {**current, **change})
        search(FakeTrials(21))
    here = FakeTrials(5)
    with pytest.raises(UsageError, match=words):
        search(here)
    assert here.runs == []
    assert search(here, fresh=True).result.critical_batch_size == 5


def test_only_code_that_a_trial_imports_makes_records_stale(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms: list[tuple[str, ...]] = []

    def fingerprint(names: tuple[str, ...]) -> str:
        rooms.append(names)
        return "another"

    search(FakeTrials(21))
    monkeypatch.setattr(provenance_module, "code_fingerprint", fingerprint)
    with pytest.raises(UsageError, match=r"code \w+ -> another"):
        search(FakeTrials(21))
    assert {"measure", "curvature", "peers", "problems"} <= set(rooms[0])
    assert not {"critical_batch", "report", "cli", "store"} & set(rooms[0])


def test_other_engines_belong_to_the_code_that_they_need() -> None:
    def code(engine: str, quantity: Quantity) -> object:
        found = settings_module.measuring_environment([engine], "cpu", "mnist_mlp", quantity)
        return found["code"]

    ours, theirs = settings_module.DEFAULT_ENGINE, "vivit-for-pytorch"
    assert code(ours, Quantity.GRADIENT) == code(ours, Quantity.STEP)
    assert code(ours, Quantity.GRADIENT) == code(theirs, Quantity.EIGENVALUES)
    assert code(ours, Quantity.EIGENVALUES) != code(theirs, Quantity.EIGENVALUES)

    package = Path(settings_module.__file__).parents[1]
    todo = [p for room in settings_module._MEASURING_ROOMS for p in (package / room).rglob("*.py")]
    todo += [package / f"{room}.py" for room in settings_module._NOT_CURVATURE]
    needed = set()
    for path in todo:
        tree = ast.parse(path.read_text())
        of_types = {
            id(node)
            for branch in ast.walk(tree)
            if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
            for node in ast.walk(branch)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or id(node) in of_types:
                continue
            whole = node.module == "vivit_bench.curvature"
            modules = [f"{node.module}.{a.name}" for a in node.names] if whole else [node.module]
            if path != package / "peers" / "own.py":  # our engine's
                needed |= {m for m in modules if m and m.startswith("vivit_bench.curvature.")}
    assert needed == {
        "vivit_bench." + room.replace("/", ".") for room in settings_module._NOT_CURVATURE
    }


def test_how_a_trial_s_threads_wait_is_part_of_its_conditions(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(FakeTrials(21))
    monkeypatch.setattr(settings_module, "OPENMP_WAITING", {"OMP_WAIT_POLICY": "ACTIVE"})
    with pytest.raises(UsageError, match="OMP_WAIT_POLICY PASSIVE -> ACTIVE"):
        search(FakeTrials(21))


def test_other_settings_have_records_of_their_own(search: Search, tmp_path: Path) -> None:
    search(FakeTrials(21))
    others = [
        {"seed": 1},
        {"threads": 1},
        {"samples": Samples.FRAC},
        {"curvature": Curvature.MC},
        {"curvature": Curvature.MC, "mc_samples": 2},
        {"quantity": Quantity.GRADIENT},
        {"quantity": Quantity.FULL_NEWTON},
        {"data": "mnist5k"},
    ]
    for options in others:
        trials = FakeTrials(3)
        cell = make_cell("mnist_mlp", **{"threads": 2, **options})  # type: ignore[arg-type]
        assert search(trials, cell=cell).from_records == 0
    assert len(journals(tmp_path)) == len(rows_of(tmp_path)) == len(others) + 1


def test_a_changed_problem_file_has_records_of_its_own(search: Search, tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text("def net(): ...\n")
    own = make_cell(f"{file}:net", threads=2)
    search(FakeTrials(3), cell=own)
    file.write_text("def net(): ...  # another\n")
    changed = FakeTrials(5)
    search(changed, cell=own)
    assert changed.runs[0] == 1
    assert len(stored_runs(tmp_path, EXPERIMENT)[0]) == 2


@pytest.mark.parametrize("changed", ["nets.py", "layers.py"])
def test_a_file_changed_during_a_search_ends_it_and_its_trial_is_not_recorded(
    search: Search, tmp_path: Path, changed: str
) -> None:
    texts = {"nets.py": "import layers\ndef net(): ...\n", "layers.py": "width = 1\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)

    class Changing(FakeTrials):
        def __call__(self, spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
            if len(self.runs) == 3:
                (tmp_path / changed).write_text("width = 2\n")
            return super().__call__(spec, timeout, confirming)

    own = make_cell(f"{tmp_path / 'nets.py'}:net", threads=2)
    with pytest.raises(FilesChangedError, match=r"nets\.py"):
        search(trials := Changing(21), cell=own)
    (journal,) = journals(tmp_path)
    assert len(journal.read_text().splitlines()) == 3 == len(trials.runs) - 1
    (tmp_path / changed).write_text(texts[changed])
    going_on = FakeTrials(21)
    assert search(going_on, cell=own).result.critical_batch_size == 21
    assert not set(going_on.runs) & set(trials.runs[:3])


def test_the_most_searches_that_ran_at_a_time_are_stored(search: Search, tmp_path: Path) -> None:
    """Over several sittings; nothing of a search that always ran alone."""
    for at_once, interrupt_after in ((2, 2), (3, 2), (1, None)):
        trials = FakeTrials(21)
        trials.interrupt_after = interrupt_after
        with contextlib.suppress(KeyboardInterrupt):
            search(trials, at_once=at_once)
    search(FakeTrials(21), at_once=4)  # it is finished, and nothing is run
    search(FakeTrials(21), cell=make_cell("mnist_mlp", seed=1, threads=2))
    headers = {run.settings["seed"]: run.results for run in stored_runs(tmp_path, EXPERIMENT)[0]}
    assert headers[0]["jobs"] == 3
    assert "jobs" not in headers[1]
    assert {row["seed"]: row["jobs"] for row in rows_of(tmp_path)} == {0: 3, 1: 1}


def test_rows_of_all_searches_are_made_of_their_runs(search: Search, tmp_path: Path) -> None:
    search(FakeTrials(21))
    search(FakeTrials(0), cell=make_cell("mnist_mlp", seed=7, threads=2))
    search(FakeTrials(99), cell=make_cell("mnist_mlp", seed=8, threads=2))
    by_seed = {row["seed"]: row for row in rows_of(tmp_path)}
    first, second, third = by_seed[0], by_seed[7], by_seed[8]
    assert (first["critical_batch_size"], first["is_lower_bound"]) == (21, False)
    assert first["stopped_by"] == "memory"
    assert first["peak_bytes"] == 21_000
    assert first["trials"] == len(UNGUIDED)
    assert first["elapsed_seconds"] == 2.0 * len(UNGUIDED)
    assert first["memory_limit_bytes"] == 21_500
    names = ("problem", "quantity", "curvature", "samples", "data", "engine")
    assert [first[name] for name in names] == [
        "mnist_mlp",
        "eigenvalues",
        "exact",
        "full",
        "synthetic",
        "vivit-bench",
    ]
    assert second["critical_batch_size"] == 0
    assert second["peak_bytes"] is None
    assert (third["critical_batch_size"], third["is_lower_bound"]) == (64, True)
    for row in by_seed.values():
        assert all(row[name] for name in ("cpu", "cores", "ram_bytes", "torch", "code", "python"))


def test_a_larger_bound_goes_on_with_a_finished_search(search: Search, tmp_path: Path) -> None:
    assert search(FakeTrials(99)).result.stopped_by is StoppedBy.MAX_BATCH
    smaller, larger = FakeTrials(99), FakeTrials(99)
    assert search(smaller, max_batch=8).result.critical_batch_size == 64
    assert smaller.runs == []
    assert search(larger, max_batch=256).result.critical_batch_size == 99
    assert larger.runs[0] == 128
    (row,) = rows_of(tmp_path)
    assert (row["critical_batch_size"], row["max_batch"], row["is_lower_bound"]) == (99, 256, False)


def test_a_limit_the_machine_cannot_give_is_refused_before_any_trial(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "available_memory", lambda: 21_000)
    trials = FakeTrials(3)
    with pytest.raises(UsageError, match=r"--memory-limit .*: .* are available now"):
        search(trials)
    assert trials.runs == []


@pytest.fixture
def on_card(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A cell on the first of two cards, which has 79 GiB, 60 of them free."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    memory = DeviceMemory(60 * 2**30, 79 * 2**30, "H100")
    monkeypatch.setattr(runner_module, "device_memory", lambda device: memory)
    facts = {"gpu": "H100", "gpu_bytes": 79, "cuda": "13.0", "cudnn": 9, "driver": "580"}
    monkeypatch.setattr(
        provenance_module, "_gpu", lambda device: {**facts, "cuda_allocator": device}
    )
    return make_cell("mnist_mlp", threads=2, device="cuda")


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (100 * 2**30, r"^--memory-limit 100 GiB: cuda:0 \(H100\) has 79 GiB in all; use a smaller"),
        (70 * 2**30, r"needs 70\.25 GiB free, and cuda:0 \(H100\) has 60 GiB of 79 GiB free now"),
        (60 * 2**30 - 255 * 2**20, "a trial needs"),
    ],
)
def test_a_limit_the_card_cannot_give_is_refused_before_any_trial(
    on_card: Cell, tmp_path: Path, limit: int, message: str
) -> None:
    trials = FakeTrials(3)
    with pytest.raises(UsageError, match=message):
        run_search(on_card, MemoryLimit(limit, True), results_dir=tmp_path, run=trials,
                   plan=not_to_be_asked)  # fmt: skip
    assert trials.runs == []


def test_a_limit_that_the_card_can_give_is_searched_and_by_default_half_of_what_is_free(
    on_card: Cell, search: Search, tmp_path: Path
) -> None:
    assert choose_limit([on_card], None, results_dir=tmp_path).limit_bytes == 30 * 2**30
    assert search(FakeTrials(21), cell=on_card).result.critical_batch_size == 21


def test_cuda_is_its_first_device_in_all_that_is_recorded(on_card: Cell) -> None:
    numbered = make_cell("mnist_mlp", threads=2, device="cuda:0")
    assert numbered == on_card
    assert identity_of(numbered, 5).address == identity_of(on_card, 5).address
    other = make_cell("mnist_mlp", threads=2, device="cuda:1")
    assert identity_of(other, 5).address != identity_of(on_card, 5).address


def test_on_a_card_its_libraries_and_its_allocator_are_conditions(
    on_card: Cell, cell: Cell, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = on_card.environment(), cell.environment()
    assert there["gpu"] == "H100"
    assert {"cuda", "cudnn", "driver", "host", "gpu_bytes"} <= set(there)
    assert there["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert there["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "ram_bytes" not in there
    assert "ram_bytes" in here
    assert not {"gpu", "driver", "PYTORCH_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG"} & set(here)
    search(FakeTrials(21), cell=on_card)
    gpu = {**provenance_module._gpu("cuda:0"), "driver": "590"}
    monkeypatch.setattr(provenance_module, "_gpu", lambda device: gpu)
    with pytest.raises(UsageError, match="driver 580 -> 590"):
        search(FakeTrials(21), cell=on_card)


def test_a_search_s_provenance_is_of_its_own_card(
    on_card: Cell, search: Search, tmp_path: Path
) -> None:
    folder = search(FakeTrials(3), cell=make_cell("mnist_mlp", threads=2, device="cuda:1")).folder
    (stored,) = stored_runs(tmp_path, EXPERIMENT)[0]
    assert stored.folder == folder
    assert stored.provenance["cuda_allocator"] == "cuda:1"  # what the card was asked for


def test_the_reserved_peak_is_recorded_on_cards_alone(
    on_card: Cell, search: Search, tmp_path: Path
) -> None:
    class Reserves(FakeTrials):
        def __call__(self, spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
            run = super().__call__(spec, timeout, confirming)
            return replace(run, trial=replace(run.trial, reserved_peak_bytes=2000 * spec.n))

    assert search(Reserves(21), cell=on_card).facts["reserved_peak_bytes"] == 42_000
    assert rows_of(tmp_path)[0]["reserved_peak_bytes"] == 42_000
    assert "reserved_peak_bytes" not in search(FakeTrials(21)).facts


def test_trials_of_before_their_device_s_fields_are_read() -> None:
    trial = make_trial(3, Outcome.FITS)
    old = trial.to_json()
    del old["reserved_peak_bytes"], old["outside_bytes"]
    assert Trial.from_json(old) == trial


def test_the_default_limit_stays_while_its_search_is_unfinished(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory available now changes; the same command must still mean the same search."""
    notes = Notes()
    monkeypatch.setattr(runner_module, "available_memory", lambda: 8 * 2**30)
    chosen = choose_limit([cell], None, results_dir=tmp_path, listener=notes)
    assert chosen == MemoryLimit(4 * 2**30, False)
    interrupted = FakeTrials(21)
    interrupted.interrupt_after = 3
    with pytest.raises(KeyboardInterrupt):
        run_search(cell, chosen, results_dir=tmp_path, run=interrupted, plan=planning([]))
    monkeypatch.setattr(runner_module, "available_memory", lambda: 6 * 2**30)
    assert choose_limit([cell], None, results_dir=tmp_path, listener=notes) == chosen
    assert choose_limit([cell], None, results_dir=tmp_path, fresh=True).limit_bytes == 3 * 2**30
    other = make_cell("mnist_mlp", seed=1, threads=2)
    assert choose_limit([other], None, results_dir=tmp_path).limit_bytes == 3 * 2**30
    assert choose_limit([cell], 2**30, results_dir=tmp_path) == MemoryLimit(2**30, True)
    shared = choose_limit([other], None, results_dir=tmp_path, at_once=3)
    assert shared.limit_bytes == 2**30
    assert notes.notes == [
        "memory limit: 4 GiB, 50% of the memory available now (choose with --memory-limit SIZE)",
        "memory limit: 4 GiB, chosen when the search began "
        "(--fresh or --memory-limit SIZE chooses anew)",
    ]


def test_the_header_says_what_determines_the_trials(search: Search, tmp_path: Path) -> None:
    folder = search(FakeTrials(3)).folder
    (stored,) = stored_runs(tmp_path, EXPERIMENT)[0]
    assert stored.folder == folder
    assert stored.settings["problem"] == "mnist_mlp"
    assert stored.settings["memory_limit_bytes"] == LIMIT.limit_bytes
    assert {"code", "torch", "backpack", "host", "cpu"} <= set(stored.environment)


def test_the_cells_of_table_s1() -> None:
    tables = [SUB_TABLES["a"], SUB_TABLES["c"]]
    problems = ["cifar10_3c3d", "fmnist_2c2d"]
    cells = table_cells(tables, problems, ["vivit-bench"], threads=2)
    assert len(cells) == len(set(cells)) == 2 * (1 + 2 * 4)
    assert sum(cell.quantity is Quantity.GRADIENT for cell in cells) == 2
    assert {cell.quantity for cell in cells} == {
        Quantity.GRADIENT,
        Quantity.EIGENVALUES,
        Quantity.FULL_NEWTON,
    }
    without = table_cells(tables[:1], problems[:1], ["vivit-bench"], gradient=False, threads=2)
    assert [cell.variant for cell in without] == [
        "eigenvalues, exact, full",
        "eigenvalues, exact, frac",
        "eigenvalues, mc, full",
        "eigenvalues, mc, frac",
    ]
    parts = {"curvatures": [Curvature.MC], "samples": [Samples.FRAC]}
    some = table_cells(tables, problems[:1], ["vivit-bench"], gradient=False, threads=2, **parts)
    assert [cell.variant for cell in some] == ["eigenvalues, mc, frac", "full-newton, mc, frac"]


def test_a_limit_below_what_can_be_measured_is_refused(cell: Cell, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--memory-limit 20 Bytes: below 1 MiB"):
        choose_limit([cell], 20, results_dir=tmp_path)


def test_a_repeated_trial_is_told(search: Search) -> None:
    """Near the limit a trial takes several times as long; without a word it seems to hang."""
    told: list[tuple[int, int, float]] = []

    class Hears(Notes):
        def confirming(self, n: int, reading: int, seconds: float) -> None:
            told.append((n, reading, seconds))

    class Confirms(FakeTrials):
        def __call__(self, spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
            confirming(2, 8.0)
            return super().__call__(spec, timeout, confirming)

    search(Confirms(1), listener=Hears())
    assert told == [(1, 2, 8.0), (2, 2, 8.0)]


def test_the_end_of_the_data_is_stored_with_its_reason(search: Search, tmp_path: Path) -> None:
    class FiftySamples(FakeTrials):
        def __call__(self, spec: Spec, timeout: float, confirming: Confirming) -> TrialRun:
            run = super().__call__(spec, timeout, confirming)
            available = 50 if run.trial.outcome is Outcome.DATA else None
            return replace(run, trial=replace(run.trial, available_samples=available))

    finished = search(FiftySamples(100, {64: Outcome.DATA}))
    (row,) = rows_of(tmp_path)
    assert (row["critical_batch_size"], row["stopped_by"]) == (50, "data")
    assert row["message"] == finished.result.message == "the data end at 50 samples"
