"""Runs go on bit by bit wherever they were killed, are never mixed, and lose nothing."""

import copy
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
import vivit_bench.noise.runner as runner
import vivit_bench.noise.training as training
import vivit_bench.store.run as store_run
from vivit_bench.curvature import Approximation
from vivit_bench.errors import CertificateError, UsageError, VivitBenchError
from vivit_bench.hardware import cpu_threads
from vivit_bench.noise import Choices, Listener, OptimizerName, load_run, monitoring_cost, run_noise
from vivit_bench.noise import parse_positions as positions
from vivit_bench.noise.data import load_run_data
from vivit_bench.problems import DataSource, load_problem
from vivit_bench.store import State
from vivit_bench.store.files import TEMPORARY

EXAMPLE = Path(__file__).parent.parent / "scripts" / "examples" / "small_cnn.py"
TABLES = ["checkpoints.csv", "curves.csv", "directions.csv"]


@pytest.fixture(autouse=True)
def _problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """Results of an uninterrupted run."""
    run_noise(CHOICES, tmp_path, name="whole")
    return contents(tmp_path / "noise" / "whole")


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
    run = run_noise(CHOICES, tmp_path, name="run")
    assert sorted(path.name for path in run.folder.iterdir()) == [*TABLES, "per_sample", "run.json"]
    assert run.stored.is_finished
    assert set(run.stored.files) == set(contents(run.folder))
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
    timing = run.stored.results["timing"]
    assert set(timing["monitor_seconds"]) == {"0", "1", "5", "24"}
    assert set(timing["train_seconds"]) == {"0", "1", "2"}
    cost = monitoring_cost(run)
    assert cost["calls"] == 4
    assert cost["call_in_epochs"] == cost["seconds_per_call"] / cost["seconds_per_epoch"]
    assert 0 < cost["share"] < 1
    assert run.stored.provenance["torch"]
    assert run.sizes["train_samples"] == 128


