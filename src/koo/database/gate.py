"""ScopeGate: whether new scopes may begin. An operator shuts and opens it; running scopes are not affected.

While *paused*, new scopes wait, each until its own deadline: for half a minute of failover or migration that callers
should not notice. While *draining*, new and queued scopes are refused: before a process or a database is shut down.
`resume` ends both. The gate belongs to the `Database`, so it stays shut when the database is closed and used again.
"""

from __future__ import annotations

import asyncio
from enum import Enum

from koo.database.faults import AGAIN_IN_S, SERVICE
from koo.errors import DatabaseUnavailable, Kind
from koo.openings import Act


class GateState(Enum):
    """The state of the gate; `.value` is the text shown to users."""

    OPEN = "open"
    PAUSED = "paused"
    DRAINING = "draining"


class ScopeGate:
    """`state`; `act`: who set it and why; `is_shut`: it is not OPEN; `waiting`: how many scopes wait for `resume`."""

    __slots__ = ("_waiters", "act", "is_shut", "state")

    def __init__(self) -> None:
        self.state = GateState.OPEN
        self.act: Act | None = None
        self.is_shut = False  # kept apart from `state` because every scope checks it
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def set(self, state: GateState, act: Act | None = None) -> None:
        """Set the state. Unless it is PAUSED, wake the waiting scopes, which then check it."""
        if state is not self.state:
            self.act = act
        self.state, self.is_shut = state, state is not GateState.OPEN
        if state is not GateState.PAUSED:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def refuse_if_draining(self) -> None:
        """Raise `DatabaseUnavailable` while the gate is draining."""
        if self.state is GateState.DRAINING:
            raise DatabaseUnavailable(
                SERVICE,
                "an operator is draining it: no new scope can begin until it is resumed",
                kind=Kind.DRAINING,
            )

    async def enter(self, within_s: float) -> None:
        """Wait while the gate is paused. Raises `DatabaseUnavailable` if it is draining or `within_s` passes."""
        # Each scope has a future of its own, instead of an `asyncio.Event`: the gate outlives its event loop, and
        # `forget` only has to drop futures. After the wait the state is read again, because it may have changed twice
        # before this task runs.
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            if self.state is GateState.PAUSED:
                await asyncio.wait([waiter], timeout=max(within_s, 0.0))
        finally:
            self._waiters.discard(waiter)
        self.refuse_if_draining()
        if self.state is GateState.PAUSED:
            raise DatabaseUnavailable(
                SERVICE,
                "an operator paused it and did not resume it before the scope's deadline",
                AGAIN_IN_S,
                kind=Kind.DRAINING,
            )

    def forget(self) -> None:
        """Forget the waiters: they belong to an event loop that has ended."""
        self._waiters.clear()
