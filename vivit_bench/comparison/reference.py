"""A piece of work that never changes, timed right before and right after an engine's.

Machines drift by more than engines change: an occasion's seconds say little beside another's.
Seconds over those of the same matrix product, taken in the same process a moment before and after,
can be put beside those of another occasion.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vivit_bench.measure.work import EngineWork

if TYPE_CHECKING:
    from vivit_bench.curvature import Certificate

GEMM_SIZES = {"cpu": 2048, "cuda": 8192}
"""Rows of a matrix product that shows a device's rate; a GPU is done with a small one before the
next is launched."""
PRODUCTS = 3
"""Products of a reading."""

NAME = f"{__name__}:ReferencedWork"
"""As `vivit_bench.measure.work.load_work` takes it."""


@dataclass(frozen=True)
class Reference:
    """What the reference took, and which one it was; two are compared only if it is the same."""

    size: int
    """Rows and columns of the matrices, float32."""
    products: int
    """Matrix products of a reading."""
    wall_seconds: tuple[float, ...]
    """A reading before the work and one after it."""
    cpu_seconds: tuple[float, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Reference":
        """Rebuild what `dataclasses.asdict` and JSON made of it.

        Raises:
            TypeError: A field is missing or unknown.
        """
        lists = {name: tuple(values[name]) for name in ("wall_seconds", "cpu_seconds")}
        return cls(**{**values, **lists})

    @property
    def kind(self) -> tuple[int, int]:
        """What must be equal for two to be compared."""
        return self.size, self.products


class ReferencedWork(EngineWork):
    """An engine's work with the reference beside it; the work is as it is without.

    Args:
        most_seconds: That the reading after the work may take by that before; else there is no
            reference, as the child would be stopped for its time-out.
        arguments: Of `EngineWork`.
    """

    def __init__(self, *, most_seconds: float, **arguments: Any):
        import torch

        super().__init__(**arguments)
        self._device = torch.device(arguments["device"])
        self._size = GEMM_SIZES[self._device.type]
        self._most_seconds = most_seconds
        self._matrices = torch.randn(3, self._size, self._size, device=self._device)
        self._before = (0.0, 0.0)

    def warm_up(self) -> "Certificate | None":
        """See `Work`; the reading before is the last of the set-up."""
        certificate = super().warm_up()
        self._read(1)  # kernels and buffers
        self._before = self._read(PRODUCTS)
        return certificate

    def digest(self, result: object) -> dict[str, Any]:
        """See `Work`: the fields of `Reference`, or nothing."""
        if self._before[0] > self._most_seconds:
            return {}
        wall, cpu = zip(self._before, self._read(PRODUCTS), strict=True)
        fields = {"size": self._size, "products": PRODUCTS}
        return {"reference": {**fields, "wall_seconds": wall, "cpu_seconds": cpu}}

    def _read(self, products: int) -> tuple[float, float]:
        """Wall and CPU seconds of some products, from an idle device to an idle one."""
        import torch

        from vivit_bench.precision import ieee_float32

        first, second, product = self._matrices
        with ieee_float32([self._device.type]):
            self._wait()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(products):
                torch.mm(first, second, out=product)
            self._wait()
            return time.perf_counter() - wall, time.process_time() - cpu

    def _wait(self) -> None:
        import torch

        if self._device.type != "cpu":
            torch.cuda.synchronize(self._device)
