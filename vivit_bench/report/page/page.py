"""The page as one file of HTML: nothing is loaded from elsewhere, at any time."""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vivit_bench import __version__
from vivit_bench.critical_batch.table_s1 import SUB_TABLES
from vivit_bench.errors import UsageError
from vivit_bench.report.page import overview
from vivit_bench.report.page.parts import Charts, PageTable, Section
from vivit_bench.report.page.searches import Searches, load_groups
from vivit_bench.store import DamagedRunError

_NEEDED = ("altair", "jinja2", "vl_convert")
_FILES = ("page.css", "page.js")


@dataclass(frozen=True)
class Page:
    """What a page shows."""

    results_dir: Path
    sections: list[Section]
    missing: list[tuple[str, str]]
    """What there is no result of, and the command that makes it."""
    provenance: PageTable
    warnings: list[str]
    """What was left out, a line each."""

    @property
    def data(self) -> dict[str, str]:
        """Name -> CSV that the charts draw."""
        return {name: text for part in self.sections for name, text in part.data.items()}

    @property
    def specs(self) -> dict[str, Any]:
        """Key -> Vega-Lite of a chart."""
        return {
            chart.key: chart.spec
            for section in self.sections
            for block in section.blocks
            if isinstance(block, Charts)
            for chart in block.charts
        }

    @property
    def tables(self) -> list[PageTable]:
        """All tables with a download."""
        blocks = [block for section in self.sections for block in section.blocks]
        return [*(block for block in blocks if isinstance(block, PageTable)), self.provenance]


def check_packages() -> None:
    """Refuse to begin without the libraries of the page.

    Raises:
        UsageError: One is not installed; says how.
    """
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"vivit-bench report needs the package {error.name!r}; install it with "
                "pip install 'vivit-bench[report]'"
            ) from error


def collect(results_dir: Path) -> Page:
    """Read all that is stored and arrange it.

    Args:
        results_dir: Folder of all results; what it lacks is named on the page.

    Raises:
        UsageError: There is no such folder.
    """
    if not results_dir.is_dir():
        what = "is a file, not a folder of results" if results_dir.exists() else "no such folder"
        raise UsageError(
            f"{results_dir}: {what}; name the one that --results-dir of another command had, for "
            "example vivit-bench report results"
        )
    stored = overview.look(results_dir)
    sections = [overview.section(stored)]
    absent: list[str] = []
    unreadable: list[str] = []
    if any(run.is_finished for run in stored.runs["critical_batch"]):
        try:
            searches = load_groups(results_dir)
        except DamagedRunError as error:  # all of them are
            unreadable.append(str(error))
        else:
            sections += _of_searches(searches, results_dir)
            absent = _absent(searches)
    for make in _makers():
        if (made := make(results_dir)) is not None:
            sections.append(made)
    found = [
        *stored.damaged,
        *unreadable,
        *(line for section in sections for line in section.warnings),
    ]
    return Page(
        results_dir,
        [section for section in sections if section.blocks],
        overview.missing(stored, absent),
        PageTable(overview.provenance_table(stored), "provenance"),
        list(dict.fromkeys(found)),
    )


def html_of(page: Page) -> str:
    """The page as text; equal results give equal pages."""
    import jinja2

    from vivit_bench.report.page.charts import CONFIG

    room = resources.files(__package__)
    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string((room / "template.html").read_text("utf-8"))
    css, script = ((room / name).read_text("utf-8") for name in _FILES)
    return template.render(
        page=page,
        version=__version__,
        css=css,
        script=script,
        vega=_vega() if page.specs else "",
        config=CONFIG,
    )


def _of_searches(searches: Searches, results_dir: Path) -> list[Section]:
    from vivit_bench.report.page import growth, predictions, sizes, table_s1

    made = [
        table_s1.section(searches),
        sizes.section(searches),
        growth.section(searches, results_dir),
        predictions.section(searches, results_dir),
    ]
    return [section for section in made if section is not None]


def _makers() -> list[Callable[[Path], Section | None]]:
    from vivit_bench.report.page import engines, noise, quadratic, spectra

    return [engines.section, spectra.section, noise.section, quadratic.section]


def _absent(searches: Searches) -> list[str]:
    """Letters of the sub-tables that have no search."""
    there = set(zip(searches.rows["quantity"], searches.rows["device"], strict=True))
    return [
        letter
        for letter, table in SUB_TABLES.items()
        if (table.quantity, table.device) not in there
    ]


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed in one script, of the version that Altair writes for."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    code: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")
