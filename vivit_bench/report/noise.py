"""Stored noise runs: how they are named, which checkpoints are shown, and their table."""

import difflib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from vivit_bench.errors import UsageError
from vivit_bench.noise.checkpoints import Position
from vivit_bench.noise.records import RUN, NoiseRun
from vivit_bench.report.files import write_in_all_formats
from vivit_bench.report.table_format import TableFormat

BULK = 0.9
"""Share of the gradient's squared norm in the column ``directions_for_bulk``."""

_HEADERS = {
    "step": "step",
    "epoch": "epoch",
    "train_loss": "train loss",
    "test_loss": "test loss",
    "test_accuracy": "test acc.",
    "num_directions": "K",
    "largest_lambda": "largest lambda",
    "alignment_sum": "in span",
    "directions_for_bulk": f"K for {BULK:.0%}",
    "leading_snr_lambda": "SNR lambda",
    "leading_snr_gamma": "SNR gamma",
    "zero_variance": "zero var.",
}


def find_run(name: str, results_dir: Path) -> Path:
    """Folder of a stored run.

    Args:
        name: The folder itself, or its name below ``results_dir / "noise"``.
        results_dir: Folder of all results.

    Raises:
        UsageError: There is no such run; names the nearest.
    """
    root = results_dir / "noise"
    for folder in (root / name, Path(name)):
        if (folder / RUN).is_file():
            return folder
    stored = sorted(path.parent.name for path in root.glob(f"*/{RUN}"))
    near = difflib.get_close_matches(name, stored, n=3, cutoff=0.4) or stored[:5]
    hint = (
        f"there are {', '.join(near)}" if near else "vivit-bench noise run PROBLEM makes the first"
    )
    raise UsageError(f"{name} is no run in {root} and no run's folder: {hint}")


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
    sizes = run.header["sizes"]
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


def checkpoint_table(run: NoiseRun) -> pd.DataFrame:
    """One row per checkpoint.

    Returns:
        Columns ``step``, ``epoch``; ``train_loss``, ``test_loss``, ``test_accuracy``;
        ``num_directions`` K; ``largest_lambda``; ``alignment_sum``, the share of the gradient's
        squared norm in the span of the directions; ``directions_for_bulk``, the fewest directions
        that hold ``BULK`` of it (NA if all do not); ``leading_snr_lambda`` and
        ``leading_snr_gamma``, medians over the C directions of largest curvature; and
        ``zero_variance``, directions in which an SNR is infinite or undefined.
    """
    curves = run.curves.set_index("step")
    leading = run.header["sizes"]["num_outputs"]
    rows = []
    for checkpoint in run.checkpoints.to_dict("records"):
        step = checkpoint["step"]
        directions = run.at(step)
        first = directions.head(leading)
        # The curve's row is written after the checkpoint's, and may be missing after a crash.
        curve = curves.loc[step] if step in curves.index else pd.Series(dtype=float)
        rows.append(
            {
                "step": step,
                "epoch": checkpoint["epoch"],
                **{name: curve.get(name) for name in ("train_loss", "test_loss", "test_accuracy")},
                "num_directions": checkpoint["num_directions"],
                "largest_lambda": directions["lambda"].max(),
                "alignment_sum": checkpoint["alignment_sum"],
                "directions_for_bulk": directions_for(directions["alignment"], BULK),
                "leading_snr_lambda": first["snr_lambda"].median(),
                "leading_snr_gamma": first["snr_gamma"].median(),
                "zero_variance": checkpoint["zero_variance_gamma"]
                + checkpoint["zero_variance_lambda"],
            }
        )
    table = pd.DataFrame(rows, columns=list(_HEADERS))
    return table.astype({"directions_for_bulk": "Int64"})


def directions_for(alignment: "pd.Series[float]", share: float) -> Any:
    """The fewest directions whose alignments sum to ``share``; NA if all do not."""
    cumulated = np.sort(alignment.to_numpy())[::-1].cumsum()
    if not len(cumulated) or not cumulated[-1] >= share:
        return pd.NA
    return int(np.searchsorted(cumulated, share)) + 1


def format_table(table: pd.DataFrame, style: TableFormat) -> str:
    """A `checkpoint_table` as text: all digits as CSV, else rounded."""
    if style is TableFormat.CSV:
        return str(table.to_csv(index=False))
    shown = pd.DataFrame(
        {title: [_cell(name, value) for value in table[name]] for name, title in _HEADERS.items()}
    )
    if style is TableFormat.LATEX:
        return str(shown.to_latex(index=False, escape=True, column_format="r" * len(_HEADERS)))
    return (
        tabulate(
            shown.to_dict("list"),
            headers="keys",
            tablefmt="pipe" if style is TableFormat.MARKDOWN else "simple",
            disable_numparse=True,
            colalign=["right"] * len(_HEADERS),
        )
        + "\n"
    )


def table_notes(run: NoiseRun) -> str:
    """What the columns mean, and what state the run is in, for below a table."""
    count = run.header["sizes"]["num_outputs"]
    notes = [
        f"K: directions with an eigenvalue above {run.settings['cutoff']:g}. In span: share of the "
        "gradient's squared norm on the monitor batch that lies in their span; K for "
        f"{BULK:.0%}: the fewest directions with that share. SNR: median over the {count} "
        "directions of largest curvature. Zero var.: directions in which all samples have the "
        "same gamma or lambda, so that its SNR is infinite or undefined."
    ]
    if note := state_note(run):
        notes.append(f"{note[0].upper()}{note[1:]}.")
    return "\n".join(notes)


def state_note(run: NoiseRun) -> str:
    """Why a run has no more records; empty for a finished one."""
    match run.header["state"]:
        case "running":
            return "the run is not finished: the same vivit-bench noise run goes on with it"
        case "diverged":
            where = run.header["diverged_at"]
            return f"the training diverged: loss {where['loss']} at step {where['step']}"
    return ""


def write_table(run: NoiseRun, table: pd.DataFrame) -> list[Path]:
    """Write a `checkpoint_table` as CSV, Markdown and LaTeX into the run's folder."""

    def text(style: TableFormat) -> str:
        notes = f"\n{table_notes(run)}\n" if style is TableFormat.MARKDOWN else ""
        return format_table(table, style) + notes

    return write_in_all_formats(run.folder / "table", text)


def _cell(name: str, value: Any) -> str:
    if pd.isna(value):
        return "-"
    match name:
        case "step" | "num_directions" | "directions_for_bulk" | "zero_variance":
            return f"{int(value):,}"
        case "epoch":
            return f"{value:.3g}"
        case "test_accuracy":
            return f"{value:.1%}"
    return f"{value:.3g}"
