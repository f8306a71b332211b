"""The page of a results folder: its numbers are those of the tables; what is missing is named."""

import base64
import csv
import importlib
import io
import json
import re
import shutil
from functools import cache
from html.parser import HTMLParser
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
from audit_cases import rewrite
from command_line import Run, group_runner
from critical_batch_cases import add_gradient, add_search, add_variants, trial
from spectrum_cases import make_record, store_made_up, store_record

from vivit_bench.critical_batch.table_s1 import SUB_TABLES
from vivit_bench.measure import Outcome
from vivit_bench.noise.records import load_run
from vivit_bench.report.comparison import stored_table
from vivit_bench.report.critical_batch import searches_table
from vivit_bench.report.critical_batch_selection import load_searches, select_searches
from vivit_bench.report.critical_batch_tables import make_table
from vivit_bench.report.quadratic import curve_table
from vivit_bench.report.tables import TableFormat, render
from vivit_bench.store import load_run as load_stored

pytest.importorskip("altair", reason="needs altair: pip install 'vivit-bench[report]'")
pytest.importorskip("vl_convert", reason="needs vl-convert: pip install 'vivit-bench[report]'")

from vivit_bench.report.page import collect, html_of, page
from vivit_bench.report.page.labels import told_apart
from vivit_bench.report.page.page import Page
from vivit_bench.report.page.parts import Charts
from vivit_bench.report.page.spectra import spectra_by_workload, spectra_table

RESULTS = Path(__file__).parents[1] / "results"


class Reader(HTMLParser):
    """Downloads, visible tables, scripts and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.downloads: dict[str, str] = {}
        self.cells: dict[str, list[list[tuple[str, str]]]] = {}
        self.scripts: dict[str, str] = {}
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = text
        self._table = self._script = ""
        self._cell: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.addresses += [found[name] for name in ("href", "src", "action") if name in found]
        if "id" in found:
            self.ids.append(found["id"])
        if "download" in found:
            content = found["href"].removeprefix("data:text/csv;base64,")
            self.downloads[found["download"]] = base64.b64decode(content).decode()
        if tag == "div" and found.get("id", "").startswith("table-"):
            self._table = found["id"].removeprefix("table-")
            self.cells[self._table] = []
        if tag == "tr" and self._table:
            self.cells[self._table].append([])
        if tag == "td" and "data-sort" in found:
            self._cell = found["data-sort"]
        if tag == "script":
            self._script = found.get("id", "code")

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self.cells[self._table][-1].append((data, self._cell))
            self._cell = None
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = ""

    def rows(self, name: str) -> list[list[tuple[str, str]]]:
        """Text and sorting key of a table's cells."""
        return [line for line in self.cells[name] if line]

    def drawn(self, name: str) -> list[dict[str, str]]:
        """What a chart draws."""
        return list(csv.DictReader(io.StringIO(json.loads(self.scripts["data"])[name])))


def read(folder: Path) -> Reader:
    return Reader(html_of(collect(folder)))


@cache
def page_of_results() -> Page:
    return collect(RESULTS)


@cache
def reader_of_results() -> Reader:
    return Reader(html_of(page_of_results()))


