"""What a noise run does on a CUDA device, as far as a CPU can show it."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from noise_cases import CHOICES, contents, with_changes, write_tiny
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import vivit_bench.noise.data as noise_data
import vivit_bench.noise.runner as runner
import vivit_bench.noise.training as training
from vivit_bench.errors import UsageError
from vivit_bench.noise import Listener, load_run, run_noise
from vivit_bench.noise.data import RunData, is_small_for, load_run_data
from vivit_bench.noise.deterministic import WORKSPACE, deterministic
from vivit_bench.problems import DataSource, load_problem
from vivit_bench.store import environment, provenance

FACTS = {"gpu": "H100", "gpu_bytes": 85, "cuda": "13.0", "cudnn": 91900, "driver": "580.1"}


@pytest.fixture(autouse=True)
def _problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(WORKSPACE, raising=False)
    write_tiny(tmp_path)


class Notes(Listener):
    """Keeps what is told, and interrupts the training after a step."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.notes = at, list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stepped(self, step: int, loss: float) -> None:
        if step == self.at:
            raise KeyboardInterrupt


def put() -> None:
    """An operation that has no deterministic algorithm, on no device."""
    torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))


class PutsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        put()
        return grad * 2


def flags() -> tuple[Any, ...]:
    memory: Any = torch.utils.deterministic
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        memory.fill_uninitialized_memory,
        torch.is_warn_always_enabled(),
        os.environ.get(WORKSPACE),
    )


@pytest.mark.parametrize("config", [None, ":16:8"])
def test_flags_are_set_inside_and_put_back_whatever_happens(
    monkeypatch: pytest.MonkeyPatch, config: str | None
) -> None:
    if config is not None:
        monkeypatch.setenv(WORKSPACE, config)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = flags()
    inside = list[tuple[Any, ...]]()

    def fails() -> None:
        inside.append(flags())
        raise KeyError

    with pytest.raises(KeyError), deterministic(print):
        fails()
    assert inside == [(True, True, True, False, False, True, config or ":4096:8")]
    assert flags() == before
    torch.use_deterministic_algorithms(True)
    try:
        with deterministic(print):
            put()  # the user's own mode would refuse it
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


CUBLAS = (
    "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
    "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic "
    "because it uses CuBLAS and you have CUDA >= 10.2."
)
ATTENTION = "Memory Efficient attention defaults to a non-deterministic algorithm. To explicitly"


def test_what_does_not_repeat_is_told_once_and_other_warnings_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = list[str]()
    x = torch.ones(3, requires_grad=True)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("error")  # as under python -W error
        warnings.filterwarnings("default", message="of the user")
        with deterministic(found.append):
            for _ in range(2):
                nn.functional.max_unpool2d(torch.ones(1, 1, 1, 1), torch.tensor([[[[3]]]]), 2)
                PutsBackward.apply(x).sum().backward()
                warnings.warn(CUBLAS, UserWarning, stacklevel=1)
                warnings.warn(ATTENTION, UserWarning, stacklevel=1)
            warnings.warn("of the user", UserWarning, stacklevel=1)
    assert [str(each.message) for each in shown] == ["of the user"]
    assert found == [
        "max_unpooling2d_forward_out",
        "put_",
        "cuBLAS (it started without CUBLAS_WORKSPACE_CONFIG=:4096:8)",
        "Memory Efficient attention defaults to a non-deterministic algorithm. To expl...",
    ]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs on the CPU are taken for runs on a device of these facts, which can be changed."""
    facts = dict(FACTS)

    def environment_there(*args: Any, device: str, **others: Any) -> dict[str, Any]:
        there = "cuda:0" if runner._is_cuda(torch.device(device)) else device
        return environment(*args, device=there, **others)

    monkeypatch.setattr(runner, "_is_cuda", lambda device: True)
    monkeypatch.setattr(runner, "environment", environment_there)
    monkeypatch.setattr(sys.modules[provenance.__module__], "_gpu", lambda device: facts)
    return facts


def test_a_run_that_repeats_says_so_and_is_the_same(
    tmp_path: Path, cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set[tuple[Any, ...]]()
    step = training.Training._train_step

    def spying(self: training.Training, batch: torch.Tensor) -> float:
        seen.add(flags())
        return step(self, batch)

    monkeypatch.setattr(training.Training, "_train_step", spying)
    before = flags()
    run = run_noise(CHOICES, tmp_path, name="device")
    assert run.stored.results["deterministic"] is True
    assert run.stored.results["not_deterministic"] == []
    assert {name: run.stored.environment[name] for name in FACTS} == FACTS
    assert run.stored.environment[WORKSPACE] == ":4096:8"
    assert seen == {(True, True, True, False, False, True, ":4096:8")}
    assert flags() == before
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_is_cuda", lambda device: False)
        seen.clear()
        plain = run_noise(CHOICES, tmp_path, name="cpu")
    assert contents(plain.folder) == contents(run.folder)
    assert seen == {before}
    assert set(plain.stored.results) == {"sizes", "timing"}
    assert not {*FACTS, WORKSPACE} & set(plain.stored.environment)


def test_what_does_not_repeat_is_in_the_record_whenever_it_was_seen(
    tmp_path: Path, cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before an interruption alone, it still counts for the whole run."""
    listener = Notes(at=10)
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", lambda *a: (put(), (0.5, 0.5))[1])
        with pytest.raises(KeyboardInterrupt):
            run_noise(CHOICES, tmp_path, name="run", listener=listener)
    told = [note for note in listener.notes if note.startswith("not bit for bit")]
    assert len(told) == 1
    assert "put_ has no deterministic algorithm" in told[0]
    under_way = load_run(tmp_path / "noise" / "run").stored.results
    assert under_way["deterministic"] is False
    run = run_noise(CHOICES, tmp_path, name="run")
    assert run.stored.is_finished
    assert run.stored.results["deterministic"] is False
    assert run.stored.results["not_deterministic"] == ["put_"]
    assert run.stored.results["timing"]


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("name", [*FACTS, WORKSPACE])
def test_a_run_of_another_card_or_driver_is_neither_continued_nor_returned(
    tmp_path: Path,
    cuda: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    finished: bool,
) -> None:
    choices = with_changes(epochs=1, checkpoints=2)
    if finished:
        run_noise(choices, tmp_path, name="run")
    else:
        with pytest.raises(KeyboardInterrupt):
            run_noise(choices, tmp_path, name="run", listener=Notes(at=3))
    if name == WORKSPACE:
        monkeypatch.setenv(WORKSPACE, "other")
    else:
        cuda[name] = "other"
    with pytest.raises(UsageError, match=rf"conditions \({name} .* -> other\)") as refused:
        run_noise(choices, tmp_path, name="run")
    assert "\n" not in str(refused.value)


