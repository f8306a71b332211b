"""The cost against N: comparisons of several batch sizes, and the exponents of time and peak."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vivit_bench.comparison.compare import EngineFailedError
from vivit_bench.comparison.stored import Comparison, Note, run_comparison
from vivit_bench.measure.budget import NOISE_BYTES
from vivit_bench.store import check_run

FEWEST_POINTS = 3
"""Of a fitted exponent: two points lie on every line."""

COSTS = {"time": ("wall_seconds", 0.0), "peak": ("peak_bytes", float(NOISE_BYTES))}
"""What has an exponent: its key in a row, and the least value that says something of N."""


@dataclass(frozen=True)
class PowerLaw:
    """``cost = factor N^exponent``, fitted over some N."""

    exponent: float
    factor: float
    """In the unit of the cost."""
    batch_sizes: tuple[int, ...]
    """The N that it was fitted over, ascending."""

    def __call__(self, batch_size: float) -> float:
        """The cost at N."""
        return float(self.factor * batch_size**self.exponent)


@dataclass
class Series:
    """Comparisons of the same at several N."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """One per N and engine, ascending in N: as `vivit_bench.comparison.stored.stored_rows`, and
    with ``floor_seconds`` in the base's where it was asked for."""
    failures: dict[int, str] = field(default_factory=dict)
    """N -> why there is no comparison; the same command tries it again."""

    def costs(self, engine: str, cost: str) -> dict[int, float]:
        """N -> seconds or bytes of an engine, where they say something of N.

        Args:
            engine: Its name.
            cost: One of `COSTS`.
        """
        key, least = COSTS[cost]
        own = ((row["batch_size"], row.get(key)) for row in self.rows if row["engine"] == engine)
        return {n: value for n, value in own if value is not None and value > least}

    def law(self, engine: str, cost: str) -> PowerLaw | None:
        """How a cost of an engine grows, see `fit_power_law`."""
        return fit_power_law(self.costs(engine, cost))

    @property
    def engines(self) -> list[str]:
        """Their names, that of the base first."""
        return list(dict.fromkeys(row["engine"] for row in self.rows))


def fit_power_law(costs: Mapping[int, float]) -> PowerLaw | None:
    """Least squares of log cost on log N, over the larger half of the N, at least three.

    At small N constant costs hide how the cost grows.

    Args:
        costs: N -> cost, positive.

    Returns:
        The fit; None for fewer than `FEWEST_POINTS` N.
    """
    if len(costs) < FEWEST_POINTS:
        return None
    sizes = sorted(costs)[-max(FEWEST_POINTS, math.ceil(len(costs) / 2)) :]
    x = [math.log(n) for n in sizes]
    y = [math.log(costs[n]) for n in sizes]
    middle, height = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    exponent = products / sum((a - middle) ** 2 for a in x)
    return PowerLaw(exponent, math.exp(height - exponent * middle), tuple(sizes))


def run_series(
    comparison: Comparison,
    batch_sizes: Sequence[int],
    results_dir: Path,
    *,
    repeats: int,
    timeout_seconds: float,
    floor: bool = False,
    fresh: bool = False,
    note: Note = lambda text: None,
) -> Series:
    """Compare the engines at one N after the other, each a stored comparison of its own.

    An engine that reaches a limit at some N (memory, time, data) has that for a result there, also
    if it is the base; a base that fails otherwise costs that N alone.

    Args:
        comparison: What is compared; its own N does not count.
        batch_sizes: The N.
        results_dir: Folder of all results.
        repeats: See `run_comparison`, as the arguments below.
        timeout_seconds: For the work of one run.
        floor: Also measure the machine's floor.
        fresh: Measure anew.
        note: Told of each N and run.

    Returns:
        The series.

    Raises:
        UsageError: The base cannot do the work, or a stored comparison is of other conditions.
        VivitBenchError: One is damaged, or another process has it.
        StorageError: Something cannot be written; what is stored is kept.
    """
    sizes = sorted(batch_sizes)
    # What is stored of a large N is looked at before hours are spent on the small ones.
    for n in sizes:
        check_run(results_dir, comparison.at(n).identity(), fresh=fresh)
    series = Series()
    for place, n in enumerate(sizes, 1):
        note(f"[{place}/{len(sizes)}] N = {n}")
        try:
            compared = run_comparison(
                comparison.at(n),
                results_dir,
                repeats=repeats,
                timeout_seconds=timeout_seconds,
                floor=floor,
                fresh=fresh,
                base_may_fail=True,
                note=note,
            )
        except EngineFailedError as error:
            note(f"N = {n}: {error}")
            series.failures[n] = str(error)
            continue
        except BaseException as error:
            if not isinstance(error, Exception) and place < len(sizes):
                error.add_note(_not_reached(sizes[place:], fresh))
            raise
        series.rows += compared.whole_rows
    return series


def _not_reached(sizes: Sequence[int], fresh: bool) -> str:
    kept = ", where what was stored before is kept" if fresh else ""
    return f"N = {', '.join(map(str, sizes))} not reached{kept}"
