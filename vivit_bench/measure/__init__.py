"""The one way to run work in a child process and to know its time and memory."""

from vivit_bench.measure.parent import Observation, measure
from vivit_bench.measure.protocol import Outcome, Reading, Spec, TrialReport
from vivit_bench.measure.trial import Trial, TrialRun, run_trial

__all__ = [
    "Observation",
    "Outcome",
    "Reading",
    "Spec",
    "Trial",
    "TrialReport",
    "TrialRun",
    "measure",
    "run_trial",
]
