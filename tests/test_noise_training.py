"""Runs go on bit by bit wherever they were killed, are never mixed, and lose nothing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from noise_cases import CHOICES, contents, with_changes, write_tiny

import vivit_bench.noise.measurement as measurement
import vivit_bench.noise.records as records
import vivit_bench.noise.runner as runner
import vivit_bench.noise.state as state
import vivit_bench.noise.training as training
from vivit_bench.curvature import Approximation
from vivit_bench.errors import CertificateError, UsageError, VivitBenchError
from vivit_bench.noise import Choices, Listener, OptimizerName, load_run, monitoring_cost, run_noise
from vivit_bench.noise import parse_positions as positions

EXAMPLE = Path(__file__).parent.parent / "scripts" / "examples" / "small_cnn.py"
TABLES = ["checkpoints.csv", "curves.csv", "directions.csv"]


@pytest.fixture(autouse=True)
def _problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """Results of an uninterrupted run."""
    run_noise(CHOICES, tmp_path / "whole")
    return contents(tmp_path / "whole")


class Killer(Listener):
    """Interrupts the training after a step."""

    def __init__(self, at: int, kill: Callable[[], None] | None = None) -> None:
        self.at, self.kill = at, kill
        self.first: int | None = None
        self.steps: list[int] = []

    def started(self, done: int, total: int, steps_per_epoch: int) -> None:
        self.first = done

    def stepped(self, step: int, loss: float) -> None:
        self.steps.append(step)
        if step == self.at:
            if self.kill is not None:
                self.kill()
            raise KeyboardInterrupt


def test_a_run_and_its_files(tmp_path: Path) -> None:
    run = run_noise(CHOICES, tmp_path / "run")
    assert sorted(path.name for path in run.folder.iterdir()) == [*TABLES, "per_sample", "run.json"]
    assert run.header["state"] == "finished"
    assert run.checkpoints["step"].tolist() == run.settings["checkpoints"] == [0, 1, 5, 24]
    assert run.curves["step"].tolist() == [0, 1, 5, 8, 16, 24]
    assert run.curves["epoch"].tolist() == [0, 0.125, 0.625, 1, 2, 3]
    assert run.curves["test_accuracy"].iloc[-1] > run.curves["test_accuracy"].iloc[0]
    assert (run.checkpoints["num_columns"] == 6 * 2).all()
    for step, count in run.checkpoints[["step", "num_directions"]].to_numpy():
        directions = run.at(step)
        assert directions["direction"].tolist() == list(range(1, int(count) + 1))
        assert directions["eigenvalue"].is_monotonic_decreasing
        arrays = np.load(run.folder / "per_sample" / f"step_{step:08.0f}.npz")
        assert arrays["gammas"].shape == arrays["lambdas"].shape == (6, count)
        np.testing.assert_allclose(arrays["gammas"].mean(0), directions["gamma"], rtol=1e-6)
    assert set(run.header["timing"]["monitor"]) == {"0", "1", "5", "24"}
    assert set(run.header["timing"]["train"]) == {"0", "1", "2"}
    cost = monitoring_cost(run)
    assert cost["calls"] == 4
    assert cost["call_in_epochs"] == cost["seconds_per_call"] / cost["seconds_per_epoch"]
    assert 0 < cost["share"] < 1
    assert run.header["provenance"]["torch"]
    assert run.header["sizes"]["train_samples"] == 128


def test_the_same_run_twice_is_the_same_and_seeds_differ(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    torch.rand(7)
    state_before = torch.get_rng_state()
    run_noise(CHOICES, tmp_path / "again")
    assert contents(tmp_path / "again") == whole
    assert torch.equal(torch.get_rng_state(), state_before)
    run_noise(with_changes(seed=1), tmp_path / "other")
    other = contents(tmp_path / "other")
    assert all(other[name] != whole[name] for name in TABLES)


def test_monitoring_does_not_change_the_curves(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Other checkpoints, other monitor batch: the training is bitwise the same."""
    choices = with_changes(checkpoints=None, at=positions("0,3steps,16steps"), monitor_batch_size=4)
    run = run_noise(choices, tmp_path / "run")
    reference = load_run(tmp_path / "whole").curves
    common = sorted(set(run.curves["step"]) & set(reference["step"]))
    assert common == [0, 8, 16, 24]
    pd.testing.assert_frame_equal(
        run.curves.set_index("step").loc[common],
        reference.set_index("step").loc[common],
        check_exact=True,
    )


@pytest.mark.parametrize("optimizer", list(OptimizerName))
def test_interrupted_inside_epochs_it_goes_on_from_the_last_record(
    tmp_path: Path, optimizer: OptimizerName
) -> None:
    choices = with_changes(optimizer=optimizer)
    run_noise(choices, tmp_path / "whole")
    folder, first = tmp_path / "parts", []
    for at in (3, 7, 8, 20):
        killer = Killer(at)
        with pytest.raises(KeyboardInterrupt):
            run_noise(choices, folder, listener=killer)
        first.append(killer.first)
    last = Killer(-1)
    run_noise(choices, folder, listener=last)
    # Records were made at 0, 1, 5, 8 and 16; those of a step come after it.
    assert [*first, last.first] == [0, 1, 5, 5, 16]
    assert last.steps == list(range(17, 25))
    assert contents(folder) == contents(tmp_path / "whole")


