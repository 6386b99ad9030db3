"""A momentary event of the state store is an alert for an hour."""

from __future__ import annotations

from koo.alerts.findings import Finding
from koo.alerts.news import KEPT_S, SETTLES_S, StoreNews
from koo.events import ProcessRenamed, StoreForgot, StoreFound, StoreLost
from tests.storage.support import SetClock


def test_data_loss_in_the_store_is_shown_for_an_hour_with_the_total_amount() -> None:
    clock = SetClock()
    news = StoreNews(clock)
    news.on_event(StoreLost("state store", "unreachable"))
    assert list(news.findings()) == []
    news.on_event(StoreForgot("state store", "0.25"))
    clock.now += KEPT_S / 2
    news.on_event(StoreForgot("state store", "0.5"))
    clock.now += KEPT_S - 1
    (finding,) = news.findings()
    assert (finding.fingerprint, finding.severity) == ("store_forgot:state_store", "warning")
    assert "0.75 USD" in finding.message and finding.data == {"amount": "0.75"}
    clock.now += 1
    assert list(news.findings()) == []
    news.on_event(StoreForgot("state store", "1"))
    assert next(news.findings()).data == {"amount": "1"}


def test_a_renamed_process_is_shown_for_an_hour() -> None:
    clock = SetClock()
    news = StoreNews(clock)
    news.on_event(ProcessRenamed("state store"))
    (finding,) = news.findings()
    assert (finding.fingerprint, finding.severity) == ("process_renamed:state_store", "warning")
    clock.now += KEPT_S
    assert list(news.findings()) == []


def test_no_process_is_presumed_dead_just_after_the_stores_return() -> None:
    """While the store was unreachable no process could report to it."""
    clock = SetClock()
    news = StoreNews(clock)
    found = [Finding("money_unsettled", "state_store", ""), Finding("circuit_open", "ai:claude", "")]
    assert news.add_to(found) == found
    news.on_event(StoreFound("state store"))
    assert news.add_to(found) == found[1:]
    clock.now += SETTLES_S
    assert news.add_to(found) == found
