"""Predictions: what is known of made-up engines is found, and what a real plan says arrives."""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from command_line import group_runner

from vivit_bench.critical_batch import Cell, Prediction, make_cell, predict_cell
from vivit_bench.critical_batch.guide import PlannedPeaks
from vivit_bench.critical_batch.needs import FittedNeed, PlannedNeed, largest, predict
from vivit_bench.critical_batch.predict import is_of_memory
from vivit_bench.curvature.options import Precision, Samples
from vivit_bench.errors import VivitBenchError
from vivit_bench.measure import Observation, Outcome, Spec
from vivit_bench.measure.planning import PlanWork
from vivit_bench.measure.protocol import Measured, Ready, TrialReport
from vivit_bench.peers import OF_ENGINES, Quantity
from vivit_bench.report.critical_batch import predictions_table
from vivit_bench.report.tables import TableFormat, render

MIB = 2**20
STEPS = Path(__file__).with_name("step_cases.py")
SIZES = [1, 2, 4, 8, 16, 32, 40, 48, 56, 64]


def bent(n: int) -> float:
    return (5 + 3 * n + 0.02 * n * n) * MIB


def test_largest_is_the_last_that_is_within() -> None:
    assert largest(bent, int(bent(77)) + 1, 1000) == 77
    assert largest(bent, int(bent(77)) + 1, 50) == 50
    assert largest(bent, 1, 1000) == 0


def test_a_quadratic_is_continued() -> None:
    need = FittedNeed([(n, int(bent(n))) for n in SIZES])
    for n in (100, 1000):
        assert abs(need.at(n) - bent(n)) <= need.margin(n)
        assert need.at(n) == pytest.approx(bent(n), rel=0.01)


def test_a_line_is_not_bent_down_by_noise() -> None:
    """Peaks that rise ever less would let any batch fit."""
    points = [(n, int((10 + 2 * n - 0.004 * n * n) * MIB)) for n in SIZES]
    need = FittedNeed(points)
    assert need.at(10_000) > 1_000 * MIB


