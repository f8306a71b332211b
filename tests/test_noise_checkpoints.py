"""Where the monitor looks: the grammar of ``--at`` and log-spaced schedules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vivit_bench.errors import UsageError
from vivit_bench.noise import OptimizerName, log_spaced, parse_positions, resolve_positions
from vivit_bench.noise.settings import hyperparameters, released_learning_rate


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("0,100steps,5epochs", (0, 60, 100)),
        (" 1step , 1epoch ", (1, 12)),
        ("0.5epochs,end,3epochs,36steps", (6, 36, 120)),
        ("0epochs,0", (0,)),
    ],
)
def test_positions(text: str, steps: tuple[int, ...]) -> None:
    assert resolve_positions(parse_positions(text), steps_per_epoch=12, total_steps=120) == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no checkpoint"),
        (",", "names no checkpoint"),
        ("100", "write 100steps or 100epochs"),
        ("5epocs", "'5epocs' is not understood: write e.g. 0,100steps"),
        ("-3steps", "not understood"),
        ("1.5steps", "no whole number of steps"),
        ("0;1epoch", "not understood"),
    ],
)
def test_what_is_no_position_gets_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        parse_positions(text)
    assert "\n" not in str(refused.value)


def test_a_position_after_the_end_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--at 11epochs is step 132, after the last step 120"):
        resolve_positions(parse_positions("0,11epochs"), steps_per_epoch=12, total_steps=120)


@given(st.integers(1, 10**6), st.integers(2, 60))
def test_log_spaced_has_all_its_checkpoints_from_the_start_to_the_end(
    total: int, count: int
) -> None:
    if count > total + 1:
        with pytest.raises(UsageError, match=f"give at most {total + 1}"):
            log_spaced(total, count)
        return
    steps = log_spaced(total, count)
    assert len(steps) == len(set(steps)) == count
    assert list(steps) == sorted(steps)
    assert (steps[0], steps[-1]) == (0, total)


def test_log_spaced_ratios_are_even_where_whole_numbers_allow() -> None:
    assert log_spaced(10_000, 6) == (0, 1, 10, 100, 1000, 10_000)
    with pytest.raises(UsageError, match="at least 2"):
        log_spaced(100, 1)


@pytest.mark.parametrize(
    ("problem", "optimizer", "lr"),
    [
        ("cifar10_3c3d", "sgd", 0.00379269019073225),
        ("cifar10_3c3d", "adam", 0.00029763514416313193),
        ("fmnist_2c2d", "sgd", 0.02069138081114788),
        ("fmnist_2c2d", "adam", 0.00012742749857031334),
        ("cifar100_allcnnc", "sgd", 0.04832930238571752),
        ("cifar100_allcnnc", "adam", 0.0006951927961775605),
        ("mnist_2c2d", "sgd", 0.02069138081114788),
    ],
)
def test_hyperparameters_are_the_released_ones(problem: str, optimizer: str, lr: float) -> None:
    chosen = hyperparameters(problem, OptimizerName(optimizer))
    assert chosen.lr == lr
    assert chosen.momentum == (0.9 if optimizer == "sgd" else None)
    assert chosen.betas == (None if optimizer == "sgd" else (0.9, 0.999))
    assert ("fmnist_2c2d, the same network" in chosen.source) == (problem == "mnist_2c2d")


def test_the_users_values_go_first_and_are_checked() -> None:
    chosen = hyperparameters("mnist_mlp", OptimizerName.SGD, lr=0.5, momentum=0.0)
    assert (chosen.lr, chosen.momentum, chosen.source) == (0.5, 0.0, "as given")
    assert released_learning_rate("mnist_mlp", OptimizerName.SGD) is None
    for lr, momentum, message in (
        (None, None, "give one with --lr"),
        (0.0, None, "positive"),
        (float("inf"), None, "positive"),
        (0.1, 1.0, "from 0 up to, not including, 1"),
    ):
        with pytest.raises(UsageError, match=message):
            hyperparameters("mnist_mlp", OptimizerName.SGD, lr, momentum)
    with pytest.raises(UsageError, match="is of sgd: leave it out"):
        hyperparameters("mnist_mlp", OptimizerName.ADAM, 0.1, 0.5)
