"""Stored noise runs: which checkpoints are shown, and their tables."""

import numpy as np
import pandas as pd

from vivit_bench.errors import UsageError
from vivit_bench.noise.checkpoints import Position
from vivit_bench.noise.records import NoiseRun
from vivit_bench.noise.runner import monitoring_cost
from vivit_bench.report.tables import Column, Table
from vivit_bench.store import State

BULK = 0.9
"""Share of the gradient's squared norm in the column ``directions_for_bulk``."""

_CHECKPOINTS = (
    Column("step", shown=","),
    Column("epoch", shown=".3g"),
    Column("train_loss", "train loss", ".3g"),
    Column("test_loss", "test loss", ".3g"),
    Column("test_accuracy", "test acc.", ".1%"),
    Column("num_directions", "K", ","),
    Column("largest_eigenvalue", "largest eigenv.", ".3g"),
    Column("alignment_sum", "in span", ".3g"),
    Column("directions_for_bulk", f"K for {BULK:.0%}", ","),
    Column("leading_snr_lambda", "SNR lambda", ".3g"),
    Column("leading_snr_gamma", "SNR gamma", ".3g"),
    Column("zero_variance", "zero var.", ","),
)
_RUN = (
    Column("problem", left=True),
    Column("optimizer", left=True),
    Column("num_steps", "steps", ","),
    Column("epochs", shown=","),
    Column("test_loss", "test loss", ".4g"),
    Column("test_accuracy", "test accuracy", ".1%"),
    Column("first_num_directions", "directions K, first", ","),
    Column("last_num_directions", "directions K, last", ","),
    Column("training_seconds_per_epoch", "seconds of an epoch", ".2f"),
    Column("monitoring_calls", "monitoring calls", ","),
    Column("monitoring_seconds_per_call", "seconds of a call", ".2f"),
    Column("monitoring_share", "share of the time", ".0%"),
    Column("folder", "stored", left=True),
)


def choose_checkpoints(run: NoiseRun, at: list[Position] | None) -> list[int]:
    """Steps of the checkpoints to show.

    Args:
        run: With at least one checkpoint.
        at: The user's choice; None for the first, the middle of the list (early in a
            log-spaced schedule) and the last.

    Raises:
        UsageError: No checkpoint was recorded there; names those that were.
    """
    steps = run.checkpoints["step"].tolist()
    if at is None:
        return sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    sizes = run.sizes
    chosen = {p.step(sizes["steps_per_epoch"], sizes["total_steps"]): p.text for p in at}
    for step, text in chosen.items():
        if step not in steps:
            near = sorted(steps, key=lambda other: abs(other - step))[:8]
            listed = ",".join(
                "0" if near_step == 0 else f"{near_step}steps" for near_step in sorted(near)
            )
            raise UsageError(
                f"--at {text} is step {step}, which is no checkpoint of {run.folder}: "
                f"choose from {listed}{' and others' if len(steps) > len(near) else ''}"
            )
    return sorted(chosen)


def run_table(run: NoiseRun) -> Table:
    """What is worth knowing of a finished run; times are medians."""
    cost, last = monitoring_cost(run), run.curves.iloc[-1]
    counts = run.checkpoints["num_directions"].tolist()
    row = {
        "problem": run.settings["problem"],
        "optimizer": run.settings["optimizer"],
        "num_steps": int(last["step"]),
        "epochs": run.settings["epochs"],
        "test_loss": float(last["test_loss"]),
        "test_accuracy": float(last["test_accuracy"]),
        "first_num_directions": counts[0],
        "last_num_directions": counts[-1],
        "training_seconds_per_epoch": cost["seconds_per_epoch"],
        "monitoring_calls": cost["calls"],
        "monitoring_seconds_per_call": cost["seconds_per_call"],
        "monitoring_share": cost["share"],
        "folder": str(run.folder),
    }
    return Table(_RUN, [row], is_record=True)


