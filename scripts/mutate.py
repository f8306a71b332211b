"""Do the tests notice mistakes? Random one-token mutations, each run against its room's tests.

    python scripts/mutate.py --count 150 --seed 0 --jobs 2 --record mutations.jsonl

A mutation swaps one operator, comparison, keyword or number of a room's code. It is caught if a
test fails or does not end. Those that survive are listed: each is either a missing test or changes
nothing that can be seen. Interrupted, the same command goes on.

With ``--coverage FILE``, made by ``pytest -n 0 --cov=vivit_bench --cov-context=test`` on the rooms'
tests, those that run the mutated line come first, a few of them before the others.
"""

import argparse
import ast
import concurrent.futures
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tokenize
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = {
    "store": ["tests/test_store_policy.py", "tests/test_store_journal.py",
              "tests/test_store_run.py", "tests/test_store_provenance.py"],
    "measure": ["tests/test_measure_*.py"],
    "curvature": ["tests/test_curvature*.py", "tests/test_certificate.py"],
}  # fmt: skip
SWAPS = {
    "+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "+", "**": "*", "@": "+",
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "+=": "-=", "-=": "+=", "*=": "/=", "|=": "=", "|": "&", "&": "|",
    "and": "or", "or": "and", "not": "", "True": "False", "False": "True",
    "min": "max", "max": "min", "any": "all", "all": "any", "continue": "break",
}  # fmt: skip
SECONDS = 900


@dataclass(frozen=True)
class Mutation:
    """One token of one file, replaced."""

    room: str
    file: str
    line: int
    column: int
    old: str
    new: str


def mutations_of(room: str) -> list[Mutation]:
    """All one-token mutations of a room's code, annotations and texts left out."""
    found = []
    for path in sorted((ROOT / "vivit_bench" / room).rglob("*.py")):
        source = path.read_text()
        left_out = _annotations(ast.parse(source))
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            line, column = token.start
            if any(first <= (line, column) < last for first, last in left_out):
                continue
            new = _replacement(token)
            if new is not None:
                name = str(path.relative_to(ROOT))
                found.append(Mutation(room, name, line, column, token.string, new))
    return found


def _replacement(token: tokenize.TokenInfo) -> str | None:
    if token.line.lstrip().startswith("@"):
        return None  # a decorator
    if token.type == tokenize.NUMBER:
        return f"({token.string} + 1)"
    return SWAPS.get(token.string) if token.type in (tokenize.OP, tokenize.NAME) else None


def _annotations(tree: ast.AST) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a mutation changes nothing that is computed.

    Annotations, imports, parameters' * and /, decorators of data classes, and ``strict`` of zip.
    """
    spans = []
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        if isinstance(node, ast.AnnAssign) or (
            isinstance(node, ast.arg) and node.annotation is not None
        ):
            parts.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            if node.returns is not None:
                parts.append(node.returns)
            if node.args.kwonlyargs or node.args.posonlyargs:
                head = (node.lineno, node.col_offset), (node.body[0].lineno, 0)
                spans.append(head)
        elif isinstance(node, ast.Import | ast.ImportFrom | ast.Starred):
            parts.append(node)
        elif isinstance(node, ast.ClassDef):
            parts += node.decorator_list
        elif isinstance(node, ast.keyword) and node.arg == "strict":
            parts.append(node)
        for part in parts:
            assert part.end_lineno is not None  # type: ignore[attr-defined]
            spans.append(
                (
                    (part.lineno, part.col_offset),  # type: ignore[attr-defined]
                    (part.end_lineno, part.end_col_offset),  # type: ignore[attr-defined]
                )
            )
    return spans


def tests_of(mutation: Mutation, coverage: Path | None) -> list[list[str]]:
    """What to run, in this order: some tests that run the line, all of them, all of the room."""
    room = [TESTS[mutation.room]]
    if coverage is None:
        return room
    from coverage import CoverageData

    data = CoverageData(basename=str(coverage))
    data.read()
    (file,) = (name for name in data.measured_files() if name.endswith(mutation.file))
    contexts = data.contexts_by_lineno(file).get(mutation.line, [])
    names = sorted({name.partition("|")[0] for name in contexts if name})
    some = random.Random(0).sample(names, min(len(names), 25))
    return [some, names] if some else room


def is_caught(mutation: Mutation, coverage: Path | None) -> bool:
    """Run the room's tests on a copy with the mutation."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv", "results", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=ignored)
        path = copy / mutation.file
        lines = path.read_text().splitlines(keepends=True)
        text = lines[mutation.line - 1]
        before, after = text[: mutation.column], text[mutation.column :]
        assert after.startswith(mutation.old)
        lines[mutation.line - 1] = before + mutation.new + after[len(mutation.old) :]
        path.write_text("".join(lines))
        return any(_fails(copy, tests) for tests in tests_of(mutation, coverage))


def _fails(copy: Path, tests: list[str]) -> bool:
    found = [t for test in tests for t in ([test] if "::" in test else _files(copy, test))]
    command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider", *found]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    if done.returncode == 4 and "::" in found[0]:  # not collected: is that the mutation?
        return _fails(copy, sorted({test.partition("::")[0] for test in found}))
    return done.returncode != 0


def _files(copy: Path, pattern: str) -> list[str]:
    return [str(path) for path in sorted(copy.glob(pattern))]


def main() -> None:
    """Run the series."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rooms", nargs="*", default=list(TESTS))
    parser.add_argument("--record", type=Path, help="Results so far, a line each.")
    parser.add_argument("--coverage", type=Path, help="Which test runs which line.")
    options = parser.parse_args()
    pool = [m for room in options.rooms for m in mutations_of(room)]
    chosen = random.Random(options.seed).sample(pool, min(options.count, len(pool)))
    done: dict[Mutation, bool] = {}
    if options.record and options.record.exists():
        for line in options.record.read_text().splitlines():
            values = json.loads(line)
            caught = values.pop("caught")
            done[Mutation(**values)] = caught
    left = [m for m in chosen if m not in done]
    print(f"{len(pool)} mutations, {len(chosen)} chosen, {len(left)} to run", flush=True)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as executor:
        runs = {
            executor.submit(is_caught, mutation, options.coverage): mutation for mutation in left
        }
        for run in concurrent.futures.as_completed(runs):
            mutation = runs[run]
            done[mutation] = run.result()
            if options.record:
                with options.record.open("a") as file:
                    file.write(json.dumps({**asdict(mutation), "caught": done[mutation]}) + "\n")
            if not done[mutation]:
                print(f"survived: {mutation.file}:{mutation.line}:{mutation.column} "
                      f"{mutation.old!r} -> {mutation.new!r}", flush=True)  # fmt: skip
    for room in options.rooms:
        outcomes = [done[m] for m in chosen if m.room == room]
        print(f"{room}: attempted {len(outcomes)}, caught {sum(outcomes)}, "
              f"survived {len(outcomes) - sum(outcomes)}")  # fmt: skip


if __name__ == "__main__":
    main()