def test_the_same_run_twice_is_the_same_and_seeds_differ(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    torch.rand(7)
    state_before = torch.get_rng_state()
    run_noise(CHOICES, tmp_path, name="again")
    assert contents(tmp_path / "noise" / "again") == whole
    assert torch.equal(torch.get_rng_state(), state_before)
    run_noise(with_changes(seed=1), tmp_path, name="other")
    other = contents(tmp_path / "noise" / "other")
    assert all(other[name] != whole[name] for name in TABLES)


def test_monitoring_does_not_change_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other checkpoints, other monitor batch: curves, model, optimizer and random numbers are
    bitwise the same."""
    ends, run_training = [], training.Training.run

    def recorded(self: training.Training) -> None:
        run_training(self)
        state = self.model.state_dict(), self.optimizer.state_dict()["state"], torch.rand(3)
        ends.append(copy.deepcopy(state))

    monkeypatch.setattr(training.Training, "run", recorded)
    reference = run_noise(CHOICES, tmp_path)
    choices = with_changes(checkpoints=None, at=positions("0,3steps,16steps"), monitor_batch_size=4)
    run = run_noise(choices, tmp_path)
    common = sorted(set(run.curves["step"]) & set(reference.curves["step"]))
    assert common == [0, 8, 16, 24]
    pd.testing.assert_frame_equal(
        run.curves.set_index("step").loc[common],
        reference.curves.set_index("step").loc[common],
        check_exact=True,
    )
    first, second = (torch.utils._pytree.tree_flatten(end) for end in ends)
    assert first[1] == second[1]
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))


@pytest.mark.parametrize("optimizer", list(OptimizerName))
def test_interrupted_inside_epochs_it_goes_on_from_the_last_record(
    tmp_path: Path, optimizer: OptimizerName
) -> None:
    choices = with_changes(optimizer=optimizer)
    run_noise(choices, tmp_path, name="whole")
    folder, first = tmp_path / "noise" / "parts", []
    for at in (3, 7, 8, 20):
        killer = Killer(at)
        with pytest.raises(KeyboardInterrupt):
            run_noise(choices, tmp_path, name="parts", listener=killer)
        first.append(killer.first)
    last = Killer(-1)
    run_noise(choices, tmp_path, name="parts", listener=last)
    # Records were made at 0, 1, 5, 8 and 16; those of a step come after it.
    assert [*first, last.first] == [0, 1, 5, 5, 16]
    assert last.steps == list(range(17, 25))
    assert contents(folder) == contents(tmp_path / "noise" / "whole")


def test_killed_between_any_two_writes_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is written by one function, which dies after each of its calls."""
    choices = with_changes(epochs=2, checkpoints=None, at=positions("0,3steps,end"))
    whole = contents(run_noise(choices, tmp_path, name="whole").folder)
    write, count, die_at = store_run.write_atomic, 0, 0

    def dying(path: Path, content: str | bytes) -> None:
        nonlocal count
        write(path, content)
        count += 1
        if count == die_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(store_run, "write_atomic", dying)
    run_noise(choices, tmp_path, name="counted")
    assert contents(tmp_path / "noise" / "counted") == whole
    total = count
    # run.json three times, three checkpoints of three files, four rows of curves and four states.
    assert total == 3 + 3 * 3 + 4 + 4
    for number in range(1, total + 1):
        count, die_at = 0, number
        with pytest.raises(KeyboardInterrupt):
            run_noise(choices, tmp_path, name=f"killed-{number}")
        die_at = 0
        run = run_noise(choices, tmp_path, name=f"killed-{number}")
        assert contents(run.folder) == whole, number
        assert run.stored.is_finished
        assert not (run.folder / "state.pt").exists()


def test_kill_minus_nine(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """A process of its own, killed inside the second epoch, and another that goes on."""
    script = (
        "import os, signal, sys; from pathlib import Path; "
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); "
        "from noise_cases import CHOICES; from test_noise_training import Killer; "
        "from vivit_bench.noise import run_noise; "
        "run_noise(CHOICES, Path('.'), name='killed', "
        "listener=Killer(11, lambda: os.kill(os.getpid(), signal.SIGKILL)))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    folder = tmp_path / "noise" / "killed"
    run = load_run(folder)
    assert run.stored.state is State.RUNNING
    assert run.checkpoints["step"].tolist() == [0, 1, 5]
    left_over = folder / "per_sample" / f".half{TEMPORARY}"
    left_over.write_text("as a process killed while it wrote leaves it")
    killer = Killer(-1)
    run_noise(CHOICES, tmp_path, name="killed", listener=killer)
    assert not left_over.exists()
    assert killer.first == 8
    assert contents(folder) == whole


def test_a_finished_run_is_left_alone(tmp_path: Path, whole: dict[str, bytes]) -> None:
    header = tmp_path / "noise" / "whole" / "run.json"
    written = header.stat().st_mtime_ns
    killer = Killer(1)
    run = run_noise(CHOICES, tmp_path, name="whole", listener=killer)
    assert killer.first is None
    assert len(run.checkpoints) == 4
    assert header.stat().st_mtime_ns == written


def test_other_settings_have_another_address(tmp_path: Path) -> None:
    choices = with_changes(epochs=1, checkpoints=2)
    folders = [
        run_noise(c, tmp_path).folder
        for c in (choices, with_changes(epochs=1, checkpoints=2, cutoff=1e-3), choices)
    ]
    assert folders[0] == folders[2] != folders[1]
    assert all(folder.name.startswith("tiny-tiny_adam-") for folder in folders)
    with cpu_threads(torch.get_num_threads() + 1):
        assert run_noise(choices, tmp_path).folder not in folders


def test_other_settings_are_refused_under_a_name_and_replaced_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "noise" / "run"
    with pytest.raises(KeyboardInterrupt):
        run_noise(CHOICES, tmp_path, name="run", listener=Killer(10))
    before = contents(folder)
    (folder / "table.csv").write_text("of the run before")
    before["table.csv"] = b"of the run before"
    with pytest.raises(
        UsageError, match=r"lr 0.05 -> 0.1, model .*, seed 0 -> 1.*--fresh"
    ) as refused:
        run_noise(with_changes(lr=0.1, seed=1), tmp_path, name="run")
    assert "\n" not in str(refused.value)
    assert contents(folder) == before
    fresh = with_changes(lr=0.1, checkpoints=2, per_sample=False)
    run = run_noise(fresh, tmp_path, name="run", fresh=True)
    assert run.checkpoints["step"].tolist() == [0, 24]
    assert [path.name for path in folder.parent.iterdir()] == ["run"]  # nothing of the old one
    assert not list(folder.glob("per_sample/*"))
    assert not (folder / "table.csv").exists()
    run_noise(fresh, tmp_path, name="clean")
    assert contents(folder) == contents(tmp_path / "noise" / "clean")


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_of_other_code_machine_or_data_is_neither_continued_nor_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    if finished:
        run_noise(CHOICES, tmp_path, name="run")
    else:
        with pytest.raises(KeyboardInterrupt):
            run_noise(CHOICES, tmp_path, name="run", listener=Killer(10))
    real = runner.environment
    for changed in ({"code": "other"}, {"cpu": "abacus"}, {"test_data": "other"}):
        with monkeypatch.context() as patch:
            patch.setattr(
                runner, "environment", lambda *a, changed=changed, **o: {**real(*a, **o), **changed}
            )
            (name,) = changed
            with pytest.raises(UsageError, match=rf"conditions \({name} .* -> {changed[name]}\)"):
                run_noise(CHOICES, tmp_path, name="run")
    source = tmp_path / "tiny.py"
    source.write_text(source.read_text().replace("manual_seed(3)", "manual_seed(4)"))
    with pytest.raises(UsageError, match=r"other settings \(model .* -> "):
        run_noise(CHOICES, tmp_path, name="run")
    write_tiny(tmp_path)
    run_noise(CHOICES, tmp_path, name="run")


def test_a_diverged_training_keeps_its_records(tmp_path: Path) -> None:
    choices = with_changes(
        problem="tiny.py:regression", optimizer=OptimizerName.SGD, lr=1e6, checkpoints=8
    )
    for _ in range(2):  # the second time from what is stored
        with pytest.raises(VivitBenchError, match=r"diverged: loss (inf|nan) at step \d+") as said:
            run_noise(choices, tmp_path, name="run")
        assert said.value.exit_code == 1
        assert "\n" not in str(said.value)
    run = load_run(tmp_path / "noise" / "run")
    assert run.stored.state is State.FAILED
    assert run.stored.results["diverged_at"]["step"] > run.checkpoints["step"].iloc[-1]
    assert len(run.checkpoints) >= 2
    assert np.isfinite(run.curves["train_loss"]).all()
    assert not (run.folder / "state.pt").exists()
    assert set(run.stored.files) == set(contents(run.folder))
    assert run.stored.results["timing"]["train_seconds"]["0"] > 0


def test_what_diverges_before_its_first_record_is_told_when_asked_for(tmp_path: Path) -> None:
    source = tmp_path / "tiny.py"
    source.write_text(source.read_text().replace("(INPUTS, SCORES)", "(INPUTS, SCORES * 1e30)"))
    choices = with_changes(problem="tiny.py:regression")
    with pytest.raises(VivitBenchError, match="diverged: loss inf at step 0"):
        run_noise(choices, tmp_path, name="run")
    with pytest.raises(UsageError, match=r"has no curves.csv: the training diverged"):
        load_run(tmp_path / "noise" / "run")


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
            run_noise(CHOICES, tmp_path, name="run")
    folder = tmp_path / "noise" / "run"
    assert load_run(folder).checkpoints["step"].tolist() == [0, 1]
    run = run_noise(CHOICES, tmp_path, name="run")
    assert contents(folder) == whole
    assert (run.checkpoints["certificate_error"] < 1e-4).all()
    assert (run.checkpoints["certified_samples"] == 2).all()


def test_seconds_are_those_of_the_step_evaluation_or_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only training steps, evaluations and the engine move."""
    now = [0.0]

    def taking(seconds: float, real: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            now[0] += seconds
            return real(*arguments, **options)

        return timed

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    engine = taking(5.0, measurement.directional_derivatives)
    monkeypatch.setattr(measurement, "directional_derivatives", engine)
    monkeypatch.setattr(training, "evaluate", taking(0.25, training.evaluate))
    step = taking(1.0, training.Training._train_step)
    monkeypatch.setattr(training.Training, "_train_step", step)
    run = run_noise(CHOICES, tmp_path)
    assert run.stored.results["timing"] == {
        "train_seconds": {"0": 8.0, "1": 8.0, "2": 8.0},
        "evaluate_seconds": 6 * 2 * 0.25,
        "monitor_seconds": {"0": 5.0, "1": 5.0, "5": 5.0, "24": 5.0},
    }
    assert monitoring_cost(run) == {
        "calls": 4,
        "seconds_per_call": 5.0,
        "seconds_per_epoch": 8.0,
        "call_in_epochs": 5 / 8,
        "share": 20 / (20 + 24 + 3),
    }


def test_monitored_samples_are_held_out_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at, trained_on = [], set[int]()
    measure, step = training.measure, training.Training._train_step

    def spying_measure(model: Any, loss: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        looked_at.append(inputs)
        return measure(model, loss, inputs, *rest, **options)

    def spying_step(self: training.Training, batch: torch.Tensor) -> float:
        trained_on.update(batch.tolist())
        return step(self, batch)

    monkeypatch.setattr(training, "measure", spying_measure)
    monkeypatch.setattr(training.Training, "_train_step", spying_step)
    run_noise(CHOICES, tmp_path)
    data = load_run_data(load_problem(CHOICES.problem), DataSource.OWN, None, seed=0)
    assert len(looked_at) == 4
    assert all(torch.equal(inputs, data.inputs[data.held_out[:6]]) for inputs in looked_at)
    assert trained_on == set(data.train.tolist())
    assert not trained_on & set(data.held_out.tolist())


def test_shares_of_the_gradient_that_cannot_be_are_an_error() -> None:
    table = pd.DataFrame({"alignment": [0.9, 0.2]})
    with pytest.raises(CertificateError, match=r"hold 110.0 % of the gradient's squared norm"):
        measurement._check_sums(table)


def test_squared_error_and_approximations(tmp_path: Path) -> None:
    regression = with_changes(problem="tiny.py:regression", lr=0.01)
    run = run_noise(regression, tmp_path, name="mse")
    assert run.curves["test_accuracy"].isna().all()
    assert run.curves["train_loss"].iloc[-1] < run.curves["train_loss"].iloc[0]
    assert (run.checkpoints["num_columns"] == 6 * 3).all()
    approximate = with_changes(
        approximation=Approximation("mc", "frac", mc_samples=2), monitor_batch_size=16
    )
    run = run_noise(approximate, tmp_path, name="mc")
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
    run = run_noise(choices, tmp_path, name="digits")
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
