"""Run a notebook's cells in order in this process, without Jupyter; a cell that fails ends it.

    python scripts/run_notebook.py docs/tutorial.ipynb

What the last line of a cell gives is printed, as Jupyter shows it. Lines are plain Python.
"""

import ast
import json
import sys
import time
from pathlib import Path


def run_notebook(path: Path) -> None:
    """Run every code cell in one namespace."""
    cells = json.loads(path.read_text())["cells"]
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        if cell["cell_type"] != "code":
            continue
        started = time.perf_counter()
        print(f"--- cell {number} of {len(cells)}", flush=True)
        run_cell("".join(cell["source"]), f"cell {number}", names)
        print(f"--- {time.perf_counter() - started:.1f} s", flush=True)


def run_cell(source: str, name: str, names: dict[str, object]) -> None:
    """Run a cell and print the value of its last line, if that is an expression with one."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), name, "eval"), names)
        if value is not None:
            print(value)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/run_notebook.py NOTEBOOK.ipynb")
    run_notebook(Path(sys.argv[1]))