def add_searches(folder: Path) -> None:
    """Two engines, the gradient, a time-out with a prediction, a prediction that held."""
    add_variants(folder, (10, 20, 30, 40))
    add_variants(folder, (1, 2, 3, 4), engine="vivit-for-pytorch")
    add_gradient(folder, 900)
    add_search(
        folder,
        problem="fmnist_2c2d",
        critical_batch_size=512,
        stopped_by="timeout",
        facts={"predicted": {"critical_batch_size": 2450, "low": 2400, "high": 2500}},
    )
    add_search(
        folder,
        problem="mnist_mlp",
        critical_batch_size=236,
        facts={
            "predicted": {"critical_batch_size": 240, "low": 91, "high": 256},
            "planned_peaks": [[16, 2**24], [236, 2**27]],
            "work_seconds": 1.5,
        },
        ran=[trial(16), trial(236), trial(237, Outcome.OUT_OF_MEMORY, work_seconds=None)],
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return group_runner("report", monkeypatch, capsys)


def test_table_s1_has_every_engine_s_numbers_beside_the_paper_s(tmp_path: Path) -> None:
    add_searches(tmp_path)
    found = read(tmp_path)
    engines = ["vivit-bench", "vivit-for-pytorch"]
    selection = select_searches(load_searches(tmp_path)[0], engines=engines)
    lines = {
        (line["problem"], line["curvature"]): line
        for line in csv.DictReader(io.StringIO(found.downloads["table_s1a.csv"]))
    }
    for engine in engines:
        made = make_table(selection, SUB_TABLES["a"], engine, paper=True)
        assert made is not None
        for row in made.rows:
            line = lines[row["problem"], row["curvature"]]
            for samples in ("full", "frac"):
                assert line[f"{samples}_{engine}"] == str(row.get(samples) or "")
                assert line[f"{samples}_paper"] == str(row.get(f"{samples}_paper") or "")
                assert line[f"{samples}_predicted_{engine}"] == str(
                    row.get(f"{samples}_predicted") or ""
                )
    assert lines["cifar10_3c3d", "exact"]["full_paper"] == "1166"
    shown = {tuple(text for text, _ in line[:2]): line for line in found.rows("table_s1a")}
    (bench, key), (peer, _), (paper, _) = shown["cifar10_3c3d", "exact"][2:5]
    assert (bench.split("\n")[0], key, peer, paper) == ("10", "10", "1", "1,166")
    bounded = shown["fmnist_2c2d", "exact"][2][0]
    assert bounded.startswith(">= 512 (time;\npredicted 2,450")


def test_downloads_are_what_the_commands_print(tmp_path: Path) -> None:
    add_searches(tmp_path)
    found = read(tmp_path)
    expected = render(searches_table(load_searches(tmp_path)[0]), TableFormat.CSV)
    assert found.downloads["searches.csv"] == expected
    from vivit_bench.comparison.stored import stored_rows

    rows, _ = stored_rows(RESULTS)
    engines = reader_of_results().downloads["engines.csv"]
    assert engines == render(stored_table(rows), TableFormat.CSV)
    assert len(rows) >= 14
    works = [(row["quantity"], row["curvature"], row["samples"], row["problem"]) for row in rows]
    together = [work for work, _ in groupby(works)]
    assert len(together) == len(set(together))
    sizes = [row["batch_size"] for row in rows]
    assert all(
        n <= later
        for (work, n), (next_work, later) in pairwise(zip(works, sizes, strict=True))
        if work == next_work
    )


def test_engines_of_one_work_are_drawn_about_the_middle_of_its_row() -> None:
    drawn = reader_of_results().drawn("ratios")
    places: dict[str, list[float]] = {}
    for row in drawn:
        places.setdefault(row["work"], []).append(float(row["place"]))
    assert [0.0] in places.values()
    for each in places.values():
        middle = (len(each) - 1) / 2
        assert sorted(each) == [number - middle for number in range(len(each))]


def test_what_is_seen_of_a_table_is_its_download(tmp_path: Path) -> None:
    """Keys by which cells are sorted are the raw values, those that CSV has."""
    add_searches(tmp_path)
    made = collect(tmp_path)
    found = Reader(html_of(made))
    for each in made.tables:
        lines = list(csv.DictReader(io.StringIO(found.downloads[f"{each.name}.csv"])))
        assert len(lines) == len(each.table.rows)
        names = [column.name for column in each.headers]
        shown = [[key for _, key in line] for line in found.rows(each.name)]
        flags = {"True": "1", "False": "0"}
        assert shown == [[flags.get(line[n], line[n]) for n in names] for line in lines]


def test_bars_growth_and_predictions_draw_the_stored_numbers(tmp_path: Path) -> None:
    add_searches(tmp_path)
    found = read(tmp_path)
    bars = found.drawn("sizes_0_0_cifar10_3c3d")
    assert {(b["work"], b["engine"], b["size"]) for b in bars} >= {
        ("gradient", "vivit-bench", "900"),
        ("eigenvalues, exact, full", "vivit-bench", "10"),
        ("eigenvalues, mc, frac", "vivit-for-pytorch", "4"),
    }
    (bar,) = found.drawn("sizes_0_1_fmnist_2c2d")
    assert bar["label"] == "≥ 512 (2,450)"
    assert (bar["size"], bar["end"], bar["interval"]) == ("512", "2450", "2,400 - 2,500")
    (choice,) = {
        str(place)
        for place, title in enumerate(re.findall(r"<option>(.*?)</option>", found.text))
        if title == "mnist_mlp: eigenvalues, exact, full"
    }
    trials = [
        (t["n"], float(t["peak_mib"]), t["seconds"], t["outcome"])
        for t in found.drawn("growth_0")
        if t["choice"] == choice
    ]
    assert trials == [
        ("16", 16, "1.6", "fits"),
        ("236", 236, "23.6", "fits"),
        ("237", 237, "", "out-of-memory"),
    ]
    (judged,) = found.drawn("predictions")
    assert (float(judged["measured"]), float(judged["predicted"])) == (236, 240)
    shown = {line[0][0]: [text for text, _ in line] for line in found.rows("predictions")}
    assert shown["mnist_mlp"][4:8] == ["240 (91-256)", "236", "+1.7", "yes"]
    assert shown["fmnist_2c2d"][4:8] == ["2450 (2400-2500)", ">= 512 (time)", "-", "-"]


def test_spectra_are_compared_by_approximation_and_by_problem(tmp_path: Path) -> None:
    for problem in ("cifar10_3c3d", "mnist_2c2d"):
        store_made_up(tmp_path, problem=problem)
        store_made_up(tmp_path, problem=problem, curvature="mc", eigenvalues=(2.0, 0.1, 0.01))
    made = collect(tmp_path)
    found = Reader(html_of(made))
    (control,) = [b.control for s in made.sections for b in s.blocks if getattr(b, "control", None)]
    assert [choice.split()[0] for choice in control.choices] == ["approximation"] * 2 + [
        "problem"
    ] * 2
    first = [row for row in found.drawn("eigenvalues") if row["choice"] == "0"]
    assert [row["eigenvalue"] for row in first] == ["3", "0.5"] * 2  # above the cutoff
    density = found.drawn("density_0")
    exact = [int(row["count"]) for row in density if row["approximation"] == "exact, full"]
    assert sum(exact) == 2
    line = found.rows("spectra_0_cifar10_3c3d")[1]
    assert line[0][0] == "mc, full"


def test_spectra_of_another_model_or_mini_batch_stand_apart(tmp_path: Path) -> None:
    exact, drawn = make_record(), make_record(curvature="mc", eigenvalues=(2.0, 0.1))
    store_record(tmp_path, exact, model="old")
    store_record(tmp_path, drawn, model="new")
    store_record(tmp_path, make_record(samples="frac"), model="new", batch="changed")
    store_record(tmp_path, make_record(problem="mnist_2c2d"), model="other")
    warnings: list[str] = []
    groups = spectra_by_workload(tmp_path, warnings)
    common = "cifar10_3c3d, N = 128, D = 100, data deepobs, seed 0"
    assert {
        title: [each.settings.variant for each in group] for title, group in groups.items()
    } == {
        f"{common}, model new, mini-batch batch": ["mc, full"],
        f"{common}, model new, mini-batch changed": ["exact, frac"],
        f"{common}, model old, mini-batch batch": ["exact, full"],
        common.replace("cifar10_3c3d", "mnist_2c2d"): ["exact, full"],
    }
    distances = [table.rows[0]["distance"] for table in map(spectra_table, groups.values())]
    assert distances == [0.0] * 4  # of each from itself
    assert not warnings


def test_names_of_spectra_are_no_paths_into_a_histogram_s_data(tmp_path: Path) -> None:
    for number, name in enumerate(("a.b", "c[d")):
        store_record(tmp_path, make_record(cutoff=1e-4 * (1 + number)), name=name)
    made = collect(tmp_path)
    _, bins = made.specs["density_0"]["layer"]
    counts = {each["title"]: each["field"] for each in bins["encoding"]["tooltip"][2:]}
    assert counts == {"exact, full, a.b": "count_0", "exact, full, c[d": "count_1"}
    pivot = bins["transform"][0]["pivot"]
    told = {(row["approximation"], row[pivot]) for row in read(tmp_path).drawn("density_0")}
    assert told == set(counts.items())


def test_problems_that_differ_in_other_letters_have_charts_of_their_own(tmp_path: Path) -> None:
    names = ("größe.py:make", "grüße.py:make", "gr-e.py:make")
    for size, name in enumerate(names, start=11):
        add_search(tmp_path, problem=name, critical_batch_size=size)
    made = collect(tmp_path)
    found = Reader(html_of(made))
    (section,) = (each for each in made.sections if each.key == "sizes")
    charts = [
        chart for block in section.blocks if isinstance(block, Charts) for chart in block.charts
    ]
    sizes = {chart.title: [bar["size"] for bar in found.drawn(chart.key)] for chart in charts}
    assert sizes == {name: [str(size)] for size, name in enumerate(names, start=11)}
    assert len(found.ids) == len(set(found.ids))


def test_tables_of_runs_with_like_names_can_be_told_apart(tmp_path: Path) -> None:
    from vivit_bench.quadratic.records import run_experiment
    from vivit_bench.quadratic.settings import Settings

    settings = Settings(repeats=2, steps=1, dampings=(1.0,), curvatures=(5.0,), resamples=5)
    done = run_experiment(settings, tmp_path)
    for name in ("a-b", "a.b"):
        shutil.copytree(done.folder, done.folder.with_name(name))
    found = read(tmp_path)
    assert len(found.ids) == len(set(found.ids))


def test_searches_and_comparisons_of_other_conditions_have_rows_of_their_own(
    tmp_path: Path,
) -> None:
    facts = {"predicted": {"critical_batch_size": 90, "low": 80, "high": 120}}
    for threads in (1, 2):
        add_search(tmp_path, threads=threads, facts=facts)
        add_search(tmp_path, threads=threads, facts=facts, problem="mnist_mlp", seed=threads)
    add_search(tmp_path, facts=facts, problem="alone")
    (folder,) = RESULTS.glob("comparison/cifar10_3c3d_full-newton_exact_full_n32-*")
    for name, changes in (("one", {}), ("two", {"dtype": "float64"})):
        shutil.copytree(folder, tmp_path / "comparison" / name)
        stored = load_stored(tmp_path / "comparison" / name, "comparison")
        rewrite(stored, settings={**stored.settings, **changes})
    found = read(tmp_path)
    cifar, mnist, alone = (
        f"{problem}, 2 GiB|eigenvalues, exact, full"
        for problem in ("cifar10_3c3d", "mnist_mlp", "alone")
    )
    assert sorted(row["search"] for row in found.drawn("predictions")) == [
        alone,
        *(f"{cifar}|threads {number}" for number in (1, 2)),
        *(f"{mnist}|seed {number}|threads {number}" for number in (1, 2)),
    ]
    ratios = found.drawn("ratios")
    assert {row["work"].split("|")[2] for row in ratios} == {
        "precision float32",
        "precision float64",
    }
    assert len({(row["work"], row["engine"]) for row in ratios}) == len(ratios)
    assert all(row["told"] == row["work"].replace("|", ", ") for row in ratios)


def test_what_shares_a_label_says_in_what_it_differs() -> None:
    row = {"engine": "a", "run": "r1", "seed": 0, "checkpoint": "x.pt", "checkpoint_file": "1"}
    other_engine = {**row, "engine": "b"}
    assert told_apart([row, other_engine], ["same", "same"]) == ["same", "same"]
    assert told_apart([row, {**row, "run": "r2"}], ["same", "same"]) == ["same|r1", "same|r2"]
    assert told_apart([row, {**row, "run": "r2"}], ["one", "two"]) == ["one", "two"]
    untrained = {**row, "checkpoint": None, "checkpoint_file": None}
    assert told_apart([row, untrained], ["same", "same"]) == [
        "same|checkpoint x.pt",
        "same|no checkpoint",
    ]
    assert told_apart([row, {**row, "checkpoint_file": "2"}], ["same", "same"]) == [
        "same|contents of the checkpoint 1",
        "same|contents of the checkpoint 2",
    ]


def test_an_empty_folder_s_page_names_every_command(tmp_path: Path) -> None:
    made = collect(tmp_path)
    found = Reader(html_of(made))
    assert [command.split()[1] for _, command in made.missing] == [
        "critical-batch",
        "compare-engines",
        "spectrum",
        "noise",
        "quadratic",
    ]
    assert all(command.endswith(f"--results-dir {tmp_path}") for _, command in made.missing)
    assert {"missing", "provenance", "measured"} <= set(found.ids)
    assert "vegaEmbed" not in found.scripts.get("code", "")[:200]
    assert not made.specs


def test_a_page_of_one_search(tmp_path: Path) -> None:
    add_search(tmp_path, problem="nets/own.py:make", critical_batch_size=7)
    made = collect(tmp_path)
    found = Reader(html_of(made))
    assert [text for text, _ in found.rows("table_s1a")[0]][:3] == [
        "nets/own.py:make",
        "exact",
        "7",
    ]
    assert [what for what, _ in made.missing][-3:] == ["Table S.1b", "Table S.1c", "Table S.1d"]
    assert len(found.ids) == len(set(found.ids))


def test_searches_under_two_limits_stand_apart(tmp_path: Path) -> None:
    add_search(tmp_path, critical_batch_size=7)
    add_search(tmp_path, critical_batch_size=9, memory_limit_bytes=2**32)
    add_search(tmp_path, critical_batch_size=5, dtype="float64")
    found = read(tmp_path)
    tables = [name for name in found.cells if name.startswith("table_s1a")]
    assert sorted(found.rows(name)[0][2][1] for name in tables) == ["5", "7", "9"]
    assert len(found.ids) == len(set(found.ids))


def test_nothing_is_loaded_from_elsewhere_and_equal_results_give_equal_pages(
    tmp_path: Path,
) -> None:
    add_searches(tmp_path)
    text = html_of(collect(tmp_path))
    assert text == html_of(collect(tmp_path))
    found = Reader(text)
    assert all(address.startswith(("#", "data:")) for address in found.addresses)
    assert "default-src 'none'" in text
    assert text.count("window.vegaEmbed=") == 1
    assert len(text) < 2_000_000


def test_charts_are_valid_vega_lite(tmp_path: Path) -> None:
    import altair

    add_searches(tmp_path)
    store_made_up(tmp_path)
    made = [*collect(tmp_path).specs.values(), *page_of_results().specs.values()]
    for spec in made:
        altair.Root.from_dict(spec, validate=True)
    assert len(made) >= 9


def test_names_cannot_end_a_script_or_a_cell(tmp_path: Path) -> None:
    name = "nets/a</script><img src=x onerror=alert(1)>.py:make"
    add_search(tmp_path, problem=name)
    text = html_of(collect(tmp_path))
    assert "<img src=x" not in text
    assert Reader(text).rows("searches")[0][0][0] == name


def test_damaged_results_are_left_out_and_named(tmp_path: Path, run: Run) -> None:
    stored = store_made_up(tmp_path, problem="mnist_2c2d")
    (stored.folder / "eigenvalues.csv").write_text("direction,eigenvalue\n1,2.0\n")
    add_search(tmp_path)
    done = run(tmp_path, "--output", tmp_path / "page.html")
    assert done.code == 0
    assert "eigenvalues.csv is not the file" in done.err
    assert "eigenvalues.csv is not the file" in (tmp_path / "page.html").read_text()


def test_a_folder_whose_only_search_is_damaged_still_has_a_page(tmp_path: Path) -> None:
    add_search(tmp_path, ran=[trial(1)])
    (journal,) = tmp_path.glob("critical_batch/*/trials.jsonl")
    journal.write_text("edited\n")
    made = collect(tmp_path)
    assert any("trials.jsonl is not the file" in line for line in made.warnings)
    assert "trials.jsonl is not the file" in html_of(made)


def test_results_with_nothing_to_draw_have_a_page(tmp_path: Path) -> None:
    store_made_up(tmp_path, eigenvalues=(1e-6, 1e-7))
    add_search(tmp_path, critical_batch_size=0, ran=[trial(1, Outcome.OUT_OF_MEMORY)])
    found = read(tmp_path)
    assert found.drawn("eigenvalues") == []
    assert found.drawn("sizes_0_0_cifar10_3c3d")[0]["label"] == "0"


def test_a_noise_run_s_directions_are_drawn_as_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from noise_cases import CHOICES, write_tiny

    from vivit_bench.noise.runner import run_noise

    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    done = run_noise(CHOICES, tmp_path / "results")
    found = read(tmp_path / "results")
    directions = load_run(done.folder).directions
    drawn = found.drawn("directions_0")
    assert len(drawn) == len(directions)
    for mine, stored in zip(drawn, directions.to_dict("records"), strict=True):
        assert float(mine["eigenvalue"]) == pytest.approx(stored["eigenvalue"], rel=1e-3)
        assert float(mine["gamma"]) == pytest.approx(abs(stored["gamma"]), rel=1e-3)
    steps = [line[0][1] for line in found.rows(f"noise_checkpoints_0_{_slug(done.folder.name)}")]
    assert steps == ["0", "1", "5", "24"]
    few = importlib.import_module("vivit_bench.report.page.noise").drawn_directions(done, 0)
    assert len(few) <= len(directions)


def test_figure_3_draws_the_curves_of_its_table(tmp_path: Path) -> None:
    from vivit_bench.quadratic.records import run_experiment
    from vivit_bench.quadratic.settings import Settings

    settings = Settings(repeats=3, steps=4, dampings=(0.1, 10.0))
    done = run_experiment(settings, tmp_path)
    drawn = read(tmp_path).drawn("figure_3_0")
    expected: list[dict[str, Any]] = curve_table(done).to_dict("records")
    assert [(d["optimizer"], int(d["step"])) for d in drawn] == [
        (e["optimizer"], e["step"]) for e in expected
    ]
    for mine, stored in zip(drawn, expected, strict=True):
        for name in ("median", "lower_quartile", "upper_quartile"):
            assert float(mine[name]) == pytest.approx(stored[name], rel=1e-5)


def test_the_command_writes_a_page_and_refuses_what_it_cannot_do(tmp_path: Path, run: Run) -> None:
    results, target = tmp_path / "results", tmp_path / "page.html"
    results.mkdir()
    done = run(results, "--output", target)
    assert (done.code, done.out, done.err) == (0, "", f"wrote {target}\n")
    assert target.read_text().startswith("<!doctype html>")
    assert run(results, "--output", target, "--quiet").err == ""
    for arguments, said in (
        ((tmp_path / "nothing",), "nothing: no such folder"),
        ((target,), "is a file, not a folder"),
        ((results, "--output", tmp_path / "page.pdf"), "must end in .html"),
        ((results, "--output", results), "this is a folder"),
    ):
        done = run(*arguments)
        assert done.code == 2
        assert said in done.err
        assert done.err.count("\n") == 1


def test_without_its_libraries_the_command_says_what_to_install(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_NEEDED", ("jinja2", "no_such_package"))
    done = run(tmp_path)
    assert done.code == 2
    assert done.err == (
        "vivit-bench: vivit-bench report needs the package 'no_such_package'; install it with pip "
        "install 'vivit-bench[report]'\n"
    )


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name)
