"""The limit on open connections, and which connection is closed when one more arrives.

A connection is *waiting* while koo waits for its client: for a first byte, the rest of a head, the next request, a
body, or for the client to read a response. It is *busy* while koo works on a request. Only a waiting connection may be
closed to make room, so clients that merely hold connections open never lock others out:

* Connections that have never sent a request are closed first, then the other waiting ones.
* Among these, the address with the most connections loses the one that has waited longest. A client that sends its
  request right away is always the newest, even if others on its address open connections without end.
* If every connection is busy, a few more are let in so that probes are answered. Other requests on them are refused
  immediately. Beyond these few, new connections are closed.

The limit follows from the limit on file descriptors: each request may need a second one, for a provider or a database,
and a process without any can neither log nor open its own files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from koo.host import Descriptors

CONNECTIONS_MAX = 10_000
"""No process can serve more than this, whatever its limit on descriptors allows."""
CONNECTIONS_MIN = 8
FOR_PROBES = 8
"""How many connections are let in above the limit while all others are busy."""
HEADS_BYTES_MAX = 32 * 1024 * 1024
"""The limit for all unfinished heads together. Each is limited to 64 KiB, but 10,000 of them would take over 600 MB."""
SWEEP_S = 1.0
# How often deadlines are checked. They are 5 s and more, so a second's delay does not matter; checking 10,000
# connections more often would cost time that requests need.
CALM_S = 60.0
"""The flood counts as over once there has been room for this long, so that it is logged once and not once for each
wave."""
log = logging.getLogger("koo.web")


class Member(Protocol):
    """A connection, as `Crowd` sees it."""

    address: str

    @property
    def head_bytes(self) -> int:
        """How much of an unfinished head it holds."""

    def look(self, now: float) -> None:
        """Close the connection if its deadline has passed."""

    def end(self) -> None:
        """Close immediately, without a response, release the descriptor, and subtract its `head_bytes`."""


class Crowd:
    """The open connections of one server."""

    def __init__(self, bound: int = CONNECTIONS_MAX, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.bound = bound
        self.monotonic = monotonic
        self.heads_bytes = 0
        self._all: dict[Member, None] = {}
        self._extra: set[Member] = set()
        # There are three queues of waiting connections: those that have never sent a request, those that have, and
        # those let in above the limit for probes. A busy connection is in none of them, which is what protects it from
        # being closed.
        self._strange, self._known, self._late = _Waiting(), _Waiting(), _Waiting()
        self._swept_at = monotonic()
        self._full_at: float | None = None
        self._ended = self._refused = 0

    def __len__(self) -> int:
        return len(self._all)

    # ── joining and leaving ───────────────────────────────────────────────────────────────────────────────────

    def enter(self, one: Member) -> bool:
        """Return whether there is room for one more connection, closing a waiting one if necessary."""
        if len(self._all) >= self.bound:
            self._tell_full()
            # Usually one connection is closed here, but several if busy ones above the limit have become idle since.
            while len(self._all) >= self.bound and self._end_one():
                pass
            # Every connection below the limit is busy. The extra ones are for probes, so an extra connection that is
            # waiting makes room for the newcomer. Otherwise eight silent connections would block the probes, and an
            # orchestrator would restart a server that is merely busy.
            if len(self._all) >= self.bound + FOR_PROBES and not self._end(self._late.oldest_of_most()):
                self._refused += 1
                return False
        # This is decided after closing: a newcomer whose place was freed above is an ordinary connection, not an extra
        # one.
        if len(self._all) >= self.bound:
            self._extra.add(one)
        self._all[one] = None
        self.waits(one, is_known=False)
        return True

    def make_room(self) -> None:
        """Close a waiting connection, if there is one, because a file descriptor is missing."""
        self._end_one()

    def leave(self, one: Member) -> None:
        self._all.pop(one, None)
        self._extra.discard(one)
        self.works(one)

    def waits(self, one: Member, is_known: bool) -> None:
        """Note that koo now waits for this client. `is_known`: it has sent a request before."""
        # `leave` may have come first: a connection that is being closed still reports its last change of state. Adding
        # it again would leave an entry that no event removes, and `_end_one` would choose it over a live connection.
        if one in self._all:
            self.works(one)
            row = self._late if one in self._extra else self._known if is_known else self._strange
            row.add(one)

    def works(self, one: Member) -> None:
        """Note that koo now works on a request of this connection."""
        for row in (self._strange, self._known, self._late):
            row.discard(one)

    def refuses(self, one: Member) -> bool:
        """Return whether to refuse its request because it was let in above the limit. Probes are always answered."""
        # The second condition is needed because others may have left since: then it counts as a regular connection.
        is_refused = one in self._extra and len(self._all) > self.bound
        self._refused += is_refused
        return is_refused

    def gather(self, byte_count: int) -> None:
        """Add to the bytes held in unfinished heads; a negative number subtracts."""
        # Each head is limited, but many slow clients could each send almost that much and stop. The bytes are counted
        # while they are in the parser, which has no limit of its own.
        self.heads_bytes += byte_count
        # The connection with the largest head is closed, not the one that has waited longest: an idle one holds no
        # bytes, so closing it would not help, and all idle clients would be closed before the first that is to blame.
        # `end` subtracts what it held.
        while self.heads_bytes > HEADS_BYTES_MAX and byte_count > 0:
            largest = max(self._all, key=lambda one: one.head_bytes, default=None)
            if largest is None or not largest.head_bytes:
                return
            self._end(largest)

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────

    def sweep(self) -> None:
        """Check every connection's deadline, at most once a second. Call it more often than that."""
        now = self.monotonic()
        if now - self._swept_at < SWEEP_S:
            return
        self._swept_at = now
        for one in list(self._all):  # a copy: a connection that is closed here leaves the dictionary
            one.look(now)
        if len(self._all) >= self.bound:
            # The server is still full, so the minute of calm starts again. A flood comes in waves with room for a
            # second or two in between; without the minute, each wave would be logged as a flood of its own.
            self._full_at = now if self._full_at is not None else None
        elif self._full_at is not None and now - self._full_at >= CALM_S:
            self._tell_calm()

    def _end_one(self) -> bool:
        # `or`: connections that have sent a request are closed only when there are no others left.
        return self._end(self._strange.oldest_of_most() or self._known.oldest_of_most())

    def _end(self, one: Member | None) -> bool:
        if one is None:
            # It is removed now and not by `connection_lost`: that runs in the loop's next turn, and `enter` counts
            # immediately.
            return False
        self._ended += 1
        self.leave(one)
        one.end()
        return True

    def _tell_full(self) -> None:
        if self._full_at is None:
            log.warning(
                "%d connections are open, which is the limit (half of the file descriptors): the longest idle ones "
                "are closed to make room; raise the limit on open files, or find out which clients connect",
                self.bound,
                extra={"what": "connections_full", "count": self.bound},
            )
        self._full_at = self.monotonic()

    def _tell_calm(self) -> None:
        log.info(
            "there has been room for connections for %.0f s; %d were closed for new ones, %d refused",
            CALM_S,
            self._ended,
            self._refused,
            extra={"what": "connections_have_room", "count": self._ended + self._refused},
        )
        self._full_at = None
        self._ended = self._refused = 0


