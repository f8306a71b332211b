"""Tables and figures of critical batch sizes: the right numbers, comparable ones only."""

from pathlib import Path

import pandas as pd
import pytest
from critical_batch_cases import add_gradient, add_search, add_variants

from vivit_bench.critical_batch.table_s1 import SUB_TABLES
from vivit_bench.curvature.options import Precision
from vivit_bench.errors import UsageError
from vivit_bench.report.critical_batch import (
    Selection,
    load_searches,
    paper_searches,
    searches_table,
    select_searches,
)
from vivit_bench.report.critical_batch_figures import (
    draw_critical_batch_sizes,
    plot_critical_batch_sizes,
)
from vivit_bench.report.critical_batch_tables import (
    make_table,
    write_table,
)
from vivit_bench.report.tables import Table, TableFormat, render


def select(folder: Path, *engines: str, **options: object) -> Selection:
    names = engines or ("vivit-bench",)
    return select_searches(load_searches(folder)[0], engines=names, **options)  # type: ignore[arg-type]


def table_of(folder: Path, letter: str = "a", *, paper: bool = False) -> Table:
    made = make_table(select(folder), SUB_TABLES[letter], "vivit-bench", paper=paper)
    assert made is not None
    return made


def test_the_paper_s_numbers_are_those_of_its_four_tables() -> None:
    paper = paper_searches()
    assert paper.groupby("table").size().to_dict() == dict.fromkeys("abcd", 12)
    exact = paper[(paper["curvature"] == "exact") & (paper["samples"] == "full")]
    sizes = exact.set_index(["table", "problem"])["critical_batch_size"]
    assert sizes["a"].to_dict() == {
        "cifar10_3c3d": 1166,
        "fmnist_2c2d": 231,
        "cifar100_allcnnc": 94,
    }
    assert sizes["d", "cifar100_allcnnc"] == 13
    for letter, table in SUB_TABLES.items():
        rows = paper[paper["table"] == letter]
        assert set(rows["quantity"]) == {table.quantity.value}
        assert set(rows["device"]) == {table.device}


def test_a_table_has_the_paper_s_layout(tmp_path: Path) -> None:
    add_variants(tmp_path, (5, 6, 7, 8), problem="mnist_mlp")
    add_variants(tmp_path, (50, 60, 70, 80), problem="fmnist_2c2d")
    add_variants(tmp_path, (10, 20, 30, 40))
    add_variants(tmp_path, (1, 2, 3, 4), quantity="full-newton")
    rows = table_of(tmp_path).rows
    names = ("problem", "curvature", "full", "frac")
    assert [[row[name] for name in names] for row in rows] == [
        ["cifar10_3c3d", "exact", 10, 20],
        ["cifar10_3c3d", "mc", 30, 40],
        ["fmnist_2c2d", "exact", 50, 60],
        ["fmnist_2c2d", "mc", 70, 80],
        ["mnist_mlp", "exact", 5, 6],
        ["mnist_mlp", "mc", 7, 8],
    ]
    assert [row["full"] for row in table_of(tmp_path, "c").rows] == [1, 3]
    assert make_table(select(tmp_path), SUB_TABLES["b"], "vivit-bench") is None


def test_the_paper_s_numbers_stand_beside(tmp_path: Path) -> None:
    add_variants(tmp_path, (10, 20, 30, 40))
    add_search(tmp_path, problem="mnist_mlp")
    rows = table_of(tmp_path, paper=True).rows
    assert [row["full_paper"] for row in rows] == [1166, 8430, None, None]
    assert [row["frac_paper"] for row in rows] == [3004, 14908, None, None]


def test_every_format_marks_what_memory_did_not_stop(tmp_path: Path) -> None:
    add_search(tmp_path, critical_batch_size=10)
    add_search(tmp_path, samples="frac", critical_batch_size=20, stopped_by="timeout")
    made = table_of(tmp_path)
    terminal = render(made, TableFormat.TABLE, 80)
    assert terminal.splitlines()[:6] == [
        "Table S.1a: critical batch sizes, eigenvalues, cpu (vivit-bench)",
        "",
        "problem       curvature  full   frac",
        "------------  ---------  ----  -----",
        "cifar10_3c3d  exact        10  >= 20",
        "cifar10_3c3d  mc            -      -",
    ]
    assert "cpu: memory limit 2 GiB on 2 x Abacus (here)" in terminal
    assert "cifar10_3c3d, exact, frac: stopped by timeout, not by memory." in terminal
    assert "| exact | 10 | >= 20 |" in render(made, TableFormat.MARKDOWN)
    assert r"cifar10\_3c3d & exact & 10 & $\geq$ 20 \\" in render(made, TableFormat.LATEX)


def test_names_are_whole_at_80_columns(tmp_path: Path) -> None:
    add_search(tmp_path, problem="cifar100_allcnnc", engine="vivit-for-pytorch", stopped_by="data")
    add_search(tmp_path, curvature="mc", quantity="block-newton", mc_samples=10, dtype="float64")
    text = render(searches_table(load_searches(tmp_path)[0]), TableFormat.TABLE, 80)
    assert max(map(len, text.splitlines())) <= 80
    for name in ("cifar100_allcnnc", "cifar10_3c3d", "vivit-for-pytorch", "block-newton", ">= 100"):
        assert name in text


