"""What the engine would do with a request, and why."""

from dataclasses import dataclass

from torch import Tensor, nn

from vivit_bench.curvature.certificate import Certify
from vivit_bench.curvature.costs import Costs, costs_of
from vivit_bench.curvature.minibatch import Patterns
from vivit_bench.curvature.options import (
    Approximation,
    Blocks,
    Goal,
    Memory,
    approximation_of,
    parse_choice,
)
from vivit_bench.curvature.plan import Piece, Stage
from vivit_bench.curvature.route import GraphChanged
from vivit_bench.curvature.session import Request, leanest_of, plan_request
from vivit_bench.curvature.units import BlockPatterns, UnitPlan
from vivit_bench.trees import Tree


@dataclass(frozen=True)
class Explanation:
    """A request's plan."""

    units: tuple[UnitPlan, ...]
    """A layer, or a part of one, each."""
    one_sample_at_a_time: bool
    """Else micro-batches of several samples."""
    notes: tuple[str, ...]
    """What slows the passes over the network down."""
    kept_bytes: tuple[int, ...]
    """Memory of each unit's factors."""
    passes: tuple[tuple[str, ...], ...]
    """Names of the layers, or parts of layers, that each pass over the mini-batch collects."""
    parts: tuple[int, ...]
    """In how many passes each unit is collected, a part of it in each."""
    in_place: tuple[str, ...]
    """Blocks whose matrix is solved in its own memory."""
    working_bytes: int
    """Memory target of a micro-batch."""
    stages: tuple[Stage, ...]
    """Parts of the computation, with the memory that is held at the height of each."""
    peak: Stage
    """Where most memory is held, over what the process holds before."""
    costs: Costs
    """FLOPs and expected seconds of the passes, contractions and solvers."""


def explain(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tree,
    targets: Tensor,
    approximation: Approximation | None = None,
    *,
    curvature: str | None = None,
    samples: str | None = None,
    mc_samples: int | None = None,
    seed: int | None = None,
    quantity: Goal | str = Goal.EIGENVALUES,
    blocks: BlockPatterns = Blocks.NONE,
    params: Patterns | None = None,
    certify: Certify = True,
    working_bytes: int | None = None,
    memory: int | Memory | None = None,
) -> Explanation:
    """The plan of a request: every layer's contraction, passes, memory, FLOPs, expected seconds.

    Nothing is computed but one micro-batch, which is timed as a matrix product and a solver on few
    rows are.

    Args:
        model: See :func:`~vivit_bench.curvature.eigenvalues`, as for the others.
        loss: As there.
        inputs: As there.
        targets: As there.
        approximation: As there.
        curvature: As there.
        samples: As there.
        mc_samples: As there.
        seed: As there.
        quantity: What is to be computed: ``eigenvalues``, ``eigenvectors``, ``directional``
            (derivatives), ``newton``, ``newton-policy`` (with a damping policy) or ``inverse``
            (a product with it, or a step over the whole space).
        blocks: As there.
        params: As there.
        certify: As there; a check's vectors take memory.
        working_bytes: As there.
        memory: As there.

    Raises:
        UsageError: The request cannot be computed; in one line.
    """
    approximation = approximation_of(approximation, curvature, samples, mc_samples, seed)
    request = Request(
        model,
        loss,
        inputs,
        targets,
        approximation,
        blocks,
        params,
        certify=certify,
        working_bytes=working_bytes,
        memory=memory,
        goal=parse_choice(Goal, "quantity", quantity),
    )
    notes: tuple[str, ...] = ()
    batch, plan = plan_request(request)
    with request.undisturbed():
        try:
            costs = costs_of(batch, plan)
        except GraphChanged:  # as a computation would go on
            notes = ("the network computes differently for different samples",)
            batch, plan = plan_request(request, frozenset(batch.parameters))
            costs = costs_of(batch, plan)
    n, columns = batch.num_samples, batch.factor.num_columns
    return Explanation(
        plan.units,
        plan.route.layouts is None,
        (*plan.route.notes, *notes),
        tuple(Piece(unit).bytes(n, columns) for unit in plan.units),
        tuple(tuple(piece.name for piece in pieces) for pieces in plan.passes),
        tuple(len(plan.pieces(unit)) for unit in plan.units),
        tuple(block.name or "the full GGN" for block in plan.in_place),
        plan.working_bytes,
        plan.stages,
        plan.peak,
        costs,
    )


def least_memory(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tree,
    targets: Tensor,
    approximation: Approximation | None = None,
    *,
    quantity: Goal | str = Goal.EIGENVALUES,
    blocks: BlockPatterns = Blocks.NONE,
    params: Patterns | None = None,
    certify: bool = True,
    working_bytes: int | None = None,
) -> int:
    """The least ``memory`` with which a request is not refused, without computing.

    Args:
        model: See :func:`~vivit_bench.curvature.eigenvalues`, as for what is not named here.
        loss: As there.
        inputs: As there.
        targets: As there.
        approximation: As there; None: exact curvature of all samples.
        quantity: What is to be computed; see `explain`.
        blocks: As there.
        params: As there.
        certify: Whether the result is to be checked.
        working_bytes: As there.

    Returns:
        Bytes over what the process holds.

    Raises:
        UsageError: The request cannot be computed; in one line.
    """
    request = Request(
        model,
        loss,
        inputs,
        targets,
        approximation or Approximation(),
        blocks,
        params,
        certify,
        working_bytes,
        goal=parse_choice(Goal, "quantity", quantity),
    )
    return leanest_of(request).bytes
