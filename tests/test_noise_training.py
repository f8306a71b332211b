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
from torch import nn

import vivit_bench.noise.measurement as measurement
import vivit_bench.noise.runner as runner
import vivit_bench.noise.training as training
import vivit_bench.store.run as store_run
from vivit_bench.curvature import Approximation
from vivit_bench.errors import CertificateError, UsageError, VivitBenchError
from vivit_bench.hardware import cpu_threads
from vivit_bench.noise import Choices, Listener, OptimizerName, load_run, monitoring_cost, run_noise
from vivit_bench.noise import parse_positions as positions
from vivit_bench.noise.data import RunData, load_run_data
from vivit_bench.problems import DataSource, load_problem
from vivit_bench.report.noise import checkpoint_table
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


def test_what_diverges_before_its_first_checkpoint_is_told_when_asked_for(tmp_path: Path) -> None:
    choices = with_changes(
        problem="tiny.py:regression",
        optimizer=OptimizerName.SGD,
        lr=1e6,
        checkpoints=None,
        at=positions("end"),
    )
    with pytest.raises(VivitBenchError, match=r"diverged: loss (inf|nan) at step \d+"):
        run_noise(choices, tmp_path, name="run")
    with pytest.raises(UsageError, match=r"has no checkpoints.csv: the training diverged"):
        load_run(tmp_path / "noise" / "run")


def add_problem(folder: Path, name: str, changes: str, of: str = "tiny") -> str:
    """A problem of ``tiny.py`` whose ``model`` and data, ``x`` and ``y``, are changed by lines."""
    path = folder / "tiny.py"
    lines = "".join(f"    {line}\n" for line in changes.splitlines())
    path.write_text(
        f"{path.read_text()}\n\ndef {name}():\n    model, loss, (x, y) = {of}()\n"
        f"    x, y = x.clone(), y.clone()\n{lines}    return model, loss, (x, y)\n"
    )
    return f"tiny.py:{name}"


def tiny_data() -> RunData:
    """How the samples of every problem in ``tiny.py`` are split."""
    return load_run_data(load_problem("tiny.py:tiny"), DataSource.OWN, None, seed=0)


def refused(choices: Choices, folder: Path) -> str:
    """The one line of a run that fails by what model or data are, and is not stored as failed.

    Nothing is left of one that ends before its first record.
    """
    with pytest.raises(VivitBenchError) as said:
        run_noise(choices, folder, name="run")
    assert said.value.exit_code == 1
    assert "\n" not in str(said.value)
    assert "diverged" not in str(said.value)
    run = folder / "noise" / "run"
    assert not run.exists() or store_run.load_run(run, "noise").state is State.RUNNING
    return str(said.value)


@pytest.mark.parametrize(
    ("changes", "of", "says"),
    [
        ("y *= 1e30", "regression", "is inf at step 0: the model is not trained yet; check"),
        ("nn.init.constant_(model[0].weight, torch.nan)", "tiny", "is nan at step 0: the model is"),
        ("x *= torch.nan", "tiny", "is nan at step 0: there are NaN in the inputs"),
        ("y[:] = torch.inf", "regression", "is inf at step 0: there are NaN in the inputs, or"),
    ],
)
def test_an_untrained_model_whose_loss_is_not_finite_has_not_diverged(
    tmp_path: Path, changes: str, of: str, says: str
) -> None:
    problem = add_problem(tmp_path, "wrong", changes, of)
    said = refused(with_changes(problem=problem), tmp_path)
    assert said.startswith(f"{problem}: the loss of the training samples that are evaluated {says}")
    assert not (tmp_path / "noise" / "run").exists()


def test_a_loss_that_is_not_finite_by_its_samples_names_them(tmp_path: Path) -> None:
    data = tiny_data()
    tested = (data.inputs == data.test[0][0]).all(1).nonzero().item()
    where = {
        "the monitor batch": int(data.held_out[0]),
        "the mini-batch": int(data.train[20]),
        "the test samples": int(tested),
    }
    for number, (what, index) in enumerate(where.items()):
        problem = add_problem(tmp_path, f"hole_{number}", f"x[{index}] = torch.nan", "regression")
        folder = tmp_path / str(number)
        said = refused(with_changes(problem=problem), folder)
        assert said.startswith(f"{problem}: the loss of {what} is nan at step ")
        assert "NaN in the inputs" in said


