"""The circuit breaker: its stories (`rules.py`), all its interleavings (`checker.py`), and its mutants."""

from __future__ import annotations

import pytest

from koo.policies import breaker as real
from koo.policies.breaker import TRANSITIONS, Phase, Trigger
from tests.policies.checker import SCOPES, Explorer, Violation
from tests.policies.mutants import MUTANTS, Mutant
from tests.policies.rules import RULES


@pytest.mark.parametrize("story", RULES.values(), ids=[name.replace("_", " ") for name in RULES])
def test_the_breaker_follows_the_rule(story: object) -> None:
    assert callable(story)
    story(real)


USED: set[tuple[Phase, Trigger]] = set()
BY_OPERATOR = {pair for pair in TRANSITIONS if pair[1] is Trigger.RESET}


@pytest.mark.parametrize("name", SCOPES)
def test_no_interleaving_breaks_an_invariant_and_every_transition_is_reached(name: str) -> None:
    """A transition that is never reached does not belong in the table."""
    explorer = Explorer(SCOPES[name])
    explorer.explore()
    reachable = set(TRANSITIONS) if SCOPES[name].operator else set(TRANSITIONS) - BY_OPERATOR
    assert explorer.table.used == reachable
    assert explorer.phases == set(Phase) and explorer.states > 1000


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.rule for mutant in MUTANTS])
def test_every_mutant_of_the_breaker_is_found(mutant: Mutant) -> None:
    module = mutant.load()
    if mutant.found_by in RULES:
        with pytest.raises((AssertionError, OverflowError)):
            RULES[mutant.found_by](module)
        return
    with pytest.raises(Violation) as found:
        Explorer(SCOPES[mutant.scope], module).explore()
    assert found.value.invariant == mutant.found_by, found.value
