"""What happened to the state store at one instant is an alert for an hour."""

from __future__ import annotations

from koo.alerts.findings import Finding
from koo.alerts.news import KEPT_S, SETTLES_S, StoreNews
from koo.events import ProcessRenamed, StoreForgot, StoreFound, StoreLost
from tests.storage.support import SetClock


def test_a_store_that_forgot_is_told_for_an_hour_with_the_money_of_all_times() -> None:
    clock = SetClock()
    news = StoreNews(clock)
    news.on_event(StoreLost("state store", "away"))
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


def test_a_process_under_another_name_is_told_for_an_hour() -> None:
    clock = SetClock()
    news = StoreNews(clock)
    news.on_event(ProcessRenamed("state store"))
    (finding,) = news.findings()
    assert (finding.fingerprint, finding.severity) == ("process_renamed:state_store", "warning")
    clock.now += KEPT_S
    assert list(news.findings()) == []


def test_a_store_that_is_just_back_takes_nobody_for_dead() -> None:
    """It has heard of no process while it was away."""
    clock = SetClock()
    news = StoreNews(clock)
    found = [Finding("money_unsettled", "state_store", ""), Finding("circuit_open", "ai:claude", "")]
    assert news.add_to(found) == found
    news.on_event(StoreFound("state store"))
    assert news.add_to(found) == found[1:]
    clock.now += SETTLES_S
    assert news.add_to(found) == found
