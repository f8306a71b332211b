"""Tables of the noisy-quadratic experiment."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vivit_bench.quadratic.records import DIVERGED_ABOVE, Results
from vivit_bench.report.tables import Column, Table

_RANKING = (
    Column("rank"),
    Column("optimizer", left=True),
    Column("median", "median loss", ",.3g"),
    Column("lower_quartile", "lower quartile", ",.3g"),
    Column("upper_quartile", "upper quartile", ",.3g"),
    Column("best_share", "best in", ".0%"),
    Column("diverged_share", "diverged", ".0%"),
)


def final_table(results: Results) -> pd.DataFrame:
    """How every optimiser ends, the best first.

    Returns:
        Columns rank (by the median; ties share the better one), optimizer, median,
        lower_quartile and upper_quartile of the final loss over the repetitions, best_share
        (of the repetitions in which no other optimiser ends lower) and diverged_share (of the
        repetitions whose final loss is not finite or above ``DIVERGED_ABOVE`` times its first).
    """
    curves = loss_curves(results)
    finals = np.stack([losses[:, -1] for losses in curves.values()])
    best = finals <= finals.min(axis=0)
    rows = []
    for (label, losses), wins in zip(curves.items(), best, strict=True):
        lower, median, upper = quantiles(losses[:, -1], (0.25, 0.5, 0.75))
        diverged = ~(losses[:, -1] <= DIVERGED_ABOVE * losses[:, 0])
        rows.append((label, median, lower, upper, wins.mean(), diverged.mean()))
    table = pd.DataFrame(rows, columns=[column.name for column in _RANKING[1:]])
    table.insert(0, "rank", table["median"].rank(method="min").astype(int))
    return table.sort_values("rank", kind="stable").reset_index(drop=True)


def curve_table(results: Results) -> pd.DataFrame:
    """What Figure 3 shows: columns optimizer, step, median, lower_quartile, upper_quartile."""
    parts = []
    for label, losses in loss_curves(results).items():
        lower, median, upper = quantiles(losses, (0.25, 0.5, 0.75))
        columns = {"median": median, "lower_quartile": lower, "upper_quartile": upper}
        parts.append(pd.DataFrame({"optimizer": label, "step": range(len(median)), **columns}))
    return pd.concat(parts, ignore_index=True)


def loss_curves(results: Results) -> dict[str, NDArray[np.float64]]:
    """Optimiser -> losses [repetitions, steps + 1], in the order of the run."""
    return {
        str(label): group.pivot(index="repetition", columns="step", values="loss").to_numpy()
        for label, group in results.losses.groupby("optimizer", sort=False)
    }


def quantiles(losses: NDArray[np.float64], levels: Sequence[float]) -> NDArray[np.float64]:
    """Quantiles over the first axis, [levels, ...]; ``inf`` where one falls on infinite losses.

    Plain interpolation between infinite values would give NaN.
    """
    largest = np.finfo(np.float64).max
    found = np.quantile(np.minimum(losses, largest / 4), levels, axis=0)
    return np.where(found > largest / 1e6, np.inf, found)


def ranking(results: Results) -> Table:
    """A run's `final_table` for the command line; what the columns mean is below."""
    notes = [
        "Loss after the last step, over the repetitions. Best in: share of repetitions in which "
        "no other optimizer ends lower. Diverged: share that ends with a loss not finite or above "
        f"{DIVERGED_ABOVE:g} times the initial one.",
    ]
    rows = [
        {str(name): value for name, value in row.items()}
        for row in final_table(results).to_dict("records")
    ]
    return Table(_RANKING, rows, notes=notes)
