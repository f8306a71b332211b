"""The ``curvature`` and ``compare-engines`` commands on the example problem."""

import io
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from vivit_bench.cli import main as cli_main
from vivit_bench.cli.curvature import app
from vivit_bench.comparison.compare import EngineRuns, summarise
from vivit_bench.curvature import directional_derivatives, signal_to_noise
from vivit_bench.errors import UsageError
from vivit_bench.problems import load_batch, load_problem
from vivit_bench.problems.sources import DataSource
from vivit_bench.report.comparison import save_comparison

DIGITS = f"{Path(__file__).parent.parent / 'scripts/examples/small_cnn.py'}:digits"
CSV = ("--format", "csv")


def run(*args: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_newton_step_is_written_and_lowers_the_loss(tmp_path: Path) -> None:
    file = tmp_path / "step.pt"
    row = pd.read_csv(
        io.StringIO(run("newton", DIGITS, "--batch-size", 16, "--output", file, *CSV))
    )
    assert row.loss_after_step[0] < row.loss[0]
    step = torch.load(file, weights_only=True)
    model = load_problem(DIGITS).model
    assert {k: v.shape for k, v in step.items()} == {
        k: p.shape for k, p in model.named_parameters()
    }
    norm = torch.cat([v.flatten() for v in step.values()]).norm().item()
    assert norm == pytest.approx(row.step_norm[0], rel=1e-5)


@pytest.mark.parametrize("options", [["--whole-space"], ["--blocks", "layer"],
                                     ["--damping", "bootstrap"]])  # fmt: skip
def test_newton_variants_run(options: list[str]) -> None:
    row = pd.read_csv(io.StringIO(run("newton", DIGITS, "--batch-size", 8, *options, *CSV)))
    assert row.step_norm[0] > 0


def test_directional_table_is_the_engine_s(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    run("directional", DIGITS, "--batch-size", 8, "--output", file)
    table = pd.read_csv(file)
    problem = load_problem(DIGITS)
    result = directional_derivatives(
        problem.model, problem.loss, *load_batch(problem, 8, DataSource.OWN)
    )
    assert table["eigenvalue"].to_numpy() == pytest.approx(result.eigenvalues.numpy())
    assert table["gamma"].abs().to_numpy() == pytest.approx(
        result.gammas.mean(0).abs().numpy(), rel=1e-6
    )


def test_eigenvectors_file_holds_orthonormal_vectors(tmp_path: Path) -> None:
    file = tmp_path / "v.pt"
    run("eigenvectors", DIGITS, "--batch-size", 8, "--top", 3, "--output", file)
    values = torch.load(file, weights_only=True)
    assert values.pop("eigenvalues").shape == (3,)
    e = torch.cat([v.flatten(1) for v in values.values()], 1)
    assert torch.allclose(e @ e.t(), torch.eye(3), atol=1e-4)


def test_explain_names_every_layer() -> None:
    out = run("explain", DIGITS, "--batch-size", 8)
    names = {n.rpartition(".")[0] for n, _ in load_problem(DIGITS).model.named_parameters()}
    rows = [line.split() for line in out.splitlines() if line]
    assert names <= {row[0] for row in rows}


def test_bad_values_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a number nor a policy"):
        run("newton", DIGITS, "--damping", "much")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        run("eigenvectors", DIGITS, "--batch-size", 4, "--output", tmp_path / "file" / "v.pt")
    with pytest.raises(UsageError, match=r"must end in \.pt"):
        run("newton", DIGITS, "--output", tmp_path / "step.csv")
    with pytest.raises(UsageError, match="this is a folder"):
        run("directional", DIGITS, "--output", tmp_path)
    for command in ("newton", "directional", "explain"):
        with pytest.raises(UsageError, match="exact curvature draws no samples"):
            run(command, DIGITS, "--mc-samples", 2)


def test_signal_to_noise_with_the_biased_variance() -> None:
    values = torch.tensor([[1.0, 0.1, 0.0], [3.0, 0.1, 0.0]]).double()
    values[1, 1] += 1e-16  # equal to rounding
    snr = signal_to_noise(values)
    assert snr[0] == 4.0
    assert snr[1] == torch.inf
    assert snr[2].isnan()


def test_compare_engines_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "engines.csv"
    monkeypatch.setattr(
        "sys.argv",
        ["vivit-bench", "compare-engines", DIGITS, "--batch-size", "8", "--repeats", "1",
         "--engine", "vivit-bench", "--engine", "backpack", "--output", str(output)],
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        cli_main()
    assert ended.value.code in (0, None)
    assert "backpack" in capsys.readouterr().out
    rows = pd.read_csv(output)
    assert list(rows["engine"]) == ["vivit-bench", "backpack"]
    assert rows["difference"][1] < 1e-4
    assert rows["agrees"].all()
    assert rows["certificate_seconds"][0] > 0
    assert rows["certificate_error"][0] < 1e-4
    assert (rows["peak_bytes"] > 0).all()


def test_summary_takes_ratios_round_by_round_and_keeps_failures() -> None:
    base = EngineRuns("a", [1.0, 2.0, 4.0], [1.0, 1.0, 1.0], [10, 10, 10])
    other = EngineRuns("b", [3.0, 6.0, 12.0], [1.0, 1.0, 1.0], [30, 30, 30])
    failed = EngineRuns("c", failure="no such layer")
    rows = summarise([base, other, failed], comparable=True)
    assert rows[1]["wall_ratio"] == 3.0
    assert rows[1]["peak_ratio"] == 3.0
    assert rows[2] == {"engine": "c", "runs": 0, "failure": "no such layer"}


def test_engines_that_disagree_are_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        EngineRuns(name, [1.0], [1.0], [1], {"eigenvalues": torch.tensor([value, 1.0])})
        for name, value in (("vivit-bench", 2.0), ("backpack", 2.0001), ("curvlinops", 2.2))
    ]
    rows = summarise(runs, comparable=True)
    assert [row["agrees"] for row in rows] == [True, True, False]
    # Monte-Carlo draws differ between engines, and that is no disagreement.
    assert [row["agrees"] for row in summarise(runs, comparable=False)] == [None] * 3
    monkeypatch.setattr("vivit_bench.comparison.compare.compare_engines", lambda *_, **__: runs)
    monkeypatch.setattr("sys.argv", ["vivit-bench", "compare-engines", DIGITS])
    with pytest.raises(SystemExit) as ended:
        cli_main()
    assert ended.value.code == 1
    seen = capsys.readouterr()
    assert "DISAGREES" in seen.out
    assert "engines disagree with vivit-bench: curvlinops by 1.0e-01" in seen.err


def test_comparisons_are_appended_and_foreign_files_kept(tmp_path: Path) -> None:
    rows = summarise([EngineRuns("a", [1.0], [1.0], [1])], comparable=True)
    save_comparison(rows, {}, tmp_path / "x.csv")
    save_comparison(rows, {}, tmp_path / "x.csv")
    assert len(pd.read_csv(tmp_path / "x.csv")) == 2
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="no table of comparisons"):
        save_comparison(rows, {}, tmp_path / "foreign.csv")
    assert (tmp_path / "foreign.csv").read_text() == "a,b\n1,2\n"
