"""What a quantity is computed from: the Gram matrix, or products with the GGN."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from torch import nn

from vivit_bench.curvature.available import available_device_memory, available_memory
from vivit_bench.curvature.options import Memory, Method, memory_of, parse_choice
from vivit_bench.curvature.plan import DoesNotFit, size_text
from vivit_bench.curvature.results import Choice, LeadingEigenvalues, NewtonStep
from vivit_bench.curvature.session import Request, check_count, check_tolerance
from vivit_bench.errors import UsageError

T = TypeVar("T", LeadingEigenvalues, NewtonStep)


def compute_by(
    method: Method | str,
    request: Request,
    from_gram: Callable[[Request], T],
    matrix_free: Callable[[Request], T],
    limits: Mapping[str, float | None],
    needs_gram: str = "",
) -> T:
    """Compute a quantity one way or the other; the result says which, and why.

    Left to itself (``auto``), this takes the Gram matrix where its leanest plan fits into the
    request's memory. Without a bound that is the memory available when the call begins: only what
    could not be computed from the Gram matrix here and now is computed from products instead.

    Args:
        method: That was asked for.
        request: The call.
        from_gram: The quantity from the Gram matrix.
        matrix_free: The same from products.
        limits: Keywords of the call that concern iterations alone; None where not given.
        needs_gram: Why products do not do; empty where they do.

    Raises:
        UsageError: The request cannot be computed, or a limit would be ignored; in one line.
        DoesNotFit: Neither way fits into the memory.
        VivitBenchError: The iterations do not converge.
        CertificateError: The result failed its check.
    """
    wanted = parse_choice(Method, "method", method)
    for name, value in limits.items():
        if value is not None:
            check_tolerance(value) if name == "tolerance" else check_count(name, value)
    if wanted is Method.LANCZOS:
        return replace(matrix_free(request), choice=Choice(wanted.value, "as asked for"))
    reason = "as asked for" if wanted is Method.GRAM else needs_gram
    memory = memory_of(request.memory)
    if not reason and memory is not None and not memory.strict:
        reason = "its leanest plan is run, whatever memory it takes"
    if reason:
        for name, value in limits.items():
            if value is not None:
                raise UsageError(
                    f"{name} is {value!r}: it is for iterations, and the Gram matrix is used "
                    f"({reason}); leave it out"
                )
        return replace(from_gram(request), choice=Choice(Method.GRAM.value, reason))
    if memory is None:
        memory = Memory(max(_available(request.model), 1))
        there = f"the {size_text(memory.bytes)} available now (no --engine-memory is given)"
    else:
        there = f"the {size_text(memory.bytes)} of memory given"
    bounded = replace(request, memory=memory)
    try:
        found = from_gram(bounded)
    except DoesNotFit as error:
        gram = error.least
    else:
        reason = f"it fits into {there}"
        return replace(found, choice=Choice(Method.GRAM.value, reason))
    try:
        found = matrix_free(bounded)
    except DoesNotFit as error:
        least = min(gram, error.least)
        raise DoesNotFit(
            f"{there}: too little, from the Gram matrix it takes {size_text(gram)}, from products "
            f"with the GGN {size_text(error.least)}; give {size_text(least)}, or use a smaller "
            "batch or params",
            least,
        ) from error
    reason = f"the Gram matrix and its solver take {size_text(gram)}, more than {there}"
    return replace(found, choice=Choice(Method.LANCZOS.value, reason))


def _available(model: nn.Module) -> int:
    """Bytes of memory that are free where the model is; what is no model is refused later."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if parameter is None or parameter.device.type != "cuda":
        return available_memory()
    return available_device_memory(parameter.device)