def test_precisions_are_not_mixed(tmp_path: Path) -> None:
    add_search(tmp_path, critical_batch_size=5, dtype="float64", ended_at="2027-01-01")
    add_search(tmp_path)
    assert select(tmp_path).rows["critical_batch_size"].tolist() == [100]
    double = select(tmp_path, dtype=Precision.FLOAT64)
    made = make_table(double, SUB_TABLES["a"], "vivit-bench")
    assert made is not None
    assert (made.rows[0]["full"], "float64" in made.title) == (5, True)
    assert write_table(made, tmp_path)[0].name == "table_s1a_float64.csv"


def test_the_written_csv_is_read_back(tmp_path: Path) -> None:
    add_variants(tmp_path, (10, 20, 30, 40), stopped_by="max-batch")
    paths = write_table(table_of(tmp_path), tmp_path)
    assert [path.name for path in paths] == ["table_s1a.csv", "table_s1a.md", "table_s1a.tex"]
    frame = pd.read_csv(paths[0])
    assert frame["frac"].tolist() == [20, 40]
    assert set(frame["full_stopped_by"]) == {"max-batch"}
    assert set(frame["memory_limit_bytes"]) == {2**31}


def test_memory_limits_are_not_mixed_unless_asked(tmp_path: Path) -> None:
    add_search(tmp_path, critical_batch_size=7, memory_limit_bytes=2**30, ended_at="2027-01-01")
    add_search(tmp_path, critical_batch_size=9, samples="frac")
    newest = select(tmp_path)
    assert newest.rows["critical_batch_size"].tolist() == [7]
    assert "left out 1 searches with the memory limits 2 GiB" in newest.notes[0]
    chosen = select(tmp_path, memory_limit=2**31)
    assert (chosen.rows["critical_batch_size"].tolist(), chosen.notes) == ([9], [])
    mixed = select(tmp_path, mix=True)
    assert sorted(mixed.rows["critical_batch_size"]) == [7, 9]
    assert "mixed, as asked" in mixed.notes[0]


def test_machines_are_not_mixed_unless_asked(tmp_path: Path) -> None:
    add_search(tmp_path, critical_batch_size=7, host="there", ended_at="2027-01-01")
    add_search(tmp_path, critical_batch_size=9, samples="frac")
    newest = select(tmp_path)
    assert newest.rows["critical_batch_size"].tolist() == [7]
    assert "left out 1 searches of other machines (here)" in newest.notes[0]
    assert len(select(tmp_path, mix=True).rows) == 2


def test_each_kind_of_device_has_a_limit_of_its_own(tmp_path: Path) -> None:
    add_search(tmp_path)
    add_search(tmp_path, device="cuda:1", memory_limit_bytes=2**33, gpu="G", ended_at="2027-01-01")
    selection = select(tmp_path)
    assert sorted(selection.rows["device"]) == ["cpu", "cuda"]
    assert selection.notes == []
    assert "cuda: memory limit 8 GiB on G (here)" in selection.conditions


def test_the_newest_search_of_a_cell_counts(tmp_path: Path) -> None:
    add_search(tmp_path, critical_batch_size=8, code="new", ended_at="2027-01-01")
    add_search(tmp_path, critical_batch_size=7)
    add_search(tmp_path, samples="frac")
    selection = select(tmp_path)
    assert sorted(selection.rows["critical_batch_size"]) == [8, 100]
    assert selection.notes == ["the searches were made by 2 versions of the code"]


def test_nothing_stored_is_told_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no finished searches in .*critical-batch sweep"):
        load_searches(tmp_path)
    add_search(tmp_path)
    with pytest.raises(UsageError, match=r"there are problems cifar10_3c3d, .* limits 2 GiB"):
        select(tmp_path, problems=["nope"])
    with pytest.raises(UsageError, match="engines vivit-bench"):
        select(tmp_path, "other")


def test_bars_stand_in_groups_with_their_numbers(tmp_path: Path) -> None:
    add_gradient(tmp_path, 1000, engine="other")
    add_variants(tmp_path, (0, 20, 30, 40), stopped_by="memory")
    add_variants(tmp_path, (1, 2, 3, 4), quantity="full-newton", stopped_by="timeout")
    (axes,) = draw_critical_batch_sizes(select(tmp_path).rows).axes
    assert axes.get_yscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "gradient",
        "eigenvalues",
        "full-newton",
    ]
    heights = [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]
    assert heights == [1000, 0, 20, 30, 40, 1, 2, 3, 4]
    labels = [text.get_text() for text in axes.texts]
    assert labels == ["1000", "0", "20", "30", "40", *(rf"$\geq${n}" for n in (1, 2, 3, 4))]


def test_several_engines_have_groups_side_by_side(tmp_path: Path) -> None:
    for engine in ("vivit-for-pytorch", "vivit-bench"):
        add_gradient(tmp_path, 1000, engine=engine)
        add_variants(tmp_path, (1, 2, 3, 4), engine=engine)
    (axes,) = draw_critical_batch_sizes(
        select(tmp_path, "vivit-bench", "vivit-for-pytorch").rows
    ).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "gradient",
        "eigenvalues\nvivit-bench",
        "eigenvalues\nvivit-for-pytorch",
    ]


def test_a_figure_is_written_the_same_each_time(tmp_path: Path) -> None:
    add_variants(tmp_path, (1, 2, 3, 4))
    rows = select(tmp_path).rows
    paths = plot_critical_batch_sizes(rows, tmp_path / "bars")
    first = [path.read_bytes() for path in paths]
    assert [path.name for path in paths] == ["bars.png", "bars.pdf"]
    assert [
        path.read_bytes() for path in plot_critical_batch_sizes(rows, tmp_path / "bars")
    ] == first
