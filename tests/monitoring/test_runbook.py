"""The package's runbook has the text of docs/alerts.md for each kind of alert."""

from __future__ import annotations

import pytest

from docs import generate_runbook
from koo.alerts.kinds import KINDS
from koo.monitoring.runbook import runbook, runbook_path, runbooks


def test_the_packages_runbook_equals_the_docs_page() -> None:
    assert generate_runbook.FILE.read_text(encoding="utf-8") == generate_runbook.text(), "run: make docs"


def test_each_kind_of_alert_has_a_runbook() -> None:
    assert set(runbooks()) == set(KINDS)


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_runbook_is_complete_and_without_markup(kind: str) -> None:
    one = runbook(kind)
    assert one is not None
    assert (one.kind, one.title, one.severity) == (kind, KINDS[kind].title, KINDS[kind].severity)
    assert one.begins and one.ends and one.advice and one.anchor == f"alerts.md#{kind}"
    for text in (one.refuses, one.begins, one.ends, one.advice):
        assert not any(mark in text for mark in ("*", "`", "](")), text
        assert not text.startswith((":", " ")) and "\n\n\n" not in text


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_advice_begins_with_a_capital_letter_or_with_the_command(kind: str) -> None:
    """`Koo db resume` would not be found."""
    for paragraph in runbooks()[kind].advice.split("\n\n"):
        assert paragraph[0].isupper() or paragraph.startswith("koo "), paragraph


def test_a_runbook_link_points_to_the_kind_and_for_news_to_the_whole_page() -> None:
    assert runbook_path("circuit_open") == "/api/v1/runbook/circuit_open"
    assert runbook_path("circuit_open", "/shop/koo") == "/shop/koo/runbook/circuit_open"
    assert runbook_path("circuit_closed") == "/api/v1/runbook"
    assert runbook("circuit_closed") is None
