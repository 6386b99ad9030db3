"""The audit: who did what, and what was refused. Each entry is a log line, and the latest entries are listed.

An act changes something for others: a reset, a pause, a silence. A query is not an act: a server with a hundred
queries a second would log nothing else, and the ledger records what queries cost. Each act has who (which token, or
this machine), what (the method and the route, without text from the caller), the address, and the access check's
result. Refusals of one address with one status, queries included, are logged when they start and then once a minute
with their count, so that an unknown client cannot fill a disk. The list counts them in the same way.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from koo.clock import iso
from koo.logs.lines import request_id
from koo.monitoring.shapes import AuditEntry
from koo.plain_text import plain
from koo.platform import Platform
from koo.web.addresses import client_of
from koo.web.guesses import Guesses
from koo.web.security import Denial, Who

KEPT = 1000
AGAIN_S = 60.0
ADDRESSES_MAX = 1024
log = logging.getLogger("koo.audit")


@dataclass(slots=True)
class Refusals:
    """Refusals of one address and status: when the current minute began, and how many were not logged in it."""

    began: float
    unsaid: int = 0


class Audit:
    """The last acts and refusals of one process."""

    def __init__(
        self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self.guesses = Guesses(monotonic)
        self._entries: deque[AuditEntry] = deque(maxlen=KEPT)
        self._refusals: OrderedDict[tuple[str, int], Refusals] = OrderedDict()

    def note(self, who: Who, what: str, where: str, denial: Denial | None) -> None:
        """Record an act that was allowed, or a request that was refused."""
        unsaid = 0
        if denial is not None:
            seen = self._count(where, denial.status)
            if seen is None:
                return
            unsaid = seen
        entry = AuditEntry(
            at=iso(self._wall()),
            who=who or "unknown",
            what=what,
            peer=plain(where, 64),
            status=denial.status if denial is not None else 200,
            reason=denial.detail if denial is not None else "",
            more=unsaid,
        )
        self._entries.append(entry)
        _write(entry)

    def entries(self, limit: int = KEPT) -> list[AuditEntry]:
        """The entries, newest first."""
        return list(reversed(self._entries))[:limit]

    def _count(self, where: str, status: int) -> int | None:
        """Return how many refusals were not logged since the last line, or None if this one is not logged either."""
        # The entry is removed and added again, so that the dictionary is ordered by last use and the oldest address is
        # dropped. An attacker with many addresses can cause others to be dropped. That costs an extra log line for
        # each, but no memory.
        now, key = self._monotonic(), (client_of(where), status)
        refusals = self._refusals.pop(key, None)
        if refusals is not None and now - refusals.began < AGAIN_S:
            refusals.unsaid += 1
            self._refusals[key] = refusals
            return None
        self._refusals[key] = Refusals(now)
        while len(self._refusals) > ADDRESSES_MAX:
            self._refusals.popitem(last=False)
        return refusals.unsaid if refusals is not None else 0


def _write(entry: AuditEntry) -> None:
    facts = {
        "what": "refused_at_the_door" if entry["reason"] else "act",
        "who": entry["who"],
        "route": entry["what"],
        "peer": entry["peer"],
        "status": entry["status"],
        "reason": entry["reason"],
        "request_id": request_id.get(),
    }
    given = {name: value for name, value in facts.items() if value != ""}
    if not entry["reason"]:
        log.info("%s by %s from %s", entry["what"], entry["who"], entry["peer"], extra=given)
        return
    more = f"; {entry['more']} more like it before this one" if entry["more"] else ""
    log.warning(
        "%s from %s was refused (%d): %s%s",
        entry["what"],
        entry["peer"],
        entry["status"],
        entry["reason"],
        more,
        extra=given,
    )


_of: WeakKeyDictionary[Platform, Audit] = WeakKeyDictionary()


def audit_of(platform: Platform) -> Audit:
    """Return the platform's only instance, whichever routers serve it."""
    return _of.setdefault(platform, Audit())
