"""The store's policy as one table: state x change x damage x --fresh -> what happens."""

import pytest

from vivit_bench.store import Action, Decision, Found, State, decide

RUNNING, FINISHED, FAILED = State.RUNNING, State.FINISHED, State.FAILED
REPLACE = Decision(Action.START, replace=True)

# found, what happens, what happens with --fresh (None: the same)
TABLE = [
    (Found(), Action.START, Action.START),
    (Found(RUNNING), Action.RESUME, REPLACE),
    (Found(FINISHED), Action.RETURN, REPLACE),
    (Found(FINISHED, more_wanted=True), Action.RESUME, REPLACE),
    (Found(FAILED), Action.FAIL, REPLACE),
    (Found(foreign=True), Action.REFUSE, Action.REFUSE),
    (Found(damage="run.json is cut short"), Action.REFUSE, REPLACE),
    *[
        (Found(state, **{why: "old -> new"}), Action.REFUSE, REPLACE)
        for state in (RUNNING, FINISHED, FAILED)
        for why in ("damage", "settings", "environment")
    ],
    (Found(FINISHED, environment="code a -> b", more_wanted=True), Action.REFUSE, REPLACE),
]


@pytest.mark.parametrize(("found", "expected", "fresh"), TABLE)
def test_policy(found: Found, expected: Action, fresh: Action | Decision) -> None:
    assert decide(found, False).action is expected
    assert not decide(found, False).replace
    decided = decide(found, True)
    if isinstance(fresh, Decision):
        assert decided == fresh
    else:
        assert (decided.action, decided.replace) == (fresh, False)


@pytest.mark.parametrize(("found", "expected", "fresh"), TABLE)
def test_policy_for_a_run_that_cannot_be_resumed(
    found: Found, expected: Action, fresh: Action | Decision
) -> None:
    decided = decide(found, False, resumable=False)
    if found.state is RUNNING and not found.damage:
        assert decided == Decision(Action.START)  # it has no numbers that others could not join
    elif expected is Action.RESUME:
        assert decided == REPLACE
    else:
        assert decided == decide(found, False)
    assert decide(found, True, resumable=False) == decide(found, True)


@pytest.mark.parametrize("found", [found for found, action, _ in TABLE if action is Action.REFUSE])
def test_a_refusal_names_what_is_wrong_and_what_to_type(found: Found) -> None:
    reason = decide(found, False).reason
    for why in (found.damage, found.settings, found.environment):
        if why and (why == found.damage or not found.damage):
            assert why in reason
            break
    assert "choose another name" in reason if found.foreign else "--fresh" in reason
