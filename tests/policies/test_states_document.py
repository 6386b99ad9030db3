"""`docs/states.md` is up to date with the breaker, and names every phase, trigger, override and state."""

from __future__ import annotations

from docs.generate_states import PAGE, page
from koo.policies.breaker import TRANSITIONS, Override, Phase, Trigger
from koo.policies.reported import DatabaseState, ServiceState


def test_the_page_is_up_to_date_with_its_source() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make docs"


def test_the_page_names_every_phase_cue_override_and_state() -> None:
    text = page()
    for names in (Phase, Override, DatabaseState, ServiceState):
        assert [one for one in names if f"`{one.value}`" not in text] == []
    assert [trigger for trigger in Trigger if trigger.value not in text] == [], (
        "a trigger without a transition is useless"
    )
    assert {trigger for _, trigger in TRANSITIONS} == set(Trigger)
