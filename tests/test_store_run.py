"""Runs on disk: addresses, locks, states, damage, and what --fresh may touch."""

import errno
import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vivit_bench.errors import Stopped, StorageError, UsageError, VivitBenchError
from vivit_bench.store import (
    Action,
    DamagedRunError,
    Identity,
    State,
    check_run,
    find_run,
    load_run,
    open_run,
    stored_runs,
    write_atomic,
)
from vivit_bench.store import files as store_files
from vivit_bench.store.provenance import _static_provenance

IDENTITY = Identity(
    experiment="toy",
    label="mnist_mlp_exact",
    settings={"problem": "mnist_mlp", "n": 8, "grid": (1, 2)},
    environment={"code": "abc", "torch": "2"},
    owns=("table.csv", "records.jsonl", "parts/step_*.npz"),
)


def finish(results: Path, identity: Identity = IDENTITY, **options: Any) -> Path:
    with open_run(results, identity, **options) as run:
        if not run.is_returned:
            run.write("table.csv", "a\n1\n")
            run.write("parts/step_1.npz", b"12")
            run.finish({"largest": 1.5}, ["table.csv"])
        return run.folder


def action(results: Path, identity: Identity = IDENTITY, **options: Any) -> Action:
    with open_run(results, identity, **options) as run:
        return run.action


def test_a_run_starts_goes_on_and_is_returned(tmp_path: Path) -> None:
    assert action(tmp_path) is Action.START
    assert action(tmp_path) is Action.RESUME
    folder = finish(tmp_path)
    assert action(tmp_path) is Action.RETURN
    stored = load_run(folder, "toy")
    assert stored.is_finished
    assert stored.results == {"largest": 1.5}
    assert stored.read("table.csv") == b"a\n1\n"
    assert stored.settings == {"problem": "mnist_mlp", "n": 8, "grid": [1, 2]}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no lock is left


def test_different_settings_have_different_addresses(tmp_path: Path) -> None:
    other = replace(IDENTITY, settings={**IDENTITY.settings, "n": 9})
    assert IDENTITY.address != other.address
    assert IDENTITY.address.startswith("mnist_mlp_exact-")
    first, second = finish(tmp_path), finish(tmp_path, other)
    assert first != second
    assert load_run(first, "toy").settings["n"] == 8


@pytest.mark.parametrize("label", ["a/b.py:f", "ü" * 300, "../..", "", "x" * 500, "..", "a\nb"])
def test_any_label_gives_one_short_component(label: str) -> None:
    address = replace(IDENTITY, label=label).address
    assert address == Path(address).name
    assert len(address.encode()) <= 200
    assert not address.startswith(".")


def test_labels_that_look_alike_do_not_collide(tmp_path: Path) -> None:
    one = replace(IDENTITY, label="a/b.py:f", settings={"problem": "a/b.py:f"})
    two = replace(IDENTITY, label="a-b.py:f", settings={"problem": "a-b.py:f"})
    assert finish(tmp_path, one) != finish(tmp_path, two)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "/tmp/x", "..", ".", "", " ", "a\nb", "a\0b", "a\\b", "x" * 201, ".hidden",
     "a.replaced-1"],
)  # fmt: skip
def test_a_name_is_one_harmless_component(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        action(tmp_path, name=name or " ")
    assert not list(tmp_path.rglob("*.json"))


def test_other_conditions_are_named_and_kept(tmp_path: Path) -> None:
    folder = finish(tmp_path)
    before = (folder / "run.json").read_bytes()
    changed = replace(IDENTITY, environment={"code": "xyz", "torch": "2"})
    with pytest.raises(UsageError, match=r"code abc -> xyz.*--fresh"):
        action(tmp_path, changed)
    assert (folder / "run.json").read_bytes() == before


def test_another_kernel_leaves_the_machine_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = 25_276_514_304
    every_byte = {"code": "abc", "torch": "2", "ram_bytes": total}  # as it was once recorded
    finish(tmp_path, replace(IDENTITY, environment=every_byte))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=total - 12_288))
    now = _static_provenance.__wrapped__()["ram_bytes"]
    same = replace(IDENTITY, environment={**every_byte, "ram_bytes": now})
    assert action(tmp_path, same) is Action.RETURN
    more = replace(IDENTITY, environment={**every_byte, "ram_bytes": 2 * now})
    with pytest.raises(UsageError, match="ram_bytes"):
        action(tmp_path, more)


