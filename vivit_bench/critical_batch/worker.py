"""One trial, in a process of its own: ``python -m vivit_bench.critical_batch.worker``.

Phases, each told to the parent as a line of JSON over a pipe: "ready" after set-up and warm-up,
then "finished" or "failed". It always ends with ``os._exit``: an orderly shutdown of libraries
takes memory and can crash. A child that says nothing before it ends is for the parent to judge.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivit_bench.critical_batch.budget import MemoryBudget
from vivit_bench.critical_batch.device_memory import DeviceMeter
from vivit_bench.critical_batch.failures import BatchLimitError, FailureKind, classify, describe
from vivit_bench.critical_batch.meters import HostMeter, Meter
from vivit_bench.critical_batch.spec import TrialSpec
from vivit_bench.critical_batch.workloads import Workload, load_workload
from vivit_bench.errors import VivitBenchError

if TYPE_CHECKING:
    from vivit_bench.curvature import Certificate

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Run a trial and exit.

    Args:
        arguments: File descriptor of the pipe, and the `TrialSpec` as JSON.
    """
    pipe, spec = int(arguments[0]), TrialSpec.from_json(arguments[1])
    _die_with(spec.parent)
    _be_the_first_to_be_killed()
    try:
        workload = load_workload(spec.workload, spec.work)
        certified = _facts(workload.warm_up())
        meter = _meter(spec)
        _tell(pipe, event="ready", **certified, **meter.start())
    except BaseException as error:
        _tell(pipe, **_failure(error))
        os._exit(1)
    _tell(pipe, **_work(workload, meter, spec.n))
    os._exit(0)


def _facts(certificate: "Certificate | None") -> dict[str, Any]:
    """What a trial's record says of the warm-up's certificate."""
    if certificate is None:
        return {"certificate_error": None, "certified_samples": None}
    return {
        "certificate_error": certificate.worst,
        "certified_samples": len(certificate.samples),
    }


def _work(workload: Workload, meter: Meter, n: int) -> dict[str, Any]:
    try:
        result = workload.run(n)
    except BaseException as error:
        # The limit is lifted first: describing the failure takes memory too.
        reading = meter.stop()
        return {**_failure(error), **reading}
    reading = meter.stop()
    try:
        complaint = workload.check(result)
    except BaseException as error:
        return {**_failure(error), **reading}
    if complaint:
        return {"event": "failed", "failure": FailureKind.ERROR, "message": complaint, **reading}
    return {"event": "finished", **reading}


def _failure(error: BaseException) -> dict[str, Any]:
    kind = classify(error)
    if kind in (FailureKind.ERROR, FailureKind.AMBIGUOUS):
        traceback.print_exception(error)
    expected = isinstance(error, (VivitBenchError, BatchLimitError))
    message = " ".join(str(error).split()) if expected else describe(error)
    return {"event": "failed", "failure": kind, "message": message}


def _meter(spec: TrialSpec) -> Meter:
    budget = MemoryBudget(spec.limit_bytes)
    if spec.device == "cpu":
        return HostMeter(budget, spec.one_cpu)
    return DeviceMeter(budget, spec.device)


def _tell(pipe: int, **message: Any) -> None:
    os.write(pipe, json.dumps(message).encode() + b"\n")


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _be_the_first_to_be_killed() -> None:
    Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main(sys.argv[1:])
