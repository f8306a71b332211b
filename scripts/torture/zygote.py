"""Runs commands in forks of a process that has imported everything: 0.3 s a command, not 3 s.

A line of JSON on stdin asks for one; the answers are the fork's number and how it ended.
"""

import importlib
import io
import json
import os
import pkgutil
import resource
import sys
import tempfile
import traceback
import warnings
from typing import Any, BinaryIO, NoReturn

from faults import Fault, install


def preload() -> None:
    """Import what commands import, but what needs an extra that is absent; hash the code once."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401

    import vivit_bench
    from vivit_bench.store import code_fingerprint, provenance

    others = {"__main__", "child", "keeper", "lightning", "transformers"}
    for module in pkgutil.walk_packages(vivit_bench.__path__, "vivit_bench."):
        if module.name.rpartition(".")[2] not in others:
            try:
                loaded = importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("vivit_bench"):
                    raise
                continue
            rooms = getattr(loaded, "_ROOMS", None)
            if isinstance(rooms, tuple):
                code_fingerprint(rooms)
    provenance()


def fake_trials() -> None:
    """Searches whose trials take no time: more than 5 samples do not fit."""
    from vivit_bench.comparison import compare
    from vivit_bench.critical_batch import runner
    from vivit_bench.measure import Observation, Outcome, Spec, Trial, TrialReport, TrialRun
    from vivit_bench.measure.protocol import Measured, Ready

    def run(spec: Spec, timeout: float, confirming: object) -> TrialRun:
        fits = spec.n <= 5
        outcome = Outcome.FITS if fits else Outcome.OUT_OF_MEMORY
        facts: dict[str, Any] = {
            "message": "" if fits else "made up",
            "peak_bytes": spec.n * 2**23,
            "idle_bytes": 2**28,
            "absolute_peak_bytes": 2**29,
            "elapsed_seconds": 0.1,
            "timeout_seconds": timeout,
            "confirmed": False,
            "ended_at": "2026-01-01T00:00:00+00:00",
        }
        return TrialRun(Trial(n=spec.n, outcome=outcome, **facts), "")

    def observe(spec: Spec, timeout: float) -> Observation:
        report = TrialReport(digest={"eigenvalues": [2.0, 1.0]})
        measured = Measured(wall_seconds=0.5, cpu_seconds=0.5, minor_faults=100)
        seen = (Ready(2**28), measured, report, 2**23, 2**29, 0, "")
        return Observation(Outcome.FITS, "", *seen)

    compare.measure = observe  # type: ignore[assignment]
    assert runner.run_search.__kwdefaults__ is not None
    runner.run_search.__kwdefaults__.update(run=run, plan=observe)


def be(request: dict[str, Any], out: BinaryIO, err: BinaryIO) -> NoReturn:
    """Run one command in this process, and end it."""
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = ["vivit-bench", *request["arguments"]]
    code: object = 0
    try:
        from vivit_bench.cli import main

        if request["fake"]:
            fake_trials()
        if request["fsize"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["fsize"],) * 2)
        if request["fault"]:
            install(Fault(**request["fault"]))
        main()
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def serve() -> None:
    """Answer until stdin ends."""
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            fork = os.fork()
            if fork == 0:
                be(json.loads(line), out, err)
            print(json.dumps({"pid": fork}), flush=True)
            _, status = os.waitpid(fork, 0)
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().decode(errors="backslashreplace"))
            code = os.waitstatus_to_exitcode(status)
            print(json.dumps({"code": code, "out": texts[0], "err": texts[1]}), flush=True)


if __name__ == "__main__":
    preload()
    print(json.dumps({"ready": True}), flush=True)
    serve()
