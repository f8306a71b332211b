"""Tables and figures of critical batch sizes: the right numbers, comparable ones only."""

import io
from pathlib import Path

import pandas as pd
import pytest
from critical_batch_cases import add_gradient, add_search, add_variants, trial

from vivit_bench.critical_batch.table_s1 import SUB_TABLES
from vivit_bench.curvature.options import Precision
from vivit_bench.errors import UsageError
from vivit_bench.measure import Outcome
from vivit_bench.report.critical_batch import paper_searches, searches_table
from vivit_bench.report.critical_batch_figures import (
    draw_critical_batch_sizes,
    plot_critical_batch_sizes,
)
from vivit_bench.report.critical_batch_selection import (
    Selection,
    load_searches,
    select_searches,
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
    add_gradient(tmp_path, 900, problem="fmnist_2c2d")
    rows = table_of(tmp_path).rows
    names = ("problem", "curvature", "full", "frac")
    assert [[row.get(name) for name in names] for row in rows] == [
        ["cifar10_3c3d", "exact", 10, 20],
        ["cifar10_3c3d", "mc", 30, 40],
        ["cifar10_3c3d", "gradient", None, None],
        ["fmnist_2c2d", "exact", 50, 60],
        ["fmnist_2c2d", "mc", 70, 80],
        ["fmnist_2c2d", "gradient", 900, None],
        ["mnist_mlp", "exact", 5, 6],
        ["mnist_mlp", "mc", 7, 8],
        ["mnist_mlp", "gradient", None, None],
    ]
    assert [row.get("full") for row in table_of(tmp_path, "c").rows] == [1, 3, None]
    assert make_table(select(tmp_path), SUB_TABLES["b"], "vivit-bench") is None


def test_the_paper_s_numbers_stand_beside(tmp_path: Path) -> None:
    add_variants(tmp_path, (10, 20, 30, 40))
    add_search(tmp_path, problem="mnist_mlp")
    add_search(tmp_path, quantity="full-newton", device="cuda:0", gpu="G")
    made = table_of(tmp_path, paper=True)
    paper = [[row.get(f"{samples}_paper") for row in made.rows] for samples in ("full", "frac")]
    assert paper[0] == [1166, 8430, None, None, None, None]
    assert paper[1] == [3004, 14908, None, None, None, None]
    machines = [table_of(tmp_path, letter, paper=True).notes[-1] for letter in ("a", "d")]
    assert "Intel Core i7-8700K, 32 GB" in machines[0]
    assert "GeForce RTX 2080 Ti, 11 GB" in machines[1]
    assert all("Machine and memory limit are others" in line for line in machines)
    assert not any(line.startswith("paper") for line in table_of(tmp_path).notes)


PREDICTED = {
    "critical_batch_size": 2450,
    "low": 2400,
    "high": 2500,
    "step_seconds": 3.0,
    "limited_by": "the Gram matrix",
}


@pytest.mark.parametrize("end", ["--max-batch", "the end of the data", "LAPACK: at most 9"])
def test_an_end_before_memory_s_is_not_predicted_of_memory(tmp_path: Path, end: str) -> None:
    facts = {"predicted": PREDICTED | {"limited_by": end}}
    add_search(tmp_path, critical_batch_size=20, stopped_by="timeout", facts=facts)
    made = table_of(tmp_path)
    assert "| >= 20 (time) |" in render(made, TableFormat.MARKDOWN)
    assert not any("predicted" in note for note in made.notes)


def test_label_draws_and_precision_are_named(tmp_path: Path) -> None:
    usual = {"curvature": "mc", "critical_batch_size": 10}
    add_search(tmp_path, **usual)
    add_search(tmp_path, **usual, mc_samples=10)
    add_search(tmp_path, **usual, mc_samples=10, dtype="float64")
    titles, files = [], []
    for options in ({}, {"mc_samples": 10}, {"mc_samples": 10, "dtype": Precision.FLOAT64}):
        selection = select(tmp_path, **options)
        made = make_table(selection, SUB_TABLES["a"], "vivit-bench")
        assert made is not None
        titles.append(made.title.partition("cpu ")[2])
        files.append(write_table(made, tmp_path)[0].stem)
        title = draw_critical_batch_sizes(selection.rows).axes[0].get_title()
        assert ("M = 10" in title, "float64" in title) == (
            "mc_samples" in options,
            "dtype" in options,
        )
    assert titles == [
        "(vivit-bench)",
        "(vivit-bench, M = 10)",
        "(vivit-bench, M = 10, float64)",
    ]
    assert files == ["table_s1a", "table_s1a_m10", "table_s1a_m10_float64"]


def test_every_format_says_what_ended_a_search(tmp_path: Path) -> None:
    add_search(tmp_path, critical_batch_size=10)
    facts = {"predicted": PREDICTED, "message": "N = 30: Argument 8 has illegal value"}
    add_search(tmp_path, samples="frac", critical_batch_size=20, stopped_by="limit", facts=facts)
    add_search(tmp_path, curvature="mc", critical_batch_size=4000, stopped_by="max-batch")
    add_search(tmp_path, curvature="mc", samples="frac", stopped_by="timeout")
    add_gradient(tmp_path, 5000, stopped_by="data", facts={"predicted": PREDICTED})
    made = table_of(tmp_path)
    terminal = render(made, TableFormat.TABLE, 80)
    assert terminal.splitlines()[:11] == [
        "Table S.1a: critical batch sizes, eigenvalues, cpu (vivit-bench)",
        "",
        "                                             full                      frac",
        "problem       curvature             full  seconds             frac  seconds",
        "------------  ---------  ---------------  -------  ---------------  -------",
        "cifar10_3c3d  exact                   10        -            >= 20        -",
        "                                                    (32-bit limit;",
        "                                                   predicted 2,450",
        "                                                   [2,400, 2,500])",
        "cifar10_3c3d  mc          >= 4,000 (max)        -    >= 100 (time)        -",
        "cifar10_3c3d  gradient   >= 5,000 (data)        -                -        -",
    ]
    assert "| mc | >= 4,000 (max) | - | >= 100 (time) | - |" in render(made, TableFormat.MARKDOWN)
    cell = ">= 20 (32-bit limit; predicted 2,450 [2,400, 2,500])"
    assert f"| exact | 10 | - | {cell} | - |" in render(made, TableFormat.MARKDOWN)
    assert r"gradient & $\geq$ 5,000 (data) & - & - & - \\" in render(made, TableFormat.LATEX)
    for word in ("time", "32-bit limit", "data", "max"):
        assert f"\n>= ({word}): " in terminal
    assert "exact, frac: N = 30: Argument 8 has illegal value" in terminal
    assert "cpu: memory limit 2 GiB on 2 x Abacus (here), 2 threads, one search at a time" in (
        terminal
    )
    rows = pd.read_csv(io.StringIO(render(made, TableFormat.CSV)))
    assert rows["frac_stopped_by"].tolist()[:2] == ["limit", "timeout"]
    ends = rows[["frac_predicted", "frac_predicted_low", "frac_predicted_high"]]
    assert ends.iloc[0].tolist() == [2450, 2400, 2500]
    assert ends.iloc[1].isna().all()


def test_memory_alone_needs_no_explanation(tmp_path: Path) -> None:
    add_variants(tmp_path, (10, 20, 30, 40), facts={"predicted": PREDICTED})
    text = render(table_of(tmp_path), TableFormat.TABLE, 80)
    assert ">=" not in text
    assert "predicted" not in text


def test_seconds_stand_beside_sizes(tmp_path: Path) -> None:
    near = {"work_seconds": 1.26, "confirmed": True, "jobs": 2}
    add_search(tmp_path, facts=near)
    add_search(tmp_path, curvature="mc", facts=near)
    everywhere = render(table_of(tmp_path), TableFormat.TABLE, 80)
    assert "(1 CPU)" not in everywhere
    assert "All threads share one CPU" in everywhere
    assert "2 threads, 2 searches at a time" in everywhere
    add_search(tmp_path, samples="frac", facts={"work_seconds": 250.4, "confirmed": False})
    made = table_of(tmp_path)
    text = render(made, TableFormat.MARKDOWN)
    assert "| cifar10_3c3d | exact | 100 | 1.26 (1 CPU) | 100 | 250 |" in text
    assert "(1 CPU): All threads share one CPU" in text
    assert "2 threads, 1 or 2 searches at a time" in text
    row = made.rows[0]
    assert (row["full_seconds"], row["frac_seconds"]) == (1.26, 250.4)
    assert (row["full_seconds_on_one_cpu"], row["frac_seconds_on_one_cpu"]) == (True, False)
    assert (row["threads"], row["jobs"]) == (2, None)


def test_headers_without_seconds_have_those_of_their_trials(tmp_path: Path) -> None:
    ran = [trial(100, confirmed=True), trial(101, Outcome.OUT_OF_MEMORY)]
    add_search(tmp_path, ran=ran)
    add_search(tmp_path, samples="frac", ran=[trial(100, work_seconds=None)])
    row = table_of(tmp_path).rows[0]
    assert (row["full_seconds"], row["full_seconds_on_one_cpu"]) == (10.0, True)
    assert row["frac_seconds"] is None


def test_the_gradient_is_of_the_same_limit_and_device(tmp_path: Path) -> None:
    add_search(tmp_path)
    add_gradient(tmp_path, 7, engine="other")
    add_gradient(tmp_path, 8, memory_limit_bytes=2**30, ended_at="2020-01-01")
    add_gradient(tmp_path, 9, device="cuda:0", gpu="G")
    assert table_of(tmp_path).rows[2]["full"] == 7
    add_gradient(tmp_path, 10, ended_at="2020-01-01")
    assert table_of(tmp_path).rows[2]["full"] == 10
    mixed = make_table(select(tmp_path, mix=True), SUB_TABLES["a"], "vivit-bench")
    assert mixed is not None
    assert mixed.rows[2]["full"] == 10


def test_a_gradient_of_another_limit_is_none_where_limits_are_mixed(tmp_path: Path) -> None:
    add_search(tmp_path)
    add_gradient(tmp_path, 8, memory_limit_bytes=2**30)
    mixed = make_table(select(tmp_path, mix=True), SUB_TABLES["a"], "vivit-bench")
    assert mixed is not None
    assert mixed.rows[2].get("full") is None


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
    frame = pd.read_csv(paths[0]).iloc[:2]
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
    assert selection.conditions[:2] == [
        "cpu: memory limit 2 GiB on 2 x Abacus (here), 2 threads, one search at a time",
        "cuda: memory limit 8 GiB on G (here), 2 threads, one search at a time",
    ]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"data": "own"}, "with data own; the newest has data synthetic;"),
        ({"seed": 1}, "with seed 1; the newest has seed 0;"),
        ({"checkpoint": "w.pt"}, "with checkpoint w.pt; the newest has checkpoint none;"),
        ({"checkpoint": "w.pt", "seed": 3}, "with seed 3, checkpoint w.pt; the newest has seed 0"),
        ({"problem_file": "ab"}, "with contents of the problem's file ab;"),
    ],
)
def test_data_seeds_and_weights_are_not_mixed_unless_asked(
    tmp_path: Path, other: dict[str, object], named: str
) -> None:
    add_search(tmp_path, critical_batch_size=7, ended_at="2027-01-01")
    add_search(tmp_path, critical_batch_size=8, **other)
    add_search(tmp_path, critical_batch_size=9, samples="frac", **other)
    add_search(tmp_path, critical_batch_size=10, problem="mnist_mlp", **other)
    newest = select(tmp_path)
    assert sorted(newest.rows["critical_batch_size"]) == [7, 10]
    (note,) = newest.notes
    assert note.startswith("cpu: left out 2 searches of cifar10_3c3d with")
    assert named in note
    mixed = select(tmp_path, mix=True)
    assert sorted(mixed.rows["critical_batch_size"]) == [7, 9, 10]
    assert "data, seeds or weights are mixed, as asked" in mixed.notes[0]
    assert "left out 1 search of which there are newer ones (they differ in" in mixed.notes[1]


