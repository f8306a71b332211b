"""What is on disk is what was written, or one line says which file is not."""

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from noise_cases import CHOICES, contents, write_tiny
from test_noise_training import Killer

import vivit_bench.store.files as store_files
import vivit_bench.store.run as store_run
from vivit_bench.errors import StorageError, UsageError, VivitBenchError
from vivit_bench.noise import Listener, NoiseRun, load_run, run_noise
from vivit_bench.store import State
from vivit_bench.store.files import sha256

Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "empty": lambda content: b"",
    "not UTF-8": lambda content: b"\xff\xfe\x00" + content,
    "cut": lambda content: content[: 2 * len(content) // 3],
    "one digit": lambda content: content.replace(b"1", b"2", 1),
    "of another shape": lambda content: b"[1, 2]\n",
}
RECORDED = ("directions.csv", "checkpoints.csv", "curves.csv", "per_sample/step_00000001.npz")


@pytest.fixture(autouse=True)
def _problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)


def start(listener: Listener | None = None, *, name: str = "run", fresh: bool = False) -> NoiseRun:
    return run_noise(CHOICES, Path(), name=name, fresh=fresh, listener=listener)


@pytest.fixture
def folder() -> Path:
    return Path("noise", "run")


@pytest.fixture
def interrupted(folder: Path) -> Path:
    """A run stopped in its second epoch."""
    with pytest.raises(KeyboardInterrupt):
        start(Killer(10))
    return folder


def damaged(folder: Path, names: tuple[str, ...]) -> Iterator[str]:
    """One file after the other in all kinds of damage, and missing."""
    for name in names:
        path = folder / name
        content = path.read_bytes()
        for damage in DAMAGES.values():
            path.write_bytes(damage(content))
            yield path.name
        path.unlink()
        yield path.name
        path.mkdir()
        yield path.name
        path.rmdir()
        path.write_bytes(content)


def of_another_model(state: bytes) -> bytes:
    """The same state, whole, but for a layer that is wider."""
    values = torch.load(io.BytesIO(state.partition(b"\n")[2]), weights_only=True)
    values["model"]["0.weight"] = torch.zeros(9, 6)
    content = io.BytesIO()
    torch.save(values, content)
    return f"{sha256(content.getvalue())}\n".encode() + content.getvalue()


def one_line(error: pytest.ExceptionInfo[VivitBenchError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_finished_run_with_a_damaged_file_is_not_returned(folder: Path) -> None:
    start()
    before = contents(folder)
    for name in damaged(folder, RECORDED):
        with pytest.raises(VivitBenchError) as error:
            start()
        assert name in one_line(error)
        assert "--fresh" in one_line(error)
    for name in damaged(folder, RECORDED[:3]):
        with pytest.raises(VivitBenchError) as error:
            load_run(folder)
        assert name in one_line(error)
    for name in damaged(folder, ("run.json",)):
        for read in (start, lambda: load_run(folder)):
            with pytest.raises(VivitBenchError) as error:
                read()
            assert name in one_line(error) or "no run" in one_line(error)
    start()
    assert contents(folder) == before


def test_an_interrupted_run_with_a_damaged_file_is_not_gone_on_with(interrupted: Path) -> None:
    for name in damaged(interrupted, RECORDED):
        with pytest.raises(VivitBenchError) as error:
            start()
        assert name in one_line(error)
        assert "--fresh" in one_line(error)
    start()
    assert contents(interrupted) == contents(start(name="whole").folder)


def test_tables_of_a_run_under_way_are_read_or_refused(interrupted: Path) -> None:
    assert load_run(interrupted).checkpoints["step"].tolist() == [0, 1, 5]
    for name in ("curves.csv", "checkpoints.csv", "directions.csv"):
        path = interrupted / name
        content = path.read_bytes()
        header, first, *_ = content.splitlines(keepends=True)
        for damage in (
            *(b"", b"\xff\xfe\x00" + content, b"[1, 2]\n", content.replace(b"epoch", b"era")),
            *(header + first[:-1] + b",1\n", header + b"a" + first, header + b"9" * 30 + first),
            content + b"0,1\n2,3,4,5,6,7,8,9,10,11,12,13\n",
        ):
            path.write_bytes(damage)
            with pytest.raises(VivitBenchError, match=rf"{name} is not the table") as error:
                load_run(interrupted)
            one_line(error)
        path.unlink()
        with pytest.raises(UsageError, match=f"has no {name} yet"):
            load_run(interrupted)
        path.write_bytes(content)


def test_a_state_that_is_none_is_refused(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = interrupted / "state.pt"
    content = path.read_bytes()
    torch.save({"progress": 1}, "plain.pt")
    plain = Path("plain.pt").read_bytes()
    states = [damage(content) for damage in DAMAGES.values()]
    states += [
        *(content[:-1], content[:5000] + b"x" + content[5001:], plain),
        *(f"{sha256(text)}\n".encode() + text for text in (plain, b"")),
        of_another_model(content),
    ]
    for state in states:
        path.write_bytes(state)
        with pytest.raises(VivitBenchError, match=r"state.pt is no state .*--fresh") as error:
            start()
        one_line(error)
    path.write_bytes(content)
    assert start().stored.is_finished


def test_an_edited_row_is_noticed_wherever_it_is(interrupted: Path) -> None:
    """Also one that the state counts on and that lies before the end of its table."""
    path = interrupted / "curves.csv"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1].replace(b".", b".1", 1), *lines[2:]]))
    with pytest.raises(VivitBenchError, match=r"curves.csv is not as this run has written it"):
        start()
    # What came after the state is written again.
    path.write_bytes(content + b"8,1,0,0,0,0\n")
    assert contents(start().folder) == contents(start(name="whole").folder)


