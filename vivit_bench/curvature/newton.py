"""Damped Newton steps along the GGN eigenvectors (Equation 9)."""

from typing import Any

import torch
from torch import Tensor, nn

from vivit_bench.curvature.damping import ConstantDamping, DampingPolicy
from vivit_bench.curvature.factors import Direction
from vivit_bench.curvature.inverse import solve_damped
from vivit_bench.curvature.minibatch import MiniBatch
from vivit_bench.curvature.options import Blocks
from vivit_bench.curvature.results import NewtonStep
from vivit_bench.curvature.systems import GramSystem, gram_systems
from vivit_bench.errors import UsageError


@torch.no_grad()
def newton_step(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    damping: float | DampingPolicy = 1.0,
    cutoff: float | None = 1e-4,
    blocks: Blocks = Blocks.NONE,
    **options: Any,
) -> NewtonStep:
    """The step -sum_k gamma_k / (l_k + d_k) e_k over the directions above the cutoff.

    Neither V nor an eigenvector in parameter space is formed: s = V w for weights w from
    the Gram matrix's eigenpairs, one ordinary backward pass (full GGN) or one weight
    gradient per layer (blocks).

    Args:
        model: See :func:`~vivit_bench.curvature.eigenvalues`.
        loss: As there.
        inputs: As there.
        targets: As there.
        damping: d, or a policy (gammas [N, K], lambdas [num_samples, K]) -> d [K], where
            ``inf`` means no step along a direction.
        cutoff: Directions have eigenvalues above it. None: the whole space,
            s = -(G + d I)^-1 grad L (Equation S.25); needs a constant damping above zero.
        blocks: ``none`` for the full GGN, ``layer`` for the block-diagonal step.
        **options: As for :func:`~vivit_bench.curvature.eigenvalues`.

    Raises:
        UsageError: If the request cannot be computed.
    """
    policy: DampingPolicy = damping if callable(damping) else ConstantDamping(damping)
    batch = MiniBatch(model, loss, inputs, targets, **options)
    blocks = Blocks(blocks)
    if cutoff is None:
        if not isinstance(policy, ConstantDamping) or policy.value <= 0:
            raise UsageError(
                "a step over the whole space needs a constant damping above 0; "
                "give a number, or a cutoff"
            )
        (solved,) = solve_damped(batch, [batch.gradient()], policy.value, blocks)
        empty = {"": torch.empty(0)}
        return _result(batch, {p: -v for p, v in solved.items()}, empty, empty)
    if cutoff < 0:
        raise UsageError(f"cutoff is {cutoff}; eigenvalues are compared with a number >= 0")

    per_sample = not isinstance(policy, ConstantDamping)
    step: Direction = {}
    found: dict[str, Tensor] = {}
    dampings: dict[str, Tensor] = {}
    for block in gram_systems(batch, cutoff, blocks=blocks, per_sample=per_sample):
        weights, delta = _weights(block.system, policy)
        name = block.units[0].name if blocks is Blocks.LAYER else ""
        found[name] = block.system.eigenvalues.flip(0).cpu()
        dampings[name] = delta.flip(0).cpu()
        if block.factor is None:
            del block
            (step,) = batch.backward(weights.unsqueeze(1))
        else:
            step |= block.factor.combine(weights.to(batch.dtype))
    return _result(batch, step, found, dampings)


def _weights(system: GramSystem, policy: DampingPolicy) -> tuple[Tensor, Tensor]:
    """Weights w [M] with s = V w, and the dampings [K]."""
    gammas = system.gammas()
    if isinstance(policy, ConstantDamping):
        delta = torch.full_like(system.eigenvalues, policy.value)
    else:
        delta = policy(gammas, system.lambdas()).to(system.eigenvalues)
        if delta.shape != system.eigenvalues.shape or not (delta >= 0).all():
            raise UsageError(
                f"the damping policy returned {list(delta.shape)} values for "
                f"{len(system.eigenvalues)} directions, or a negative one or NaN"
            )
    coefficients = -gammas.mean(0) / (system.eigenvalues + delta) / system.eigenvalues.sqrt()
    return system.vectors @ coefficients, delta


def _result(
    batch: MiniBatch, step: Direction, found: dict[str, Tensor], dampings: dict[str, Tensor]
) -> NewtonStep:
    return NewtonStep(
        info=batch.info(batch.mean_loss()),
        step=[step.get(p, torch.zeros_like(p)) for p in batch.parameters],
        eigenvalues=found,
        dampings=dampings,
        gradient=batch.requested_gradient(),
    )
