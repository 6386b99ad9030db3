"""How many connections a server holds, and which of them ends when one more comes.

A connection on which koo waits for its caller (nothing has come, half a head, an idle one, a body, an answer that is
not read) may end for a new one. A connection on which koo works may not. So callers who only keep connections open
never keep others out:

* First those end that never asked anything, then the others on which koo waits.
* Of these, one of the address that has most; of that address, the one that has waited longest. A caller who asks at
  once is the newest, even where another caller of the same address opens connections without end.
* Where koo works on all of them, a few more are let in, so that probes are answered; other requests on these are
  refused at once. Beyond the few a new connection is closed.

The bound follows from the limit of file descriptors: each request may need a second one, for a provider or a database,
and a process without any can neither log nor open its own files.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from koo.host import Descriptors

CONNECTIONS_MAX = 10_000
"""Above what one process can answer, whatever its limit of descriptors allows."""
CONNECTIONS_MIN = 8
FOR_PROBES = 8
"""Let in above the bound, where koo works on all others."""
HEADS_BYTES_MAX = 32 * 1024 * 1024
"""Of all heads together that have begun and not ended."""
SWEEP_S = 1.0
CALM_S = 60.0
"""The bound counts as left when there was room for that long: one line for a flood, not one for each of its waves."""
log = logging.getLogger("koo.web")


class Member(Protocol):
    """A connection, as the crowd sees it."""

    address: str

    def look(self, now: float) -> None:
        """End what has lasted too long."""

    def end(self) -> None:
        """Close at once, without an answer, and give the descriptor back."""


class Crowd:
    """The connections of one server."""

    def __init__(self, bound: int = CONNECTIONS_MAX, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.bound = bound
        self.monotonic = monotonic
        self.heads_bytes = 0
        self._all: dict[Member, None] = {}
        self._extra: set[Member] = set()
        self._strange, self._known, self._late = _Waiting(), _Waiting(), _Waiting()
        self._swept_at = monotonic()
        self._full_at: float | None = None
        self._ended = self._refused = 0

    def __len__(self) -> int:
        return len(self._all)

    # ── coming and going ──────────────────────────────────────────────────────────────────────────────────────

    def enter(self, one: Member) -> bool:
        """Is there room for one more, or could it be made?"""
        if len(self._all) >= self.bound:
            self._tell_full()
            while len(self._all) >= self.bound and self._end_one():
                pass
            if len(self._all) >= self.bound + FOR_PROBES and not self._end(self._late.oldest_of_most()):
                self._refused += 1
                return False
        if len(self._all) >= self.bound:
            self._extra.add(one)
        self._all[one] = None
        self.waits(one, is_known=False)
        return True

    def make_room(self) -> None:
        """A descriptor is missing: one on which koo waits ends, if there is one."""
        self._end_one()

    def leave(self, one: Member) -> None:
        self._all.pop(one, None)
        self._extra.discard(one)
        self.works(one)

    def waits(self, one: Member, is_known: bool) -> None:
        """From now on koo waits for its caller. `is_known`: who has asked something before."""
        if one in self._all:
            self.works(one)
            row = self._late if one in self._extra else self._known if is_known else self._strange
            row.add(one)

    def works(self, one: Member) -> None:
        """From now on it is koo's turn."""
        for row in (self._strange, self._known, self._late):
            row.discard(one)

    def refuses(self, one: Member) -> bool:
        """Is what it asks refused, because it was let in above the bound? Its probes are answered."""
        is_refused = one in self._extra and len(self._all) > self.bound
        self._refused += is_refused
        return is_refused

    def gather(self, byte_count: int) -> None:
        """More (or, below zero, fewer) bytes are in heads that have not ended."""
        self.heads_bytes += byte_count
        while self.heads_bytes > HEADS_BYTES_MAX and self._end_one():
            pass

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────

    def sweep(self) -> None:
        """Let each connection look at its time, once a second; call it more often than that."""
        now = self.monotonic()
        if now - self._swept_at < SWEEP_S:
            return
        self._swept_at = now
        for one in list(self._all):
            one.look(now)
        if len(self._all) >= self.bound:
            self._full_at = now if self._full_at is not None else None
        elif self._full_at is not None and now - self._full_at >= CALM_S:
            self._tell_calm()

    def _end_one(self) -> bool:
        return self._end(self._strange.oldest_of_most() or self._known.oldest_of_most())

    def _end(self, one: Member | None) -> bool:
        if one is None:
            return False
        self._ended += 1
        self.leave(one)
        one.end()
        return True

    def _tell_full(self) -> None:
        if self._full_at is None:
            log.warning(
                "%d connections are open, which is the limit (half of the file descriptors): those idle for longest "
                "are closed for new ones; raise the limit of open files, or find out who connects",
                self.bound,
                extra={"what": "connections_full", "count": self.bound},
            )
        self._full_at = self.monotonic()

    def _tell_calm(self) -> None:
        log.info(
            "there has been room for connections for %.0f s; %d were ended for new ones, %d refused",
            CALM_S,
            self._ended,
            self._refused,
            extra={"what": "connections_have_room", "count": self._ended + self._refused},
        )
        self._full_at = None
        self._ended = self._refused = 0


class _Waiting:
    """Connections by address, of each address the oldest first."""

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

    def oldest_of_most(self) -> Member | None:
        most = max(self._of.values(), key=len, default=None)
        return next(iter(most)) if most else None


def bound_of(descriptors: Descriptors | None) -> int:
    """How many connections there may be: half of the descriptors that are free, None being as many as one likes."""
    if descriptors is None:
        return CONNECTIONS_MAX
    free = descriptors.limit - descriptors.used
    return max(CONNECTIONS_MIN, min(CONNECTIONS_MAX, free // 2 - FOR_PROBES))


@lru_cache(1024)
def address_of(host: str) -> str:
    """What counts as one address: of IPv6 the network of 64 bits, which one subscriber has whole."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
