"""Versions of the code that give the same numbers.

A result belongs to the code that made it. Where that has changed in what it checks, refuses or
says, and in no number, results from before and after it go together. That is written here once
``scripts/same_numbers.py`` has found every number of both versions to be the same to the bit.
"""

_SAME: tuple[tuple[str, ...], ...] = ()
"""Fingerprints of code, see `code_fingerprint`; those of a line give the same numbers."""

_NEWEST = {code: codes[-1] for codes in _SAME for code in codes}


def newest(code: object) -> object:
    """The last version that gives the same numbers as one; itself where none is known."""
    return _NEWEST.get(code, code) if isinstance(code, str) else code
