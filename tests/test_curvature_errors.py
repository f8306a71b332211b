"""What cannot be computed is refused in one line, before any long computation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vivit_bench.curvature import eigenvalues, inverse_product, newton_step
from vivit_bench.errors import UsageError


class Overwritten(nn.Module):
    """Changes a layer's input after the layer used it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        y = self.first(x)
        x.add_(1)
        return self.second(y + x)


class Tuple(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x), x)  # type: ignore[return-value]


def _nan(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
    return model


LINEAR: Callable[[], nn.Module] = lambda: nn.Linear(2, 2)  # noqa: E731
X, Y = torch.randn(3, 2), torch.tensor([0, 1, 1])
CE = nn.CrossEntropyLoss()

REFUSED = [
    ("nan parameter", lambda: _nan(LINEAR()), CE, X, Y, "parameter 'weight' contains NaN"),
    ("nan input", LINEAR, CE, X * torch.nan, Y, "inputs contain NaN"),
    ("empty", LINEAR, CE, X[:0], Y[:0], "mini-batch is empty"),
    ("lengths", LINEAR, CE, X, Y[:2], "3 inputs but 2 targets"),
    ("dtype", LINEAR, CE, X.double(), Y, "inputs are torch.float64, parameters torch.float32"),
    ("float labels", LINEAR, CE, X, Y.float(), "needs integer class labels"),
    ("label range", LINEAR, CE, X, Y + 1, "labels lie in"),
    ("int targets", LINEAR, nn.MSELoss(), X, torch.ones(3, 2).long(), "floating-point targets"),
    ("mse shape", LINEAR, nn.MSELoss(), X, torch.ones(3), "do not match outputs"),
    ("half", lambda: LINEAR().half(), CE, X.half(), Y, "use model.float"),
    ("frozen", lambda: LINEAR().requires_grad_(False), CE, X, Y, "no parameter with requires_grad"),
    ("loss", LINEAR, nn.L1Loss(), X, Y, "loss L1Loss is not supported"),
    ("reduction", LINEAR, nn.CrossEntropyLoss(reduction="none"), X, Y, "reduction is 'none'"),
    ("dropout", lambda: nn.Sequential(LINEAR(), nn.Dropout()), CE, X, Y, "call model.eval"),
    ("batch norm", lambda: nn.Sequential(LINEAR(), nn.BatchNorm1d(2)), CE, X, Y, "model.eval"),
    ("statistics", lambda: nn.Sequential(LINEAR(), nn.BatchNorm1d(2, track_running_stats=False)),
     CE, X, Y, "training mode|running statistics"),
    ("overwritten", Overwritten, CE, X, Y, "modified by an inplace operation"),
    ("tuple", lambda: nn.Sequential(Tuple(2, 2)), CE, X, Y, "must return one tensor"),
    ("raises", lambda: nn.Linear(3, 2), CE, X, Y, "one sample failed: RuntimeError"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "loss", "x", "y", "line"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused_in_one_line(
    make: Callable[[], nn.Module], loss: nn.Module, x: Tensor, y: Tensor, line: str
) -> None:
    with pytest.raises(UsageError, match=line) as caught:
        eigenvalues(make(), loss, x, y)
    assert "\n" not in str(caught.value)


class Masked(nn.Module):
    """Adds a mask of zeros and minus infinities to attention scores, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.layer(x["x"] * (x["scores"] + x["mask"]).softmax(1))


@pytest.mark.parametrize(
    ("value", "refused"), [(-torch.inf, False), (torch.inf, True), (torch.nan, True)]
)
def test_masks_may_be_minus_infinite_alone(value: float, refused: bool) -> None:
    mask = torch.zeros(3, 2)
    mask[0, 1] = value
    inputs = {"x": X, "scores": torch.ones(3, 2), "mask": mask}
    if refused:
        with pytest.raises(UsageError, match=r"'mask'.* contain NaN or infinity"):
            eigenvalues(Masked(), CE, inputs, Y)
    else:
        assert eigenvalues(Masked(), CE, inputs, Y).certificate is not None


def test_outputs_that_overflow() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(3e38)
    with pytest.raises(UsageError, match="not finite"):
        eigenvalues(model, CE, X * 100, Y)


def test_options() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="mc_samples is 0"):
        eigenvalues(model, CE, X, Y, curvature="mc", mc_samples=0)
    with pytest.raises(UsageError, match="damping is 0"):
        inverse_product(model, CE, X, Y, [], damping=0)
    finite = [torch.ones(2, 2), torch.tensor([0.0, torch.nan])]
    with pytest.raises(UsageError, match="vector 1 contains NaN"):
        inverse_product(model, CE, X, Y, [[torch.ones(2, 2), torch.ones(2)], finite], damping=1.0)
    with pytest.raises(UsageError, match="vector 0 has shapes"):
        inverse_product(model, CE, X, Y, [[torch.ones(3)]], damping=1.0)
    with pytest.raises(UsageError, match="cutoff is -1"):
        newton_step(model, CE, X, Y, cutoff=-1)
    with pytest.raises(UsageError, match="constant damping above 0"):
        newton_step(model, CE, X, Y, damping=0.0, cutoff=None)
    with pytest.raises(UsageError, match="damping policy returned"):
        newton_step(model, CE, X, Y, damping=lambda g, _: g[0] - 1e9)
