"""From a call's arguments to a finished result: attempts, each with a plan and its checks."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from vivit_bench.curvature.available import available_device_memory
from vivit_bench.curvature.capture import GraphChanged
from vivit_bench.curvature.certificate import Certifier, Certify, LayersDisagree
from vivit_bench.curvature.checks import Checks
from vivit_bench.curvature.minibatch import (
    MiniBatch,
    Patterns,
    check_request,
    undisturbed,
)
from vivit_bench.curvature.options import Approximation, Blocks, Goal, Memory, memory_of
from vivit_bench.curvature.passes import Sweep, sweep_curvature
from vivit_bench.curvature.plan import Plan, Stage, leanest_peak, make_plan
from vivit_bench.curvature.results import Dropped
from vivit_bench.curvature.route import Route, find_route
from vivit_bench.curvature.slopes import Work
from vivit_bench.curvature.square import check_room
from vivit_bench.curvature.units import BlockPatterns
from vivit_bench.errors import CertificateError, UsageError
from vivit_bench.trees import Tree

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What a public function was called with."""

    model: nn.Module
    loss: nn.Module
    inputs: Tree
    targets: Tensor
    approximation: Approximation
    blocks: BlockPatterns = Blocks.NONE
    params: Patterns | None = None
    certify: Certify = True
    working_bytes: int | None = None
    memory: int | Memory | None = None
    goal: Goal = Goal.EIGENVALUES
    drop_trace: float | None = None

    def __post_init__(self) -> None:
        memory_of(self.memory)
        if self.drop_trace is not None:
            check_drop_trace(self.drop_trace, self.memory)
        if self.certify not in (True, False, "all"):
            raise UsageError(f"certify is {self.certify!r}; use True, False or 'all'")

    def undisturbed(self) -> AbstractContextManager[None]:
        """What everything that is done for the request happens in; see there."""
        return undisturbed(self.model, bounded=self.memory is not None)


def check_number(name: str, value: object) -> None:
    """Refuse what is no real number.

    Raises:
        UsageError: With name and value.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} is {value!r}; give a number")


def check_count(name: str, value: object) -> None:
    """Refuse what does not count something.

    Raises:
        UsageError: With name and value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} is {value!r}; it must be a whole number, at least 1")


def check_tolerance(tolerance: float) -> None:
    """Refuse what residuals cannot be held below.

    Raises:
        UsageError: It is no number between 0 and 1.
    """
    check_number("tolerance", tolerance)
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance is {tolerance}; it must lie between 0 and 1")


def check_cutoff(cutoff: float) -> None:
    """Refuse a cutoff that eigenvalues cannot be compared with.

    Raises:
        UsageError: It is no number, negative or NaN.
    """
    check_number("cutoff", cutoff)
    if not cutoff >= 0:
        raise UsageError(f"cutoff is {cutoff}; eigenvalues are compared with a number >= 0")


def check_drop_trace(trace: float, memory: int | Memory | None) -> None:
    """Refuse what columns cannot be dropped by.

    Raises:
        UsageError: It is no number, negative, infinite or NaN, or there is a bound on memory.
    """
    check_number("drop_trace", trace)
    if not 0 <= trace < math.inf:
        raise UsageError(
            f"drop_trace is {trace}; it bounds what dropped columns change: give a number >= 0, "
            "such as a tenth of the cutoff"
        )
    if memory is not None:
        raise UsageError(
            f"drop_trace {trace} and a bound on memory exclude each other: columns are dropped "
            "where all are held at once; leave one of them out"
        )


def plan_request(
    request: Request, plain: frozenset[nn.Parameter] = frozenset()
) -> tuple[MiniBatch, Plan]:
    """How a request would be computed, without computing it.

    Args:
        request: The call.
        plain: Parameters that plain autograd computes.
    """
    with request.undisturbed():
        batch, route = _routed(request, plain)
        plan = _plan(request, batch, route)
        return replace(batch, working_bytes=plan.working_bytes), plan


