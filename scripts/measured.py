"""Write the tables of two pages of docs/ from results/, so that no number there is typed by hand.

    python scripts/measured.py            # write
    python scripts/measured.py --check    # exit code 1 where the page says something else

A table stands between the lines ``<!-- vivit-bench ARGUMENTS -->`` and ``<!-- end -->``: it is what
that command prints with --format markdown. Or between ``<!-- FILE.csv: COLUMN, ... -->`` and the
end: a file in results/ with these of its columns.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from vivit_bench.report.tables import Column, Table, TableFormat, render

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / name for name in ("measured.md", "noise.md")]
TABLE = re.compile(r"<!-- vivit-bench (.*?) -->\n.*?<!-- end -->", re.DOTALL)
FILE = re.compile(r"<!-- (\S+\.csv): (.*?) -->\n.*?<!-- end -->", re.DOTALL)


def main(arguments: list[str]) -> int:
    """Write or check the pages."""
    differ = []
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        shutil.copytree(ROOT / "results", results)  # commands may write beside what they read
        for page in PAGES:
            text = page.read_text()
            new = TABLE.sub(lambda found: _table(found[1], results), text)
            new = FILE.sub(lambda found: _file(found[1], found[2].split(", "), results), new)
            if new != text:
                differ.append(page)
            if "--check" not in arguments:
                page.write_text(new)
    if "--check" not in arguments:
        return 0
    for page in differ:
        print(f"{page} differs from results/; run {__file__}")
    return len(differ)


def _table(command: str, results: Path) -> str:
    words = [sys.executable, "-m", "vivit_bench", *command.split(), "--format", "markdown"]
    done = subprocess.run(
        [*words, "--results-dir", str(results)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"vivit-bench {command}: {done.stderr}")
    return f"<!-- vivit-bench {command} -->\n\n{done.stdout.strip()}\n\n<!-- end -->"


def _file(name: str, columns: list[str], results: Path) -> str:
    frame = pd.read_csv(results / name, usecols=columns)
    texts = frame.select_dtypes(exclude="number").columns
    shown = [
        Column(each, left=True) if each in texts else Column(each, shown=",.0f") for each in columns
    ]
    text = render(Table(shown, frame.to_dict("records")), TableFormat.MARKDOWN)
    return f"<!-- {name}: {', '.join(columns)} -->\n\n{text.strip()}\n\n<!-- end -->"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