def test_other_settings_under_a_chosen_name_are_refused(tmp_path: Path) -> None:
    finish(tmp_path, name="mine")
    other = replace(IDENTITY, settings={**IDENTITY.settings, "n": 9})
    with pytest.raises(UsageError, match="n 8 -> 9"):
        action(tmp_path, other, name="mine")


def test_fresh_keeps_the_old_run_until_the_new_one_is_finished(tmp_path: Path) -> None:
    folder = finish(tmp_path)
    assert action(tmp_path, fresh=True) is Action.START
    (old,) = folder.parent.glob("*.replaced-*")
    assert (old / "table.csv").read_text() == "a\n1\n"
    assert [run.folder for run in stored_runs(tmp_path, "toy")[0]] == [folder]
    finish(tmp_path)
    assert not list(folder.parent.glob("*.replaced-*"))


def test_fresh_removes_only_what_a_run_has_written(tmp_path: Path) -> None:
    folder = finish(tmp_path)
    (folder / "notes.txt").write_text("mine")
    (folder / ".run.json.bak").write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "step_9.npz").write_text("mine")
    (folder / "link").symlink_to(elsewhere)
    finish(tmp_path, fresh=True)
    (old,) = folder.parent.glob("*.replaced-*")
    assert (old / "notes.txt").read_text() == (old / ".run.json.bak").read_text() == "mine"
    assert not (old / "table.csv").exists()
    assert (elsewhere / "step_9.npz").read_text() == "mine"


@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    root = tmp_path / "toy"
    (root / "mine").mkdir(parents=True)
    (root / "mine" / "table.csv").write_text("precious")
    other = tmp_path / "other"
    finish(tmp_path / "second")
    other.mkdir()
    (root / "link").symlink_to(other)
    (root / "file").write_text("precious")
    for name in ("mine", "link", "file"):
        with pytest.raises(UsageError, match="is no run of vivit-bench"):
            action(tmp_path, name=name, fresh=fresh)
    assert (root / "mine" / "table.csv").read_text() == "precious"
    assert (root / "file").read_text() == "precious"
    assert not list(other.iterdir())