def test_evaluated_samples_whose_labels_are_all_ignored_have_no_loss(tmp_path: Path) -> None:
    """Which is said, and is no divergence: the training itself sees other samples."""
    subset = tiny_data().train[:16].tolist()
    problem = add_problem(tmp_path, "ignoring", f"y[{subset}] = -100")
    notes: list[str] = []

    class Told(Listener):
        def note(self, text: str) -> None:
            notes.append(text)

    run = run_noise(with_changes(problem=problem), tmp_path, listener=Told())
    assert run.stored.is_finished
    assert run.curves["train_loss"].isna().all()
    assert np.isfinite(run.curves["test_loss"]).all()
    assert [row["train_loss"] for row in checkpoint_table(run).rows] == [None] * 4
    (said,) = [note for note in notes if "label" in note]
    assert said.startswith("the training samples that are evaluated have no label that counts")


def test_batches_whose_labels_are_all_ignored_are_refused(tmp_path: Path) -> None:
    data = tiny_data()
    fourth = data.epoch(seed=0, epoch=0, batch_size=16)[3]
    for number, (indices, where) in enumerate(
        [
            (fourth, "the mini-batch is nan at step 3"),
            (data.held_out[:6], "the monitor batch is nan at step 0"),
        ]
    ):
        problem = add_problem(tmp_path, f"ignoring_{number}", f"y[{indices.tolist()}] = -100")
        said = refused(with_changes(problem=problem), tmp_path / str(number))
        assert f"{problem}: the loss of {where}: no label counts" in said
        assert "try larger batches" in said
    assert load_run(tmp_path / "0" / "noise" / "run").checkpoints["step"].tolist() == [0, 1]


_FAILS = """
class Fails(nn.Linear):
    calls = 0
    def forward(self, x):
        outputs = super().forward(x)
        self.calls += self.training
        if self.calls == 4:
            {}
        return outputs

model = Fails(6, 3)
"""


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("return outputs[1:]", "model or loss failed in step 3, ValueError: Expected input batch"),
        ("return outputs[:, :, None]", "model or loss failed in step 3, RuntimeError: "),
        ("outputs.register_hook(lambda grad: {}['key'])", "failed in step 3, KeyError: 'key'"),
        ("raise OSError('gone')", "model or loss failed in step 3, OSError: gone"),
    ],
)
def test_a_model_that_fails_in_training_is_one_line_and_keeps_its_records(
    tmp_path: Path, does: str, says: str
) -> None:
    problem = add_problem(tmp_path, "failing", _FAILS.format(does))
    said = refused(with_changes(problem=problem), tmp_path)
    assert said.startswith(f"{problem}: ")
    assert says in said
    assert load_run(tmp_path / "noise" / "run").checkpoints["step"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("samples", "where"),
    [("held_out", "on the monitor batch at"), ("train", "in the evaluation at")],
)
def test_a_model_that_fails_in_evaluation_is_one_line(
    tmp_path: Path, samples: str, where: str
) -> None:
    """As by a token that its embedding does not have, in samples that loading does not run."""
    index = int(getattr(tiny_data(), samples)[1])
    changes = (
        "model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(24, 3))\n"
        f"x = (x > 0).long()\nx[{index}, 2] = 7"
    )
    problem = add_problem(tmp_path, "tokens", changes)
    said = refused(with_changes(problem=problem), tmp_path)
    assert said.startswith(f"{problem}: model or loss failed {where} step 0, IndexError: index out")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: device-side assert triggered"),
    ],
)
@pytest.mark.parametrize("method", ["_train_step", "_measure", "_evaluate"])
def test_memory_and_libraries_are_not_blamed_on_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    def fails(*_: Any) -> None:
        raise error

    def failing(self: training.Training, *arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(nn.Sequential, "forward", fails)
            return right(self, *arguments)

    right = getattr(training.Training, method)
    monkeypatch.setattr(training.Training, method, failing)
    with pytest.raises(type(error)) as said:
        run_noise(CHOICES, tmp_path)
    assert said.value is error


def test_directions_without_variance_are_counted_once(tmp_path: Path) -> None:
    """A table counts those that have an infinite or undefined ratio, as the run has counted."""
    one_sample = with_changes(monitor_batch_size=1, epochs=1)
    for choices in (one_sample, CHOICES):
        run = run_noise(choices, tmp_path)
        rows = checkpoint_table(run).rows
        for row, checkpoint in zip(rows, run.checkpoints.to_dict("records"), strict=True):
            ratios = ~np.isfinite(run.at(checkpoint["step"])[["snr_gamma", "snr_lambda"]])
            assert ratios["snr_gamma"].sum() == checkpoint["zero_variance_gamma"]
            assert ratios["snr_lambda"].sum() == checkpoint["zero_variance_lambda"]
            if choices is one_sample:
                assert row["zero_variance"] == row["num_directions"] == 2


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
