"""`docs/alerts.md` describes every kind of alert, and no other."""

from __future__ import annotations

import re

import pytest

from koo.alerts.engine import LISTED_AFTER_END_S, SETTLES_S, UNSEEN_S_MAX
from koo.alerts.keeping import ALONE_AFTER_S, ENDED_KEPT_S
from koo.alerts.kinds import ENDINGS, KINDS
from koo.alerts.limit_rules import APPROACHING
from koo.alerts.service_rules import CALLS_MIN, ERROR_RATE_MAX
from koo.alerts.views import RANK
from koo.options import DAY_S
from tests.docs.markdown import ROOT

PAGE = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_kinds_and_sections_correspond() -> None:
    assert SECTIONS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_each_section_states_severity_start_end_and_action(kind: str) -> None:
    section = SECTIONS[kind]
    assert section.strip().startswith(f"**Severity**: {KINDS[kind].severity}.")
    places = [section.find(f"**{part}**") for part in ("Begins", "Ends", "At 3 a.m.")]
    assert -1 < places[0] < places[1] < places[2]
    above = PAGE[: PAGE.index(f"### `{kind}`")]
    assert re.findall(r"^## (\w+)$", above, re.MULTILINE)[-1].lower() == KINDS[kind].severity


@pytest.mark.parametrize("kind", KINDS)
def test_a_section_names_the_event_of_its_end_if_there_is_one(kind: str) -> None:
    news = {ending.kind for ending in ENDINGS.values()}
    named = {name for name in re.findall(r"`(\w+)`", SECTIONS[kind]) if name in news}
    assert named == ({ENDINGS[kind].kind} if kind in ENDINGS else set())


def test_end_events_are_listed_with_their_alerts() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|$", PAGE.split("## Info")[1], re.MULTILINE)
    assert {was: news for news, was in rows} == {kind: ending.kind for kind, ending in ENDINGS.items()}


def test_severities_are_listed_from_the_worst_down() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE.split("## Critical")[0], re.MULTILINE) == list(RANK)


def test_the_pages_numbers_match_the_code() -> None:
    assert (ERROR_RATE_MAX, CALLS_MIN, APPROACHING) == (0.1, 20, 0.8)
    assert (LISTED_AFTER_END_S, SETTLES_S, ALONE_AFTER_S) == (900, 60, 10)
    assert (UNSEEN_S_MAX, ENDED_KEPT_S) == (DAY_S, 90 * DAY_S)
    assert "at least 20 calls in five minutes a tenth failed" in SECTIONS["degraded_performance"]
    assert all("80 %" in text for kind, text in SECTIONS.items() if "approaching" in kind)
    assert "listed for fifteen minutes" in PAGE