@pytest.mark.parametrize("name", ["../x", "../../x", "a/b", "/tmp/x", "..", "", "a\nb", "x" * 300])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(UsageError, match="--name") as error:
        start(name=name, fresh=True)
    one_line(error)
    assert os.listdir() == ["tiny.py"]


def test_what_is_no_run_is_left_alone() -> None:
    """Whatever its files are called, and through whatever link it is reached."""
    names = ("state.pt", "directions.csv", "table.csv", "per_sample/step_00000001.npz")
    for root in (Path("noise", "mine"), Path("elsewhere")):
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("precious")
    Path("noise", "link").symlink_to(Path("elsewhere").resolve())
    for name in ("mine", "link"):
        for fresh in (False, True):
            with pytest.raises(UsageError, match="is no run of vivit-bench"):
                start(name=name, fresh=fresh)
    for root in (Path("noise", "mine"), Path("elsewhere")):
        assert all((root / name).read_text() == "precious" for name in names)


def test_files_of_the_user_in_a_run_are_kept(folder: Path) -> None:
    start()
    for name in (".run.json.bak", ".state.pt.old", "notes.txt", "per_sample/mine.npz"):
        (folder / name).write_text("precious")
    start(fresh=True)
    (old,) = Path("noise").glob("run.replaced-*")
    for name in (".run.json.bak", ".state.pt.old", "notes.txt", "per_sample/mine.npz"):
        assert (old / name).read_text() == "precious"
    assert not contents(old).keys() & set(RECORDED)


@pytest.mark.parametrize("at", [0, 3, 24])
def test_a_folder_deleted_during_a_run_is_not_said_to_be_stored(folder: Path, at: int) -> None:
    class Deleter(Listener):
        def started(self, done: int, total: int, steps_per_epoch: int) -> None:
            self.stepped(0, 0.0)

        def stepped(self, step: int, loss: float) -> None:
            if step == at:
                shutil.rmtree(folder)

    with pytest.raises(StorageError, match="was removed while the run was under way") as error:
        start(Deleter())
    one_line(error)
    assert not folder.exists()


def test_a_file_changed_during_a_run_is_not_vouched_for(folder: Path) -> None:
    class Editor(Listener):
        def stepped(self, step: int, loss: float) -> None:
            if step == 20:
                (folder / RECORDED[-1]).write_bytes(b"edited")

    for _ in range(2):
        with pytest.raises(VivitBenchError, match=r"step_00000001.npz is not as this run has"):
            start(Editor())
    assert load_run(folder).stored.state is State.RUNNING


def test_two_processes_do_not_share_a_run() -> None:
    class Second(Listener):
        def stepped(self, step: int, loss: float) -> None:
            if step == 1:
                with pytest.raises(VivitBenchError, match="another process is running run"):
                    start()

    start(Second())


@pytest.mark.parametrize("number", [1, 2, 6, 27])
def test_a_full_disk_is_said_and_the_run_goes_on_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    count, write = 0, store_files.write_all

    def full(descriptor: int, data: bytes) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(store_files, "write_all", full)
        with pytest.raises(StorageError, match=r"No space left on device.*goes on") as error:
            start()
        assert error.value.exit_code == 1
        one_line(error)
    assert contents(start().folder) == contents(start(name="whole").folder)


def test_a_read_only_place_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    with pytest.raises(UsageError, match="--results-dir file: is a file; name a folder"):
        run_noise(CHOICES, Path("file"), name="run")

    def read_only(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(store_run.os, "open", read_only)
    with pytest.raises(StorageError, match=r"Read-only file system"):
        start()
