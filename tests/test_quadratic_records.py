"""Stored runs: resumed where interrupted, never mixed, ranked and drawn."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import vivit_bench.quadratic.records as records
from vivit_bench.cli.quadratic import app
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.quadratic import OptimizerName, Settings, load_results, run_experiment
from vivit_bench.quadratic.experiment import Repetition, run_repetition
from vivit_bench.quadratic.records import JOURNAL, Results, tables_of
from vivit_bench.report.quadratic import curve_table, final_table, quantiles, ranking
from vivit_bench.report.quadratic_figures import draw_dampings, draw_losses
from vivit_bench.report.tables import TableFormat, render
from vivit_bench.store import load_run

INF = float("inf")
SMALL = Settings(
    repeats=4,
    steps=3,
    dampings=(0.1, 10.0),
    curvatures=(5.0, 9.0),
    batch_size=6,
    resamples=10,
    grid_points=5,
)


def made_up(losses: dict[str, list[list[float]]], dampings: list[list[float]]) -> Results:
    """Results of given losses [repetitions][steps + 1] per optimiser."""
    count = len(next(iter(losses.values())))
    repetitions = [
        Repetition(r, {label: rows[r] for label, rows in losses.items()}, dampings)
        for r in range(count)
    ]
    return Results(SMALL.record(), *tables_of(SMALL, repetitions), 1.0, Path())


def test_stored_run_comes_back(tmp_path: Path) -> None:
    results = run_experiment(SMALL, tmp_path)
    stored = load_run(results.folder, "quadratic")
    loaded = load_results(stored)
    pd.testing.assert_frame_equal(loaded.losses, results.losses)
    assert loaded.settings == json.loads(json.dumps(SMALL.record()))
    assert stored.provenance["torch"]
    assert len(loaded.losses) == 4 * 4 * 4
    assert len(loaded.dampings) == 4 * 3 * 2
    assert set(loaded.dampings["direction"]) == {1, 2}
    assert loaded.dampings.groupby("direction")["curvature"].first().tolist() == [5.0, 9.0]
    assert sorted(path.name for path in results.folder.iterdir()) == [
        "dampings.csv",
        "losses.csv",
        "repetitions.jsonl",
        "run.json",
    ]


def test_a_finished_run_is_returned_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_experiment(SMALL, tmp_path)
    monkeypatch.setattr(records, "run_repetition", None)  # nothing is computed
    notes: list[str] = []
    again = run_experiment(SMALL, tmp_path, note=notes.append)
    pd.testing.assert_frame_equal(again.losses, first.losses)
    assert "finished already" in notes[0]


@pytest.mark.parametrize("torn", [False, True])
def test_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    whole = run_experiment(SMALL, tmp_path / "whole")
    ran: list[int] = []

    def interrupted(settings: Settings, index: int) -> Repetition:
        if index == 2 and 2 not in ran:
            ran.append(index)
            raise KeyboardInterrupt
        ran.append(index)
        return run_repetition(settings, index)

    monkeypatch.setattr(records, "run_repetition", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(SMALL, tmp_path / "parts")
    if torn:
        (journal,) = (tmp_path / "parts").rglob(JOURNAL)
        journal.write_bytes(journal.read_bytes()[:-20])
    again = run_experiment(SMALL, tmp_path / "parts")
    assert ran == ([0, 1, 2, 1, 2, 3] if torn else [0, 1, 2, 2, 3])
    for name in ("losses.csv", "dampings.csv"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_infinite_and_undefined_values_survive_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"sgd": [1.0, INF, INF, INF], "bootstrap": [1.0, 2.0, INF, INF]}
    made = [Repetition(index, losses, [[INF, float("nan")]]) for index in range(4)]

    def interrupted(settings: Settings, index: int) -> Repetition:
        if index == 2:
            raise KeyboardInterrupt
        return made[index]

    monkeypatch.setattr(records, "run_repetition", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(SMALL, tmp_path)
    monkeypatch.setattr(records, "run_repetition", lambda settings, index: made[index])
    results = run_experiment(SMALL, tmp_path)
    assert results.losses["loss"].tolist()[:4] == [1.0, INF, INF, INF]
    assert results.dampings["damping"].tolist() == [INF] * 4


def test_two_settings_in_one_folder_stay_apart(tmp_path: Path) -> None:
    other = Settings(**{**vars(SMALL), "repeats": 2, "dampings": (1.0,)})
    first, second = run_experiment(SMALL, tmp_path), run_experiment(other, tmp_path)
    assert first.folder != second.folder
    assert load_results(load_run(first.folder, "quadratic")).settings["repeats"] == 4


def test_a_run_of_other_code_is_named_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_experiment(SMALL, tmp_path)
    facts = records.environment(records._ROOMS, records._LIBRARIES)
    monkeypatch.setattr(records, "environment", lambda *_: {**facts, "code": "other"})
    with pytest.raises(UsageError, match=r"code \w+ -> other.*--fresh"):
        run_experiment(SMALL, tmp_path)
    assert load_run(first.folder, "quadratic").damage() == ""


def test_an_edited_table_is_refused(tmp_path: Path) -> None:
    folder = run_experiment(SMALL, tmp_path).folder
    with (folder / "losses.csv").open("a") as file:
        file.write("sgd,9,0,1\n")
    with pytest.raises(VivitBenchError, match=r"losses.csv is not the file"):
        load_results(load_run(folder, "quadratic"))


def test_an_unfinished_run_has_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "run_repetition", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(SMALL, tmp_path, name="half")
    with pytest.raises(UsageError, match="is not finished"):
        load_results(load_run(tmp_path / "quadratic" / "half", "quadratic"))


def test_table_ranks_and_counts_divergence() -> None:
    results = made_up(
        {
            "sgd": [[100.0, 40.0], [100.0, 60.0], [100.0, 50.0], [100.0, 50.0]],
            "damping 1": [[100.0, 1.0], [100.0, INF], [100.0, 999.0], [100.0, 1001.0]],
            "bootstrap": [[100.0, 2.0], [100.0, 4.0], [100.0, 6.0], [100.0, 8.0]],
        },
        dampings=[],
    )
    table = final_table(results)
    assert table["optimizer"].tolist() == ["bootstrap", "sgd", "damping 1"]
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["median"].tolist() == [5.0, 50.0, 1000.0]
    assert table["lower_quartile"].tolist() == [3.5, 47.5, 749.5]
    assert table["upper_quartile"].tolist() == [6.5, 52.5, INF]
    assert table["best_share"].tolist() == [0.75, 0.0, 0.25]
    assert table["diverged_share"].tolist() == [0.0, 0.0, 0.5]
    shown = ranking(results)
    lines = render(shown, TableFormat.TABLE, 100).splitlines()
    assert lines[2].split() == ["1", "bootstrap", "5", "3.5", "6.5", "75%", "0%"]
    assert lines[4].split()[-3:] == ["inf", "25%", "50%"]
    assert json.loads(render(shown, TableFormat.JSON))[2]["upper_quartile"] == "Infinity"


def test_quantiles_of_infinite_losses() -> None:
    losses = np.array([[1.0, 1.0, INF], [2.0, INF, INF], [3.0, INF, INF]])
    np.testing.assert_array_equal(
        quantiles(losses, (0.25, 0.5)), [[1.5, INF, INF], [2.0, INF, INF]]
    )


def test_figures_show_the_medians_and_the_share_of_infinite_dampings() -> None:
    losses = {"damping 0.1": [[9.0, 3.0, 1.0, 1.0]] * 3, "bootstrap": [[9.0, 2.0, INF, INF]] * 3}
    dampings = [[1.0, INF], [INF, 2.0], [INF, INF]]
    results = made_up(losses, dampings)
    (panel,) = draw_losses(results).axes
    drawn = {line.get_label(): line.get_ydata() for line in panel.get_lines()}
    np.testing.assert_array_equal(drawn[r"damping $10^{-1}$"], [9, 3, 1, 1])
    np.testing.assert_array_equal(drawn["bootstrap"], [9, 2, INF, INF])
    assert len(curve_table(results)) == 8
    above, below = draw_dampings(results).axes
    shares = [line.get_ydata().tolist() for line in below.get_lines()]
    assert shares == [[0.0, 1.0], [1.0, 0.5]]
    assert above.get_lines()[0].get_ydata().tolist() == [1.0]


def test_command_line_runs_plots_and_tables(tmp_path: Path) -> None:
    cli, where = CliRunner(), ["--results-dir", str(tmp_path)]
    options = ["--repeats", "2", "--steps", "2", "--optimizers", "sgd,bootstrap", "--grid"]
    options += ["1e-2:1e1:7", "--resamples", "9", "--curvatures", "1,3", "--batch-size", "5"]
    done = cli.invoke(app, ["run", *options, *where])
    assert done.exit_code == 0, done.output
    assert "bootstrap" in done.stdout
    (folder,) = (tmp_path / "quadratic").iterdir()
    settings = load_run(folder, "quadratic").settings
    assert settings["grid_points"] == 7
    assert settings["optimizers"] == ["sgd", "bootstrap"]
    for command, names in (("plot", ["figure_3.png", "dampings.pdf"]), ("table", ["table.csv"])):
        done = cli.invoke(app, [command, *where])
        assert done.exit_code == 0, done.output
        for name in names:
            assert (folder / name).stat().st_size > 0
            assert name in done.output
    table = pd.read_csv(io.StringIO((folder / "table.csv").read_text()))
    assert set(table["optimizer"]) == {"sgd", "bootstrap"}
    for command in (["run", *options], ["table"]):
        quiet = cli.invoke(app, [*command, *where, "--quiet", "--format", "csv"])
        assert (quiet.exit_code, quiet.stderr) == (0, "")
        assert quiet.stdout == (folder / "table.csv").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizers", "adam"], "'adam' is unknown: choose from sgd, constant, bootstrap"),
        (["--dampings", "1;2"], "'1;2' is not a list of numbers"),
        (["--grid", "1e-4:1e2"], "not FIRST:LAST:POINTS"),
        (["--grid", "1e-4:1e2:0"], "0 points is empty"),
        (["--batch-size", "1"], "cannot resample N = 1"),
        (["--seed", "-1"], "seed"),
        (["--curvatures", "1,-2"], "curvature along direction 1 is -2"),
    ],
)
def test_command_line_refuses_bad_values(tmp_path: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["run", *options, "--results-dir", str(tmp_path)])
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


def test_defaults_of_the_command_are_the_paper() -> None:
    assert Settings().optimizers == tuple(OptimizerName)
    shown = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).stdout
    assert "0.0001,0.001,0.01,0.1,1,10,100,1000,10000" in shown
    assert "0.0001:100:200" in shown
