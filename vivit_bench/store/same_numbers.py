"""Versions of the code that give the same numbers.

A result belongs to the code that made it. Where that has changed in what it checks, refuses or
says, and in no number, results from before and after it go together. That is written here once
``scripts/same_numbers.py`` has found every number of both versions to be the same to the bit.
"""

_SAME: tuple[tuple[str, ...], ...] = (
    # critical_batch of other engines and of gradients; the last two are their part of it alone
    (
        "4da17e5daf4b",
        "b8c0d7ffd993",
        "24abeb4bdad7",
        "0bb70a1952de",
        "d0fa6273f11f",
        "1d5ee00fc33e",
    ),
    ("9333c459e709", "ba2fa92370e9"),  # critical_batch and comparison
    (
        "5ccd256062f5",
        "09a44ee43309",
        "874b19b2d405",
        "4c1f2716d12e",
        "da479c4f77f8",
        "5e4116c5d474",
    ),  # spectrum
    (
        "c23ad725313b",
        "bca3d716b921",
        "b72af209eec3",
        "3607d2242d40",
        "51c70d456e5e",
        "e03524157c24",
        "78b0cd71af83",
        "6650d0a106d3",
    ),  # noise
    ("c106b10ae1d6", "50554242241d", "16ccaaffb923", "d147fa683c29", "8d3467b43f89"),  # quadratic
)
"""Fingerprints of code, see `code_fingerprint`; those of a line give the same numbers."""

_NEWEST = {code: codes[-1] for codes in _SAME for code in codes}


def newest(code: object) -> object:
    """The last version that gives the same numbers as one; itself where none is known."""
    return _NEWEST.get(code, code) if isinstance(code, str) else code
