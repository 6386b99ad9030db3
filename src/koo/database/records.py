"""ConnectionRecord: what koo knows of one connection of the pool, for as long as it lives.

SQLAlchemy measures the age of connections in wall time and throws a whole pool away by it: after one lost connection
and a step of the clock each checkout reconnects. A link counts in monotonic time, and belongs to a *generation*: when
all connections are known to be useless (a black hole, a failover) the number goes up, and each older link is replaced
when it is next taken.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from koo.database.drivers.base import Driver

if TYPE_CHECKING:
    from koo.database.scope import SessionScope


class ConnectionRecord:
    """One connection. `busy`: something is sent and not answered; `scope`: whose it is while it is checked out."""

    __slots__ = (
        "_loop", "aborted", "adapted", "busy", "driver", "expires_at", "fresh", "generation", "idle_since",
        "in_transaction", "scope", "writing",
    )  # fmt: skip

    def __init__(
        self,
        adapted: Any,
        driver: Driver,
        *,
        now: float,
        expires_at: float,
        generation: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.adapted = adapted
        self.driver = driver
        self.expires_at = expires_at
        self.generation = generation
        self.idle_since = now
        self.fresh = True
        self.aborted = False
        self.in_transaction = False  # SQLite only: the others know it themselves
        self.writing = False
        self.scope: SessionScope | None = None
        self.busy = False

    @property
    def connection(self) -> Any:
        """The driver's own connection."""
        return self.adapted.driver_connection

    @property
    def is_closed(self) -> bool:
        return self.aborted or self.driver.is_closed(self.connection)

    def abort(self) -> None:
        """Cut it off: whoever waits for it gets an error now. The other side is not asked."""
        if self.aborted:
            return
        self.aborted = True
        with suppress(RuntimeError):  # its event loop has ended, and the socket with it
            self.driver.cut_off(self.connection)

    def abort_in(self, seconds: float) -> asyncio.TimerHandle:
        """Cut it off then, unless the timer is cancelled before."""
        return self._loop.call_later(seconds, self.abort)

    async def cancel(self, within_s: float) -> None:
        """Ask the other side to stop the statement that runs. Best effort: who must be sure also calls `abort_in`."""
        try:
            await self.driver.cancel(self.connection, within_s)
        except Exception:  # noqa: BLE001 - any driver's error; the cutting off follows
            return
