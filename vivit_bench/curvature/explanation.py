"""What the engine would do with a request, and why."""

from dataclasses import dataclass

from torch import Tensor, nn

from vivit_bench.curvature.minibatch import WORKING_BYTES, Patterns
from vivit_bench.curvature.options import Approximation, Blocks, approximation_of
from vivit_bench.curvature.plan import BlockPatterns, UnitPlan
from vivit_bench.curvature.session import Request, plan_request
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
    blocks: BlockPatterns = Blocks.NONE,
    params: Patterns | None = None,
    working_bytes: int = WORKING_BYTES,
) -> Explanation:
    """The tier and contraction of every layer with FLOPs, memory and reason, without computing.

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
        blocks: As there.
        params: As there.
        working_bytes: As there.

    Raises:
        UsageError: The request cannot be computed; in one line.
    """
    approximation = approximation_of(approximation, curvature, samples, mc_samples, seed)
    _, plan = plan_request(
        Request(
            model,
            loss,
            inputs,
            targets,
            approximation,
            blocks,
            params,
            working_bytes=working_bytes,
        )
    )
    return Explanation(plan.units, plan.route.layouts is None, plan.route.notes)