def test_cuda_and_cuda_0_are_one_setting() -> None:
    problem = load_problem("tiny.py:tiny")
    data = load_run_data(problem, DataSource.OWN, None, 0)
    chosen = runner.hyperparameters("tiny.py:tiny", CHOICES.optimizer, 0.05, None)
    settings = [
        runner.resolve(with_changes(device=name), chosen, problem, data, DataSource.OWN).record()
        for name in ("cuda", "cuda:0", "cuda:00")
    ]
    assert settings[0] == settings[1] == settings[2]
    assert settings[0]["device"] == "cuda:0"


@pytest.mark.parametrize(("free", "small"), [(800, True), (799, False)])
def test_a_data_set_is_small_below_an_eighth_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, free: int, small: bool
) -> None:
    asked = list[torch.device]()

    def mem_get_info(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return free, 10**6

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    assert is_small_for(torch.device("cuda:1"), 100) is small
    assert asked == [torch.device("cuda:1")]
    assert not is_small_for(torch.device("cpu"), 100)
    assert len(asked) == 1


def small_data() -> RunData:
    return load_run_data(load_problem("tiny.py:tiny"), DataSource.OWN, None, seed=0)


class Devices(TorchDispatchMode):
    """Notes every operation between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.crossing = list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = torch.utils._pytree.tree_leaves((args, kwargs, out))
        devices = {t.device.type for t in tensors if isinstance(t, torch.Tensor)}
        if len(devices) > 1:
            self.crossing.append(str(func))
        return out


def test_samples_on_a_device_make_batches_there_without_a_copy() -> None:
    data = small_data()
    assert data.num_bytes == 160 * (6 * 4 + 8) + 16 * (6 * 4 + 8)
    there = data.on(torch.device("meta"))
    with Devices() as seen:
        batches = there.epoch(0, 1, 16)
    assert len(seen.crossing) == 1  # the order, once an epoch
    with Devices() as seen:
        samples = [there.samples(batch) for batch in batches]
        others = [there.test, there.train_subset(), there.monitor_batch(4)]
    assert seen.crossing == []
    assert len(samples) == 8
    assert all(t.is_meta for pair in [*samples, *others] for t in pair)
    with Devices() as seen:  # and the mode does see copies
        there.samples(data.epoch(0, 1, 16)[0])
    assert seen.crossing


def test_batches_of_samples_on_a_device_are_the_same() -> None:
    data = small_data()
    there = data.on(torch.device("cpu"))
    for a, b in zip(data.epoch(3, 2, 16), there.epoch(3, 2, 16), strict=True):
        assert torch.equal(a, b)
        assert all(map(torch.equal, data.samples(a), there.samples(b)))
    for x, y in (
        (data.test, there.test),
        (data.train_subset(), there.train_subset()),
        (data.monitor_batch(5), there.monitor_batch(5)),
    ):
        assert all(map(torch.equal, x, y))


@pytest.mark.parametrize("small", [True, False])
def test_a_training_keeps_small_data_on_its_device_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    expected = contents(run_noise(CHOICES, tmp_path, name="whole").folder)
    moved, on = list[torch.device](), noise_data.RunData.on

    def moving(self: RunData, device: torch.device) -> RunData:
        moved.append(device)
        return on(self, device)

    monkeypatch.setattr(noise_data.RunData, "on", moving)
    monkeypatch.setattr(training, "is_small_for", lambda device, size: small)
    listener = Notes()
    run = run_noise(CHOICES, tmp_path, name="run", listener=listener)
    assert contents(run.folder) == expected
    assert moved == [torch.device("cpu")] * small
    assert ("all samples are kept on cpu: 5.5 KiB" in listener.notes) is small


def test_only_the_random_state_of_the_run_s_device_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another number of devices is no damage, and other devices are left alone."""
    from vivit_bench.noise import records

    states = {torch.device("cuda:1"): torch.tensor([7], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", states.__getitem__)
    kept = records._random_states(torch.device("cuda:1"))
    assert records._random_states(torch.device("cpu"))["cuda"] == []
    put_back = list[tuple[int, torch.device]]()
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: put_back.append((int(state), device))
    )
    records._set_random_states(kept, torch.device("cuda:1"))
    assert put_back == [(7, torch.device("cuda:1"))]
