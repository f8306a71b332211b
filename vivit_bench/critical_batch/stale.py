"""Records of earlier searches that are not those of the present one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vivit_bench.critical_batch.journal import Header, read_header
from vivit_bench.critical_batch.settings import Cell


def trials_folder(results_dir: Path) -> Path:
    """Folder of all trials' records below a results folder."""
    return results_dir / "critical_batch" / "trials"


def older_records_note(folder: Path, header: Header) -> str:
    """Say which records under the same memory limit are not used, and why.

    Args:
        folder: Of the records.
        header: Of the present search.

    Returns:
        One line on the newest such records of the same problem and quantity; empty if the
        present search has records of its own or there are no others.
    """
    others = []
    for path, other in _headers(folder):
        if other["key"] == header["key"]:
            return ""
        if _is_about_the_same(other, header) and _has_trials(path):
            others.append((path, other))
    if not others:
        return ""
    path, other = others[0]
    changes = [
        f"{name} {old} (now {new})" for name, old, new in _differences(_flat(other), _flat(header))
    ]
    more = f" and {len(others) - 1} older" if len(others) > 1 else ""
    return f"not used: {path.name}{more}, made under {', '.join(changes)}"


def remembered_limit(folder: Path, cells: list[Cell]) -> int | None:
    """The memory limit that the newest search of one of these cells chose for itself.

    Args:
        folder: Of the records.
        cells: What is to be searched.

    Returns:
        Bytes; None if no search of these cells chose one.
    """
    fields = [cell.key_fields() for cell in cells]
    for _, header in _headers(folder):
        if not header["limit_chosen_by_user"] and header["cell"] in fields:
            return int(header["memory_limit_bytes"])
    return None


# Records that differ in one of these are of another cell, not stale ones of this.
_SAME = ("problem", "quantity", "curvature", "samples", "device", "engine")


def _headers(folder: Path) -> Iterator[tuple[Path, Header]]:
    """Files of records with their headers, the newest first."""
    paths = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in paths:
        header = read_header(path)
        if header is not None:
            yield path, header


def _is_about_the_same(other: Header, header: Header) -> bool:
    cells = (other["cell"], header["cell"])
    same_cell = all(cells[0].get(name) == cells[1][name] for name in _SAME)
    return same_cell and other["memory_limit_bytes"] == header["memory_limit_bytes"]


def _has_trials(path: Path) -> bool:
    return path.read_bytes().count(b"\n") > 1


def _flat(header: Header) -> dict[str, Any]:
    return {**header["cell"], **header["environment"]}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = dict.fromkeys([*new, *old])
    return [
        (name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)
    ]
