"""Events: immutable facts, delivered in order, whose listeners cannot harm the publisher."""

from __future__ import annotations

import dataclasses
import logging
from typing import get_args

import pytest

from koo import events
from koo.events import (
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    Event,
    EventBus,
    Severity,
    StoreFound,
    StoreLost,
)

KINDS = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
]


@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])
def test_an_event_is_a_frozen_fact_with_a_source_and_a_severity(kind: type[Event]) -> None:
    fields = dataclasses.fields(kind)
    made = kind(**{one.name: "claude" for one in fields})
    assert fields[0].name == "source" and made.source == "claude"
    assert made.severity in get_args(Severity)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.source = "x"  # type: ignore[misc]
    assert kind.__doc__, "undocumented is broken"


def test_critical_events_stop_service_or_leave_money_or_data_in_doubt() -> None:
    critical = {kind.__name__ for kind in KINDS if kind.severity == "critical"}
    assert critical == {
        "CircuitOpened",
        "KeyBlocked",
        "BillExceededHold",
        "CommitUnknown",
        "DeliveryGivenUp",
        "StoreForgot",
        "StoreLost",
    }


def test_listeners_receive_each_event_in_order_until_they_stop() -> None:
    bus, one, other = EventBus(), list[Event](), list[Event]()
    stop = bus.listen(one.append)
    bus.listen(other.append)
    opened, closed = CircuitOpened("a", "why", 60.0), CircuitClosed("a")
    bus.publish(opened)
    stop()
    bus.publish(closed)
    assert one == [opened] and other == [opened, closed] == list(bus.recent)


def test_a_listener_may_stop_twice_and_stops_only_itself() -> None:
    bus, heard = EventBus(), list[Event]()
    stop = bus.listen(heard.append)
    bus.listen(heard.append)
    stop()
    stop()
    bus.publish(CircuitClosed("a"))
    assert heard == [CircuitClosed("a")]


def test_an_event_published_by_a_listener_is_delivered_after_the_current_one() -> None:
    bus, heard = EventBus(), list[tuple[str, Event]]()

    def first(event: Event) -> None:
        heard.append(("first", event))
        if isinstance(event, CircuitOpened):
            bus.publish(CircuitHalfOpened("a"))

    bus.listen(first)
    bus.listen(lambda event: heard.append(("second", event)))
    bus.publish(CircuitOpened("a", "why", 60.0))
    assert [(who, type(event).__name__) for who, event in heard] == [
        ("first", "CircuitOpened"),
        ("second", "CircuitOpened"),
        ("first", "CircuitHalfOpened"),
        ("second", "CircuitHalfOpened"),
    ]


def test_a_listeners_exception_is_logged_and_the_others_receive_the_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus, heard = EventBus(), list[Event]()

    def broken(event: Event) -> None:
        raise RuntimeError("a bug")

    bus.listen(broken)
    bus.listen(heard.append)
    with caplog.at_level(logging.ERROR, "koo"):
        bus.publish(StoreFound("store"))
        bus.publish(StoreLost("store", "gone"))
    assert heard == [StoreFound("store"), StoreLost("store", "gone")]
    assert "a bug" in caplog.text and "StoreFound" in caplog.text


def test_after_a_listener_raised_an_exit_later_events_are_still_delivered() -> None:
    bus, heard = EventBus(), list[Event]()

    def interrupted(event: Event) -> None:
        if isinstance(event, StoreLost):
            raise KeyboardInterrupt

    bus.listen(interrupted)
    bus.listen(heard.append)
    with pytest.raises(KeyboardInterrupt):
        bus.publish(StoreLost("store", "gone"))
    bus.publish(StoreFound("store"))
    assert heard == [StoreFound("store")]


def test_a_listener_may_stop_during_an_event() -> None:
    bus, heard = EventBus(), list[Event]()

    def once(event: Event) -> None:
        heard.append(event)
        stop()

    stop = bus.listen(once)
    bus.publish(StoreFound("a"))
    bus.publish(StoreFound("b"))
    assert heard == [StoreFound("a")]


def test_the_number_of_kept_events_is_bounded() -> None:
    bus = EventBus(keep=3)
    for n in range(10):
        bus.publish(StoreFound(str(n)))
    assert [event.source for event in bus.recent] == ["7", "8", "9"]


def test_a_listener_that_publishes_without_end_is_bounded_in_memory() -> None:
    bus, told = EventBus(keep=5), 0

    def echo(event: Event) -> None:
        nonlocal told
        told += 1
        if told <= 1000:
            for _ in range(3):
                bus.publish(StoreFound("echo"))

    bus.listen(echo)
    bus.publish(StoreFound("first"))
    assert 1000 <= told <= 1000 + 5, "of 3,000 waiting events five were kept"
