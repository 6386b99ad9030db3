"""Whether this process is ready for traffic. On shutdown `/readyz` turns to 503 before new connections are refused.

A load balancer learns that a process is ending only from its next `/readyz` check, which may be seconds away. If new
connections were refused immediately, it would send requests to a closed port until then. So after SIGTERM `/readyz` is
503 and everything else is served as before, for up to `shutdown_delay_s`. If `/readyz` has not been requested lately,
no load balancer is watching, and the delay lasts only as long as requests are running.

Ctrl-C and a second signal skip the delay: a person is waiting.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

from koo.errors import DatabaseUnavailable, Kind, ServiceRefused
from koo.options import NEVER
from koo.platform import Platform
from koo.policies.reported import DatabaseState

log = logging.getLogger("koo.web")
WATCHED_S = 60.0
"""A load balancer that checks less often than this would notice the shutdown too late in any case."""


class Readiness:
    """The readiness of one platform's process. `begun`: startup is complete. `closing`: shutdown has begun."""

    def __init__(self, platform: Platform, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._platform = platform
        self._monotonic = monotonic
        self._asked_at = -NEVER
        self._ends_since = self._shuts_at = NEVER
        self.begun = self.closing = False
        self.expects_start = False

    # ── requests ──────────────────────────────────────────────────────────────────────────────────────────────

    def asked(self) -> None:
        """Note that `/readyz` is watched. Raises if this process is not ready; uses only what is in memory."""
        self._asked_at = self._monotonic()
        self.warn_of_no_start()
        self.check()

    def warn_of_no_start(self) -> None:
        """Warn once that requests are served although the application's lifespan never ran."""
        if self.expects_start and not self.begun:
            self.expects_start = False
            log.warning(
                "the application's lifespan never ran: koo opens with the first call that needs it, /readyz "
                "returns 503 until then, and nothing closes koo cleanly; let the server run the lifespan (uvicorn: "
                "not --lifespan off), and let an outer application pass it on to a mounted one",
                extra={"what": "lifespan_never_ran"},
            )

    def check(self) -> None:
        """Raises if this process is not ready for traffic."""
        if self.closing:
            raise ServiceRefused("koo", "this process is ending", kind=Kind.DRAINING)
        database = self._platform.database
        database.gate.refuse_if_draining()
        if database.circuit_breaker_state is DatabaseState.CIRCUIT_OPEN:
            raise DatabaseUnavailable("database", "its circuit breaker is open")
        if database.last_look is None:
            raise DatabaseUnavailable("database", "it has not been checked yet", kind=Kind.CONNECTION)
        # A database server that has reached its connection limit refuses the probe's connection, but still serves the
        # connections in the pool. So judge by failed checks only, not by the last error.
        if database.guard.evidence().checks_failed:
            raise DatabaseUnavailable("database", "it does not answer", kind=Kind.CONNECTION)

    # ── shutting down ─────────────────────────────────────────────────────────────────────────────────────────

    def begin_to_end(self, delay_s: float) -> None:
        """From now on `/readyz` returns 503; new connections are refused after `delay_s` at the latest."""
        self.closing = True
        self._ends_since = self._monotonic()
        self._shuts_at = self._ends_since + delay_s

    @property
    def ending_s(self) -> float:
        """Seconds since shutdown began."""
        return max(0.0, self._monotonic() - self._ends_since)

    def is_door_open(self, running: int) -> bool:
        """Return whether new connections are still served. `running`: the number of requests being answered."""
        now = self._monotonic()
        is_watched = now - self._asked_at < WATCHED_S
        return now < self._shuts_at and (is_watched or running > 0)


_of: WeakKeyDictionary[Platform, Readiness] = WeakKeyDictionary()


def readiness_of(platform: Platform) -> Readiness:
    """Return the platform's only instance, which its routes, its lifespan and its server share."""
    return _of.setdefault(platform, Readiness(platform))
