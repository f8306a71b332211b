"""The ``curvature`` commands on the example problem."""

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from vivit_bench.cli.curvature import app
from vivit_bench.curvature import (
    directional_derivatives,
    eigenvalues,
    explain,
    signal_to_noise,
)
from vivit_bench.errors import UsageError
from vivit_bench.problems import load_batch, load_problem
from vivit_bench.problems.sources import DataSource

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


def test_explain_prints_what_python_explains() -> None:
    problem = load_problem(DIGITS)
    batch = load_batch(problem, 16, DataSource.OWN)
    found = explain(problem.model, problem.loss, *batch, quantity="newton", memory=8 * 2**20)
    asked = ("--batch-size", 16, "--quantity", "newton", "--engine-memory", "8MiB", "--data", "own")
    rows = json.loads(run("explain", DIGITS, *asked, "--format", "json"))
    kinds = [row["kind"] for row in rows]
    assert kinds == ["pass"] * len(found.passes) + ["layer"] * 3 + ["solver", "gradient", "all"]
    assert [row["flops"] for row in rows[:-1]] == [cost.flops for cost in found.costs]
    everything = rows[-1]
    assert everything["flops"] == sum(row["flops"] for row in rows[:-1])
    assert everything["seconds"] == pytest.approx(sum(row["seconds"] for row in rows[:-1]))
    assert everything["passes"] == len(found.passes)
    highest = max(row["peak_bytes"] or 0 for row in rows[:-1])
    assert everything["peak_bytes"] == found.peak.bytes == highest
    assert everything["peak_at"] == found.peak.name
    assert everything["working_bytes"] == found.working_bytes
    assert everything["kept_bytes"] == sum(found.kept_bytes)
    assert [row["passes"] for row in rows if row["kind"] == "layer"] == list(found.parts)
    shown = run("explain", DIGITS, *asked)
    assert "GFLOP/s" in " ".join(shown.split())


@pytest.mark.parametrize("method", ["gram", "lanczos"])
def test_leading_eigenvalues_by_both_methods(method: str) -> None:
    problem = load_problem(DIGITS)
    batch = load_batch(problem, 16, DataSource.OWN)
    expected = eigenvalues(problem.model, problem.loss, *batch).eigenvalues[:4]
    asked = ("--batch-size", 16, "--top", 4, "--method", method)
    result = CliRunner().invoke(app, ["eigenvalues", DIGITS, *map(str, asked), *CSV])
    table = pd.read_csv(io.StringIO(result.stdout))
    assert table["eigenvalue"].to_numpy() == pytest.approx(expected.numpy(), rel=1e-4)
    assert ("residual" in table) == (method == "lanczos")
    lines = result.stderr.splitlines()
    assert lines[0] == f"method {method}: as asked for"
    assert lines[-1].startswith("certified by plain autograd")
    assert len(lines) == (3 if method == "lanczos" else 2)
    quiet = CliRunner().invoke(app, ["eigenvalues", DIGITS, *map(str, asked), "--quiet"])
    assert quiet.stderr == ""


def test_a_step_takes_the_method_that_fits(tmp_path: Path) -> None:
    steps = []
    for memory, method in (("64MiB", "gram"), ("2MiB", "lanczos")):
        file = tmp_path / f"{method}.pt"
        asked = ["newton", DIGITS, "--batch-size", "64", "--whole-space", "--output", str(file)]
        result = CliRunner().invoke(app, [*asked, "--engine-memory", memory])
        assert f"method {method}: " in result.stderr
        steps.append(torch.load(file, weights_only=True))
    for name, part in steps[0].items():
        assert torch.allclose(part, steps[1][name], atol=1e-5)


@pytest.mark.parametrize(
    "asked",
    [("newton", "--damping", "bootstrap"), ("newton", "--method", "gram"), ("directional",),
     ("eigenvectors", "--output", "v.pt"), ("eigenvalues", "--method", "gram"), ("explain",),
     ("eigenvalues",), ("eigenvalues", "--method", "lanczos")],
    ids=" ".join,
)  # fmt: skip
def test_engine_memory_is_kept_to_or_refused(
    asked: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command, *options = asked
    several = (command, DIGITS, "--batch-size", 16, *options, "--engine-memory")
    with pytest.raises(UsageError, match=r"(takes?|the GGN|give) \d+KiB") as refused:
        run(*several, "40KiB")
    least = min(int(size) for size in re.findall(r"(\d+)KiB", str(refused.value))[1:])
    run(*several, f"{least}KiB")
    with pytest.raises(UsageError, match="--engine-memory '1 hour': not a size"):
        run(*several, "1 hour")


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


def test_directions_without_columns_that_cannot_matter(tmp_path: Path) -> None:
    """What was left out is said; the directions are the engine's own for this trace."""
    problem, file = load_problem(DIGITS), tmp_path / "confident.pt"
    with torch.no_grad():
        for parameter in list(problem.model.parameters())[-2:]:
            parameter *= 200
    torch.save(problem.model.state_dict(), file)
    options = ("--batch-size", 16, "--checkpoint", file, "--cutoff", 0.1, "--drop-columns", 0.5)
    result = CliRunner().invoke(app, ["directional", DIGITS, *map(str, options), *CSV])
    assert result.exit_code == 0
    request = (problem.model, problem.loss, *load_batch(problem, 16, DataSource.OWN))
    expected = directional_derivatives(*request, cutoff=0.1, drop_trace=0.05)
    assert expected.dropped is not None
    assert expected.dropped.num_columns > 36
    assert len(expected.eigenvalues) > 9
    assert expected.dropped.line(expected.info.num_columns) in result.stderr
    table = pd.read_csv(io.StringIO(result.stdout))
    assert table["eigenvalue"].to_numpy() == pytest.approx(expected.eigenvalues.numpy())
