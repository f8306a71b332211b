"""Noise during training: slope, curvature and their signal-to-noise along GGN eigenvectors (B.2).

Names are loaded on first use, so that a command's options do not import torch.
"""

from typing import TYPE_CHECKING

from vivit_bench.lazy import lazy_getattr
from vivit_bench.noise.checkpoints import log_spaced, parse_positions, resolve_positions
from vivit_bench.noise.settings import OptimizerName, Settings

if TYPE_CHECKING:
    from vivit_bench.noise.choices import Choices
    from vivit_bench.noise.measurement import Measurement, direction_table, measure
    from vivit_bench.noise.monitor import NoiseMonitor
    from vivit_bench.noise.records import NoiseRun, find_run, load_run
    from vivit_bench.noise.runner import monitoring_cost, run_noise
    from vivit_bench.noise.training import Listener

_LAZY = {
    "Choices": "choices",
    "Listener": "training",
    "Measurement": "measurement",
    "NoiseMonitor": "monitor",
    "NoiseRun": "records",
    "direction_table": "measurement",
    "find_run": "records",
    "load_run": "records",
    "measure": "measurement",
    "monitoring_cost": "runner",
    "run_noise": "runner",
}

__all__ = [
    "Choices",
    "Listener",
    "Measurement",
    "NoiseMonitor",
    "NoiseRun",
    "OptimizerName",
    "Settings",
    "direction_table",
    "find_run",
    "load_run",
    "log_spaced",
    "measure",
    "monitoring_cost",
    "parse_positions",
    "resolve_positions",
    "run_noise",
]

__getattr__ = lazy_getattr(__name__, _LAZY)