def checkpoint_table(run: NoiseRun) -> Table:
    """One row per checkpoint; what the columns mean is below.

    Returns:
        Columns ``step``, ``epoch``; ``train_loss``, ``test_loss``, ``test_accuracy``;
        ``num_directions`` K; ``largest_eigenvalue``; ``alignment_sum``, the share of the
        gradient's squared norm in the span of the directions; ``directions_for_bulk``, the fewest
        directions that hold ``BULK`` of it (None if all do not); ``leading_snr_lambda`` and
        ``leading_snr_gamma``, medians over the C directions of largest curvature; and
        ``zero_variance``, directions in which an SNR (or both) is infinite or undefined.
    """
    curves = run.curves.set_index("step")
    leading = run.sizes["num_outputs"]
    rows = []
    for checkpoint in run.checkpoints.to_dict("records"):
        step = checkpoint["step"]
        directions = run.at(step)
        first = directions.head(leading)
        # The curve's row is written after the checkpoint's, and may be missing after a crash.
        curve = curves.loc[step] if step in curves.index else pd.Series(dtype=float)
        values = {
            "epoch": checkpoint["epoch"],
            **{name: curve.get(name) for name in ("train_loss", "test_loss", "test_accuracy")},
            "largest_eigenvalue": directions["eigenvalue"].max(),
            "alignment_sum": checkpoint["alignment_sum"],
            "leading_snr_lambda": first["snr_lambda"].median(),
            "leading_snr_gamma": first["snr_gamma"].median(),
        }
        # Stored counts are of gamma and lambda apart, and a direction may be in both.
        ratios = directions[["snr_gamma", "snr_lambda"]]
        rows.append(
            {
                **{name: None if pd.isna(v) else float(v) for name, v in values.items()},
                "step": int(step),
                "num_directions": int(checkpoint["num_directions"]),
                "directions_for_bulk": directions_for(directions["alignment"], BULK),
                "zero_variance": int((~np.isfinite(ratios)).any(axis=1).sum()),
            }
        )
    return Table(_CHECKPOINTS, rows, notes=_notes(run))


def directions_for(alignment: "pd.Series[float]", share: float) -> int | None:
    """The fewest directions whose alignments sum to ``share``; None if all do not."""
    cumulated = np.sort(alignment.to_numpy())[::-1].cumsum()
    if not len(cumulated) or not cumulated[-1] >= share:
        return None
    return int(np.searchsorted(cumulated, share)) + 1


def run_title(run: NoiseRun) -> str:
    """What a run is: problem, data, seed, optimiser, monitor and date."""
    settings = run.settings
    optimizer = {"sgd": "SGD", "adam": "Adam"}[settings["optimizer"]]
    mc = f" (M = {settings['mc_samples']})" if settings["mc_samples"] != 1 else ""
    return (
        f"{settings['problem']}, {optimizer}, data {settings['data']}, seed {settings['seed']}, "
        f"N = {settings['monitor_batch_size']}, GGN {settings['curvature']}{mc}, "
        f"{settings['samples']} ({str(run.stored.provenance['started_at'])[:10]})"
    )


def _notes(run: NoiseRun) -> list[str]:
    """What the run is, what the columns mean, and what state it is in."""
    count = run.sizes["num_outputs"]
    notes = [
        f"{run_title(run)}.",
        f"K: directions with an eigenvalue above {run.settings['cutoff']:g}. In span: share of the "
        "gradient's squared norm on the monitor batch that lies in their span; K for "
        f"{BULK:.0%}: the fewest directions with that share. SNR: median over the {count} "
        "directions of largest curvature. Zero var.: directions in which all samples have the "
        "same gamma or lambda, so that its SNR is infinite or undefined.",
    ]
    if run.stored.state is State.FINISHED:
        cost = monitoring_cost(run)
        notes.append(
            f"Monitoring: {cost['calls']} calls, {cost['share']:.0%} of the run's time; "
            f"{cost['seconds_per_call']:.2f} s a call, {cost['seconds_per_epoch']:.2f} s an epoch "
            "of training (medians)."
        )
    if dropped := run.stored.results.get("dropped"):
        largest = max(found["trace"] for found in dropped.values())
        notes.append(
            "Columns of V were dropped: no eigenvalue is larger than stated by more than "
            f"{largest:.2e}."
        )
    if note := state_note(run):
        notes.append(f"{note[0].upper()}{note[1:]}.")
    return notes


def state_note(run: NoiseRun) -> str:
    """Why a run has no more records; empty for a finished one."""
    match run.stored.state:
        case State.RUNNING:
            return "the run is not finished: the same vivit-bench noise run goes on with it"
        case State.FAILED:
            where = run.stored.results["diverged_at"]
            return f"the training diverged: loss {where['loss']} at step {where['step']}"
    return ""
