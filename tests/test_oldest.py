"""The constraints of make test-oldest are what pyproject.toml promises."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_oldest_versions_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = {
        name: version
        for requirement in project["dependencies"]
        for name, version in re.findall(r"^([\w-]+)>=([\d.]+)", requirement)
    }
    lines = (ROOT / "tests" / "oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned.keys() == promised.keys()

    def numbers(version: str) -> list[int]:
        return ([int(part) for part in version.split(".")] + [0, 0])[:3]

    for name, version in promised.items():
        assert numbers(pinned[name]) == numbers(version), name