def test_a_checkpoint_is_a_condition(tmp_path: Path) -> None:
    add_search(tmp_path, checkpoint="w.pt", checkpoint_file="ab")
    assert "seed 0, checkpoint w.pt, 2026" in select(tmp_path).conditions[-1]


def test_an_older_search_of_a_cell_is_not_left_out_without_a_word(tmp_path: Path) -> None:
    add_search(tmp_path, critical_batch_size=8, threads=1)
    add_search(tmp_path, critical_batch_size=7, ended_at="2027-01-01")
    selection = select(tmp_path)
    assert selection.rows["critical_batch_size"].tolist() == [7]
    (note,) = selection.notes
    assert "left out 1 search of which there are newer ones (they differ in threads)" in note


def test_the_newest_search_of_a_cell_counts(tmp_path: Path) -> None:
    add_search(tmp_path, critical_batch_size=8, code="new", ended_at="2027-01-01")
    add_search(tmp_path, critical_batch_size=7)
    add_search(tmp_path, samples="frac")
    selection = select(tmp_path)
    assert sorted(selection.rows["critical_batch_size"]) == [8, 100]
    assert [note[:30] for note in selection.notes] == [
        "left out 1 search of which the",
        "the searches were made by 2 ve",
    ]


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


def test_an_outline_goes_on_to_where_memory_is_predicted_to_end_a_search(tmp_path: Path) -> None:
    facts = {"predicted": PREDICTED}
    add_search(tmp_path, critical_batch_size=20, stopped_by="timeout", facts=facts)
    add_search(tmp_path, curvature="mc", critical_batch_size=2440, facts=facts)  # by memory
    more = {"samples": "frac", "critical_batch_size": 2450, "stopped_by": "timeout"}
    add_search(tmp_path, facts=facts, **more)  # it has run what was predicted
    figure = draw_critical_batch_sizes(select(tmp_path).rows)
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]
    assert heights == [20, 2450, 2450, 2440]
    texts = [text.get_text() for text in axes.texts]
    assert texts == [r"$\geq$20", "2450", r"$\geq$2450", "2440"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "exact, full",
        "exact, frac",
        "mc, full",
        "predicted",
    ]


def test_a_step_of_the_user_s_own_has_a_bar(tmp_path: Path) -> None:
    step = {"quantity": "step", "curvature": None, "samples": None, "engine": "none"}
    add_search(tmp_path, critical_batch_size=12, **step)
    (axes,) = draw_critical_batch_sizes(select(tmp_path, "none").rows).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["step"]
    assert [bar.get_height() for bar in axes.patches] == [12]  # type: ignore[attr-defined]
    assert axes.get_legend_handles_labels()[1] == ["step"]


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
