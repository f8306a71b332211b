"""The one table of networks and batches that every curvature quantity is tested on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from oracle import Dense, dense
from torch import Tensor, nn

from vivit_bench.curvature import tuning


class Residual(nn.Module):
    """A residual block whose sum is taken in place, and a module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        y = self.norm(self.conv(y))
        y += x
        return self.head(torch.relu_(y).flatten(1))


class Tied(nn.Module):
    """Two layers that share one weight, and a bare parameter of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))) * self.scale


class Frames(nn.Module):
    """A convolution over several images a sample, which it sees as so many more samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        return self.head(y.mean(1).flatten(1))


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    samples: int = 6
    mse: bool = False
    adapt: Callable[[nn.Module, Tensor, Tensor], None] | None = None
    """Changes model, inputs and targets in place."""

    def build(self, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
        torch.manual_seed(0)
        model = self.make()
        inputs = torch.randn(self.samples, *self.shape)
        model.train()
        with torch.no_grad():
            outputs = model(torch.randn(8, *self.shape))
        model.eval()
        loss: nn.Module = nn.MSELoss() if self.mse else nn.CrossEntropyLoss()
        targets = (
            torch.randn(self.samples, *outputs.shape[1:])
            if self.mse
            else torch.randint(self.classes, (self.samples,))
        )
        model, inputs = model.to(dtype), inputs.to(dtype)
        targets = targets.to(dtype) if self.mse else targets
        if self.adapt is not None:
            with torch.no_grad():
                self.adapt(model, inputs, targets)
        return model, loss, inputs, targets


@cache
def reference_of(case: Case, dtype: torch.dtype = torch.float64) -> Dense:
    """The dense oracle of a case, made once; nobody writes to it."""
    return dense(*case.build(dtype))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(3, 4, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.Sigmoid(),
        nn.Linear(5, 4),
    )


def _many_layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2),
        nn.GELU(),
        nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 2, 2),
        nn.PReLU(),
        nn.GroupNorm(1, 2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(8),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    )


def _mlp(inputs: int = 4, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, classes))


def _duplicate(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    inputs[1:3] = inputs[0]
    targets[1:3] = targets[0]


def _dead(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    model[0].bias.fill_(-100.0)  # type: ignore[index,union-attr,operator]


def _saturate(gap: float, flip: bool) -> Callable[[nn.Module, Tensor, Tensor], None]:
    """Sample 0 predicts class 0 with a logit gap, and its label is 0, or 1 (flip)."""

    def adapt(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        targets[0] = int(flip)
        inputs[0] = torch.nn.functional.one_hot(torch.tensor(0), inputs.shape[1])
        model.weight[:, 0] = torch.tensor([gap, 0.0, 0.0])  # type: ignore[index,operator]
        model.bias.zero_()  # type: ignore[union-attr,operator]

    return adapt


def _compete(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Two classes compete for sample 0, whose label is the last and all but impossible."""
    _saturate(37.0, False)(model, inputs, targets)
    targets[0] = 2
    model.weight[1, 0] = 36.0  # type: ignore[index,operator]


def _freeze(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    model[4].weight.requires_grad_(False)  # type: ignore[index,union-attr]
    model[0].requires_grad_(False)  # type: ignore[index,union-attr]


CASES = [
    Case("cnn", _cnn, (2, 7, 7), 4),
    Case("cnn-mse", _cnn, (2, 7, 7), 4, mse=True),
    Case("many-layers", _many_layers, (2, 5, 5), 3),
    Case(
        "conv1d",
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3, dilation=2, padding="same"),
            nn.Tanh(),
            nn.MaxPool1d(2),
            nn.Flatten(),
            nn.Linear(9, 3),
        ),
        (2, 6),
        3,
    ),
    Case(
        "conv3d",
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(2, 3)),
        (1, 3, 3, 3),
        3,
    ),
    Case("residual-reused", Residual, (2, 4, 4), 3),
    Case("tied-weights", Tied, (4,), 4),
    Case("one-sample", _cnn, (2, 7, 7), 4, samples=1),
    Case("two-classes", lambda: _mlp(classes=2), (4,), 2),
    Case("more-columns-than-parameters", lambda: nn.Linear(2, 3, bias=False), (2,), 3, samples=9),
    Case("duplicates", _mlp, (4,), 3, adapt=_duplicate),
    Case("dead-relus", _cnn, (2, 7, 7), 4, adapt=_dead),
    Case("frozen-layers", _cnn, (2, 7, 7), 4, adapt=_freeze),
    Case("saturated-right", lambda: nn.Linear(4, 3), (4,), 3, adapt=_saturate(16.0, False)),
    Case("saturated-wrong", lambda: nn.Linear(4, 3), (4,), 3, adapt=_saturate(69.0, True)),
    Case("unlikely-last", lambda: nn.Linear(4, 3), (4,), 3, adapt=_compete),
    Case("underflow", lambda: nn.Linear(4, 3), (4,), 3, adapt=_saturate(900.0, True)),
    Case("frames", Frames, (3, 3, 2, 2), 3),
    Case(
        "few-parameters-in-two-layers",
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3)),
        (2,),
        3,
        samples=12,
    ),
    Case("free-axis-mse", lambda: nn.Linear(3, 2), (4, 3), 8, mse=True),
    Case(
        "sequence-linear",
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)),
        (4, 3),
        3,
    ),
]


def case(name: str) -> Case:
    """The case of this name."""
    return next(each for each in CASES if each.name == name)


def small_mlp() -> nn.Module:
    """Three inputs, three outputs: where the network is not the point."""
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def tuned(**sizes: float) -> tuple[str, tuning.Tuning]:
    """Target and value for monkeypatch: other sizes on the CPU."""
    return "vivit_bench.curvature.tuning.CPU", replace(tuning.CPU, **sizes)  # type: ignore[arg-type]
