"""Write the tables of two pages of docs/ from results/, so that no number there is typed by hand.

    python scripts/measured.py            # write
    python scripts/measured.py --check    # exit code 1 where the page says something else

A table stands between the lines ``<!-- vivit-bench ARGUMENTS -->`` and ``<!-- end -->``: it is what
that command prints with --format markdown.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / name for name in ("measured.md", "noise.md")]
TABLE = re.compile(r"<!-- vivit-bench (.*?) -->\n.*?<!-- end -->", re.DOTALL)


def main(arguments: list[str]) -> int:
    """Write or check the pages."""
    differ = []
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        shutil.copytree(ROOT / "results", results)  # commands may write beside what they read
        for page in PAGES:
            text = page.read_text()
            new = TABLE.sub(lambda found: _table(found[1], results), text)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
