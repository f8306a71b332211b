"""Journals: what is appended stays, whatever happens to the line after it."""

import errno
import math
import os
from pathlib import Path

import pytest

from vivit_bench.errors import StorageError, VivitBenchError
from vivit_bench.store import Journal, read_journal
from vivit_bench.store import files as store_files

RECORDS = [{"n": 1, "peak": 2.5}, {"n": 2, "values": [1, [math.inf]]}, {"n": 3, "text": "ü\n"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "trials.jsonl"
    journal = Journal(path)
    for record in RECORDS:
        journal.append(record)
    journal.close()
    return path


def test_records_come_back_and_go_on(path: Path) -> None:
    journal = Journal(path)
    assert (journal.entries, journal.notes) == (RECORDS, [])
    journal.append({"n": 4})
    journal.close()
    assert read_journal(path) == ([*RECORDS, {"n": 4}], [])


def test_there_may_be_no_file(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "none.jsonl") == ([], [])


@pytest.mark.parametrize("cut", range(1, 30, 7))
def test_a_last_line_cut_short_is_dropped_and_its_place_used(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_journal(path) == (RECORDS[:2], [])
    journal = Journal(path)
    assert journal.entries == RECORDS[:2]
    journal.append(RECORDS[2])
    journal.close()
    assert read_journal(path) == (RECORDS, [])


@pytest.mark.parametrize("line", range(3))
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace(b'"n": ', b'"n": 1'),
        lambda text: text[:-5],
        lambda text: b"\xff\xfe" + text,
        lambda text: b"[]",
        lambda text: b'{"check": "0", "entry": []}',
        lambda text: b"null",
        lambda text: b"",
        lambda text: b"[" * 100_000,
    ],
)
def test_a_damaged_line_costs_itself_and_a_note(path: Path, line: int, damage: object) -> None:
    assert callable(damage)
    lines = path.read_bytes().splitlines()
    lines[line] = damage(lines[line])
    path.write_bytes(b"\n".join(lines) + b"\n")
    journal = Journal(path)
    assert journal.entries == RECORDS[:line] + RECORDS[line + 1 :]
    (note,) = journal.notes
    assert f"{path}: line {line + 1} is damaged" in note
    journal.append(RECORDS[line])
    journal.close()
    assert sorted(r["n"] for r in read_journal(path)[0]) == [1, 2, 3]


@pytest.mark.parametrize("written", [0, 1, 20])
def test_a_short_write_is_noticed_and_undone(
    path: Path, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    journal = Journal(path)
    real, room = os.write, [written]

    def full(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(descriptor, bytes(data[: room[0]]))
        room[0] -= count
        return count

    monkeypatch.setattr(store_files.os, "write", full)
    with pytest.raises(StorageError, match="No space left"):
        journal.append({"n": 4})
    assert path.read_bytes() == before
    monkeypatch.undo()
    journal.append({"n": 5})
    journal.close()
    assert read_journal(path) == ([*RECORDS, {"n": 5}], [])


def test_a_removed_journal_is_not_said_to_be_stored(path: Path) -> None:
    journal = Journal(path)
    path.unlink()
    with pytest.raises(StorageError, match="was removed while the run was under way"):
        journal.append({"n": 4})
    journal.close()


def test_nothing_is_written_through_a_link(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    before = path.read_bytes()
    with pytest.raises(VivitBenchError, match="is no file; --fresh"):
        Journal(link)
    assert path.read_bytes() == before


def test_a_folder_in_its_place_is_told_with_what_helps(tmp_path: Path) -> None:
    (tmp_path / "trials.jsonl").mkdir()
    with pytest.raises(VivitBenchError, match="is no file; --fresh"):
        Journal(tmp_path / "trials.jsonl")


def test_a_disk_that_refuses_even_the_undoing_is_one_line_and_costs_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    journal = Journal(path)
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, bytes(data[:20]))

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(store_files.os, "write", half)
    monkeypatch.setattr(store_files.os, "ftruncate", refused)
    with pytest.raises(StorageError, match="cannot write"):
        journal.append({"n": 4, "text": "long enough"})
    journal.close()
    monkeypatch.undo()
    assert path.read_bytes() != before
    Journal(path).close()
    assert path.read_bytes() == before
