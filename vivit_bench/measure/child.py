"""The child of a measurement: ``python -m vivit_bench.measure.child PIPE SPEC KEEPER``.

It always ends with ``os._exit``: an orderly shutdown of the interpreter and its libraries takes
memory, which would be counted, and can crash.
"""

import ctypes
import os
import resource
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vivit_bench.errors import (
    FailureKind,
    UsageError,
    VivitBenchError,
    causes,
    classify,
    describe,
    is_out_of_device_memory,
    message_of,
)
from vivit_bench.measure.host_memory import forget_exactness
from vivit_bench.measure.meters import Meter, make_meter
from vivit_bench.measure.protocol import (
    REPORT_LOST,
    Loaded,
    Measured,
    Message,
    Reading,
    Spec,
    TrialReport,
    encode,
)
from vivit_bench.measure.work import Work, load_work

if TYPE_CHECKING:
    from vivit_bench.curvature import Certificate

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> NoReturn:
    """Do what a `Spec` asks for and exit.

    Args:
        arguments: File descriptor of the pipe, the `Spec` as JSON, and the number of the process
            that this one must not outlive.
    """
    try:
        pipe, text, keeper = arguments
        _die_with(int(keeper))
        _be_the_first_to_be_killed()
        _Child(_Pipe(int(pipe)), Spec.from_json(text)).run()
    except BaseException as error:
        with suppress(BaseException):
            os.write(2, f"{describe(error)}\n".encode())
    finally:
        os._exit(1)


class _Pipe:
    """The way to the parent. Its number may be closed, and then opened for something else."""

    def __init__(self, descriptor: int):
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor
        self._identity = self._look()
        self._process = os.getpid()

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino

    def tell(self, message: Message) -> None:
        """Deliver a message; the process ends here if it cannot, or is a fork of the child."""
        if os.getpid() != self._process:
            os._exit(0)
        try:
            if self._look() != self._identity:
                os._exit(REPORT_LOST)
            line = encode(message)
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:
            os._exit(REPORT_LOST)


class _Child:
    """The phases of a child, and how it fails in each."""

    def __init__(self, pipe: _Pipe, spec: Spec):
        self._pipe = pipe
        self._spec = spec
        self._meter: Meter | None = None
        """From "ready" until the work is measured."""
        self._last_word = threading.Lock()

    def run(self) -> NoReturn:
        """Do everything; the work's own failures are reported."""
        threading.excepthook = self._thread_failed
        try:
            work = load_work(self._spec.work, self._spec.arguments)
            if self._spec.device != "cpu" and self._spec.reading is Reading.MEMORY:
                _fix_cudnn()
            work.load()
            self._pipe.tell(Loaded())
            certificate = work.warm_up()
            meter = make_meter(self._spec)
            ready = meter.start()
            if certificate is not None:
                ready = replace(
                    ready,
                    certificate_error=certificate.worst,
                    certified_samples=len(certificate.samples),
                )
            self._pipe.tell(ready)
            self._meter = meter
            for _ in range(self._spec.warm_runs):
                work.run(self._spec.n)
            faults, cpu, wall = _faults(), time.process_time(), time.perf_counter()
            result = work.run(self._spec.n)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            spent = {"wall_seconds": wall, "cpu_seconds": cpu, "minor_faults": _faults() - faults}
            self._stop(meter, spent)
            self._end(self._report(work, result))
        except BaseException as error:
            self._fail(error)

    def _stop(self, meter: Meter, spent: dict[str, Any] | None = None) -> None:
        """Read the meter; nothing that happens later counts.

        Args:
            meter: That was started.
            spent: What else the work took, fields of `Measured`; None if it did not end well.
        """
        self._meter = None
        try:
            measured = meter.stop()
        except Exception as error:
            # The descriptors are used up, say: the parent's readings stand. Or an illegal access on
            # a CUDA device, after which every call of CUDA fails: there is no reading then.
            _complain(error)
            measured = Measured()
        self._pipe.tell(replace(measured, **(spent or {})))

    def _report(self, work: Work, result: object) -> TrialReport:
        if complaint := work.check(result):
            return TrialReport(FailureKind.ERROR, complaint)
        digest = work.digest(result) if self._spec.digest else {}
        del result
        if not self._spec.certify:
            return TrialReport(digest=digest)
        if self._spec.reading is Reading.MEMORY:
            forget_exactness()  # the check's seconds are read
        return _certified(TrialReport(digest=digest), work.certify(self._spec.n))

    def _thread_failed(self, failed: threading.ExceptHookArgs) -> None:
        """The main thread may wait for this one for ever, or go on without what it computed."""
        if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
            self._fail(failed.exc_value)

    def _fail(self, error: BaseException) -> NoReturn:
        # The limit is lifted first: describing the failure takes memory too.
        with self._last_word:
            if self._meter is not None:
                self._stop(self._meter)
            try:
                report = _failure(error, self._spec.device)
            except BaseException:  # an exception can refuse to be looked at
                report = TrialReport(FailureKind.ERROR, f"{type(error).__name__}")
            self._exit(report, 1)

    def _end(self, report: TrialReport) -> NoReturn:
        with self._last_word:
            self._exit(report, 0)

    def _exit(self, report: TrialReport, code: int) -> NoReturn:
        self._pipe.tell(report)
        os._exit(code)


def _fix_cudnn() -> None:
    """Have cuDNN take the same engines in every run: workspaces count, and so the peak repeats."""
    import torch

    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _certified(report: TrialReport, certificate: "Certificate | None") -> TrialReport:
    if certificate is None:
        return report
    return replace(
        report,
        certificate_error=certificate.worst,
        certificate_seconds=certificate.seconds,
        certified_samples=len(certificate.samples),
    )


def _failure(error: BaseException, device: str) -> TrialReport:
    for link in causes(error):
        if _is_end_of_data(link):
            available = int(link.available)  # type: ignore[attr-defined]
            return TrialReport(FailureKind.DATA, message_of(link), True, available)
    kind = classify(error)
    of_no_device = device == "cpu" and is_out_of_device_memory(error)
    if of_no_device:  # says nothing of the host's memory, which is measured
        kind = FailureKind.ERROR
    if kind in (FailureKind.ERROR, FailureKind.AMBIGUOUS):
        _complain(error)
    expected = isinstance(error, VivitBenchError)
    message = message_of(error) if expected else describe(error, 400)
    if of_no_device:
        message += " (a device's memory; the CPU's is measured here, a device's with --device cuda)"
    return TrialReport(kind, message, isinstance(error, UsageError))


def _is_end_of_data(error: BaseException) -> bool:
    module = sys.modules.get("vivit_bench.problems.sampling")  # it imports torch
    return module is not None and isinstance(error, module.TooFewSamplesError)


def _complain(error: BaseException) -> None:
    with suppress(BaseException):
        traceback.print_exception(error)


def _die_with(keeper: int) -> None:
    """Have the kernel kill this process when the one that keeps it ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != keeper:
        os._exit(1)


def _be_the_first_to_be_killed() -> None:
    Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main(sys.argv[1:])
