"""Whether problems and data of stored runs can be had here without fetching anything."""

from pathlib import Path

from vivit_bench.problems.catalogue import dataset_of, is_user_problem
from vivit_bench.problems.datasets import data_folder
from vivit_bench.problems.sources import DataSource
from vivit_bench.problems.workload import WorkloadSpec


def absent_files(spec: WorkloadSpec) -> str:
    """Which of the user's files is not there, on one line; empty if all are."""
    problem = spec.problem.rpartition(":")[0] if is_user_problem(spec.problem) else None
    for path in (problem, spec.checkpoint):
        if path is not None and not Path(path).is_file():
            return f"model and data cannot be compared: there is no file {path} here"
    return ""


def absent_data(spec: WorkloadSpec, data_dir: Path | None) -> str:
    """Which data set is not there, on one line; empty if none is missing. Nothing is downloaded."""
    if spec.data is not DataSource.DEEPOBS:
        return ""
    folder, data_set = data_folder(data_dir), dataset_of(spec.problem)
    if not data_set.missing(folder):
        return ""
    return (
        f"model and data cannot be compared: {data_set.title} is not in {folder} (name its folder "
        "with --data-dir)"
    )


def why_not(error: Exception) -> str:
    """What keeps model and data from being compared, on one line."""
    return f"model and data cannot be compared: {error}"