def test_killed_between_any_two_writes_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    """Every file is written by one function, which dies before or after each of its calls."""
    write, count, die_at = records.write_atomic, 0, (0, False)

    def dying(path: Path, content: str | bytes) -> None:
        nonlocal count
        count += 1
        if (count, False) == die_at:
            raise KeyboardInterrupt
        write(path, content)
        if (count, True) == die_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(records, "write_atomic", dying)
    monkeypatch.setattr(state, "write_atomic", dying)
    run_noise(CHOICES, tmp_path / "counted")
    assert contents(tmp_path / "counted") == whole
    total = count
    # run.json twice, four checkpoints of three files, six rows of curves and six states.
    assert total == 2 + 4 * 3 + 6 + 6
    for number in range(1, total + 1, 2):
        for after in (False, True):
            folder = tmp_path / f"killed-{number}-{after}"
            count, die_at = 0, (number, after)
            with pytest.raises(KeyboardInterrupt):
                run_noise(CHOICES, folder)
            die_at = (0, False)
            run_noise(CHOICES, folder)
            assert contents(folder) == whole, (number, after)
            assert not (folder / "state.pt").exists()


def test_kill_minus_nine(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """A process of its own, killed inside the second epoch, and another that goes on."""
    script = (
        "import os, signal, sys; from pathlib import Path; "
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); "
        "from noise_cases import CHOICES; from test_noise_training import Killer; "
        "from vivit_bench.noise import run_noise; "
        "run_noise(CHOICES, Path('killed'), "
        "listener=Killer(11, lambda: os.kill(os.getpid(), signal.SIGKILL)))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    run = load_run(tmp_path / "killed")
    assert run.header["state"] == "running"
    assert run.checkpoints["step"].tolist() == [0, 1, 5]
    left_over = tmp_path / "killed" / ".state.pt.half"
    left_over.write_text("as a process killed while it wrote leaves it")
    killer = Killer(-1)
    run_noise(CHOICES, tmp_path / "killed", listener=killer)
    assert not left_over.exists()
    assert killer.first == 8
    assert contents(tmp_path / "killed") == whole


def test_a_finished_run_is_left_alone(tmp_path: Path, whole: dict[str, bytes]) -> None:
    folder = tmp_path / "whole"
    written = (folder / "run.json").stat().st_mtime_ns
    killer = Killer(1)
    run = run_noise(CHOICES, folder, listener=killer)
    assert killer.first is None
    assert len(run.checkpoints) == 4
    assert (folder / "run.json").stat().st_mtime_ns == written


def test_other_settings_are_refused_and_replaced_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_noise(CHOICES, folder, listener=Killer(10))
    before = contents(folder)
    (folder / "table.csv").write_text("of the run before")
    before["table.csv"] = b"of the run before"
    with pytest.raises(UsageError, match=r"lr 0.05 -> 0.1, seed 0 -> 1\).*--fresh") as refused:
        run_noise(with_changes(lr=0.1, seed=1), folder)
    assert "\n" not in str(refused.value)
    assert contents(folder) == before
    fresh = with_changes(lr=0.1, checkpoints=2, per_sample=False)
    run = run_noise(fresh, folder, fresh=True)
    assert run.checkpoints["step"].tolist() == [0, 24]
    assert not list(folder.glob("per_sample/*"))
    assert not (folder / "table.csv").exists()
    run_noise(fresh, tmp_path / "clean")
    assert contents(folder) == contents(tmp_path / "clean")


def test_an_interrupted_run_of_other_code_threads_or_problem_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_noise(CHOICES, folder, listener=Killer(10))
    with monkeypatch.context() as patch:
        patch.setattr(runner, "code_fingerprint", lambda rooms: "other")
        with pytest.raises(UsageError, match=r"interrupted .* conditions \(code .* -> other\)"):
            run_noise(CHOICES, folder)
    source = tmp_path / "tiny.py"
    source.write_text(source.read_text().replace("manual_seed(3)", "manual_seed(4)"))
    with pytest.raises(UsageError, match=r"\(model .*train_data .*test_data"):
        run_noise(CHOICES, folder)
    write_tiny(tmp_path)
    run_noise(CHOICES, folder)


def test_damaged_files_get_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_noise(CHOICES, folder, listener=Killer(10))
    curves, saved = (folder / "curves.csv").read_bytes(), (folder / "state.pt").read_bytes()
    (folder / "curves.csv").write_bytes(curves[:-9])
    with pytest.raises(VivitBenchError, match=r"curves.csv was shortened .* --fresh"):
        run_noise(CHOICES, folder)
    (folder / "curves.csv").write_bytes(curves)
    (folder / "state.pt").write_bytes(saved[:1000])
    with pytest.raises(VivitBenchError, match=r"state.pt cannot be resumed from .* --fresh"):
        run_noise(CHOICES, folder)
    (folder / "state.pt").write_bytes(saved)
    (folder / "run.json").write_text("{")
    with pytest.raises(VivitBenchError, match=r"run.json is not JSON .* --fresh"):
        run_noise(CHOICES, folder)
    (folder / "run.json").write_text('{"format": 0}')
    with pytest.raises(VivitBenchError, match=r"not of format 1"):
        load_run(folder)
    run_noise(CHOICES, folder, fresh=True)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        records.open_store(tmp_path / "run"),
        pytest.raises(UsageError, match="another run is writing"),
    ):
        run_noise(CHOICES, tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write to .*file"):
        run_noise(CHOICES, tmp_path / "file")


def test_a_full_disk_is_said_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    def full(path: Path, content: bytes) -> None:
        if len((tmp_path / "run" / "curves.csv").read_bytes().splitlines()) == 4:
            raise OSError(28, "No space left on device")
        records.write_atomic(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(state, "write_atomic", full)
        with pytest.raises(VivitBenchError, match=r"No space left on device.*goes on"):
            run_noise(CHOICES, tmp_path / "run")
    run_noise(CHOICES, tmp_path / "run")
    assert contents(tmp_path / "run") == whole


def test_a_diverged_training_keeps_its_records(tmp_path: Path) -> None:
    choices = with_changes(
        problem="tiny.py:regression", optimizer=OptimizerName.SGD, lr=1e6, checkpoints=8
    )
    for _ in range(2):  # the second time from what is stored
        with pytest.raises(VivitBenchError, match=r"diverged: loss (inf|nan) at step \d+") as said:
            run_noise(choices, tmp_path / "run")
        assert said.value.exit_code == 1
        assert "\n" not in str(said.value)
    run = load_run(tmp_path / "run")
    assert run.header["state"] == "diverged"
    assert run.header["diverged_at"]["step"] > run.checkpoints["step"].iloc[-1]
    assert len(run.checkpoints) >= 2
    assert np.isfinite(run.curves["train_loss"]).all()
    assert not (run.folder / "state.pt").exists()
    assert json.loads((run.folder / "run.json").read_text())["timing"]["train"]["0"] > 0


def test_a_failed_certificate_keeps_the_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    """And once the fault is gone, the same run goes on to the same bytes."""
    right, calls = training.measure, []

    def failing(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise CertificateError("slopes are off")
        return right(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "measure", failing)
        with pytest.raises(CertificateError, match=r"step 5: slopes are off \(earlier checkpoints"):
            run_noise(CHOICES, tmp_path / "run")
    assert load_run(tmp_path / "run").checkpoints["step"].tolist() == [0, 1]
    run = run_noise(CHOICES, tmp_path / "run")
    assert contents(tmp_path / "run") == whole
    assert (run.checkpoints["certificate_error"] < 1e-4).all()
    assert (run.checkpoints["certified_samples"] == 2).all()


def test_shares_of_the_gradient_that_cannot_be_are_an_error() -> None:
    table = pd.DataFrame({"alignment": [0.9, 0.2]})
    with pytest.raises(CertificateError, match=r"hold 110.0 % of the gradient's squared norm"):
        measurement._check_sums(table)


def test_squared_error_and_approximations(tmp_path: Path) -> None:
    regression = with_changes(problem="tiny.py:regression", lr=0.01)
    run = run_noise(regression, tmp_path / "mse")
    assert run.curves["test_accuracy"].isna().all()
    assert run.curves["train_loss"].iloc[-1] < run.curves["train_loss"].iloc[0]
    assert (run.checkpoints["num_columns"] == 6 * 3).all()
    approximate = with_changes(
        approximation=Approximation("mc", "frac", mc_samples=2), monitor_batch_size=16
    )
    run = run_noise(approximate, tmp_path / "mc")
    assert (run.checkpoints["num_columns"] == 2 * 2).all()
    arrays = np.load(run.folder / "per_sample" / "step_00000000.npz")
    assert arrays["gammas"].shape[0] == 16
    assert arrays["lambdas"].shape[0] == 2


def test_expected_behaviour_on_digits(tmp_path: Path) -> None:
    """K = N(C-1) at the start and fewer later; few directions carry the gradient, and their
    curvature is less noisy than their slope."""
    choices = Choices(
        f"{EXAMPLE}:digits",
        OptimizerName.SGD,
        epochs=15,
        lr=0.05,
        checkpoints=4,
        monitor_batch_size=16,
    )
    run = run_noise(choices, tmp_path / "digits")
    counts = run.checkpoints["num_directions"].tolist()
    assert counts[0] == 16 * 9
    assert counts[-1] < counts[0] / 2
    assert (run.checkpoints["alignment_sum"] > 0.99).all()
    assert (run.checkpoints["alignment_sum"] < 1.001).all()
    late = run.at(run.checkpoints["step"].iloc[-1])
    assert late["alignment"].nlargest(10).sum() > 0.9
    leading: pd.DataFrame = late.head(10)
    assert leading["snr_lambda"].median() > leading["snr_gamma"].median()
    assert run.curves["test_accuracy"].iloc[-1] > 0.85
