"""Comparisons on a CUDA device, as far as a CPU can show them."""

import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run, group_runner
from test_scaling import PowerLaws

from vivit_bench.comparison import compare, floor
from vivit_bench.measure import Observation, Reading, Spec

DIGITS = f"{Path(__file__).parent.parent / 'scripts/examples/small_cnn.py'}:digits"


class Watched(PowerLaws):
    """Keeps what every process is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Spec, float]] = []

    def __call__(self, spec: Spec, timeout_seconds: float) -> Observation:
        self.asked.append((spec, timeout_seconds))
        return super().__call__(spec, timeout_seconds)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    monkeypatch.setattr(compare, "measure", watched)
    return watched


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    command = group_runner("compare-engines", monkeypatch, capsys)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def typed(*arguments: object) -> Any:
        common = ("--repeats", 2, "--threads", 1, "--timeout", 60, "--results-dir", tmp_path)
        return command("mnist_mlp", *common, *arguments)

    return typed


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vivit_bench.hardware.parse_device", lambda text: "cuda:0")


def test_a_device_that_is_not_there_is_refused_before_anything_is_run(
    run: Run, fake: Watched, tmp_path: Path
) -> None:
    ended = run("--device", "cuda")
    assert ended.code == 2
    assert "--device cuda: PyTorch sees no CUDA device here; use --device cpu" in ended.err
    assert not fake.asked
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_device")
def test_times_on_a_device_are_of_a_second_run_and_memory_is_of_the_first(
    run: Run, fake: Watched
) -> None:
    assert run("--device", "cuda", "--batch-size", 4).code == 0
    assert {spec.device for spec, _ in fake.asked} == {"cuda:0"}
    assert {spec.arguments["device"] for spec, _ in fake.asked} == {"cuda:0"}
    warm = [(spec.reading, spec.warm_runs, seconds) for spec, seconds in fake.asked]
    assert warm == 2 * [(Reading.MEMORY, 0, 60.0)] + 4 * [(Reading.TIME, 1, 120.0)]


def test_times_on_the_cpu_are_of_the_first_run(run: Run, fake: Watched, tmp_path: Path) -> None:
    ended = run("--batch-size", 4)
    assert {(spec.device, spec.warm_runs, s) for spec, s in fake.asked} == {("cpu", 0, 60.0)}
    assert "second run" not in ended.out
    (header,) = tmp_path.glob("comparison/*/run.json")
    assert header.parent.name.startswith("mnist_mlp_eigenvalues_exact_full_n4-")


@pytest.mark.usefixtures("one_device")
def test_the_device_is_part_of_the_key_and_of_what_is_told(
    run: Run, fake: Watched, tmp_path: Path
) -> None:
    alone = " ".join(run("--device", "cuda", "--batch-size", 4).out.split())
    assert "Peak: memory of cuda:0 over the idle process." in alone
    assert "of a second run of the same N in its process" in alone
    several = " ".join(run("--device", "cuda:0", "--batch-size", "2,4,8").out.split())
    assert several.startswith("mnist_mlp: eigenvalues, exact, full, data synthetic; cuda:0 (")
    assert "Peak: memory of cuda:0" in several
    headers = [json.loads(path.read_text()) for path in tmp_path.glob("comparison/*/run.json")]
    assert sorted(each["settings"]["batch_size"] for each in headers) == [2, 4, 8]
    assert {each["settings"]["device"] for each in headers} == {"cuda:0"}
    assert all("gpu" in each["environment"] for each in headers)
    names = [path.name for path in tmp_path.glob("comparison/*")]
    assert sum("_n4_cuda-0-" in name for name in names) == 1
    stored = json.loads(run("--stored", "--format", "json").out)
    assert {row["device"] for row in stored} == {"cuda:0"}


def test_the_floor_is_measured_on_the_device_between_synchronisations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Products that are launched only, and done when somebody waits for the device."""
    clock, launched, sizes = [0.0], [0.0], list[int]()

    def launching(real: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def launch(*arguments: Any, **options: Any) -> Any:
            launched[0] += seconds
            sizes.append(len(arguments[0]))
            return real(*arguments, **options)

        return launch

    def synchronise(device: str) -> None:
        assert device == "cuda:1"
        clock[0] += launched[0]
        launched[0] = 0.0

    def here(real: Callable[..., Any]) -> Callable[..., Any]:
        def make(*size: int, device: str, **options: Any) -> Any:
            assert device == "cuda:1"
            return real(*size, **options)

        return make

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "synchronize", synchronise)
    monkeypatch.setitem(floor.GEMM_SIZES, "cuda", 16)
    monkeypatch.setattr(torch, "randn", here(torch.randn))
    monkeypatch.setattr(torch, "eye", here(torch.eye))
    monkeypatch.setattr(torch, "mm", launching(torch.mm, 2.0))
    monkeypatch.setattr(torch.linalg, "eigvalsh", launching(torch.linalg.eigvalsh, 3.0))
    assert floor.gemm_rate("cuda:1") == 2 * 16**3 / 2.0
    assert sizes == 7 * [16]
    assert floor.eigensolver_seconds(5, "cuda:1") == 3.0
    assert sizes[7:] == [2, 5]  # the first loads the solver


def test_the_floor_is_asked_for_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Spec]()

    def measure(spec: Spec, timeout_seconds: float) -> Observation:
        asked.append(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr(floor, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        floor.measure_floor({"device": "cuda:1"}, 8, 1)
    assert asked[0].device == "cuda:1"


def test_every_command_that_computes_takes_a_device() -> None:
    """It is one that takes threads; a sweep's tables name their devices themselves."""
    main_module = importlib.import_module("vivit_bench.cli.main")
    modules = {**main_module._GROUPS, "compare-engines": "vivit_bench.cli.compare"}
    without, computing = set[str](), set[str]()
    for group, module in modules.items():
        loaded = importlib.import_module(module)
        commands = (
            {c.name or c.callback.__name__: c.callback for c in loaded.app.registered_commands}
            if hasattr(loaded, "app")
            else {"": loaded.compare_engines}
        )
        for name, function in commands.items():
            options = inspect.signature(function).parameters
            if "threads" in options:
                computing.add(f"{group} {name}".strip())
                if "device" not in options:
                    without.add(f"{group} {name}")
    assert {"compare-engines", "noise run", "curvature newton", "spectrum compute"} <= computing
    assert without == {"critical-batch sweep"}
