"""Slurm: jobs are submitted by submitit, and asked after with squeue and, if it answers, sacct."""

import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vivit_bench.cluster.jobs import Task
from vivit_bench.cluster.task import Outcome, run_task
from vivit_bench.errors import UsageError, VivitBenchError

_PATIENCE_SECONDS = 60.0
"""For an answer of Slurm's commands."""
_ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job."""

    name: str
    """As Slurm writes it, such as ``PENDING``."""
    node: str = ""
    reason: str = ""
    """Why it waits, or how it ended."""

    @property
    def has_ended(self) -> bool:
        """Whether it will not run any more."""
        return self.name in _ENDED


class Scheduler(Protocol):
    """What is asked of Slurm, or of what stands in for it in a test."""

    def submit(self, folder: Path, parameters: Mapping[str, Any], task: Task) -> str:
        """Submit a job; its number."""

    def live(self, names: Sequence[str]) -> dict[str, str]:
        """Name -> number of this user's jobs that wait or run."""

    def states(self, numbers: Sequence[str]) -> dict[str, JobState]:
        """Number -> state of those of some jobs that Slurm knows."""

    def outcome(self, folder: Path, number: str) -> Outcome | None:
        """How a job's work ended; None as long as it has not said so."""

    def log(self, folder: Path, number: str) -> Path:
        """The file with what a job wrote to stderr."""


class Slurm:
    """The cluster of this machine.

    Raises:
        UsageError: submitit or Slurm's commands are missing.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("submitit") is None:
            raise UsageError(
                "--executor slurm: submitit is not installed; pip install 'vivit-bench[slurm]'"
            )
        if missing := [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]:
            raise UsageError(
                f"--executor slurm: there is no {missing[0]} on this machine; type the command "
                "where jobs are submitted, or use --executor local"
            )

    def submit(self, folder: Path, parameters: Mapping[str, Any], task: Task) -> str:
        """Submit a job.

        Args:
            folder: For its script, its work and its logs, on a file system that the nodes share.
            parameters: See `Request.parameters`.
            task: Its work.

        Returns:
            Its number.

        Raises:
            VivitBenchError: Slurm refuses it, or the folder cannot be written.
        """
        import submitit

        # -P: the working directory's files must not be taken for libraries.
        executor = submitit.SlurmExecutor(folder, python=f"{shlex.quote(sys.executable)} -P")
        executor.update_parameters(**parameters)
        try:
            return str(executor.submit(run_task, task).job_id)
        except OSError as error:
            raise VivitBenchError(f"cannot write {folder}: {error.strerror or error}") from error
        except RuntimeError as error:  # submitit's, with all that sbatch wrote
            raise VivitBenchError(f"Slurm refuses the job: {_words_of(str(error))}") from error

    def live(self, names: Sequence[str]) -> dict[str, str]:
        """See `Scheduler`.

        Raises:
            VivitBenchError: Slurm does not answer.
        """
        asked = [
            "squeue",
            "--noheader",
            "--me",
            f"--name={','.join(names)}",
            "--sort=i",
            "--format=%i|%j",
        ]
        lines = _answer(asked).splitlines() if names else []
        rows = [line.strip().partition("|") for line in lines]
        return {name: number for number, _, name in reversed(rows)}  # the one submitted first

    def states(self, numbers: Sequence[str]) -> dict[str, JobState]:
        """See `Scheduler`.

        Raises:
            VivitBenchError: Slurm does not answer.
        """
        found: dict[str, JobState] = {}
        listed = f"--jobs={','.join(numbers)}"
        asked = ["squeue", "--noheader", "--states=all", listed, "--format=%i|%T|%N|%r"]
        for line in _answer(asked, "Invalid job id").splitlines():
            number, name, node, reason = (*line.strip().split("|", 3), "", "", "")[:4]
            found[number] = JobState(name, node, "" if reason == "None" else reason)
        if left := [number for number in numbers if number not in found]:
            found |= _from_accounting(left)
        return found

    def outcome(self, folder: Path, number: str) -> Outcome | None:
        """See `Scheduler`."""
        import submitit
        from submitit.core.utils import pickle_load

        paths = submitit.SlurmJob(folder=folder, job_id=number).paths
        try:
            folder.chmod(folder.stat().st_mode)  # so that a network file system looks again
            kind, value = pickle_load(paths.result_pickle)
        except OSError:
            return None
        except Exception as error:  # cut short, or of another version: unpickling raises anything
            return Outcome(failed=f"{paths.result_pickle} cannot be read ({type(error).__name__})")
        if kind == "success" and isinstance(value, Outcome):
            return value
        return Outcome(failed=str(value).strip().rpartition("\n")[2])

    def log(self, folder: Path, number: str) -> Path:
        """See `Scheduler`."""
        return folder / f"{number}_0_log.err"


def _from_accounting(numbers: Sequence[str]) -> dict[str, JobState]:
    """Of jobs that the controller has forgotten; nothing where there is no accounting."""
    asked = ["sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={','.join(numbers)}"]
    try:
        text = _answer([*asked, "--format=JobID,State,NodeList,ExitCode"])
    except VivitBenchError:
        return {}
    rows = [(*line.split("|"), "", "", "")[:4] for line in text.splitlines()]
    return {
        number: JobState(state.split()[0], node, f"exit code {code}")
        for number, state, node, code in rows
        if state
    }


def _answer(command: list[str], harmless: str | None = None) -> str:
    """What one of Slurm's commands prints.

    Args:
        command: The command.
        harmless: A complaint that does not count.

    Raises:
        VivitBenchError: It fails, or says nothing for a minute.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VivitBenchError(f"Slurm's {command[0]} does not answer: {error}") from error
    if done.returncode and (harmless is None or harmless not in done.stderr):
        raise VivitBenchError(f"Slurm's {command[0]} fails: {_words_of(done.stderr)}")
    return done.stdout


def _words_of(text: str) -> str:
    """The lines in which a command of Slurm's says what is wrong, or else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line.partition("error:")[2].strip() for line in lines if "error:" in line]
    return "; ".join(dict.fromkeys(said)) or (lines[-1] if lines else "without a reason")
