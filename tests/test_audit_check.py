"""``vivit-bench check``: what is damaged, breaks its schema, is stale, unfinished or foreign."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit_cases import MAKERS, here, quadratic, rewrite, search, spectrum
from command_line import Run, group_runner

from vivit_bench.audit.check import EXPERIMENTS, Finding, Verdict, check_results
from vivit_bench.audit.record import Look
from vivit_bench.cluster.jobs import QueueJob
from vivit_bench.comparison.stored import stored_rows
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.spectrum.record import load_spectrum
from vivit_bench.store import DamagedRunError, State, find_run, load_run, stored_runs
from vivit_bench.store.stored import HEADER

__all__ = ["here"]

RESULT = {
    "critical_batch": "trials",
    "spectrum": "trace",
    "noise": "timing",
    "quadratic": "seconds",
    "comparison": "repeats",
}
each_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS)


def only(results: Path, **look: Any) -> Finding:
    (finding,) = check_results(results, Look(**look))
    return finding


@each_experiment
def test_a_new_run_is_ok_and_every_kind_of_damage_is_told(here: Path, experiment: str) -> None:
    folder = MAKERS[experiment](here)
    found = only(here)
    assert (found.verdict, found.reason) == (Verdict.OK, "")
    assert (found.experiment, found.name, found.state) == (experiment, folder.name, "finished")
    stored = load_run(folder, experiment)

    # A field that is missing, and one of another type, under checksums that are right.
    for part, name in (("settings", "seed"), ("results", RESULT[experiment])):
        record = getattr(stored, part)
        rewrite(stored, **{part: {k: v for k, v in record.items() if k != name}})
        assert only(here).verdict is Verdict.BROKEN
        assert f"{part}: has no {name}" in only(here).reason
        rewrite(stored, **{part: {**record, name: "seven"}})
        assert only(here).verdict is Verdict.BROKEN
        assert f"{part}: {name} is 'seven', not " in only(here).reason
    rewrite(stored, settings=stored.settings)

    environment = {**stored.environment, "code": "abc", "python": "2.7"}
    rewrite(stored, environment=environment, provenance={**stored.provenance, "git_commit": "f00"})
    found = only(here)
    assert found.verdict is Verdict.STALE
    assert f"code abc -> {stored.environment['code']}" in found.reason
    assert f"python 2.7 -> {stored.environment['python']}" in found.reason
    assert "its code is that of commit f00" in found.reason
    rewrite(stored, settings=stored.settings)

    (file, *_) = stored.files
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content + b"1")
    assert only(here).verdict is Verdict.DAMAGED
    assert f"{file} is not the file" in only(here).reason
    (folder / file).write_bytes(content)
    header = (folder / HEADER).read_text()
    (folder / HEADER).write_text(header.replace(stored.label, "another"))
    assert only(here).verdict is Verdict.DAMAGED
    (folder / HEADER).write_text(header.replace("vivit-bench run 1", "vivit-bench run 0"))
    assert "is of format 'vivit-bench run 0'" in only(here).reason


def test_readers_leave_out_what_breaks_its_schema_and_say_so(here: Path) -> None:
    """Under checksums that are right, as of other software."""
    for experiment, part, name, value in (
        ("critical_batch", "provenance", "git_commit", []),
        ("spectrum", "provenance", "vivit_bench", [[1]]),
        ("quadratic", "environment", "host", 3),
    ):
        stored = load_run(MAKERS[experiment](here), experiment)
        assert not stored_runs(here, experiment)[1]
        rewrite(stored, **{part: {**getattr(stored, part), name: value}})
        runs, (note,) = stored_runs(here, experiment)
        assert not runs
        assert f"{part}: {name} is" in note
        with pytest.raises(DamagedRunError, match=name):
            find_run(stored.folder.name, here, experiment, "")
    stored = load_run(MAKERS["comparison"](here), "comparison")
    rewrite(stored, settings={**stored.settings, "dtype": []})
    rows, (note,) = stored_rows(here)
    assert not rows
    assert "settings: dtype is []" in note


def test_a_certificate_of_another_type_is_told_and_not_read(here: Path) -> None:
    stored = load_run(MAKERS["spectrum"](here), "spectrum")
    certificate = {**stored.results["certificate"], "errors": {"loss": None}}
    rewrite(stored, results={**stored.results, "certificate": certificate})
    assert only(here).verdict is Verdict.BROKEN
    assert "certificate" in only(here).reason
    with pytest.raises(VivitBenchError, match="certificate: errors is"):
        load_spectrum(stored.folder)


@pytest.mark.parametrize("experiment", ["spectrum", "noise"])
def test_data_and_model_that_changed_are_told_and_those_that_are_gone_too(
    here: Path, experiment: str
) -> None:
    MAKERS[experiment](here)
    problem = Path("tiny.py")
    problem.write_text(problem.read_text().replace("manual_seed(3)", "manual_seed(4)"))
    found = only(here)
    assert found.verdict is Verdict.STALE
    assert "model " in found.reason
    assert ("batch " if experiment == "spectrum" else "train_data ") in found.reason
    found = only(here, data=False)
    assert (found.verdict, found.reason) == (
        Verdict.OK,
        "model and data are not compared (--no-data)",
    )
    problem.unlink()
    found = only(here)
    assert found.verdict is Verdict.OK
    assert "there is no file tiny.py here" in found.reason


def test_a_data_set_that_is_not_here_is_said_and_not_downloaded(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = spectrum(here)
    stored = load_run(folder, "spectrum")
    deepobs = {"problem": "cifar10_3c3d", "data": "deepobs"}
    rewrite(stored, settings={**stored.settings, **deepobs})
    monkeypatch.setattr("vivit_bench.problems.downloads._download", None)
    found = only(here, data_dir=Path("nowhere"))
    assert found.verdict is Verdict.OK
    assert "CIFAR-10 is not in nowhere (name its folder with --data-dir)" in found.reason


def test_a_users_file_that_changed_makes_a_search_stale(here: Path) -> None:
    folder = search(here)
    stored = load_run(folder, "critical_batch")
    rewrite(
        stored, settings={**stored.settings, "problem": "tiny.py:tiny", "problem_file": "0" * 12}
    )
    found = only(here)
    assert found.verdict is Verdict.STALE
    assert "problem_file 000000000000 -> " in found.reason


@pytest.mark.parametrize(
    ("file", "edit", "said"),
    [
        ("trials.jsonl", lambda text: "", "no trial of N = 21 that fits"),
        ("trials.jsonl", lambda text: text.replace('"peak', '"peek', 1), "is damaged"),
    ],
)
def test_what_a_header_counts_on_must_be_in_its_files(
    here: Path, file: str, edit: Callable[[str], str], said: str
) -> None:
    from vivit_bench.store.files import sha256

    folder = search(here)
    stored = load_run(folder, "critical_batch")
    text = edit((folder / file).read_text())
    (folder / file).write_text(text)
    rewrite(stored, files={file: sha256(text)})
    assert only(here).verdict is Verdict.BROKEN
    assert said in only(here).reason


def test_a_spectrum_that_is_not_the_one_its_header_tells_of(here: Path) -> None:
    stored = load_run(spectrum(here), "spectrum")
    rewrite(stored, results={**stored.results, "num_eigenvalues": 3})
    assert "says num_eigenvalues 12, results: 3" in only(here).reason


def test_unfinished_moved_aside_and_foreign_folders_are_named(here: Path) -> None:
    folder = quadratic(here)
    stored = load_run(folder, "quadratic")
    rewrite(stored, state=State.RUNNING, files={})
    (folder / "repetitions.jsonl").write_text("{}\n")
    (folder.parent / "mine").mkdir()
    (folder.parent / "figure_3.pdf").touch()
    (folder.parent / ".x.lock").touch()
    (folder.parent / "link").symlink_to(folder.name)
    aside = folder.with_name(f"{folder.name}.replaced-20260101")
    aside.mkdir()
    os.link(folder / HEADER, aside / HEADER)
    (here / "thesis").mkdir()
    (here / "demo" / "spectrum").mkdir(parents=True)
    found = {each.name: each for each in check_results(here, Look())}
    assert {name: each.verdict for name, each in found.items()} == {
        folder.name: Verdict.UNFINISHED,
        aside.name: Verdict.ASIDE,
        "mine": Verdict.FOREIGN,
        "link": Verdict.FOREIGN,
        "thesis": Verdict.FOREIGN,
        "demo": Verdict.FOREIGN,
    }
    assert "repetitions.jsonl: line 1 is damaged" in found[folder.name].reason
    assert "the same command goes on with it" in found[folder.name].reason
    assert found["demo"].reason == f"has results of its own: vivit-bench check {here / 'demo'}"


def test_logs_of_slurm_s_jobs_are_no_strangers_and_results_beside_them_are(here: Path) -> None:
    folder = quadratic(here)
    job = QueueJob(folder, "a job", print)
    job.logs.mkdir(parents=True)
    (job.logs / "1_0_log.err").touch()
    assert only(here).verdict is Verdict.OK
    stray = job.logs.parents[1]
    stray.rename(here / "logs")
    stray.symlink_to("logs")
    assert {each.name for each in check_results(here, Look())} == {folder.name, "logs", "slurm"}
    stray.unlink()
    quadratic(stray)
    reasons = {each.name: each.reason for each in check_results(here, Look())}
    assert reasons["slurm"] == f"has results of its own: vivit-bench check {stray}"


def test_folders_that_are_none_of_all_results_are_refused(here: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: there is no such folder"):
        check_results(Path("nowhere"), Look())
    folder = quadratic(here)
    with pytest.raises(UsageError, match="name the folder of all results"):
        check_results(folder.parent, Look())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return group_runner("check", monkeypatch, capsys)


def test_the_command_prints_a_row_a_run_and_fails_for_damage_alone(here: Path, run: Run) -> None:
    folder = quadratic(here)
    assert run("--strict", "--quiet")[::2] == (0, "")
    stored = load_run(folder, "quadratic")
    rewrite(stored, environment={**stored.environment, "host": "elsewhere"})
    code, out, err = run(here, "--format", "json")
    (row,) = json.loads(out)
    assert (code, row["verdict"], row["name"]) == (0, "stale", folder.name)
    assert f"host elsewhere -> {stored.environment['host']}" in row["reason"]
    assert err == f"checking quadratic/{folder.name}\n"
    code, out, err = run("--strict", "--format", "csv", "--quiet")
    assert (code, len(out.splitlines())) == (1, 2)
    assert err == "vivit-bench: results: not everything is sound: 1 runs: 1 stale.\n"
    assert "stale" in run("--quiet").out
    rewrite(stored, environment=stored.environment)
    assert folder.name not in run("--quiet").out
    (folder / "losses.csv").unlink()
    code, out, err = run("--quiet")
    assert code == 1
    assert "damaged" in out
    assert run("nowhere") == (
        2,
        "",
        "vivit-bench: nowhere: there is no such folder; name that of the results\n",
    )
