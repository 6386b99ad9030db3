"""ScopeGate: whether new scopes may begin. An operator shuts and opens it; running scopes are not touched.

*Paused*, new scopes wait, each until its own deadline: for the half minute of a failover or a migration that callers
need not notice. *Draining*, new and queued scopes are refused: for the last minute of a process or a database.
`resume` ends both. The gate belongs to the `Database`: it stays shut while that is closed and opened again.
"""

from __future__ import annotations

import asyncio
from enum import Enum

from koo.database.faults import AGAIN_IN_S, SERVICE
from koo.errors import DatabaseUnavailable, Kind


class GateState(Enum):
    """`.value` is what users see."""

    OPEN = "open"
    PAUSED = "paused"
    DRAINING = "draining"


class ScopeGate:
    """`state`; `is_shut`: not open, checked by each scope; `waiting`: how many scopes wait for `resume`."""

    __slots__ = ("_waiters", "is_shut", "state")

    def __init__(self) -> None:
        self.state = GateState.OPEN
        self.is_shut = False
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def set(self, state: GateState) -> None:
        """Set the state, and let waiting scopes look again."""
        self.state, self.is_shut = state, state is not GateState.OPEN
        if state is not GateState.PAUSED:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def refuse_if_draining(self) -> None:
        """Raises `DatabaseUnavailable` while it is being drained."""
        if self.state is GateState.DRAINING:
            raise DatabaseUnavailable(
                SERVICE,
                "an operator is draining it: no new scope begins until it is resumed",
                kind=Kind.DRAINING,
            )

    async def enter(self, within_s: float) -> None:
        """Wait while it is paused. Raises `DatabaseUnavailable` if it is drained or the time runs out."""
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
                "an operator paused it, and did not resume it before the scope's deadline",
                AGAIN_IN_S,
                kind=Kind.DRAINING,
            )

    def forget(self) -> None:
        """Another event loop begins: the waiters belong to one that has ended."""
        self._waiters.clear()
