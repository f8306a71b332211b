"""Foreign text in a one-line message."""

_LONGEST = 300


def one_line(text: object) -> str:
    """``text`` on one line, cut off where it gets long."""
    line = " ".join(str(text).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def describe(error: BaseException) -> str:
    """Type and message of an exception on one line."""
    return f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
