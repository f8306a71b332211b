"""Sixty random networks of `scripts/fuzz_engine.py`: none answered wrongly, none crashes."""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from fuzz_engine import build, run_number, state


def test_random_networks() -> None:
    outcomes = {number: run_number(number) for number in range(60)}
    failures = {
        number: outcome.reason
        for number, (_, outcome) in outcomes.items()
        if outcome is not None and outcome.kind in ("wrong", "crashed")
    }
    assert not failures
    plain = [o.kind for c, o in outcomes.values() if o is not None and c.refusal is None]
    assert Counter(plain)["right"] >= 0.9 * len(plain)


def test_a_number_fixes_the_case() -> None:
    for number in range(5):
        first, second = state(build(number)), state(build(number))
        tensors = [name for name in first if not name.endswith(("hooks", "forward", "RNG"))]
        assert all(str(first[name]) == str(second[name]) for name in tensors)
