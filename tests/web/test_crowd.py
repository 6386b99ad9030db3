"""If there are too many connections, the oldest waiting one of the address with the most is closed."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest

from koo.host import Descriptors
from koo.web.crowd import (
    CALM_S,
    CONNECTIONS_MAX,
    CONNECTIONS_MIN,
    FOR_PROBES,
    HEADS_BYTES_MAX,
    Crowd,
    bound_of,
)


@dataclass(eq=False)
class One:
    """A connection that records what happens to it."""

    address: str = "192.0.2.1"
    is_over: bool = False
    looks: list[float] = field(default_factory=list)
    head_bytes: int = 0
    crowd: Crowd | None = None

    def look(self, now: float) -> None:
        self.looks.append(now)

    def end(self) -> None:
        self.is_over = True
        if self.crowd is not None:
            self.crowd.gather(-self.head_bytes)
            self.head_bytes = 0


class Time:
    """Seconds, advanced by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def filled(bound: int, *ones: One) -> Crowd:
    crowd = Crowd(bound, Time())
    for one in ones:
        assert crowd.enter(one)
    return crowd


def test_the_oldest_connection_of_the_address_with_most_is_closed_for_a_new_one() -> None:
    neighbour, *many = One("192.0.2.9"), One(), One(), One()
    crowd = filled(4, neighbour, *many)
    assert crowd.enter(One("192.0.2.9"))
    assert [one.is_over for one in (neighbour, *many)] == [False, True, False, False]
    assert len(crowd) == 4


def test_a_connection_that_has_sent_a_request_is_closed_after_those_that_never_did() -> None:
    asked, silent = One(), One()
    crowd = filled(2, asked, silent)
    crowd.works(asked)
    crowd.waits(asked, is_known=True)
    crowd.enter(One())
    assert (asked.is_over, silent.is_over) == (False, True)
    crowd.enter(One("192.0.2.2"))
    crowd.enter(One("192.0.2.3"))
    assert not asked.is_over  # there are still some without a request


def test_a_busy_connection_is_never_closed_and_a_few_more_are_let_in_for_probes() -> None:
    busy = [One(), One()]
    crowd = filled(2, *busy)
    for one in busy:
        crowd.works(one)
    more = [One() for _ in range(FOR_PROBES)]
    assert all(crowd.enter(one) for one in more)
    assert all(crowd.refuses(one) for one in more) and not crowd.refuses(busy[0])
    # A further connection replaces the oldest of these, because they are waiting and the busy ones are not.
    last = One()
    assert crowd.enter(last) and more[0].is_over
    for one in (*more[1:], last):
        crowd.works(one)
    assert not crowd.enter(One())
    assert not any(one.is_over for one in busy)


def test_a_connection_above_the_limit_is_served_once_there_is_room() -> None:
    busy = [One(), One()]
    crowd = filled(2, *busy)
    for one in busy:
        crowd.works(one)
    crowd.enter(more := One())
    assert crowd.refuses(more)
    crowd.leave(busy[0])
    assert not crowd.refuses(more)


def test_beyond_the_limit_on_unfinished_heads_the_largest_is_closed_and_no_idle_connection() -> None:
    idle, small, large = One(), One("192.0.2.2"), One("192.0.2.3")
    crowd = filled(10, idle, small, large)
    for one, byte_count in ((small, 10), (large, HEADS_BYTES_MAX - 10)):
        one.crowd, one.head_bytes = crowd, byte_count
        crowd.gather(byte_count)
    assert not any(one.is_over for one in (idle, small, large))
    small.head_bytes += 1
    crowd.gather(1)
    assert [one.is_over for one in (idle, small, large)] == [False, False, True]
    assert crowd.heads_bytes == 11


def test_each_connection_is_checked_once_a_second() -> None:
    crowd = filled(10, one := One())
    time = crowd.monotonic
    assert isinstance(time, Time)
    for _ in range(30):
        crowd.sweep()
        time.now += 0.1
    assert len(one.looks) == 2
    crowd.leave(one)
    time.now += 5
    crowd.sweep()
    assert len(one.looks) == 2


def test_a_flood_is_over_only_after_a_minute_with_room(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "koo.web")
    stays = [One() for _ in range(3)]
    crowd = filled(3, *stays)
    time = crowd.monotonic
    assert isinstance(time, Time)
    crowd.enter(last := One())
    for _ in range(3):
        time.now += CALM_S
        crowd.sweep()
    crowd.leave(last)
    time.now += CALM_S - 1
    crowd.sweep()
    assert len(caplog.records) == 1, "it was full until a moment ago"
    time.now += 1
    crowd.sweep()
    assert len(caplog.records) == 2


def test_a_flood_has_one_log_line_and_its_end_another(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "koo.web")
    crowd = filled(3)
    time = crowd.monotonic
    assert isinstance(time, Time)
    waves = [[One() for _ in range(50)] for _ in range(3)]
    for wave in waves:
        for one in wave:
            crowd.enter(one)
        for one in wave:
            crowd.leave(one)
        time.now += CALM_S - 1
        crowd.sweep()
    assert [record.message.split(",")[0] for record in caplog.records] == ["3 connections are open"], (
        "its waves are one flood"
    )
    time.now += 1
    crowd.sweep()
    assert caplog.records[-1].message == (
        "there has been room for connections for 60 s; 141 were closed for new ones, 0 refused"
    )
    time.now += CALM_S
    crowd.sweep()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_the_limit_is_half_of_the_free_descriptors_minus_those_for_probes() -> None:
    assert bound_of(Descriptors(24, 1024)) == 500 - FOR_PROBES
    assert bound_of(Descriptors(20, 64)) == 22 - FOR_PROBES
    assert bound_of(Descriptors(60, 64)) == CONNECTIONS_MIN
    assert bound_of(Descriptors(20, 1_048_576)) == CONNECTIONS_MAX
    assert bound_of(None) == CONNECTIONS_MAX
