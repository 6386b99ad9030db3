"""A body or a response has a credit of time, which time uses up and bytes refill. Time is advanced by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from koo.web.connection import BODY_BYTES_PER_S, PATIENCE_S, READER_BYTES_PER_S, Connection, Waits
from koo.web.crowd import Crowd

BUFFERED = 1_000_000


class Peer:
    """A connection without a socket; `unread` bytes of a response are in its buffer."""

    def __init__(self, waits_for: Waits) -> None:
        self.unread, self.now = BUFFERED, 0.0
        one: Any = object.__new__(type("Alone", (Connection,), {"crowd": Crowd(10)}))
        one._waits_for, one._patience_s, one._patience_at = waits_for, PATIENCE_S, 0.0
        one._body_bytes, one._unread_bytes = 0, BUFFERED
        one.transport = SimpleNamespace(get_write_buffer_size=lambda: self.unread)
        one.flow = SimpleNamespace(read_paused=False)
        self.one = one

    def second(self, byte_count: float) -> bool:
        """Let a second pass in which so many bytes arrive or leave. Return whether the patience is used up."""
        self.now += 1
        self.unread -= int(byte_count)
        self.one._body_bytes += int(byte_count)
        lost: bool = self.one._lost_patience(self.now)
        return lost

    def outlasts(self, seconds: float, byte_count: float = 0) -> bool:
        return not any(self.second(byte_count) for _ in range(int(seconds)))


RATES = pytest.mark.parametrize(
    ("waits_for", "rate"), [("body", BODY_BYTES_PER_S), ("reader", READER_BYTES_PER_S)]
)


@RATES
def test_the_slowest_allowed_rate_may_continue_forever(waits_for: Waits, rate: int) -> None:
    assert Peer(waits_for).outlasts(10 * PATIENCE_S, rate)
    assert not Peer(waits_for).outlasts(3 * PATIENCE_S, rate / 2)


@RATES
def test_a_connection_without_progress_has_the_same_time_limit_whatever_came_before(
    waits_for: Waits, rate: int
) -> None:
    peer = Peer(waits_for)
    assert peer.outlasts(1, 100 * rate) and peer.outlasts(PATIENCE_S)
    assert peer.second(0)


def test_a_body_that_koo_does_not_read_is_not_late() -> None:
    peer = Peer("body")
    peer.one.flow.read_paused = True
    assert peer.outlasts(10 * PATIENCE_S)