class _Waiting:
    """Waiting connections by address, longest waiting first (a dictionary keeps its insertion order)."""

    def __init__(self) -> None:
        self._of: dict[str, dict[Member, None]] = {}

    def add(self, one: Member) -> None:
        self._of.setdefault(one.address, {})[one] = None

    def discard(self, one: Member) -> None:
        of_address = self._of.get(one.address)
        if of_address is not None and one in of_address:
            del of_address[one]
            if not of_address:
                del self._of[one.address]

    # The scan over all addresses is linear, but runs only at the limit, and at most 10,000 addresses fit under it.
    def oldest_of_most(self) -> Member | None:
        most = max(self._of.values(), key=len, default=None)
        return next(iter(most)) if most else None


def bound_of(descriptors: Descriptors | None) -> int:
    """Return the limit on connections: half of the free descriptors. None means that descriptors are unlimited."""
    if descriptors is None:
        return CONNECTIONS_MAX
    # It is half of them, because a request may need a second descriptor for its provider or database; those of the
    # extra connections are subtracted too. It is never below the minimum: a server that accepted nothing could not even
    # report the problem.
    free = descriptors.limit - descriptors.used
    return max(CONNECTIONS_MIN, min(CONNECTIONS_MAX, free // 2 - FOR_PROBES))
