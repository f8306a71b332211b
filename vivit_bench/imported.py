"""What a user's file imports from beside it: other code, other numbers."""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

IMPORTED = "imported_files"
"""In the environment of what is stored; absent where nothing of the kind is imported."""

Parts = tuple[str, ...]


def imported_files(problem: str) -> dict[str, str]:
    """Hash the modules that a user's file imports from its folder, and those that they import.

    They are found by their import statements, wherever these stand; nothing is run. Packages that
    are installed, and files that are opened by name, are not among them.

    Args:
        problem: DeepOBS name or ``path/to/file.py:function``.

    Returns:
        `IMPORTED` and 12 hex digits; empty where there are none.
    """
    if ":" not in problem:
        return {}
    file = Path(problem.rpartition(":")[0])
    digest, found = hashlib.sha256(), sorted(_closure(file) - {file})
    for path in found:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(file.parent).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return {IMPORTED: digest.hexdigest()[:12]} if found else {}


def _closure(file: Path) -> set[Path]:
    """A file and what it imports of its folder, directly or not."""
    seen, waiting = {file}, [(file, Parts())]
    while waiting:
        path, package = waiting.pop()
        for parts in _imports(path, package):
            for found, its_package in _sources(file.parent, parts):
                if found not in seen:
                    seen.add(found)
                    waiting.append((found, its_package))
    return seen


def _imports(path: Path, package: Parts) -> Iterator[Parts]:
    """Names of modules that a file may import: also what is imported *from* one may be one."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # whoever runs it will be told
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = (*above, *(node.module.split(".") if node.module else ()))
            yield module
            for alias in node.names:
                yield (*module, alias.name)


def _sources(folder: Path, parts: Parts) -> Iterator[tuple[Path, Parts]]:
    """Files of a module and of the packages that it is in, each with its package."""
    for length in range(1, len(parts) + 1):
        stem = folder.joinpath(*parts[:length])
        for path, package in (
            (stem.with_name(f"{stem.name}.py"), parts[: length - 1]),
            (stem / "__init__.py", parts[:length]),
        ):
            if path.is_file():
                yield path, package
