"""Foreign text in a one-line message."""

from collections.abc import Iterator
from contextlib import contextmanager

from vivit_bench.errors import UsageError


def a_type(value: object) -> str:
    """What a value is: ``a dict``, ``3 values`` of a tuple or list."""
    if isinstance(value, tuple | list):
        return f"{len(value)} value{'s' if len(value) != 1 else ''}"
    return f"a {type(value).__name__}"


@contextmanager
def prefixed(what: str) -> Iterator[None]:
    """Put ``what``, the problem's name or more, before the message of a `UsageError`."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error
