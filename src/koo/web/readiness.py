"""Whether traffic is welcome, and how a server ends: `/readyz` says so first, then the door is shut.

A balancer hears that a process ends by asking `/readyz`, every few seconds. If new connections were refused at once, it
would send callers to a closed door until then. So after SIGTERM `/readyz` is 503, and everything else is answered as
before, for a moment (`shutdown_delay_s`). Where `/readyz` was not asked lately no balancer waits for it, and the moment
lasts only as long as requests run.

Ctrl-C and a second signal do not wait: a person sits there.
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
"""A balancer that asks less often than this would learn of the end too late in any case."""


class Readiness:
    """Of one platform's process. `begun`: its start is over; `closing`: its end has begun."""

    def __init__(self, platform: Platform, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._platform = platform
        self._monotonic = monotonic
        self._asked_at = -NEVER
        self._ends_since = self._shuts_at = NEVER
        self.begun = self.closing = False
        self.expects_start = False

    # ── asked ─────────────────────────────────────────────────────────────────────────────────────────────────

    def asked(self) -> None:
        """Note that `/readyz` is watched. Raises the reason against traffic, from memory; asks no dependency."""
        self._asked_at = self._monotonic()
        self.warn_of_no_start()
        self.check()

    def warn_of_no_start(self) -> None:
        """Say once that requests are answered although the application's lifespan never ran."""
        if self.expects_start and not self.begun:
            self.expects_start = False
            log.warning(
                "the application's lifespan never ran: koo opens itself with the first call that needs it, /readyz "
                "says no until then, and nothing closes it in order; let the server run it (uvicorn: not "
                "--lifespan off), "
                "and let a host pass it on to a sub-application",
                extra={"what": "lifespan_never_ran"},
            )

    def check(self) -> None:
        """Raises the reason against traffic."""
        if self.closing:
            raise ServiceRefused("koo", "this process is ending", kind=Kind.DRAINING)
        database = self._platform.database
        database.gate.refuse_if_draining()
        if database.circuit_breaker_state is DatabaseState.CIRCUIT_OPEN:
            raise DatabaseUnavailable("database", "its circuit breaker is open")
        if database.last_look is None:
            raise DatabaseUnavailable("database", "it has not been looked at yet", kind=Kind.CONNECTION)
        # A server that is full refuses the probe's connection, and goes on answering those who have one.
        if database.guard.evidence().checks_failed:
            raise DatabaseUnavailable("database", "it does not answer", kind=Kind.CONNECTION)

    # ── ending ────────────────────────────────────────────────────────────────────────────────────────────────

    def begin_to_end(self, delay_s: float) -> None:
        """From now on `/readyz` says no; the door is shut in `delay_s` at the latest."""
        self.closing = True
        self._ends_since = self._monotonic()
        self._shuts_at = self._ends_since + delay_s

    @property
    def ending_s(self) -> float:
        """How long ago its end began."""
        return max(0.0, self._monotonic() - self._ends_since)

    def is_door_open(self, running: int) -> bool:
        """Are new connections still answered? `running`: requests that are being answered."""
        now = self._monotonic()
        is_watched = now - self._asked_at < WATCHED_S
        return now < self._shuts_at and (is_watched or running > 0)


_of: WeakKeyDictionary[Platform, Readiness] = WeakKeyDictionary()


def readiness_of(platform: Platform) -> Readiness:
    """The one of this platform: its routes, its lifespan and its server speak of the same."""
    return _of.setdefault(platform, Readiness(platform))