def stepped(n: int) -> float:
    """Of work whose curvature takes one sample in eight, much more than the gradient of each."""
    return (20 + 5 * n + 300 * max(n // 8, 1)) * MIB


@pytest.mark.parametrize("sizes", [[4, 8, 12, 16], [16, 32, 52, 64]])
def test_an_eighth_of_the_samples_is_continued_in_its_steps(sizes: list[int]) -> None:
    need = FittedNeed([(n, int(stepped(n))) for n in sizes], Samples.FRAC)
    for n in (17, 51, 55, 56, 400):
        assert need.at(n) == pytest.approx(stepped(n), rel=0.01)
    found, low, high = predict(need, int(stepped(51)), 10_000)
    assert low <= 51 <= high <= 55
    assert found in (50, 51)
    with pytest.raises(ValueError, match="as many curvature samples"):
        FittedNeed([(n, int(stepped(n))) for n in (1, 4, 8)], Samples.FRAC)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random, held, widths = np.random.default_rng(0), 0, []
    for _ in range(200):
        noise = random.normal(size=len(SIZES))
        points = [
            (n, int(bent(n) * (1 + 0.004 * z) + 0.5 * MIB * z))
            for n, z in zip(SIZES, noise, strict=True)
        ]
        found, low, high = predict(FittedNeed(points), int(bent(300)), 10_000)
        assert low <= found <= high
        held += low <= 300 <= high
        widths.append((high - low) / 300)
    assert held >= 180
    assert np.median(widths) < 0.15


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([], "0 small trials"),
        ([(1, 5), (2, 6)], "2 small trials"),
        ([(1, 9), (2, 8), (3, 9)], "do not rise"),
    ],
)
def test_peaks_that_tell_nothing_are_refused(points: list[tuple[int, int]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        FittedNeed(points)


def test_a_plan_is_shifted_up_by_what_trials_took_beside_and_never_down() -> None:
    planned = PlannedPeaks(((1, 10 * MIB), (1000, 1000 * MIB)))
    above = PlannedNeed(planned, (20.0 * MIB, 22.0 * MIB))
    below = PlannedNeed(planned, (-20.0 * MIB, -22.0 * MIB))
    assert above.at(1000) == pytest.approx(1021 * MIB)
    assert below.at(1000) == pytest.approx(1000 * MIB)
    wide = PlannedNeed(planned, (0.0, 200.0 * MIB))
    assert wide.margin(1000) > 5 * above.margin(1000)


@dataclass
class Fake:
    """A machine on which trials have known peaks; keeps what was asked."""

    largest: int = 10**6
    asked: list[Spec] = field(default_factory=list)
    peak: Callable[[int], float] = bent
    seconds_a_mib: float = 0.001

    def __call__(self, spec: Spec, timeout_seconds: float) -> Observation:
        self.asked.append(spec)
        if spec.work.endswith("PlanWork"):
            points = [[n, int(0.99 * bent(n))] for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
            limit = spec.arguments["memory_bytes"]
            digest = {
                "planned_peaks": points,
                "plans": [[n, int(0.99 * bent(n))] for n in spec.arguments["costs_of"]],
                "limited_by": "eigenvalues",
                "seconds": [[100, 5.0], [200, 20.0]],
            }
            report = TrialReport(digest=digest if limit > MIB else {"planned_peaks": points})
            return _observation(Outcome.FITS, report, None)
        if spec.n > self.largest:
            report = TrialReport(available_samples=self.largest)
            return _observation(Outcome.DATA, report, None, "the data end")
        seen = _observation(Outcome.FITS, TrialReport(), int(self.peak(spec.n)))
        seconds = self.seconds_a_mib * self.peak(spec.n) / MIB
        return replace(seen, measured=Measured(wall_seconds=seconds))


def _observation(
    outcome: Outcome, report: TrialReport, peak: int | None, message: str = ""
) -> Observation:
    return Observation(outcome, message, Ready(), Measured(), report, peak, peak, 0, "")


def cell(engine: str = "vivit-bench", quantity: Quantity = Quantity.EIGENVALUES) -> Cell:
    return make_cell("mnist_mlp", engine=engine, quantity=quantity, threads=1)


def run(fake: Fake, which: Cell, *memories: int, most: int = 10_000) -> list[tuple[int, ...]]:
    found = predict_cell(which, memories, max_batch=most, trial_timeout=60, run=fake)
    assert [each.memory_bytes for each in found] == list(memories)
    return [(each.low, each.critical_batch_size, each.high) for each in found]


def test_an_engine_with_a_plan_is_asked_for_it_and_tried_at_three_sizes() -> None:
    fake = Fake()
    memory = int(bent(200))
    ((low, found, high),) = run(fake, cell(), memory)
    assert low <= 200 <= high
    assert 195 < found < 205
    plan, *trials = fake.asked
    assert plan.arguments["memory_bytes"] == memory
    assert [spec.n for spec in trials] == [16, 32, 64]
    assert {spec.arguments["memory_bytes"] for spec in trials} == {memory}
    (told,) = predict_cell(cell(), [memory], max_batch=10**4, trial_timeout=60, run=fake)
    assert told.limited_by == "eigenvalues"
    assert told.step_seconds == pytest.approx(20 * (told.critical_batch_size / 200) ** 2)


def test_slow_small_trials_are_few() -> None:
    fake = Fake(seconds_a_mib=0.2)
    ((low, found, high),) = run(fake, cell(), int(bent(200)))
    assert [spec.n for spec in fake.asked[1:]] == [16]
    assert low <= 200 <= high
    assert found == pytest.approx(200, rel=0.05)


class SmallNetwork(Fake):
    """Whose first trials are hidden by what libraries keep; its plan sees a part of what grows."""

    factor = 2.0

    def __call__(self, spec: Spec, timeout_seconds: float) -> Observation:
        seen = super().__call__(spec, timeout_seconds)
        if seen.report is not None and seen.report.digest:
            sizes = [2**k for k in range(15)]
            told = {"planned_peaks": [[n, self.planned(n)] for n in sizes]}
            told["plans"] = [[n, self.planned(n)] for n in spec.arguments["costs_of"]]
            report = TrialReport(digest={**seen.report.digest, **told})
            return replace(seen, report=report)
        peak = max(int(self.factor * self.planned(spec.n)) - 11 * MIB, 36 * 2**10)
        return replace(seen, peak_bytes=peak)

    def planned(self, n: int) -> int:
        return 5 * MIB + 2_800 * n


@pytest.mark.parametrize("factor", [2.0, 1.0])
def test_where_small_trials_tell_nothing_larger_ones_show_by_what_a_plan_is_wrong(
    factor: float,
) -> None:
    fake = SmallNetwork(seconds_a_mib=0.0)
    fake.factor = factor
    memory = 40 * MIB
    ((low, found, high),) = run(fake, cell(), memory)
    assert [spec.n for spec in fake.asked[1:]] == [16, 32, 64, 1024, 4096]
    right = int(((memory + 11 * MIB) / factor - 5 * MIB) / 2_800)
    if right < 10_000:
        assert low <= right <= high
        assert high - low < 0.2 * right
    assert found == pytest.approx(min(right, 10_000), rel=0.02)
    # Less memory is not risked on a plan that may be wrong.
    run(fake := SmallNetwork(seconds_a_mib=0.0), cell(), 12 * MIB)
    assert [spec.n for spec in fake.asked[1:]] == [16, 32, 64]


@pytest.mark.parametrize("engine", ["vivit-bench", "backpack"])
def test_no_interval_contradicts_what_was_run(engine: str) -> None:
    """The plan says that three samples fit, and 16 did; or peaks that rise at the end."""

    def peak(n: int) -> float:
        return (1 + 15 * (n / 16) ** 4) * MIB

    ((low, found, high),) = run(Fake(peak=peak), cell(engine), 17 * MIB, most=16)
    assert (low, found, high) == (16, 16, 16)
    for low, found, high in run(Fake(peak=peak), cell("backpack"), 5 * MIB, 15 * MIB, most=16):
        assert 8 <= low <= found <= high < 16


def test_without_a_plan_peaks_are_continued_for_all_memories_at_once() -> None:
    fake = Fake()
    memories = [int(bent(n)) for n in (300, 900)]
    for n, (low, found, high) in zip(
        (300, 900), run(fake, cell("backpack"), *memories), strict=True
    ):
        assert low <= n <= high
        assert found == pytest.approx(n, rel=0.01)
    sizes = [spec.n for spec in fake.asked]
    assert sizes == [1, 4, 16, 64, 256, 128, 192]  # up to a quarter of the smaller memory
    assert {spec.arguments["memory_bytes"] for spec in fake.asked} == {None}


def test_small_trials_of_an_eighth_of_the_samples_take_a_step() -> None:
    """Each takes more than a quarter of the memory, but two samples' curvature must be seen."""
    fake = Fake(peak=stepped)
    frac = make_cell(
        "mnist_mlp",
        engine="backpack",
        quantity=Quantity.EIGENVALUES,
        samples=Samples.FRAC,
        threads=1,
    )
    ((low, found, high),) = run(fake, frac, int(stepped(23)))
    assert [spec.n for spec in fake.asked] == [1, 4, 16, 8, 12]
    assert low <= 23 <= high
    assert found in (22, 23)
    ((low, found, high),) = run(fake := Fake(peak=stepped), frac, int(stepped(1000)))
    assert [spec.n for spec in fake.asked] == [1, 4, 16, 64, 256, 128, 196]
    assert found == pytest.approx(1000, rel=0.01)


def test_the_data_s_end_ends_the_small_trials() -> None:
    (told,) = predict_cell(
        cell("backpack"), [int(bent(100))], max_batch=10**5, trial_timeout=60, run=Fake(largest=20)
    )
    assert (told.critical_batch_size, told.limited_by) == (20, "the end of the data")
    with pytest.raises(VivitBenchError, match="N = 4: the data end"):
        run(Fake(largest=3), cell("backpack"), int(bent(100)))


@pytest.mark.parametrize("engine", ["vivit-bench", "backpack"])
def test_a_memory_that_does_not_hold_one_sample_is_said_beside_others(engine: str) -> None:
    little, much = run(Fake(), cell(engine), MIB, int(bent(200)))
    assert little[:2] == (0, 0)
    assert little[2] < 10
    (told,) = predict_cell(cell(engine), [MIB], max_batch=100, trial_timeout=60, run=Fake())
    size = float(told.limited_by.removeprefix("one sample: ").removesuffix(" MiB"))
    assert size == pytest.approx(bent(1) / MIB, rel=0.03)
    assert is_of_memory(told.limited_by)
    assert much[0] <= 200 <= much[2]


def test_one_sample_may_be_all_that_is_asked_for() -> None:
    """A plan then has one point."""

    class Short(Fake):
        def __call__(self, spec: Spec, timeout_seconds: float) -> Observation:
            seen = super().__call__(spec, timeout_seconds)
            if seen.report is not None and seen.report.digest:
                seen.report.digest["planned_peaks"] = seen.report.digest["planned_peaks"][:1]
            return seen

    (told,) = predict_cell(cell(), [int(bent(200))], max_batch=1, trial_timeout=60, run=Short())
    assert (told.critical_batch_size, told.limited_by) == (1, "--max-batch")
    assert not is_of_memory(told.limited_by)
    assert told.holds_for(1)
    assert not told.holds_for(2)


def test_a_failure_is_no_end_of_small_trials() -> None:
    """Memory's, the data's or time's end is; what fails at N = 64 says nothing of larger N."""

    class Fails(Fake):
        outcome = Outcome.ERROR

        def __call__(self, spec: Spec, timeout_seconds: float) -> Observation:
            seen = super().__call__(spec, timeout_seconds)
            failed = replace(seen, outcome=self.outcome, message="the reason")
            return failed if spec.n == 64 else seen

    with pytest.raises(VivitBenchError, match="N = 64: the reason"):
        run(Fails(), cell("backpack"), int(bent(300)))
    ended = Fails()
    ended.outcome = Outcome.OUT_OF_MEMORY
    ((low, _, high),) = run(ended, cell("backpack"), int(bent(300)))
    assert [spec.n for spec in ended.asked] == [1, 4, 16, 64, 8, 12]
    assert low <= 300 <= high


def test_small_trials_are_no_larger_than_is_allowed() -> None:
    fake = Fake()
    ((low, found, high),) = run(fake, cell("backpack"), int(bent(200)), most=20)
    assert [spec.n for spec in fake.asked] == [1, 4, 16, 20, 10, 15]
    assert (low, found, high) == (20, 20, 20)


def test_small_trials_have_the_time_of_all_threads() -> None:
    given: list[float] = []

    def keep(spec: Spec, timeout_seconds: float) -> Observation:
        given.append(timeout_seconds)
        return Fake()(spec, timeout_seconds)

    which = make_cell("mnist_mlp", engine="backpack", threads=2)
    predict_cell(which, [int(bent(200))], max_batch=1000, trial_timeout=60, run=keep)
    assert set(given) == {120}


def test_a_real_plan_says_what_limits_and_how_long_it_takes() -> None:
    arguments = {**cell().work(), "memory_bytes": 32 * MIB}
    work = PlanWork(costs_of=(2, 4), **arguments)
    told = work.digest(work.run(64))
    assert json.loads(json.dumps(told)) == told
    assert [n for n, _ in told["plans"]] == [2, 4]
    assert all(MIB < size <= 32 * MIB for _, size in told["plans"])
    assert [n for n, _ in told["seconds"]] == [told["seconds"][-1][0] // 2, told["seconds"][-1][0]]
    assert all(seconds > 0 for _, seconds in told["seconds"])
    assert told["limited_by"]
    assert set(PlanWork(**arguments).run(4)) == {"planned_peaks"}  # type: ignore[call-overload]


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake, module = Fake(), importlib.import_module("vivit_bench.critical_batch.predict")
    real = module.predict_cell
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "vivit_bench.critical_batch.predict_cell", lambda *a, **k: real(*a, **k, run=fake)
    )
    command = group_runner("critical-batch", monkeypatch, capsys)
    memory = f"{int(bent(200)) // MIB}MiB"
    done = command("predict", "mnist_mlp", "--memory", memory, "--quantity", "all",
                   "--memory", "80GiB", "--format", "json")  # fmt: skip
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert [row["quantity"] for row in rows[::2]] == [
        each.value for each in Quantity if each in OF_ENGINES
    ]
    assert all(row["low"] <= row["critical_batch_size"] <= row["high"] for row in rows)
    assert rows[0]["curvature"] is None
    assert rows[2]["dtype"] == Precision.FLOAT32.value
    done = command("predict", "mnist_mlp", "--memory", memory, "--quantity", "gradient",
                   "--quantity", "eigenvalues", "--curvature", "exact", "--curvature", "mc",
                   "--samples", "full", "--samples", "frac", "--mc-samples", "2",
                   "--format", "json")  # fmt: skip
    assert done.code == 0, done.err
    assert [(row["curvature"], row["samples"], row["mc_samples"]) for row in json.loads(done.out)
            ] == [(None, None, None), ("exact", "full", 1), ("exact", "frac", 1),
                  ("mc", "full", 2), ("mc", "frac", 2)]  # fmt: skip
    told = command("predict", "mnist_mlp", "--memory", memory, "--memory", "80TiB")
    assert "is taken to hold the" in " ".join(told.out.split())
    assert list(tmp_path.iterdir()) == []  # nothing is stored

    def fails_for_the_gradient(which: Cell, *others: object, **options: object) -> object:
        if which.quantity is Quantity.GRADIENT:
            raise VivitBenchError("the reason")
        return real(which, *others, **options, run=fake)

    monkeypatch.setattr("vivit_bench.critical_batch.predict_cell", fails_for_the_gradient)
    done = command("predict", "mnist_mlp", "--memory", memory, "--quantity", "all",
                   "--format", "json")  # fmt: skip
    assert (done.code, len(json.loads(done.out))) == (1, len(OF_ENGINES) - 1)
    assert "vivit-bench: 1 not predicted: the reason" in done.err


def test_the_memory_of_a_training_step_is_its_process_s() -> None:
    step = make_cell(f"{STEPS}:step", quantity=Quantity.STEP, threads=1)
    told = Prediction(2**30, 10, 9, 11, "", None, None)
    (note,) = predictions_table([(step, told)], None).notes
    assert note.endswith("memory: whole process, without pages of files.")
    both = predictions_table([(step, told), (cell(), told)], None).notes[0]
    assert "pages of files, peak memory over the idle process" in both


@pytest.mark.parametrize(
    ("step", "search", "shown"),
    [(0.456, 30.0, ["0.46 s", "30 s"]), (31_200.0, 250_000.0, ["8 h 40 min", "69 h 27 min"])],
)
def test_times_are_for_people(step: float, search: float, shown: list[str]) -> None:
    made = predictions_table([(cell(), Prediction(2**30, 10, 9, 11, "", step, search))], None)
    text = render(made, TableFormat.TABLE, 200)
    assert all(time in text for time in shown)
    assert any("needs search --timeout" in note for note in made.notes) == (step > 1800)
    assert f"{step}," in render(made, TableFormat.CSV)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--memory", "0.5MiB"], "--memory 512 KiB: below 1 MiB"),
        (["--memory", "much"], "--memory 'much'"),
        (["--memory", "2"], "--memory 2: a unit is missing"),
        ([], "--memory"),
        (["--memory", "1GiB", "--engine", "bakpack"], "backpack"),
        (["--memory", "1GiB", "--quantity", "x"], "x"),
        (["--memory", "1GiB", "--mc-samples", "2"], "mc_samples is 2: exact"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(
    arguments: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = group_runner("critical-batch", monkeypatch, capsys)("predict", "mnist_mlp", *arguments)
    assert done.code == 2
    assert line in done.err
    assert "Traceback" not in done.err


def test_the_data_s_end_is_named_and_no_other_end_of_the_plan() -> None:
    told = [
        predict_cell(cell(), [memory], max_batch=10**5, trial_timeout=60, run=Fake())[0]
        for memory in (int(bent(250)), int(bent(500)))
    ]
    assert told[0].limited_by == "eigenvalues"
    assert told[0].high > 256  # where the made-up plan ends above the memory
    assert (told[1].critical_batch_size, told[1].limited_by) == (256, "the end of the data")


@pytest.mark.parametrize("engine", ["vivit-bench", "backpack"])
def test_the_largest_size_allowed_is_named(engine: str) -> None:
    (told,) = predict_cell(
        cell(engine), [int(bent(200))], max_batch=70, trial_timeout=60, run=Fake()
    )
    assert (told.critical_batch_size, told.limited_by) == (70, "--max-batch")