def leanest_of(request: Request) -> Stage:
    """The peak of the leanest plan of a request; the request's own memory does not count."""
    with request.undisturbed():
        batch, route = _routed(request)
        certified = request.certify is not False
        return leanest_peak(batch, route, request.blocks, request.goal, certified)


def _routed(
    request: Request, plain: frozenset[nn.Parameter] = frozenset()
) -> tuple[MiniBatch, Route]:
    batch, outputs = checked(request)
    return batch, find_route(batch, outputs, batch.factor.num_columns, plain)


def run(
    request: Request,
    compute: Callable[[Work, Sweep], T],
    *,
    with_gradient: bool,
) -> T:
    """Compute a quantity from one sweep over the samples that carry the curvature.

    Layers whose rule fails its check, and networks that compute differently for different
    samples, are computed once more by plain autograd.

    Args:
        request: The call.
        compute: The quantity, from an attempt and its sweep.
        with_gradient: The gradient of the mini-batch is wanted too.

    Raises:
        UsageError: The request cannot be computed.
        CertificateError: The result failed its check.
    """
    plain: frozenset[nn.Parameter] = frozenset()
    notes: list[str] = []
    with request.undisturbed():
        for attempt in range(3):
            batch, outputs = checked(request)
            if plain.issuperset(batch.parameters):
                batch = replace(batch, is_plain=True)
                outputs = batch.forward([0])
            try:
                route = find_route(batch, outputs, batch.factor.num_columns, plain)
                del outputs
                plan = _plan(request, batch, route)
                batch = replace(batch, working_bytes=plan.working_bytes)
                check_room(plan.rows_on_cpu)
                sweep = sweep_curvature(batch, plan, with_gradient=with_gradient)
                dropped = None
                if request.drop_trace is not None:
                    kept = sweep.drop(request.drop_trace)
                    dropped = Dropped(0, 0.0) if kept is None else kept.dropped
                    batch = replace(batch, kept=kept)
                checks = _checks(request, batch, plan, sweep, notes)
                return compute(Work(batch, plan, checks, dropped), sweep)
            except LayersDisagree as found:
                notes += found.notes
                plain = plain | found.parameters if not attempt else frozenset(batch.parameters)
            except GraphChanged:
                notes.append("the network computes differently for different samples")
                plain = frozenset(batch.parameters)
        raise CertificateError(
            f"the result failed its check by plain autograd, also without any rule ({notes[-1]}): "
            "the model's forward pass is random, couples its samples or changes; call model.eval()"
        )


def checked(request: Request) -> tuple[MiniBatch, Tensor]:
    """See ``check_request``."""
    return check_request(
        request.model,
        request.loss,
        request.inputs,
        request.targets,
        request.approximation,
        params=request.params,
        working_bytes=request.working_bytes,
    )


def _plan(request: Request, batch: MiniBatch, route: Route) -> Plan:
    memory = memory_of(request.memory)
    if memory is None and batch.device.type == "cuda" and request.drop_trace is None:
        # A device's solver holds the matrix six times: where that is too much, the CPU's is used.
        memory = Memory(max(available_device_memory(batch.device), 1), strict=False)
    return make_plan(
        batch,
        route,
        request.blocks,
        request.goal,
        memory,
        request.certify is not False,
    )


def _checks(
    request: Request, batch: MiniBatch, plan: Plan, sweep: Sweep, notes: list[str]
) -> Checks:
    if request.certify is False:
        return Checks()
    count = batch.num_samples
    if request.certify == "all":
        samples = list(range(count))
    else:
        generator = torch.Generator().manual_seed(batch.approximation.seed)
        order = torch.randperm(count, generator=generator)
        if batch.kept is not None:  # those that keep columns: the others are zero
            empty = ~batch.kept.mask.any(1).cpu()
            order = order[empty[order].int().argsort(stable=True)]
        samples = sorted(order[:2].tolist())
    said = [*notes, *plan.notes]
    return Certifier(batch, plan, sweep, samples, request.certify == "all", said)
