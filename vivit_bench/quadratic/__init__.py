"""The noisy quadratic: known slopes and curvatures to test dampings on (appendix B.3 - B.5).

Names are loaded on first use, so that a command's options do not import torch.
"""

from typing import TYPE_CHECKING

from vivit_bench.lazy import lazy_getattr
from vivit_bench.quadratic.settings import OptimizerName, RouteName, Settings

if TYPE_CHECKING:
    from vivit_bench.quadratic.experiment import Repetition, run_repetition
    from vivit_bench.quadratic.model import Draw, NoisyOracle, Quadratic
    from vivit_bench.quadratic.network import labelled_data, linear_network, loss_constant
    from vivit_bench.quadratic.records import Results, load_results, run_experiment

_LAZY = {
    "Draw": "model",
    "NoisyOracle": "model",
    "Quadratic": "model",
    "Repetition": "experiment",
    "Results": "records",
    "labelled_data": "network",
    "linear_network": "network",
    "load_results": "records",
    "loss_constant": "network",
    "run_experiment": "records",
    "run_repetition": "experiment",
}

__all__ = [
    "Draw",
    "NoisyOracle",
    "OptimizerName",
    "Quadratic",
    "Repetition",
    "Results",
    "RouteName",
    "Settings",
    "labelled_data",
    "linear_network",
    "load_results",
    "loss_constant",
    "run_experiment",
    "run_repetition",
]

__getattr__ = lazy_getattr(__name__, _LAZY)
