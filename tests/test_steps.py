"""Training steps of a user's own: what counts, what is refused, and that what was found trains."""

import json
import re
from pathlib import Path

import pytest
from command_line import Run, group_runner

from vivit_bench.critical_batch import make_cell
from vivit_bench.critical_batch.settings import default_quantity
from vivit_bench.errors import UsageError
from vivit_bench.measure import Outcome, Trial, run_trial
from vivit_bench.measure.steps import StepWork
from vivit_bench.peers import Quantity

CASES = Path(__file__).with_name("step_cases.py")
EXAMPLES = Path(__file__).parent.parent / "scripts" / "examples"
MIB = 2**20


def trial(name: str, n: int, limit_bytes: int, calls: int | None = None) -> Trial:
    cell = make_cell(f"{CASES}:{name}", quantity=Quantity.STEP, threads=1, calls=calls)
    return run_trial(cell.spec(n, limit_bytes=limit_bytes), 120.0).trial


def test_all_of_the_process_counts_weights_and_state_too() -> None:
    few, many = trial("step", 10, 2**40), trial("step", 60, 2**40)
    assert (few.outcome, many.outcome) == (Outcome.FITS, Outcome.FITS)
    assert few.peak_bytes is not None
    assert many.peak_bytes is not None
    assert many.peak_bytes - few.peak_bytes == pytest.approx(50 * MIB, abs=MIB)
    interpreter = few.peak_bytes - (10 + 64 + 32) * MIB
    assert 100 * MIB < interpreter < 1024 * MIB  # and its libraries
    # The sizes beside a limit, and what was found then holds in training.
    limit = few.peak_bytes + 20 * MIB + MIB // 2
    assert trial("step", 30, limit).outcome is Outcome.FITS
    assert trial("step", 31, limit).outcome is Outcome.OUT_OF_MEMORY
    assert trial("step", 30, limit, calls=20).outcome is Outcome.FITS


def test_what_grows_with_every_call_is_seen_by_as_many_calls() -> None:
    few, many = trial("grows", 1, 2**40), trial("grows", 1, 2**40, calls=20)
    assert few.peak_bytes is not None
    assert many.peak_bytes is not None
    assert many.peak_bytes - few.peak_bytes == pytest.approx(17 * MIB, abs=MIB)


def test_a_step_that_fails_says_nothing_of_memory() -> None:
    alone = trial("needs_two", 1, 2**40)
    assert (alone.outcome, alone.message) == (
        Outcome.ERROR,
        "ValueError: more than 1 value per channel",
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wants_more", "what it returns cannot be called so: too many positional arguments"),
        ("number", "must return a function step(n, seed), got a int"),
        ("problem", "must return a function step(n, seed), got 3 values"),
        ("step_itself", "a training step step(n, seed) is what such a function returns"),
        ("raises", "raised RuntimeError: no weights"),
        ("nothing", "has no function 'nothing'"),
    ],
)
def test_what_is_no_step_is_refused(name: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        StepWork(step=f"{CASES}:{name}", seed=0, device="cpu", calls=3)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("waits", "returned a coroutine, of which nothing has run: write def, and asyncio.run"),
        ("yields", "returned a generator, of which nothing has run: leave out yield"),
        ("waits_and_yields", "returned a async_generator, of which nothing has run: leave out"),
    ],
)
def test_a_step_of_which_nothing_runs_is_refused_in_the_warm_up(name: str, words: str) -> None:
    work = StepWork(step=f"{CASES}:{name}", seed=0, device="cpu", calls=3)
    with pytest.raises(UsageError, match=re.escape(words)):
        work.warm_up()


def test_steps_and_problems_are_told_apart_in_a_child() -> None:
    assert default_quantity(f"{CASES}:step", 0) is Quantity.STEP
    assert default_quantity(f"{CASES}:problem", 0) is Quantity.EIGENVALUES
    assert default_quantity("mnist_mlp", 0) is Quantity.EIGENVALUES
    with pytest.raises(UsageError, match="raised RuntimeError: no weights"):
        default_quantity(f"{CASES}:raises", 0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    return group_runner("critical-batch", monkeypatch, capsys)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--curvature", "mc"), "--curvature mc: a training step has none; leave the option out"),
        (("--dtype", "float64"), "--dtype float64: a training step has none"),
        (("--calls", 2), "--calls 2: must be at least 3, as an optimizer's state appears"),
    ],
)
def test_options_that_a_step_has_not_are_refused(
    run: Run, options: tuple[object, ...], line: str
) -> None:
    done = run("search", f"{CASES}:step", "--quantity", "step", *options)
    assert done.code == 2
    assert line in done.err


def test_calls_are_of_steps_alone(run: Run) -> None:
    done = run("search", "mnist_mlp", "--calls", 4)
    assert (done.code, "--calls 4: of a training step" in done.err) == (2, True)
    done = run("search", "mnist_mlp", "--quantity", "step")
    assert (done.code, "mnist_mlp is no path/to/file.py:function" in done.err) == (2, True)


@pytest.mark.models
@pytest.mark.parametrize("name", ["resnet18_step", "transformer_step"])
def test_the_size_that_is_found_trains(run: Run, name: str) -> None:
    """Twenty steps of a residual network and of a transformer under the budget of the search."""
    problem, limit = f"{EXAMPLES / name}.py:step", 768 * MIB
    done = run("search", problem, "--memory-limit", "768MiB", "--threads", 1, "--format", "json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["stopped_by"] == "memory"
    cell = make_cell(problem, quantity=Quantity.STEP, threads=1, calls=20)
    n = found["critical_batch_size"]
    assert n > 8
    twenty = run_trial(cell.spec(n, limit_bytes=limit), 1_800.0).trial
    assert twenty.outcome is Outcome.FITS, twenty.message
