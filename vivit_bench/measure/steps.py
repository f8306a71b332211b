"""A training step of the user's own as the work of a child: the largest batch of anything."""

import inspect
from collections.abc import Callable
from typing import Any

from vivit_bench.measure.work import WARM_UP_SAMPLES, Work

LEAST_CALLS = 3
"""Of a step in a trial: an optimizer's state appears in the first and is beside the gradients of
the second; the third shows that nothing grows."""

Step = Callable[[int, int], object]


class StepWork(Work):
    """Builds a step anew and calls it several times, on other samples each time.

    Args:
        step: ``path/to/file.py:function``, which returns a callable ``step(n, seed)``.
        seed: Of the random numbers of the file, the function and the first call; the next calls
            have the next seeds.
        device: ``cpu`` or ``cuda:i``, whose memory is read; the step itself goes there.
        calls: Of the step.

    Raises:
        UsageError: The file, the function or what it returns is unusable.
    """

    def __init__(self, *, step: str, seed: int, device: str, calls: int) -> None:
        self._name = step
        self._seed = seed
        self._device = device
        self._calls = calls
        self._build()

    def warm_up(self) -> None:
        """One call of another instance, which is thrown away: libraries then have their buffers."""
        self._call(self._build(), WARM_UP_SAMPLES, self._seed)

    def run(self, n: int) -> object:
        """Build the step and call it; what it returns is thrown away."""
        step = self._build()
        for number in range(self._calls):
            self._call(step, n, self._seed + number)
        self._check_device()
        return None

    def _build(self) -> Step:
        from vivit_bench.errors import UsageError
        from vivit_bench.problems.batch import a_type
        from vivit_bench.problems.user import run_user_function

        step = run_user_function(self._name, self._seed)
        if not _is_step(step):
            raise UsageError(
                f"{self._name} must return a function step(n, seed), got {a_type(step)}"
            )
        try:
            inspect.signature(step).bind(1, 0)
        except TypeError as error:
            raise UsageError(
                f"{self._name} must return a function step(n, seed); what it returns cannot be "
                f"called so: {error}"
            ) from error
        except ValueError:
            pass  # a builtin; calling it tells
        return step

    def _call(self, step: Step, n: int, seed: int) -> None:
        from vivit_bench.problems.sampling import seeded

        with seeded(seed):
            returned = step(n, seed)
        self._check_done(returned)

    def _check_done(self, returned: object) -> None:
        """Refuse a step of which nothing has run yet: it would fit, whatever its size."""
        from vivit_bench.errors import UsageError
        from vivit_bench.problems.batch import a_type

        if inspect.iscoroutine(returned):
            returned.close()  # or Python warns that nobody awaited it
            instead = "write def, and asyncio.run(...) around what it awaits"
        elif inspect.isgenerator(returned) or inspect.isasyncgen(returned):
            instead = "leave out yield, or go through it inside the step"
        else:
            return
        raise UsageError(
            f"{self._name}: step(n, seed) returned {a_type(returned)}, of which nothing has run: "
            f"{instead}"
        )

    def _check_device(self) -> None:
        """Refuse to measure one device's memory while the step takes another's."""
        import torch

        from vivit_bench.errors import UsageError

        on_cuda = torch.cuda.is_initialized()
        if self._device == "cpu" and on_cuda and torch.cuda.max_memory_allocated():
            raise UsageError(f"{self._name} uses a CUDA device: add --device cuda")
        if self._device != "cpu":
            if not (on_cuda and torch.cuda.max_memory_allocated(self._device)):
                raise UsageError(
                    f"{self._name} takes no memory of {self._device}: add --device cpu"
                )
            torch.cuda.synchronize(self._device)


class KindWork(Work):
    """Tells whether a user's function returns a training step.

    Args:
        problem: ``path/to/file.py:function``.
        seed: Of the random numbers that it may draw.
    """

    def __init__(self, *, problem: str, seed: int) -> None:
        from vivit_bench.problems.user import run_user_function

        self._is_step = _is_step(run_user_function(problem, seed))

    def run(self, n: int) -> object:
        """Nothing is left to be done."""

    def digest(self, result: object) -> dict[str, Any]:
        """``is_step``."""
        return {"is_step": self._is_step}


def _is_step(returned: Any) -> bool:
    from torch import nn

    return callable(returned) and not isinstance(returned, nn.Module | type)