def test_a_file_is_no_folder_of_results(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--results-dir .*file: is a file; name a folder"):
        finish(tmp_path / "file")


def test_nothing_is_written_through_a_linked_experiment(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "toy").symlink_to(target)
    with pytest.raises(UsageError, match="symbolic link"):
        action(tmp_path)
    assert not list(target.iterdir())


def test_one_process_has_a_run(tmp_path: Path) -> None:
    with open_run(tmp_path, IDENTITY), pytest.raises(VivitBenchError, match="another process"):
        action(tmp_path)
    assert action(tmp_path) is Action.RESUME


def test_what_would_be_refused_can_be_asked_before(tmp_path: Path) -> None:
    """Nothing is made or changed, and a run that another process has is told."""
    check_run(tmp_path, IDENTITY)
    assert not list(tmp_path.iterdir())
    with (
        open_run(tmp_path, IDENTITY),
        pytest.raises(VivitBenchError, match="another process"),
    ):
        check_run(tmp_path, IDENTITY)
    finish(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    check_run(tmp_path, IDENTITY)
    other = replace(IDENTITY, environment={"code": "other", "torch": "2"})
    with pytest.raises(UsageError, match="other conditions"):
        check_run(tmp_path, other)
    check_run(tmp_path, other, fresh=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_lock_file_that_its_holder_removes_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finish(tmp_path)
    lock = folder.with_name(f".{folder.name}.lock")
    real, calls = fcntl.flock, []

    def removed_meanwhile(handle: int, mode: int) -> None:
        real(handle, mode)
        if not calls:
            lock.unlink()
        calls.append(os.fstat(handle).st_ino)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    assert action(tmp_path) is Action.RETURN
    assert len(calls) == 2


def test_a_file_system_without_locks_is_told_and_no_other_process_suspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(number: int) -> Callable[[int, int], None]:
        def flock(handle: int, mode: int) -> None:
            raise OSError(number, os.strerror(number))

        return flock

    folder, notes = finish(tmp_path), list[str]()
    monkeypatch.setattr(fcntl, "flock", refused(errno.ENOSYS))
    with open_run(tmp_path, IDENTITY, note=notes.append) as run:
        assert run.is_returned
    assert "keeps no locks (Function not implemented)" in notes[0]
    monkeypatch.setattr(fcntl, "flock", refused(errno.EIO))
    with pytest.raises(StorageError, match="Input/output error"), open_run(tmp_path, IDENTITY):
        pass
    monkeypatch.setattr(fcntl, "flock", refused(errno.EWOULDBLOCK))
    with pytest.raises(VivitBenchError, match="another process"), open_run(tmp_path, IDENTITY):
        pass
    monkeypatch.undo()
    assert load_run(folder, "toy").is_finished


def test_a_run_that_failed_replaces_nothing(tmp_path: Path) -> None:
    """What was moved aside is there until a run is finished."""
    folder = finish(tmp_path)
    with open_run(tmp_path, IDENTITY, fresh=True) as run:
        run.finish({"failure": "the loss is nan"}, [], state=State.FAILED)
    (old,) = folder.parent.glob("*.replaced-*")
    assert load_run(old, "toy").is_finished
    finish(tmp_path, fresh=True)
    assert not list(folder.parent.glob("*.replaced-*"))


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        values = json.loads(content)
        change(values)
        return json.dumps(values).encode()

    return edit


HEADER_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "not UTF-8": lambda content: b"\xff\xfe\x00" + content,
    "a list": lambda content: b"[1, 2]",
    "a number": lambda content: b"7",
    "deep": lambda content: b"[" * 100_000,
    "another format": lambda content: content.replace(b"run 1", b"run 0"),
    "other settings": _edit(lambda values: values["settings"].update(n=9)),
    "another state": _edit(lambda values: values.update(state="running")),
    "no check": _edit(lambda values: values.pop("check")),
    "another checksum": _edit(lambda values: values["files"].update({"table.csv": "0"})),
}


@pytest.mark.parametrize("damage", HEADER_DAMAGES)
def test_a_damaged_header_is_named_and_never_accepted(tmp_path: Path, damage: str) -> None:
    folder = finish(tmp_path)
    path = folder / "run.json"
    path.write_bytes(HEADER_DAMAGES[damage](path.read_bytes()))
    with pytest.raises(DamagedRunError, match=r"run\.json.*--fresh") as refused:
        action(tmp_path)
    assert "\n" not in str(refused.value)
    with pytest.raises(DamagedRunError, match=r"run\.json"):
        load_run(folder, "toy")
    runs, notes = stored_runs(tmp_path, "toy")
    assert not runs
    assert len(notes) == 1
    assert finish(tmp_path, fresh=True) == folder
    assert len(list(folder.parent.glob("*.replaced-*"))) == 1  # not known to be ours: kept


TABLE_DAMAGES: dict[str, Callable[[Path], object]] = {
    "edited": lambda path: path.write_text("a\n2\n"),
    "cut": lambda path: path.write_text("a\n"),
    "empty": lambda path: path.write_text(""),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", TABLE_DAMAGES)
def test_a_damaged_table_is_named_and_never_accepted(tmp_path: Path, damage: str) -> None:
    folder = finish(tmp_path)
    TABLE_DAMAGES[damage](folder / "table.csv")
    with pytest.raises(DamagedRunError, match=r"table\.csv.*--fresh"):
        action(tmp_path)
    with pytest.raises(VivitBenchError, match=r"table\.csv.*--fresh"):
        load_run(folder, "toy").read("table.csv")


def test_a_finished_run_that_is_to_go_further_is_running_again(tmp_path: Path) -> None:
    folder = finish(tmp_path)
    with open_run(tmp_path, IDENTITY, more_wanted=lambda stored: True) as run:
        assert run.action is Action.RESUME
        run.write("table.csv", "a\n1\n2\n")
    assert load_run(folder, "toy").state is State.RUNNING
    assert action(tmp_path) is Action.RESUME


def test_a_run_that_cannot_be_resumed_starts_again(tmp_path: Path) -> None:
    with open_run(tmp_path, IDENTITY, resumable=False) as run:
        run.write("table.csv", "half")
        (run.folder / ".abc.vivit-bench-tmp").write_text("half")
    changed = replace(IDENTITY, environment={"code": "xyz"})
    assert action(tmp_path, changed, resumable=False) is Action.START
    assert load_run(run.folder, "toy").environment == {"code": "xyz"}
    assert not list(run.folder.glob(".*"))
    with pytest.raises(Stopped) as stopped, open_run(tmp_path, IDENTITY, resumable=False):
        raise Stopped(15)
    assert stopped.value.__notes__ == [f"{run.folder} is not finished"]


def test_a_finished_run_that_cannot_go_further_is_kept_until_the_new_one(tmp_path: Path) -> None:
    folder = finish(tmp_path)
    options = {"more_wanted": lambda stored: True, "resumable": False}
    assert action(tmp_path, **options) is Action.START
    (old,) = folder.parent.glob("*.replaced-*")
    assert load_run(old, "toy").read("table.csv") == b"a\n1\n"
    finish(tmp_path, **options)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_failure_is_the_result(tmp_path: Path) -> None:
    with open_run(tmp_path, IDENTITY) as run:
        run.finish({"failure": "it diverged"}, [], state=State.FAILED)
    with pytest.raises(VivitBenchError, match="it diverged"):
        action(tmp_path)
    assert action(tmp_path, fresh=True) is Action.START


@pytest.mark.parametrize("ending", ["finished", "failed"])
def test_a_run_that_is_refused_before_it_stores_anything_leaves_none(
    tmp_path: Path, ending: str
) -> None:
    """Nor does it cost the one that it was to replace."""

    def refused(**options: Any) -> None:
        with pytest.raises(UsageError, match="no such parameter"):
            _refuse_after(tmp_path, [], **options)

    refused()
    refused(name="chosen")
    assert not list((tmp_path / "toy").iterdir())
    if ending == "finished":
        folder = finish(tmp_path)
    else:
        with open_run(tmp_path, IDENTITY) as run:
            run.finish({"failure": "it diverged"}, [], state=State.FAILED)
        folder = run.folder
    before = load_run(folder, "toy")
    notes: list[str] = []
    refused(fresh=True, note=notes.append)
    assert load_run(folder, "toy") == before
    assert [path.name for path in (tmp_path / "toy").iterdir()] == [folder.name]
    assert "is moved back" in notes[-1]


def test_a_run_that_fails_keeps_what_it_stored(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        _refuse_after(tmp_path, [{"n": 1}])
    (folder,) = (tmp_path / "toy").iterdir()
    assert load_run(folder, "toy").state is State.RUNNING


def _refuse_after(results: Path, entries: list[dict[str, Any]], **options: Any) -> None:
    with open_run(results, IDENTITY, **options) as run:
        run.update(size=3)
        journal = run.journal("records.jsonl")
        for entry in entries:
            journal.append(entry)
        raise UsageError("no such parameter")


def test_an_interrupted_run_says_what_it_keeps(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as stopped, open_run(tmp_path, IDENTITY) as run:
        raise Stopped(15)
    (note,) = stopped.value.__notes__
    assert str(run.folder) in note
    assert "the same command goes on" in note
    with pytest.raises(Stopped) as stopped, open_run(tmp_path, IDENTITY, fresh=True):
        raise Stopped(15)
    assert "the same command without --fresh goes on" in stopped.value.__notes__[0]


def test_an_interrupted_run_says_where_the_one_before_is(tmp_path: Path) -> None:
    finish(tmp_path)
    with (
        pytest.raises(Stopped) as stopped,
        open_run(tmp_path, IDENTITY, fresh=True, resumable=False) as run,
    ):
        raise Stopped(15)
    (old,) = run.folder.parent.glob("*.replaced-*")
    assert stopped.value.__notes__ == [
        f"{run.folder} is not finished, what was stored before is in {old}"
    ]
    finish(tmp_path)
    with pytest.raises(Stopped) as stopped, open_run(tmp_path, IDENTITY):
        raise Stopped(15)
    assert stopped.value.__notes__ == [f"{run.folder} is finished"]


def test_a_failure_speaks_for_itself(tmp_path: Path) -> None:
    with pytest.raises(VivitBenchError) as failed, open_run(tmp_path, IDENTITY):
        raise VivitBenchError("it failed")
    assert not getattr(failed.value, "__notes__", [])


def test_a_folder_removed_meanwhile_is_not_said_to_be_stored(tmp_path: Path) -> None:
    with open_run(tmp_path, IDENTITY) as run:
        (run.folder / "run.json").unlink()
        run.folder.rmdir()
        with pytest.raises(StorageError, match="was removed"):
            run.write("table.csv", "a")
        with pytest.raises(StorageError, match="was removed"):
            run.finish({}, [])


def test_what_a_kill_leaves_of_a_file_is_removed(tmp_path: Path) -> None:
    def leave(folder: Path) -> None:
        (folder / "parts").mkdir(exist_ok=True)
        for place in (folder, folder / "parts"):
            (place / ".abc.vivit-bench-tmp").write_text("half")

    with open_run(tmp_path, IDENTITY) as run:
        leave(run.folder)
    with open_run(tmp_path, IDENTITY) as run:
        assert {path.name for path in run.folder.rglob("*")} == {"parts", "run.json"}
        leave(run.folder)
    finish(tmp_path, fresh=True)
    assert list(run.folder.parent.iterdir()) == [run.folder]


def test_a_run_removes_its_own_files(tmp_path: Path) -> None:
    with open_run(tmp_path, IDENTITY) as run:
        run.write("table.csv", "a")
        for _ in range(2):
            run.remove("table.csv")
        assert not (run.folder / "table.csv").exists()


@pytest.mark.parametrize("call", range(12))
def test_a_full_disk_at_any_call_leaves_what_was_there(
    tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that can fail fails once; then the same command ends as if nothing was."""
    count = [0]

    def fails_once(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == call + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return wrapped

    earlier = finish(tmp_path, replace(IDENTITY, settings={"n": 0}))
    before = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
    for name in ("write", "fsync", "replace"):
        monkeypatch.setattr(store_files.os, name, fails_once(getattr(os, name)))
    monkeypatch.setattr(store_files.tempfile, "mkstemp", fails_once(store_files.tempfile.mkstemp))
    with pytest.raises(StorageError, match=r"No space left.*intact"):
        finish(tmp_path)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()} == before
    folder = finish(tmp_path)
    assert load_run(folder, "toy").damage() == ""
    assert not list(tmp_path.rglob("*.vivit-bench-tmp"))


def test_an_old_run_that_cannot_be_removed_does_not_fail_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path)
    real = os.unlink

    def refused(path: Any, *arguments: Any, **options: Any) -> None:
        if ".replaced-" in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(path, *arguments, **options)

    monkeypatch.setattr(store_files.os, "unlink", refused)
    folder = finish(tmp_path, fresh=True)
    monkeypatch.undo()
    assert load_run(folder, "toy").is_finished
    assert len(list(folder.parent.glob("*.replaced-*"))) == 1
    finish(tmp_path, fresh=True)
    assert list(folder.parent.glob("*.replaced-*")) == []


def test_runs_are_found_by_name_label_or_folder(tmp_path: Path) -> None:
    folder = finish(tmp_path)
    for name in (folder.name, "mnist_mlp_exact", str(folder), folder.name[:-3]):
        assert find_run(name, tmp_path, "toy", "toy run").folder.samefile(folder)
    finish(tmp_path, replace(IDENTITY, settings={**IDENTITY.settings, "n": 9}))
    with pytest.raises(UsageError, match=r"several.*n (8 -> 9|9 -> 8)"):
        find_run("mnist_mlp_exact", tmp_path, "toy", "toy run")
    with pytest.raises(UsageError, match="no run of this name"):
        find_run("", tmp_path / "elsewhere", "toy", "toy run")
    with pytest.raises(UsageError, match=r"^: no run of this name.*there are mnist_mlp_exact"):
        find_run("", tmp_path, "toy", "toy run")
    with pytest.raises(UsageError) as refused:
        find_run("mnist_mpl_exact", tmp_path, "toy", "toy run")
    others = [path.name for path in folder.parent.iterdir() if not path.name.startswith(".")]
    assert len(others) == 2
    assert all(name in str(refused.value) for name in others)  # as the labels are the same
    (folder / "run.json").write_text("")
    with pytest.raises(DamagedRunError, match=r"no run of this name .*left out: .*run.json is no"):
        find_run(folder.name[:-1], tmp_path, "toy", "toy run")
    with pytest.raises(UsageError, match="make one with: toy run"):
        find_run("x" * 5000, tmp_path / "none", "toy", "toy run")


def test_a_run_of_another_experiment_is_told(tmp_path: Path) -> None:
    folder = finish(tmp_path)
    with pytest.raises(UsageError, match="a run of toy, not of noise"):
        load_run(folder, "noise")


def test_files_get_the_users_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_nothing_is_written_through_a_linked_subfolder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with open_run(tmp_path, IDENTITY) as run:
        (run.folder / "parts").symlink_to(elsewhere)
        with pytest.raises(StorageError, match="symbolic link"):
            run.write("parts/step_1.npz", b"1")
        run.write("table.csv", "a\n")
    assert not list(elsewhere.iterdir())


def test_an_address_ends_in_a_short_hash() -> None:
    label, _, key = IDENTITY.address.rpartition("-")
    assert label == "mnist_mlp_exact"
    assert len(key) == 10
    assert key == IDENTITY.key


def test_nothing_found_beside_a_damaged_run_is_a_failure(tmp_path: Path) -> None:
    """What was typed may be right; a header that is a broken link is seen too."""
    with pytest.raises(UsageError, match="no run of this name"):
        find_run("mnist", tmp_path, "toy", "make")
    folder = finish(tmp_path)
    for damage in (lambda path: path.write_text("{}"), lambda path: path.symlink_to("nowhere")):
        (folder / "run.json").unlink()
        damage(folder / "run.json")
        with pytest.raises(UsageError, match="no run of this name"):
            find_run("another", tmp_path, "toy", "make")
        with pytest.raises(DamagedRunError, match="--fresh computes it again"):
            finish(tmp_path)
        for name in ("mnist", None):
            with pytest.raises(DamagedRunError, match=r"no run.*run\.json"):
                find_run(name, tmp_path, "toy", "make")


@pytest.mark.parametrize("link", [True, False])
def test_a_journal_that_is_no_file_leaves_a_finished_run_as_it_is(
    tmp_path: Path, link: bool
) -> None:
    identity = replace(IDENTITY, owns=("lines.jsonl",), mendable=("lines.jsonl",))
    with open_run(tmp_path, identity) as run:
        run.journal("lines.jsonl").append({"n": 1})
        run.finish({}, ["lines.jsonl"])
    path = run.folder / "lines.jsonl"
    path.unlink()
    if link:
        path.symlink_to("nowhere")
    else:
        path.mkdir()
    with (
        pytest.raises(DamagedRunError, match=r"lines\.jsonl.*--fresh"),
        open_run(tmp_path, identity) as run,
    ):
        pass
    assert load_run(run.folder, "toy").is_finished
    with open_run(tmp_path, identity, fresh=True) as run:
        assert run.action is Action.START


def test_a_journal_that_lost_a_line_is_gone_on_with(tmp_path: Path) -> None:
    identity = replace(IDENTITY, owns=("lines.jsonl",), mendable=("lines.jsonl",))
    with open_run(tmp_path, identity) as run:
        journal = run.journal("lines.jsonl")
        journal.append({"n": 1})
        journal.append({"n": 2})
        run.finish({}, ["lines.jsonl"])
    with open_run(tmp_path, identity) as run:
        assert run.action is Action.RETURN
    path = run.folder / "lines.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"n": 1', b'"n": 7'))
    with open_run(tmp_path, identity) as run:
        assert run.action is Action.RESUME
        assert run.journal("lines.jsonl").entries == [{"n": 2}]
