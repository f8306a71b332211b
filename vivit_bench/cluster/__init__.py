"""Runs as jobs of Slurm: what is asked for, submitting, waiting, and what ends a job."""

from vivit_bench.cluster.jobs import EndedJob, QueueJob, QueueListener, Standing
from vivit_bench.cluster.queue import run_in_queue
from vivit_bench.cluster.request import Request, make_request, parse_options
from vivit_bench.cluster.slurm import Scheduler, Slurm

__all__ = [
    "EndedJob",
    "QueueJob",
    "QueueListener",
    "Request",
    "Scheduler",
    "Slurm",
    "Standing",
    "make_request",
    "parse_options",
    "run_in_queue",
]
